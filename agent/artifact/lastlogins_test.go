package artifact

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The databases in testdata were made by SQLite 3 with the tables of wtmpdb and
// lastlog2.
func TestLastLogins(t *testing.T) {
	root := t.TempDir()
	for at, from := range map[string]string{"var/lib/wtmpdb/wtmp.db": "testdata/wtmp.db", "var/lib/lastlog/lastlog2.db": "testdata/lastlog2.db"} {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		place(t, root, map[string]string{at: string(data)})
	}
	// A lastlog with a record of UID 4,000,000,000: over a terabyte of holes.
	place(t, root, map[string]string{"var/log/lastlog": ""})
	size, _ := lastlogSize(runtime.GOARCH)
	record := make([]byte, size)
	binary.NativeEndian.PutUint32(record, 1_700_000_000)
	copy(record[size-288:], "pts/1")
	f, err := os.OpenFile(filepath.Join(root, "var/log/lastlog"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(record, 4_000_000_000*size); err != nil {
		t.Fatal(err)
	}
	got, _ := table[LastLogin](t, &Host{Root: root}, "last_logins")
	uid, kind := uint32(4_000_000_000), int64(3)
	when := time.Unix(1_700_000_000, 0).UTC()
	logout := when.Add(time.Second)
	want := []LastLogin{
		{Source: "lastlog", Record: 4_000_000_000, UID: &uid, Login: when, TTY: "pts/1"},
		{Source: "lastlog2", Record: 1, User: "root", Login: when, TTY: "tty1", Service: "login"},
		{Source: "wtmpdb", Record: 1, Type: &kind, User: "mallory", Login: when.Add(time.Microsecond), Logout: &logout, TTY: "pts/0", Host: "203.0.113.9", Service: "sshd"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// A record that was written in part, as on a full disk, costs itself alone.
func TestLoginsResynchronise(t *testing.T) {
	root := t.TempDir()
	layout := loginLayoutOf(runtime.GOARCH)
	whole := func(user string) []byte { return login(layout, 7, user, 1_700_000_000, nil) }
	place(t, root, map[string]string{"var/log/wtmp.1": string(bytes.Join([][]byte{whole("a"), whole("torn")[:100], whole("b"), whole("c")}, nil))})
	got, record := table[Login](t, &Host{Root: root}, "logins")
	var users []Text
	for _, row := range got {
		users = append(users, row.User)
		if row.File != "wtmp.1" {
			t.Errorf("of %s", row.File)
		}
	}
	if diff := cmp.Diff([]Text{"a", "torn", "b", "c"}, users); diff != "" {
		t.Error(diff)
	}
	if find(t, record, "/var/log/wtmp.1").Note != NoteOdd {
		t.Error("a torn record went unsaid")
	}
}

func FuzzLastlogAndTornLogins(f *testing.F) {
	layout := loginLayoutOf("amd64")
	f.Add(bytes.Repeat(login(layout, 7, "x", 1, nil), 2), int64(4))
	f.Fuzz(func(t *testing.T, data []byte, timeBytes int64) {
		if at := tornLogin(data, layout); at < 0 || at >= layout.size {
			t.Errorf("the next record is %d bytes on", at)
		}
		b := make([]byte, 296)
		copy(b, data)
		row, _ := parseLastlog(b, 4+timeBytes&4)
		if _, err := row.Login.MarshalJSON(); err != nil {
			t.Error(err)
		}
	})
}
