package artifact

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// overVariable names the process whose folder a child hides.
const overVariable = "ARTIFACT_TEST_OVER"

// hideProcess mounts an empty folder over that of a process, in the mount
// namespace that this process has for itself.
func hideProcess(pid string) {
	err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	if err == nil {
		err = unix.Mount("none", "/proc/"+pid, "tmpfs", 0, "size=4k")
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func pointer(b []byte) unsafe.Pointer { return unsafe.Pointer(&b[0]) }

// plant starts a copy of this binary that waits, as cmd has it.
func plant(t *testing.T, cmd *exec.Cmd, environ ...string) int {
	t.Helper()
	cmd.Env = append(environ, childVariable+"=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the child said %q, %v", line, err)
	}
	return cmd.Process.Pid
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make a mount namespace")
	}
}

// of gives the anomalies of one check about one subject.
func of(all []Anomaly, check, subject string) []Anomaly {
	var found []Anomaly
	for _, a := range all {
		if a.Check == check && (subject == "" || string(a.Subject) == subject) {
			found = append(found, a)
		}
	}
	return found
}

func one(t *testing.T, all []Anomaly, check, subject string) Anomaly {
	t.Helper()
	found := of(all, check, subject)
	if len(found) != 1 {
		t.Fatalf("%d anomalies %s of %s, want 1; all: %+v", len(found), check, subject, all)
	}
	return found[0]
}

func TestProcessesTellOfAMemfdExecutable(t *testing.T) {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.MemfdCreate("planted", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "planted")
	defer file.Close()
	if _, err := file.Write(self); err != nil {
		t.Fatal(err)
	}
	pid := plant(t, exec.Command(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)))
	all, _ := table[Process](t, new(Host), "processes")
	p, hash := processOf(t, all, pid), sha256.Sum256(self)
	if p.Exe != "/memfd:planted (deleted)" || !p.ExeDeleted || p.ExeLinks != 0 || p.ExeSHA256 != hex.EncodeToString(hash[:]) {
		t.Errorf("got %+v", p.Executable)
	}
	maps, _ := table[Map](t, new(Host), "maps")
	for _, m := range maps {
		if m.PID == pid && m.Memfd && m.Perms == "r-xp" {
			return
		}
	}
	t.Error("no executable range of the memfd in maps")
}

