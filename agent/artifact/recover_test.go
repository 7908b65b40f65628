package artifact

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// tarMember is one file of a tar.
type tarMember struct {
	*tar.Header
	data []byte
}

// unpack reads a tar whole.
func unpack(t testing.TB, r io.Reader) (all []tarMember) {
	t.Helper()
	for in := tar.NewReader(r); ; {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, tarMember{header, data})
	}
}

// recovered recovers what this host has, and gives what this process or its
// child holds.
func recovered(t testing.TB, h *Host) (all []tarMember, rec []Entry) {
	t.Helper()
	var out bytes.Buffer
	var record Record
	if err := h.WriteRecovered(t.Context(), &out, &record); err != nil {
		t.Fatal(err)
	}
	return unpack(t, &out), entries(t, &record)
}

func heldByPID(t testing.TB, all []tarMember, pid int, what string) tarMember {
	t.Helper()
	for _, m := range all {
		if slices.Contains(strings.Fields(m.PAXRecords[paxHolders]), fmt.Sprintf("%d/%s", pid, what)) {
			return m
		}
	}
	t.Fatalf("nothing recovered of %d/%s, of %d files", pid, what, len(all))
	return tarMember{}
}

// memfd makes one that holds data.
func memfd(t testing.TB, name string, data []byte) int {
	t.Helper()
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if _, err := unix.Write(fd, data); err != nil {
		t.Fatal(err)
	}
	return fd
}

func TestRecoversADeletedExecutable(t *testing.T) {
	pid, path, sum := startChild(t, true)
	all, rec := recovered(t, new(Host))
	m := heldByPID(t, all, pid, "exe")
	if got := sha256.Sum256(m.data); hex.EncodeToString(got[:]) != sum {
		t.Error("the copy is not the executable")
	}
	if want := fmt.Sprintf("%s/%d/exe", recoveredRoot, pid); m.Name != want {
		t.Errorf("it lies at %s, want %s", m.Name, want)
	}
	if got := m.PAXRecords[paxTarget]; got != path+deletedMark {
		t.Errorf("its name was %q, want %q", got, path+deletedMark)
	}
	if e := find(t, rec, fmt.Sprintf("/proc/%d/exe", pid)); e.SHA256 != sum || e.Bytes != int64(len(m.data)) {
		t.Errorf("on record is %+v", e)
	}
}

func TestRecoversOpenFilesOnceForAllThatHoldThem(t *testing.T) {
	secret := []byte("an implant's configuration")
	fd := memfd(t, "odd/../\n\xff name", secret)
	second, err := unix.Dup(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(second)
	all, rec := recovered(t, new(Host))
	m := heldByPID(t, all, os.Getpid(), fmt.Sprintf("fd/%d", fd))
	if !bytes.Equal(m.data, secret) {
		t.Errorf("recovered %q", m.data)
	}
	if other := heldByPID(t, all, os.Getpid(), fmt.Sprintf("fd/%d", second)); other.Name != m.Name {
		t.Errorf("recovered twice: %s and %s", m.Name, other.Name)
	}
	base := filepath.Base(m.Name)
	if base != fmt.Sprintf("%d-___name", fd) || filepath.Clean(m.Name) != m.Name {
		t.Errorf("its name became %q", m.Name)
	}
	e := find(t, rec, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd))
	if !strings.Contains(string(e.Detail), fmt.Sprintf("%d/fd/%d", os.Getpid(), second)) {
		t.Errorf("on record is %+v", e)
	}
}

func TestRecoversAnUnlinkedMapping(t *testing.T) {
	path := filepath.Join(t.TempDir(), "library.so")
	if err := os.WriteFile(path, bytes.Repeat([]byte("code"), 1024), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	mapped, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE)
	f.Close()
	if err != nil {
		t.Skip("cannot map code: ", err)
	}
	defer unix.Munmap(mapped)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	all, rec := recovered(t, new(Host))
	for _, m := range all {
		if m.PAXRecords[paxTarget] == path+deletedMark {
			if m.PAXRecords[paxClass] != "code_mapping" || !bytes.HasPrefix(m.data, []byte("codecode")) {
				t.Errorf("recovered as %s", m.PAXRecords[paxClass])
			}
			return
		}
	}
	for _, e := range rec {
		if strings.Contains(string(e.Path), "/map_files/") && e.Errno == "EPERM" {
			t.Skip("without CAP_SYS_ADMIN map_files cannot be read, which is on record")
		}
	}
	t.Error("an unlinked mapping was not recovered, and the record is silent")
}

// Caps are per file and in total, a sparse file has its own, and each cut is on
// record and in the member.
func TestRecoveryIsCapped(t *testing.T) {
	long := memfd(t, "long", bytes.Repeat([]byte("x"), 5000))
	sparse := memfd(t, "sparse", []byte("head"))
	if err := unix.Ftruncate(sparse, 2<<30); err != nil {
		t.Fatal(err)
	}
	all, rec := recovered(t, &Host{Limits: Limits{FileBytes: 4096, SparseBytes: 1024}})
	for fd, want := range map[int]struct {
		size int64
		was  string
	}{long: {4096, "5000"}, sparse: {1024, "2147483648"}} {
		m := heldByPID(t, all, os.Getpid(), fmt.Sprintf("fd/%d", fd))
		if m.Size != want.size || m.PAXRecords[paxSize] != want.was {
			t.Errorf("member of %d bytes, %s before; want %+v", m.Size, m.PAXRecords[paxSize], want)
		}
		if e := find(t, rec, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)); e.Note != NoteCut {
			t.Errorf("on record is %+v", e)
		}
	}
	all, _ = recovered(t, &Host{Limits: Limits{TotalBytes: 100}})
	var total int64
	for _, m := range all {
		total += m.Size
	}
	if total != 100 {
		t.Errorf("took %d bytes, want the 100 allowed", total)
	}
}

