package artifact

import (
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// testdata/rpmdb.sqlite was made by SQLite 3: the table Packages of rpm with a
// header of bash, then a broken one.
func TestPackages(t *testing.T) {
	db, err := os.ReadFile("testdata/rpmdb.sqlite")
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	place(t, root, map[string]string{
		"var/lib/dpkg/status":                   "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36\n\n",
		"var/lib/dpkg/info/libc6:amd64.list":    "/.\n/lib\n/lib/x\n",
		"var/lib/dpkg/info/libc6:amd64.md5sums": "",
		"usr/lib/sysimage/rpm/rpmdb.sqlite":     string(db),
		"usr/lib/sysimage/rpm/rpmdb.sqlite-wal": "x",
		"var/lib/rpm/Packages":                  "no database",
	})
	got, record := table[Package](t, &Host{Root: root}, "packages")
	when := time.Unix(0x65000000, 0).UTC()
	want := []Package{
		{Manager: "dpkg", Database: "/var/lib/dpkg/status", Name: "libc6", Version: "2.36", Arch: "amd64", Status: "install ok installed", Files: 3, MD5Sums: true},
		{Manager: "rpm", Database: "/usr/lib/sysimage/rpm/rpmdb.sqlite", Name: "bash", Version: "5.1-2", Arch: "aarch64", Installed: &when},
	}
	ignoreDpkgTime := cmp.FilterPath(func(p cmp.Path) bool { return p.String() == "Installed" }, cmp.Comparer(func(a, b *time.Time) bool { return a == nil || b == nil || a.Equal(*b) }))
	if diff := cmp.Diff(want, got, ignoreDpkgTime, cmpopts.EquateEmpty()); diff != "" {
		t.Error(diff)
	}
	if find(t, record, "/usr/lib/sysimage/rpm/rpmdb.sqlite").Note != NoteOdd || find(t, record, "/usr/lib/sysimage/rpm/rpmdb.sqlite-wal").Note != NoteUnread || find(t, record, "/var/lib/rpm/Packages").Error == "" {
		t.Errorf("on record is %+v", record)
	}
}
