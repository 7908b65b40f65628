package artifact

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// plantSparse makes 2 GiB with data at its start, middle and near its end.
func plantSparse(t testing.TB, path string) (data string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := strings.Repeat("d", 4096)
	for _, at := range []int64{0, 1 << 30, 2<<30 - 1<<20} {
		if _, err := f.WriteAt([]byte(block), at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(2 << 30); err != nil {
		t.Fatal(err)
	}
	if extents := extentsOf(int(f.Fd()), 2<<30); len(extents) != 3 {
		t.Skipf("this file system does not tell where holes are: %v", extents)
	}
	return block + block + block
}

func TestFilesWithHolesCostWhatTheirDataCosts(t *testing.T) {
	root := t.TempDir()
	place(t, root, map[string]string{"var/log/before": "b", "var/log/zafter": "a"})
	path := filepath.Join(root, "var/log/odd\nhole\xff")
	data := plantSparse(t, path)
	if err := os.Chtimes(path, time.Unix(1, 5), time.Unix(-3, 7)); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	var rec Record
	if err := (&Host{Root: root}).writeFiles(t.Context(), &out, &rec, []Definition{logs}); err != nil {
		t.Fatal(err)
	}
	if out.Len() > 64<<10 {
		t.Errorf("the tar has %d bytes", out.Len())
	}
	sum := sha256.Sum256([]byte(data))
	if e := find(t, entries(t, &rec), "/var/log/odd\nhole\xff"); e.Note != NoteSparse || e.Size != 2<<30 || e.Bytes != int64(len(data)) || e.SHA256 != hex.EncodeToString(sum[:]) {
		t.Errorf("on record is %+v", e)
	}
	in := afterLog(t, &out)
	seen := 0
	for {
		h, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		seen++
		if h.Name != "[root]/var/log/odd\nhole\xff" {
			continue
		}
		if h.Size != 2<<30 || !h.ModTime.Equal(time.Unix(-3, 7)) || h.AccessTime.Nanosecond() != 5 || h.Mode != 0o644 || h.PAXRecords[paxInode] == "" {
			t.Errorf("header %+v", h)
		}
		n, err := io.Copy(io.Discard, in)
		if err != nil || n != 2<<30 {
			t.Errorf("%d bytes, %v", n, err)
		}
	}
	if seen != 3 {
		t.Errorf("%d members, want 3", seen)
	}
}

func TestFilesWithHolesAreCutByTheirData(t *testing.T) {
	root := t.TempDir()
	place(t, root, map[string]string{"var/log/x": ""})
	plantSparse(t, filepath.Join(root, "var/log/hole"))
	got, record := collect(t, &Host{Root: root, Limits: Limits{FileBytes: 5000}}, logs)
	if m := got["[root]/var/log/hole"]; m.size != 1<<30+5000-4096 || m.PAXRecords[paxSize] != "2147483648" {
		t.Errorf("%d bytes, PAX %q", m.size, m.PAXRecords)
	}
	if e := find(t, record, "/var/log/hole"); e.Note != NoteCut+","+NoteSparse || e.Bytes != 5000 {
		t.Errorf("on record is %+v", e)
	}
}

func TestFilesOfHolesAlone(t *testing.T) {
	root := t.TempDir()
	place(t, root, map[string]string{"var/log/hole": ""})
	if err := os.Truncate(filepath.Join(root, "var/log/hole"), 1<<20); err != nil {
		t.Fatal(err)
	}
	got, record := collect(t, &Host{Root: root}, logs)
	if m := got["[root]/var/log/hole"]; m.size != 1<<20 || m.content != strings.Repeat("\x00", 1<<20) {
		t.Errorf("%d bytes", m.size)
	}
	if e := find(t, record, "/var/log/hole"); e.Note != NoteSparse || e.Bytes != 0 {
		t.Errorf("on record is %+v", e)
	}
}

func TestFilesOfSeveralNamesAreStoredOnce(t *testing.T) {
	root := t.TempDir()
	place(t, root, map[string]string{"var/log/a": "content"})
	for _, name := range []string{"b", "c"} {
		if err := os.Link(filepath.Join(root, "var/log/a"), filepath.Join(root, "var/log", name)); err != nil {
			t.Fatal(err)
		}
	}
	got, record := collect(t, &Host{Root: root}, logs)
	links, files := 0, 0
	for name, m := range got {
		switch {
		case m.Typeflag == tar.TypeLink:
			links++
			if got[m.Linkname].content != "content" {
				t.Errorf("%s links to %s", name, m.Linkname)
			}
			if e := find(t, record, strings.TrimPrefix(name, tarRoot)); e.Note != NoteHardLink || tarRoot+string(e.Detail) != m.Linkname {
				t.Errorf("on record is %+v", e)
			}
		case m.content == "content":
			files++
		}
		if m.PAXRecords[paxLinks] != "3" {
			t.Errorf("%s: PAX %q", name, m.PAXRecords)
		}
	}
	if links != 2 || files != 1 {
		t.Errorf("%d links, %d files", links, files)
	}
}

func TestFilesKeepExtendedAttributes(t *testing.T) {
	root := t.TempDir()
	place(t, root, map[string]string{"var/log/x": "x"})
	path := filepath.Join(root, "var/log/x")
	// cap_net_raw=ep, and an ACL that lets user 7 read.
	want := map[string]string{
		"user.a=b%\n":             "binary\x00\xff",
		"security.capability":     "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"system.posix_acl_access": "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\x07\x00\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff",
		"trusted.t":               "t",
	}
	for name, value := range want {
		if err := unix.Setxattr(path, name, []byte(value), 0); err != nil {
			t.Logf("not tested here: %s: %v", name, err)
			delete(want, name)
		}
	}
	if len(want) == 0 {
		t.Skip("this file system keeps no extended attributes")
	}
	got, _ := collect(t, &Host{Root: root}, logs)
	for name, value := range want {
		if have := got["[root]/var/log/x"].PAXRecords["SCHILY.xattr."+xattrKeys.Replace(name)]; have != value {
			t.Errorf("%s is %q, want %q", name, have, value)
		}
	}
}

func TestFilesTellWhatIsImmutable(t *testing.T) {
	const getFlags, setFlags, immutable, appendOnly = 0x80086601, 0x40086602, 0x10, 0x20 // linux/fs.h
	root := t.TempDir()
	place(t, root, map[string]string{"var/log/x": "x"})
	f, err := os.Open(filepath.Join(root, "var/log/x"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), getFlags)
	if err != nil {
		t.Skipf("this file system has no such flags: %v", err)
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), setFlags, flags|immutable|appendOnly); err != nil {
		t.Skipf("they may not be set here: %v", err)
	}
	defer unix.IoctlSetPointerInt(int(f.Fd()), setFlags, flags)
	got, _ := collect(t, &Host{Root: root}, logs)
	if have := got["[root]/var/log/x"].PAXRecords[paxAttrs]; have != "immutable,append" {
		t.Errorf("attributes %q", have)
	}
}

// GNU tar is what most people unpack with.
func TestGNUTarUnpacksTheFiles(t *testing.T) {
	program, err := exec.LookPath("tar")
	if err != nil {
		t.Skip("there is no tar here")
	}
	if version, err := exec.Command(program, "--version").Output(); err != nil || !bytes.Contains(version, []byte("GNU tar")) {
		t.Skip("its tar is not GNU's")
	}
	root, to := t.TempDir(), t.TempDir()
	place(t, root, map[string]string{"var/log/a": "content", "var/log/two\nlines\xff": "odd", "var/log/" + strings.Repeat("n", 200): "long"})
	data := plantSparse(t, filepath.Join(root, "var/log/hole"))
	err = errors.Join(os.Link(filepath.Join(root, "var/log/a"), filepath.Join(root, "var/log/b")), os.Symlink("loop", filepath.Join(root, "var/log/loop")))
	if err != nil {
		t.Fatal(err)
	}
	var out, said bytes.Buffer
	if err := (&Host{Root: root}).writeFiles(t.Context(), &out, new(Record), []Definition{logs}); err != nil {
		t.Fatal(err)
	}
	unpack := exec.Command(program, "-x", "--warning=no-unknown-keyword", "-C", to)
	unpack.Stdin, unpack.Stderr = &out, &said
	if err := unpack.Run(); err != nil || said.Len() > 0 {
		t.Fatalf("%v: %s", err, said.String())
	}
	for name, want := range map[string]string{"a": "content", "b": "content", "two\nlines\xff": "odd", strings.Repeat("n", 200): "long"} {
		if got, err := os.ReadFile(filepath.Join(to, "[root]/var/log", name)); err != nil || string(got) != want {
			t.Errorf("%q: %q, %v", name, got, err)
		}
	}
	f, err := os.Open(filepath.Join(to, "[root]/var/log/hole"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	at, got := []byte(data[:4096]), make([]byte, 4096)
	for _, offset := range []int64{0, 1 << 30, 2<<30 - 1<<20} {
		if _, err := f.ReadAt(got, offset); err != nil || !bytes.Equal(got, at) {
			t.Errorf("at %d: %v, wrong bytes", offset, err)
		}
	}
	if st, err := f.Stat(); err != nil || st.Size() != 2<<30 {
		t.Errorf("%v, %v", st, err)
	}
	if log, err := os.ReadFile(filepath.Join(to, uacLog)); err != nil || !bytes.Contains(log, []byte("quicklime-agent")) {
		t.Errorf("log %q, %v", log, err)
	}
}

func TestFirstBytes(t *testing.T) {
	all := []extent{{0, 10}, {100, 10}, {200, 10}}
	for n, want := range map[int64][]extent{0: nil, 4: {{0, 4}}, 10: {{0, 10}}, 15: {{0, 10}, {100, 5}}, 99: all} {
		if got := firstBytes(all, n); !reflect.DeepEqual(got, want) {
			t.Errorf("%d: %v, want %v", n, got, want)
		}
	}
}

func TestAppendRecordCountsItself(t *testing.T) {
	for n := range 1200 {
		record := appendRecord(nil, "k", strings.Repeat("v", n))
		length, _, _ := strings.Cut(string(record), " ")
		if want := len(record); length != strconv.Itoa(want) {
			t.Fatalf("%d bytes say %s", want, length)
		}
	}
}