// Holes are not read, and what lies between them is in its place.
func TestRecoveryKeepsWhatLiesBetweenHoles(t *testing.T) {
	fd := memfd(t, "holes", []byte("head"))
	if _, err := unix.Pwrite(fd, []byte("tail"), 5<<20); err != nil {
		t.Fatal(err)
	}
	all, rec := recovered(t, new(Host))
	m := heldByPID(t, all, os.Getpid(), fmt.Sprintf("fd/%d", fd))
	want := make([]byte, 5<<20+4)
	copy(want, "head")
	copy(want[5<<20:], "tail")
	if !bytes.Equal(m.data, want) {
		t.Error("the copy differs")
	}
	if e := find(t, rec, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)); e.Padded != 0 {
		t.Errorf("on record is %+v", e)
	}
}

// A deleted FIFO is never opened: that would wait for its other end, or wake it.
func TestRecoveryLeavesFIFOsAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	_, rec := recovered(t, new(Host))
	if e := find(t, rec, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)); e.Note != NoteUnread || e.Detail != "fifo" {
		t.Errorf("on record is %+v", e)
	}
}

// A file whose own name ends as the kernel marks deleted ones is not deleted.
func TestRecoveryKnowsANameThatLooksDeleted(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "report (deleted)"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all, _ := recovered(t, new(Host))
	for _, m := range all {
		if m.PAXRecords[paxTarget] == f.Name() {
			t.Error("a file that is not deleted was recovered")
		}
	}
}

func TestMostSuspiciousFirst(t *testing.T) {
	memfd(t, "x", []byte("x"))
	startChild(t, true)
	all, _ := recovered(t, new(Host))
	order := []string{"memfd_exe", "deleted_exe", "code_mapping", "memfd", "deleted_open", "replaced", "shared_memory"}
	last := 0
	for _, m := range all {
		at := slices.Index(order, m.PAXRecords[paxClass])
		if at < last {
			t.Errorf("%s comes after %s", order[max(at, 0)], order[last])
		}
		last = at
	}
	if last == 0 {
		t.Error("the order was not tried")
	}
}

// A file that an update replaced is known by its place and its successor.
func TestReplacedFiles(t *testing.T) {
	root := t.TempDir()
	place(t, root, map[string]string{"host/usr/bin/sshd": "new", "host/tmp/sshd": "new"})
	if os.Getuid() != 0 {
		t.Skip("needs files of root's")
	}
	if err := os.MkdirAll(filepath.Join(root, "proc/7"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(root, "host"), filepath.Join(root, "proc/7/root")); err != nil {
		t.Fatal(err)
	}
	old, err := openNode(unix.AT_FDCWD, filepath.Join(root, "host/tmp/sshd"))
	if err != nil {
		t.Fatal(err)
	}
	defer old.close()
	r := &recovery{h: &Host{Root: root}}
	for name, want := range map[string]fileClass{
		"/usr/bin/sshd (deleted)":     replacedFile,
		"/usr/bin/implant (deleted)":  deletedExe,
		"/tmp/sshd (deleted)":         deletedExe,
		"/memfd:sshd (deleted)":       memfdExe,
		"/dev/zero (deleted)":         sharedMemory,
		"/usr/../tmp/sshd2 (deleted)": deletedExe,
	} {
		if got := r.classify(old, heldAt{7, "exe"}, name, true); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
}

func TestParseRegion(t *testing.T) {
	for _, test := range []struct {
		line string
		want region
		ok   bool
	}{
		{"7f00-7f10 r-xp 00000010 fd:01 42                     /usr/lib/a b.so", region{0x7f00, 0x7f10, "r-xp", 0x10, "fd:01", 42, "/usr/lib/a b.so"}, true},
		{"10-20 rw-p 00000000 00:00 0 ", region{start: 0x10, end: 0x20, perms: "rw-p", dev: "00:00"}, true},
		{"10-20 rw-p 00000000 00:00 0 [heap]", region{start: 0x10, end: 0x20, perms: "rw-p", dev: "00:00", name: "[heap]"}, true},
		{"20-10 rw-p 00000000 00:00 0", region{}, false},
		{"10-20 rw 00000000 00:00 0", region{}, false},
		{"", region{}, false},
	} {
		if got, ok := parseRegion(test.line); got != test.want || ok != test.ok {
			t.Errorf("%q gives %+v, %t", test.line, got, ok)
		}
	}
}

func FuzzParseRegion(f *testing.F) {
	f.Add("7f00-7f10 r-xp 00000010 fd:01 42                     /usr/lib/a b.so")
	f.Fuzz(func(t *testing.T, line string) {
		if r, ok := parseRegion(line); ok && (r.size() == 0 || r.end < r.start || r.readable() && r.perms[0] != 'r') {
			t.Errorf("%q gives %+v", line, r)
		}
	})
}
