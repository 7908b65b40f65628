package artifact

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"github.com/quicklime-ir/quicklime/agent/artifact/packages"
	"github.com/quicklime-ir/quicklime/agent/artifact/sqlite"
)

// Bounds of the table packages.
const (
	maxPackages  = 100_000
	maxPackageDB = 512 << 20 // bytes of a database
	maxListLines = 1 << 20   // of a package's list of files
)

// Package is a row of the table packages: one that dpkg or rpm says is there.
type Package struct {
	Manager      string     `json:"manager"` // dpkg or rpm
	Database     Text       `json:"database"`
	Name         Text       `json:"name"`
	Version      Text       `json:"version"` // with epoch and release
	Arch         Text       `json:"arch"`
	Source       Text       `json:"source,omitempty"`
	Vendor       Text       `json:"vendor,omitempty"`  // dpkg: the maintainer
	Section      Text       `json:"section,omitempty"` // rpm: the group
	Status       Text       `json:"status,omitempty"`  // dpkg: want, error, state
	InstalledKiB int64      `json:"installed_kib,omitempty"`
	Installed    *time.Time `json:"installed,omitempty"`     // dpkg: when its list of files was last written
	Built        *time.Time `json:"built,omitempty"`         // rpm
	SignatureKey string     `json:"signature_key,omitempty"` // rpm: ID of the key that signed it; nothing is verified
	Files        int64      `json:"files,omitempty"`
	MD5Sums      bool       `json:"md5sums,omitempty"` // dpkg: sums of its files are there
}

// fillPackages writes the table packages.
func fillPackages(h *Host, s *sheet) error {
	t, err := h.openTree(s)
	if err != nil {
		return err
	}
	defer t.close()
	r := &packageReader{t: t, left: maxPackages}
	if err := r.dpkg(); err != nil {
		return err
	}
	for _, dir := range []string{"/var/lib/rpm", "/usr/lib/sysimage/rpm", "/usr/share/rpm"} {
		for _, db := range []struct {
			name string
			read func(io.ReaderAt, int64, func([]byte, error) error) error
		}{{"rpmdb.sqlite", rpmSQLite}, {"Packages.db", packages.NDB}, {"Packages", packages.BDB}} {
			if err := r.rpm(path.Join(dir, db.name), db.read); err != nil {
				return err
			}
		}
	}
	if r.left == maxPackages {
		s.note("/var/lib/dpkg/status", NoteNone, "")
	}
	return nil
}

type packageReader struct {
	t    *tree
	left int
	seen []os.FileInfo // databases, as one folder may be a link to another
}

// errManyPackages is what put says once there are enough.
var errManyPackages = fmt.Errorf("more than %d packages", maxPackages)

func (r *packageReader) put(row *Package) error {
	if r.left == 0 {
		return errManyPackages
	}
	r.left--
	return r.t.s.put(row)
}

// done tells what ended a database: the table's end, or what to record.
func (r *packageReader) done(at string, err, stopped error) error {
	switch {
	case stopped == errManyPackages:
		r.t.s.note(at, NoteCut, errManyPackages.Error())
	case stopped != nil:
		return stopped
	case err != nil:
		r.t.s.failed(at, err)
	}
	return nil
}

func rowOf(p packages.Package, manager, at string) *Package {
	row := &Package{Manager: manager, Database: Text(at), Name: Text(p.Name), Version: Text(p.Version), Arch: Text(p.Arch), Source: Text(p.Source),
		Vendor: Text(p.Vendor), Section: Text(p.Section), Status: Text(p.Status), InstalledKiB: p.InstalledKiB, SignatureKey: p.Signature, Files: p.Files}
	if p.InstallTime > 0 {
		when := saneTime(p.InstallTime, 0)
		row.Installed = &when
	}
	if p.BuildTime > 0 {
		when := saneTime(p.BuildTime, 0)
		row.Built = &when
	}
	return row
}