func TestAnomaliesShowAMountOverAProcess(t *testing.T) {
	needRoot(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	hidden := strconv.Itoa(os.Getpid())
	plant(t, cmd, overVariable+"="+hidden)
	all, _ := table[Anomaly](t, new(Host), "anomalies")
	got := one(t, all, CheckOverMount, "/proc/"+hidden)
	if !strings.Contains(string(got.Views["mountinfo"]), "tmpfs") {
		t.Errorf("got %+v", got)
	}
}

func TestOverProcess(t *testing.T) {
	for point, want := range map[string]string{
		"/proc/7":           "/proc",
		"/proc/7/fd":        "/proc",
		"/host/proc/71/x/y": "/host/proc",
		"/mnt/5/proc/7":     "/mnt",
		"/proc/sys/fs":      "",
		"/proc":             "",
		"/7":                "",
		"":                  "",
	} {
		if got := overProcess(point); got != want {
			t.Errorf("%q: got %q, want %q", point, got, want)
		}
	}
}

func TestAnomaliesShowGuises(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{"[kworker/0:1]"}
	pid := plant(t, cmd, "LD_PRELOAD=/none/planted.so")
	all, _ := table[Anomaly](t, new(Host), "anomalies")
	subject := fmt.Sprintf("pid %d", pid)
	if got := one(t, all, CheckThreadName, subject); got.Views["cmdline"] != "[kworker/0:1]" || got.Views["kernel_thread"] != "no" {
		t.Errorf("got %+v", got)
	}
	if got := one(t, all, CheckPreload, subject); got.Views["environ"] != "LD_PRELOAD=/none/planted.so" {
		t.Errorf("got %+v", got)
	}
	if found := of(all, CheckThreadName, fmt.Sprintf("pid %d", os.Getpid())); found != nil {
		t.Errorf("this process was told as %+v", found)
	}
}

func TestGuise(t *testing.T) {
	for name, c := range map[string]struct {
		p    Process
		tell bool
	}{
		"kernel thread":           {Process{KernelThread: true}, false},
		"kernel thread with exe":  {Process{KernelThread: true, Executable: Executable{Exe: "/x"}}, true},
		"plain":                   {Process{Cmdline: []Text{"/bin/sh"}, Executable: Executable{Exe: "/bin/sh"}}, false},
		"brackets":                {Process{Cmdline: []Text{"[kthreadd]"}, Executable: Executable{Exe: "/x"}}, true},
		"brackets, exe not read":  {Process{Cmdline: []Text{"[kthreadd]", ""}}, true},
		"no arguments":            {Process{Executable: Executable{Exe: "/x"}}, true},
		"zombie":                  {Process{State: "Z"}, false},
		"brackets that never end": {Process{Cmdline: []Text{"["}, Executable: Executable{Exe: "/usr/bin/["}}, false},
	} {
		if got := guise(&c.p); (got != "") != c.tell {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// Processes that come and go while the views are taken are no anomaly, nor are
// threads, which the kernel answers for by number and /proc does not list.
func TestAnomaliesAreNotFooledByHaste(t *testing.T) {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	ours := map[string]bool{}
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				cmd := exec.Command("/bin/true")
				if err := cmd.Run(); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				ours[fmt.Sprintf("pid %d", cmd.Process.Pid)] = true
				mu.Unlock()
			}
		})
	}
	for range 5 {
		all, _ := table[Anomaly](t, new(Host), "anomalies")
		if found := of(all, CheckProcess, ""); found != nil {
			t.Errorf("told: %+v", found)
		}
		mu.Lock()
		for _, a := range of(all, CheckThreadName, "") {
			if ours[string(a.Subject)] {
				t.Errorf("told: %+v", a)
			}
		}
		mu.Unlock()
	}
	close(stop)
	wg.Wait()
	if len(ours) < 10 {
		t.Errorf("only %d processes came and went", len(ours))
	}
}

