package unit

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	got, more := Parse([]byte("[Unit]\nDescription = a b\n[Service]\n# remark\nExecStart=/bin/sh -c \\\n; between\n  'x = y'\nExecStart=\nnonsense\n"))
	want := []Setting{
		{"Unit", "Description", "a b", 2},
		{"Service", "ExecStart", "/bin/sh -c    'x = y'", 5},
		{"Service", "ExecStart", "", 8},
	}
	if diff := cmp.Diff(want, got); diff != "" || more {
		t.Error(diff, more)
	}
}

func TestDropInFolders(t *testing.T) {
	want := []string{"a-b-c@1.service.d", "a-b-c@.service.d", "a-b-.service.d", "a-.service.d", "service.d"}
	if got := DropInFolders("a-b-c@1.service"); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestOfCgroup(t *testing.T) {
	for path, want := range map[string][2]string{
		"/system.slice/ssh.service":                                                 {"ssh.service", ""},
		"/system.slice/docker-0123.scope/init.scope":                                {"docker-0123.scope", ""},
		"/user.slice/user-1000.slice/user@1000.service/app.slice/evil.service":      {"evil.service", "1000"},
		"/user.slice/user-1000.slice/user@1000.service/app.slice/a.service/b.scope": {"a.service", "1000"},
		"/user.slice/user-1000.slice/session-3.scope":                               {"session-3.scope", ""},
		"/": {"", ""},
	} {
		name, user := OfCgroup(path)
		if name != want[0] || user != want[1] {
			t.Errorf("%s: got %q of %q, want %q", path, name, user, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("[Service]\nExecStart=a \\\nb\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		all, _ := Parse(data)
		if len(all) > MaxSettings {
			t.Error("unbounded settings")
		}
		for _, s := range all {
			if len(s.Value) > MaxValue || len(s.Key) > 64 || s.Line < 1 {
				t.Errorf("unbounded %+v", s)
			}
		}
		if folders := DropInFolders(string(data)); len(folders) > 20 {
			t.Error("unbounded folders")
		}
		OfCgroup(string(data))
	})
}