// dpkg reads /var/lib/dpkg, and status.d of images without dpkg.
func (r *packageReader) dpkg() error {
	files := []string{"/var/lib/dpkg/status"}
	for _, name := range r.t.names("/var/lib/dpkg/status.d") {
		if !strings.HasSuffix(name, ".md5sums") {
			files = append(files, path.Join("/var/lib/dpkg/status.d", name))
		}
	}
	info := map[string]bool{}
	for _, name := range r.t.names("/var/lib/dpkg/info") {
		info[name] = true
	}
	for _, at := range files {
		f, _ := r.t.open(at)
		if f == nil {
			continue
		}
		var stopped error
		odd, err := packages.Status(io.LimitReader(f, maxPackageDB), func(p packages.Package) error {
			row := rowOf(p, "dpkg", at)
			r.info(row, info)
			stopped = r.put(row)
			return stopped
		})
		f.Close()
		if odd > 0 {
			r.t.s.note(at, NoteOdd, fmt.Sprintf("%d paragraphs or lines", odd))
		}
		if err := r.done(at, err, stopped); err != nil {
			return err
		}
	}
	return nil
}

// info adds what lies in /var/lib/dpkg/info: NAME.list or NAME:ARCH.list.
func (r *packageReader) info(row *Package, names map[string]bool) {
	for _, stem := range []string{string(row.Name), string(row.Name + ":" + row.Arch)} {
		row.MD5Sums = row.MD5Sums || names[stem+".md5sums"]
		if !names[stem+".list"] {
			continue
		}
		at := path.Join("/var/lib/dpkg/info", stem+".list")
		f, facts := r.t.open(at)
		if f == nil {
			continue
		}
		row.Installed = &facts.Modified
		row.Files = countLines(io.LimitReader(f, maxListLines*64))
		f.Close()
	}
}

func countLines(r io.Reader) (n int64) {
	in := bufio.NewReaderSize(r, 32<<10)
	for {
		part, err := in.ReadSlice('\n')
		n += int64(bytes.Count(part, []byte{'\n'}))
		if err != nil && err != bufio.ErrBufferFull {
			return n
		}
	}
}

// rpm reads one database. It takes no lock: a database that rpm writes to
// meanwhile may give broken parts, which are told.
func (r *packageReader) rpm(at string, read func(io.ReaderAt, int64, func([]byte, error) error) error) error {
	f, facts := r.t.open(at)
	if f == nil {
		return nil
	}
	defer f.Close()
	stat, err := f.Stat()
	if err != nil {
		r.t.s.failed(at, err)
		return nil
	}
	for _, old := range r.seen {
		if os.SameFile(old, stat) {
			return nil
		}
	}
	r.seen = append(r.seen, stat)
	if facts.Size > maxPackageDB {
		r.t.s.note(at, NoteCut, fmt.Sprintf("not read: more than %d bytes", maxPackageDB))
		return nil
	}
	if wal, walFacts := r.t.open(at + "-wal"); wal != nil {
		wal.Close()
		if walFacts.Size > 0 {
			r.t.s.note(at+"-wal", NoteUnread, fmt.Sprintf("%d bytes of changes that are not in the database yet", walFacts.Size))
		}
	}
	var stopped error
	err = read(f, facts.Size, func(value []byte, err error) error {
		if err == nil && len(value) == 4 {
			return nil // Berkeley DB keeps the number of the last package beside them
		}
		var p packages.Package
		if err == nil {
			p, err = packages.Header(value)
		}
		if err != nil {
			r.t.s.note(at, NoteOdd, err.Error())
			return nil
		}
		stopped = r.put(rowOf(p, "rpm", at))
		return stopped
	})
	return r.done(at, err, stopped)
}

// rpmSQLite gives the blobs of the table Packages.
func rpmSQLite(in io.ReaderAt, size int64, do func([]byte, error) error) error {
	db, err := sqlite.Open(in, size)
	if err != nil {
		return err
	}
	tables, err := db.Tables()
	if err != nil {
		return err
	}
	for _, table := range tables {
		if table.Name != "Packages" {
			continue
		}
		for row, err := range db.Rows(table) {
			var blob []byte
			if err == nil && len(row.Values) == 2 {
				blob, _ = row.Values[1].([]byte)
			}
			if err := do(blob, err); err != nil {
				return err
			}
		}
	}
	return nil
}