// A /proc that lacks what the kernel answers for, as a rootkit's getdents does,
// and has a folder of a process that is not there.
func TestAnomaliesShowProcessesThatHide(t *testing.T) {
	root := t.TempDir()
	none := 32000
	for exists(none) {
		none--
	}
	place(t, root, map[string]string{
		fmt.Sprintf("proc/%d/status", os.Getpid()): "",
		fmt.Sprintf("proc/%d/status", none):        "",
		"proc/sys/kernel/pid_max":                  "32768\n",
		"sys/fs/cgroup/x.slice/cgroup.procs":       "1\n0\n",
	})
	if err := os.Symlink(strconv.Itoa(os.Getpid()), filepath.Join(root, "proc/self")); err != nil {
		t.Fatal(err)
	}
	all, _ := table[Anomaly](t, &Host{Root: root}, "anomalies")
	got := one(t, all, CheckProcess, "pid 1").Views
	want := map[string]Text{"getdents": "no", "getpgid": "yes", "kill": "yes", "status": "no", "cgroup.procs": "/sys/fs/cgroup/x.slice"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	got = one(t, all, CheckProcess, fmt.Sprintf("pid %d", none)).Views
	want = map[string]Text{"getdents": "yes", "getpgid": "no", "kill": "no", "status": "no", "cgroup.procs": "no"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if found := of(all, CheckProcess, fmt.Sprintf("pid %d", os.Getpid())); found != nil {
		t.Errorf("this process was told as %+v", found)
	}
}

// Everything else, on a root of our own.
func TestAnomaliesOfAFakeRoot(t *testing.T) {
	root := t.TempDir()
	place(t, root, map[string]string{
		"proc/7/stat":                          "7 (a) S 1 7 7 0 -1 4194304 0 0 0 0 11 12 0 0 20 0 3 0 555 0 0\n",
		"proc/7/cmdline":                       "/bin/a\x00",
		"proc/self/mountinfo":                  "36 35 0:40 / /proc/sys/fs/binfmt_misc rw - binfmt_misc none rw\n",
		"sys/fs/cgroup/cgroup.procs":           "7\n",
		"sys/fs/cgroup/a/b/cgroup.procs":       "8\n0\n7\nx\n",
		"etc/ld.so.preload":                    "/lib/\xff.so\n",
		"proc/modules":                         "both 20480 0 - Live 0xffffffffc0000000 (OE)\nhalf 2 1 - Live 0xffffffffc0000001\n",
		"sys/module/both/initstate":            "live\n",
		"sys/module/hid/initstate":             "live\n",
		"proc/kallsyms":                        "0 T _text\n0 t a\t[both]\n0 t b\t[half]\n0 t c\t[ghost]\n0 t d\t[bpf]\n0 t e\t[__builtin__ftrace]\n",
		"proc/sys/kernel/tainted":              "12288\n",
		"proc/sys/kernel/core_pattern":         "|/usr/lib/systemd/systemd-coredump %P\n",
		"proc/sys/kernel/modprobe":             "/tmp/x\n",
		"proc/sys/fs/binfmt_misc/register":     "",
		"proc/sys/fs/binfmt_misc/odd":          "enabled\ninterpreter /tmp/i\n",
		"sys/kernel/tracing/enabled_functions": "vfs_read (1) R\nvfs_open (1) R\n",
		"sys/kernel/tracing/kprobe_events":     "",
		"sys/kernel/debug/kprobes/list":        "ffffffff81000000  k  x+0x0    [DISABLED]\n",
	})
	got, record := table[Anomaly](t, &Host{Root: root}, "anomalies")
	tracefs, debugfs := "/sys/kernel/tracing/enabled_functions", "/sys/kernel/debug/kprobes/list"
	views := func(pairs ...Text) map[string]Text {
		m := map[string]Text{}
		for i := 0; i < len(pairs); i += 2 {
			m[string(pairs[i])] = pairs[i+1]
		}
		return m
	}
	want := []Anomaly{
		{CheckProcess, "pid 8", views("getdents", "no", "status", "no", "cgroup.procs", "/sys/fs/cgroup/a/b"), ""},
		{CheckPreload, "/etc/ld.so.preload", views("content", "/lib/\xff.so"), "the loader puts these into every program"},
		{CheckModule, "module ghost", views("/proc/modules", "no", "/sys/module", "no", "/proc/kallsyms", "yes"), ""},
		{CheckModule, "module half", views("/proc/modules", "yes", "/sys/module", "no", "/proc/kallsyms", "yes"), ""},
		{CheckModule, "module hid", views("/proc/modules", "no", "/sys/module", "yes", "/proc/kallsyms", "no"), ""},
		{CheckTaint, "/proc/sys/kernel/tainted", views("value", "12288"), "O: a module from outside the kernel's tree was loaded; E: an unsigned module was loaded"},
		{CheckTracing, Text(tracefs), views("count", "2"), "vfs_read (1) R\nvfs_open (1) R"},
		{CheckTracing, Text(debugfs), views("count", "1"), "ffffffff81000000  k  x+0x0    [DISABLED]"},
		{CheckHelper, "/proc/sys/kernel/core_pattern", views("value", "|/usr/lib/systemd/systemd-coredump %P"), "runs for each core dump"},
		{CheckHelper, "/proc/sys/kernel/modprobe", views("value", "/tmp/x"), "runs when the kernel wants a module"},
		{CheckHelper, "/proc/sys/fs/binfmt_misc/odd", views("content", "enabled\ninterpreter /tmp/i"), "runs for each program of this format"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if e := find(t, record, "/proc/self"); e.Note != NoteNone {
		t.Errorf("that processes were not asked for by number is on record as %+v", e)
	}
}

func FuzzModuleTag(f *testing.F) {
	f.Add([]byte("0 t a\t[both]"))
	f.Add([]byte("\t["))
	f.Fuzz(func(t *testing.T, line []byte) {
		if tag := moduleTag(line); len(tag) > maxWord {
			t.Errorf("tag of %d bytes", len(tag))
		}
	})
}

func FuzzOverProcess(f *testing.F) {
	f.Add("/proc/7/fd")
	f.Fuzz(func(t *testing.T, point string) {
		if got := overProcess(point); !strings.HasPrefix(point, got) {
			t.Errorf("%q is not the start of %q", got, point)
		}
	})
}
