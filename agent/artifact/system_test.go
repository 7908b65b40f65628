package artifact

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// link makes a symbolic link below a root.
func plantLink(t testing.TB, root, target, name string) {
	t.Helper()
	at := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, at); err != nil {
		t.Fatal(err)
	}
}

func TestUnits(t *testing.T) {
	root := t.TempDir()
	place(t, root, map[string]string{
		"etc/passwd":                               "m:x:1000:1000::/home/m:/bin/sh\n",
		"usr/lib/systemd/system/a@.service":        "[Service]\nExecStart=/bin/true\nUser=m\nNice=5\n",
		"etc/systemd/system/a@.service.d/x.conf":   "[Service]\nExecStart=\nExecStart=/tmp/.x\n",
		"usr/lib/systemd/system/b.timer":           "[Timer]\nOnCalendar=hourly\nPersistent=true\n",
		"etc/systemd/system/b.timer":               "[Timer]\nOnCalendar=*:0/5\n",
		"var/lib/systemd/timers/stamp-b.timer":     "",
		"run/systemd/transient/run-1.service":      "[Service]\nExecStart=/bin/sleep 9\n",
		"home/m/.config/systemd/user/evil.service": "[Service]\nExecStart=/home/m/x\n",
		"proc/20/cgroup":                           "0::/system.slice/system-a.slice/a@one.service\n",
		"proc/21/cgroup":                           "0::/user.slice/user-1000.slice/user@1000.service/app.slice/evil.service\n",
		"proc/22/cgroup":                           "0::/system.slice/ghost.service\n",
		"outside/secret":                           "",
	})
	plantLink(t, root, "/usr/lib/systemd/system/a@.service", "etc/systemd/system/multi-user.target.wants/a@one.service")
	plantLink(t, root, "/dev/null", "etc/systemd/system/ssh.service")
	plantLink(t, root, "../../../../../../../../../../../../etc/hostname", "etc/systemd/system/out.service")
	when := time.Unix(1_700_000_000, 0)
	if err := os.Chtimes(filepath.Join(root, "var/lib/systemd/timers/stamp-b.timer"), when, when); err != nil {
		t.Fatal(err)
	}
	got, record := table[Unit](t, &Host{Root: root}, "systemd_units")
	when = when.UTC()
	want := []Unit{
		{Name: "run-1.service", Kind: "service", Scope: "system", Origin: "transient", Settings: []UnitSetting{{"Service", "ExecStart", "/bin/sleep 9", ""}}},
		{Name: "b.timer", Kind: "timer", Scope: "system", Origin: "etc", LastTrigger: &when, Settings: []UnitSetting{{"Timer", "OnCalendar", "*:0/5", ""}}},
		{Name: "out.service", Kind: "service", Scope: "system", Origin: "etc"},
		{Name: "ssh.service", Kind: "service", Scope: "system", Origin: "etc", Masked: true},
		{Name: "a@.service", Kind: "service", Scope: "system", Origin: "vendor", DropIns: []Text{"/etc/systemd/system/a@.service.d/x.conf"},
			EnabledBy: []Text{"/etc/systemd/system/multi-user.target.wants/a@one.service"},
			Settings: []UnitSetting{{"Service", "ExecStart", "/bin/true", ""}, {"Service", "User", "m", ""},
				{"Service", "ExecStart", "", "/etc/systemd/system/a@.service.d/x.conf"}, {"Service", "ExecStart", "/tmp/.x", "/etc/systemd/system/a@.service.d/x.conf"}},
			Cgroup: "/system.slice/system-a.slice/a@one.service", PIDs: []int{20}},
		{Name: "b.timer", Kind: "timer", Scope: "system", Origin: "vendor", Shadowed: true, LastTrigger: &when,
			Settings: []UnitSetting{{"Timer", "OnCalendar", "hourly", ""}, {"Timer", "Persistent", "true", ""}}},
		{Name: "evil.service", Kind: "service", Scope: "home", Home: "/home/m", Origin: "etc", Settings: []UnitSetting{{"Service", "ExecStart", "/home/m/x", ""}},
			Cgroup: "/user.slice/user-1000.slice/user@1000.service/app.slice/evil.service", PIDs: []int{21}},
		{Name: "ghost.service", Kind: "service", Scope: "system", Origin: "none", Cgroup: "/system.slice/ghost.service", PIDs: []int{22}},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(Unit{}, "FileFacts", "SHA256")); diff != "" {
		t.Error(diff, record)
	}
	for _, u := range got {
		if u.Name == "out.service" && (u.SHA256 != "" || !strings.HasSuffix(string(u.Target), "etc/hostname")) {
			t.Errorf("a link led out of the root: %+v", u)
		}
	}
}

