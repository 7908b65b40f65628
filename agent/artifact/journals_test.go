package artifact

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ulikunitz/xz"
)

// realJournal unpacks a file that systemd wrote, of 40 entries.
func realJournal(t testing.TB, name string) string {
	t.Helper()
	packed, err := os.ReadFile("journal/testdata/" + name + ".journal.xz")
	if err != nil {
		t.Fatal(err)
	}
	r, err := xz.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestJournalReadsNewestFilesFirst(t *testing.T) {
	root := t.TempDir()
	const old, recent, broken = "var/log/journal/m/system@1.journal", "run/log/journal/m/user-1000.journal", "var/log/journal/m/bad.journal~"
	place(t, root, map[string]string{
		old:                          realJournal(t, "regular"),
		recent:                       realJournal(t, "compact"),
		broken:                       strings.Repeat("no journal", 100),
		"var/log/journal/m/else.txt": "",
	})
	if err := os.Symlink("/etc/passwd", filepath.Join(root, "var/log/journal/m/link.journal")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(filepath.Join(root, old), time.Time{}, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	got, record := table[JournalEntry](t, &Host{Root: root}, "journal")
	if len(got) != 80 || got[0].File != "/"+recent || got[40].File != "/"+old {
		t.Fatalf("%d rows, the first is %+v", len(got), got[:min(1, len(got))])
	}
	row := got[41]
	if row.Message != "message number 1" || row.Unit != "ssh.service" || row.Identifier != "sshd" || row.Priority != "1" || row.PID != "1001" || row.UID != "0" ||
		row.Comm != "sshd" || row.Exe != "/usr/sbin/sshd" || row.Cmdline != "sshd: root" || row.Transport != "syslog" || row.Seqnum != 2 ||
		!row.Time.Equal(time.Unix(1_700_000_001, 0)) || row.MonotonicUS != 6_000_000 || row.Boot != "0123456789abcdef0123456789abcdef" ||
		len(row.Fields) != 1 || row.Fields["_MACHINE_ID"][0] != "fedcba9876543210fedcba9876543210" {
		t.Errorf("got %+v", row)
	}
	if e := find(t, record, "/"+broken); !strings.Contains(string(e.Error), "no journal") {
		t.Errorf("on record is %+v", e)
	}
	if e := find(t, record, "/var/log/journal/m/link.journal"); e.Note != NoteUnread {
		t.Errorf("on record is %+v", e)
	}
}
