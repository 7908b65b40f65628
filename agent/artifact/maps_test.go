package artifact

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestParseMap(t *testing.T) {
	for line, want := range map[string]Map{
		"55d0c0a00000-55d0c0a21000 r-xp 00002000 fd:10 42                         /usr/bin/odd name": {
			Start: "55d0c0a00000", End: "55d0c0a21000", Perms: "r-xp", Offset: 0x2000, Device: "253:16", Inode: 42, Path: "/usr/bin/odd name"},
		"7f0000000000-7f0000001000 rwxp 00000000 00:00 0 ": {
			Start: "7f0000000000", End: "7f0000001000", Perms: "rwxp", AnonExec: true, WriteExec: true},
		"7f0000000000-7f0000001000 r-xp 00000000 00:00 0                          [anon:jit]": {
			Start: "7f0000000000", End: "7f0000001000", Perms: "r-xp", Path: "[anon:jit]", AnonExec: true},
		"7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0                          [vdso]": {
			Start: "7ffd00000000", End: "7ffd00002000", Perms: "r-xp", Path: "[vdso]"},
		"7f0000000000-7f0000001000 rwxs 00000000 00:01 7                          /memfd:x (deleted)": {
			Start: "7f0000000000", End: "7f0000001000", Perms: "rwxs", Device: "0:1", Inode: 7, Path: "/memfd:x (deleted)", Deleted: true, Memfd: true, WriteExec: true},
		"": {}, "1-2": {}, "1-2 rwxp": {}, "x-2 r--p 0 00:00 0": {}, "1-2 r--p 0 00:00 -1": {}, "1-2 r--p 0 no 7 /x": {}, "1 r--p 0 00:00 0 ": {},
	} {
		got, ok := parseMap([]byte(line))
		if diff := cmp.Diff(want, got); diff != "" || ok != (want.Start != "") {
			t.Errorf("%q: ok %t, %s", line, ok, diff)
		}
	}
}

func FuzzParseMap(f *testing.F) {
	f.Add([]byte("7f0000000000-7f0000001000 rwxs 00000000 00:01 7      /memfd:x (deleted)"))
	f.Fuzz(func(t *testing.T, line []byte) {
		m, ok := parseMap(line)
		if ok && (len(m.Start) > 16 || len(m.End) > 16 || len(m.Perms) != 4 || len(m.Path) > maxPath) {
			t.Errorf("unbounded: %+v", m)
		}
	})
}

// Memory that this process made executable without a file.
func TestMapsShowExecutableMemoryOfNoFile(t *testing.T) {
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Skipf("this host allows no such memory: %v", err)
	}
	defer unix.Munmap(page)
	all, _ := table[Map](t, new(Host), "maps")
	self, _ := os.Executable()
	var anonymous, program bool
	for _, m := range all {
		if m.PID == os.Getpid() {
			anonymous = anonymous || m.AnonExec && m.WriteExec && m.Path == ""
			program = program || string(m.Path) == self && m.Perms == "r-xp" && !m.AnonExec && m.Inode != 0
		}
	}
	if !anonymous || !program {
		t.Errorf("anonymous executable memory seen: %t, the program's own: %t", anonymous, program)
	}
}

func TestMapsAreCutAndSayWhere(t *testing.T) {
	root := t.TempDir()
	line := "7f0000000000-7f0000001000 r--p 00000000 00:00 0 \n"
	place(t, root, map[string]string{"proc/7/maps": strings.Repeat(line, maxMapsBytes/len(line)+10), "proc/8/maps": "broken\n" + line})
	all, record := table[Map](t, &Host{Root: root}, "maps")
	if want := maxMapsBytes/len(line) + 1; len(all) != want {
		t.Errorf("%d ranges, want %d", len(all), want)
	}
	if find(t, record, "/proc/7/maps").Note != NoteCut || find(t, record, "/proc/8/maps").Note != NoteOdd {
		t.Errorf("on record: %+v", record)
	}
}

// A thread that bears a name of its own.
func TestThreadsTellTheirNames(t *testing.T) {
	ready, done := make(chan int), make(chan struct{})
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this
		name := []byte("odd\n) R 1 (x\x00")
		if err := unix.Prctl(unix.PR_SET_NAME, uintptr(pointer(name)), 0, 0, 0); err != nil {
			t.Error(err)
		}
		ready <- unix.Gettid()
		<-done
	}()
	tid := <-ready
	defer close(done)
	all, _ := table[Thread](t, new(Host), "threads")
	for _, row := range all {
		if row.TID == row.PID {
			t.Errorf("the first thread of %d has a row", row.PID)
		}
		if row.TID == tid {
			if row.PID != os.Getpid() && tid != os.Getpid() || row.Name != "odd\n) R 1 (x" || !row.NameDiffers || row.StartTicks == 0 || row.Started.IsZero() {
				t.Errorf("got %+v", row)
			}
			return
		}
	}
	if tid != os.Getpid() {
		t.Errorf("thread %d is not among %d", tid, len(all))
	}
}

func TestOpenFilesTellWhatIsBehind(t *testing.T) {
	memfd, err := unix.MemfdCreate("planted", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(memfd)
	process, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(process)
	path := filepath.Join(t.TempDir(), "gone")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	file.WriteString("1234567")
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	os.Remove(path)
	all, _ := table[OpenFile](t, new(Host), "open_files")
	found := map[int]OpenFile{}
	for _, row := range all {
		if row.PID == os.Getpid() {
			found[row.FD] = row
		}
	}
	if row := found[memfd]; !row.Memfd || !row.Deleted || row.Target != "/memfd:planted (deleted)" {
		t.Errorf("memfd: %+v", row)
	}
	if row := found[process]; row.PIDFD != os.Getpid() {
		t.Errorf("pidfd: %+v", row)
	}
	if row := found[int(file.Fd())]; !row.Deleted || row.Memfd || row.Pos != 7 || row.MountID == 0 || len(row.Locks) != 1 || string(row.Target) != path+deletedMark {
		t.Errorf("deleted file: %+v", row)
	}
}

func TestParseFDInfo(t *testing.T) {
	var row OpenFile
	parseFDInfo([]byte("pos:\t7\nflags:\t02100002\nmnt_id:\t15\nino:\t1057\nprog_id:\t4\nmap_id:\t5\nlink_id:\t6\nPid:\t-1\nflags:\t9\nodd\n"), &row)
	want := OpenFile{Pos: 7, Flags: "02100002", FDInfo: FDInfo{MountID: 15, Inode: 1057, BPFProg: 4, BPFMap: 5, BPFLink: 6, PIDFD: -1}}
	if diff := cmp.Diff(want, row); diff != "" {
		t.Error(diff)
	}
}

func TestContainerOf(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	for cgroup, want := range map[string]string{
		"0::/system.slice/docker-" + id + ".scope\n":                             id,
		"12:cpu:/docker/" + id + "\n0::/\n":                                      id,
		"0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-" + id + ".scope": id,
		"0::/../" + id:                               id,
		"0::/system.slice/" + id + "0.scope":         "", // longer
		"0::/system.slice/" + id[:63] + "g/x":        "",
		"0::/user.slice/user-1000.slice\n":           "",
		fmt.Sprintf("0::/%s\n", strings.ToUpper(id)): "",
		"": "",
	} {
		if got := containerOf(cgroup); got != want {
			t.Errorf("%q: got %q, want %q", cgroup, got, want)
		}
	}
}