func TestScheduledJobs(t *testing.T) {
	root := t.TempDir()
	place(t, root, map[string]string{
		"etc/crontab":                          "SHELL=/bin/sh\n17 * * * * root run-parts /etc/cron.hourly\nnonsense\n",
		"etc/cron.d/x.bak":                     "@reboot nobody /tmp/.x\n",
		"etc/cron.daily/apt":                   "#!/bin/sh\ntrue\n",
		"etc/anacrontab":                       "1 5 cron.daily run-parts /etc/cron.daily\n",
		"var/spool/cron/root":                  "* * * * * /root/x\n",
		"var/spool/cron/crontabs/m":            "MAILTO=\n* * * * * curl x|sh\n",
		"var/spool/cron/atjobs/a0000401bb40a2": "#!/bin/sh\n# atrun uid=1000 gid=100\nHOME=/h; export HOME\n/tmp/.x\n",
		"var/spool/cron/atjobs/.SEQ":           "4",
	})
	got, record := table[ScheduledJob](t, &Host{Root: root}, "scheduled_jobs")
	due := time.Unix(0x1bb40a2*60, 0).UTC()
	uid, gid := uint32(1000), uint32(100)
	want := []ScheduledJob{
		{Kind: "crontab", Line: 2, Schedule: "17 * * * *", User: "root", Command: "run-parts /etc/cron.hourly", Environment: []Text{"SHELL=/bin/sh"}},
		{Kind: "crontab", Line: 1, Schedule: "@reboot", User: "nobody", Command: "/tmp/.x"},
		{Kind: "anacron", Line: 1, Schedule: "1 5", User: "root", Name: "cron.daily", Command: "run-parts /etc/cron.daily"},
		{Kind: "script", Schedule: "daily", User: "root", Command: "#!/bin/sh"},
		{Kind: "user_crontab", Line: 1, Schedule: "* * * * *", User: "root", Command: "/root/x"},
		{Kind: "user_crontab", Line: 2, Schedule: "* * * * *", User: "m", Command: "curl x|sh", Environment: []Text{"MAILTO="}},
		{Kind: "at", Schedule: Text(due.Format(time.RFC3339)), Due: &due, Queue: "a", Job: 4, RunUID: &uid, RunGID: &gid, Command: "/tmp/.x", Environment: []Text{"HOME=/h"}},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(ScheduledJob{}, "FileFacts")); diff != "" {
		t.Error(diff)
	}
	if e := find(t, record, "/etc/crontab"); e.Note != NoteOdd || e.Detail != "line 3" {
		t.Errorf("on record is %+v", e)
	}
}

// The key and its fingerprint are of ssh-keygen -t ed25519 and ssh-keygen -l.
func TestSSHKeys(t *testing.T) {
	root := t.TempDir()
	place(t, root, map[string]string{
		"etc/passwd":                 "root:x:0:0::/root:/bin/sh\n",
		"root/.ssh/authorized_keys":  "command=\"sh -c \\\"x y\\\"\",no-pty " + testKey + " mallory@evil\nssh-rsa AAAA\n",
		"home/gone/.ssh/known_hosts": "|1|abc=|def= " + testKey + "\n",
		"root/.ssh/id_ed25519":       "private",
	})
	got, record := table[SSHKey](t, &Host{Root: root}, "ssh_keys")
	want := []SSHKey{
		{Use: "authorized", User: "root", Line: 1, Type: "ssh-ed25519", Fingerprint: testFingerprint, Comment: "mallory@evil", Options: `command="sh -c \"x y\"",no-pty`},
		{Use: "known_host", Line: 1, Type: "ssh-ed25519", Fingerprint: testFingerprint, Options: "|1|abc=|def="},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(SSHKey{}, "FileFacts")); diff != "" {
		t.Error(diff)
	}
	if e := find(t, record, "/root/.ssh/authorized_keys"); e.Note != NoteOdd {
		t.Errorf("on record is %+v", e)
	}
}

func TestSudoers(t *testing.T) {
	root := t.TempDir()
	place(t, root, map[string]string{
		"etc/sudoers":         "Defaults env_reset\nUser_Alias OPS = a, b\nroot ALL=(ALL:ALL) ALL\n@includedir /etc/sudoers.d\n@include sudoers\n# remark\n#1000 ALL=NOPASSWD: \\\n /bin/ls\n",
		"etc/sudoers.d/cloud": "ec2-user ALL=(ALL) NOPASSWD:ALL\n",
	})
	got, _ := table[SudoRule](t, &Host{Root: root}, "sudoers")
	want := []SudoRule{
		{Line: 1, Kind: "defaults", Text: "Defaults env_reset"},
		{Line: 2, Kind: "alias", Text: "User_Alias OPS = a, b"},
		{Line: 3, Kind: "rule", Who: "root", Text: "root ALL=(ALL:ALL) ALL", All: true},
		{Line: 4, Kind: "include", Text: "@includedir /etc/sudoers.d"},
		{Line: 1, Kind: "rule", Who: "ec2-user", Text: "ec2-user ALL=(ALL) NOPASSWD:ALL", NoPassword: true, All: true},
		{Line: 5, Kind: "include", Text: "@include sudoers"},
		{Line: 7, Kind: "rule", Who: "#1000", Text: "#1000 ALL=NOPASSWD: /bin/ls", NoPassword: true},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(SudoRule{}, "FileFacts")); diff != "" {
		t.Error(diff)
	}
}

func FuzzSSHKeyAndSudoers(f *testing.F) {
	f.Add(`command="a b" ` + testKey + " x")
	f.Add("root ALL=(ALL) ALL")
	f.Fuzz(func(t *testing.T, text string) {
		if row, ok := parseSSHKey(text); ok && (len(row.Comment) > maxPath || len(row.Type) > 64) {
			t.Error("unbounded")
		}
		for _, row := range parseSudoers([]byte(text)) {
			if len(row.Text) > maxPath || row.Line < 1 {
				t.Errorf("got %+v", row)
			}
		}
	})
}

const (
	testKey         = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMw103IErX2a7B22buCFMm5EgK7e2meRDjNtJ7j7tkpD"
	testFingerprint = "SHA256:M2DE59rDCoxYY+lKRl6msymz0PN5lS/2fmdJio0btho"
)
