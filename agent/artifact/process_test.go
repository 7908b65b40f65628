package artifact

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// childVariable makes this test's binary a process to be found.
const childVariable = "ARTIFACT_TEST_CHILD"

// child says that it is there, and waits until its standard input ends. Where
// overVariable names a process it first mounts an empty folder over that one's;
// where filterVariable is set it plants a packet filter, where talkVariable is
// it talks to itself.
func child() {
	if over := os.Getenv(overVariable); over != "" {
		hideProcess(over)
	}
	if os.Getenv(filterVariable) != "" {
		if err := plantFilter(); err != nil {
			os.Stdout.WriteString("cannot plant a packet filter: " + err.Error() + "\n")
			os.Exit(1)
		}
	}
	if os.Getenv(talkVariable) != "" {
		talk()
	}
	os.Stdout.WriteString("ready\n")
	io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// startChild runs a copy of this binary, and gives its PID and the copy's path
// and hash.
func startChild(t *testing.T, remove bool, environ ...string) (pid int, path, sum string) {
	t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	hash := sha256.Sum256(self)
	path = filepath.Join(t.TempDir(), "odd\nname")
	if err := os.WriteFile(path, self, 0o755); err != nil {
		t.Fatal(err)
	}
	pid = plant(t, exec.Command(path, "first", "", "last\xff"), environ...)
	if remove {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	return pid, path, hex.EncodeToString(hash[:])
}

func processOf(t *testing.T, all []Process, pid int) Process {
	t.Helper()
	for _, p := range all {
		if p.PID == pid {
			return p
		}
	}
	t.Fatalf("process %d is not among %d", pid, len(all))
	return Process{}
}

func TestProcessesTellOfThisProcess(t *testing.T) {
	all, _ := table[Process](t, new(Host), "processes")
	p := processOf(t, all, os.Getpid())
	self, _ := os.Executable()
	if string(p.Exe) != self || p.ExeDeleted || len(p.ExeSHA256) != 64 {
		t.Errorf("exe %q deleted %t hash %q, want %q", p.Exe, p.ExeDeleted, p.ExeSHA256, self)
	}
	if p.PPID != os.Getppid() || int(p.UID) != os.Getuid() || p.State == "" || p.Threads < 2 || p.TGID != p.PID || p.KernelThread {
		t.Errorf("wrong in %+v", p)
	}
	if age := time.Since(p.Started); age < 0 || age > time.Hour {
		t.Errorf("started %s, that is %s ago", p.Started, age)
	}
	if len(p.Namespaces) < 6 || p.CapBounding == "" || len(p.Cgroup) == 0 || p.RSSBytes == 0 {
		t.Errorf("missing in %+v", p)
	}
	wd, _ := os.Getwd()
	if string(p.CWD) != wd || p.Root != "/" {
		t.Errorf("cwd %q root %q, want %q and /", p.CWD, p.Root, wd)
	}
	for _, want := range os.Environ() {
		if !slices.Contains(p.Environ, Text(want)) && !p.EnvironTruncated {
			t.Errorf("environ lacks %q", want)
		}
	}
}

func TestProcessesTellOfADeletedExecutable(t *testing.T) {
	pid, path, sum := startChild(t, true, "MARKER=\xc3\x28\nsecond line")
	all, _ := table[Process](t, new(Host), "processes")
	p := processOf(t, all, pid)
	if string(p.Exe) != path+" (deleted)" || !p.ExeDeleted || p.ExeLinks != 0 {
		t.Errorf("exe %q deleted %t links %d", p.Exe, p.ExeDeleted, p.ExeLinks)
	}
	if p.ExeSHA256 != sum {
		t.Errorf("hash %s, want %s, read through /proc/PID/exe", p.ExeSHA256, sum)
	}
	if want := []Text{Text(path), "first", "", "last\xff"}; !slices.Equal(p.Cmdline, want) {
		t.Errorf("cmdline %q, want %q", p.Cmdline, want)
	}
	if !slices.Contains(p.Environ, "MARKER=\xc3\x28\nsecond line") {
		t.Errorf("environ %q", p.Environ)
	}
	if p.Name != "odd\nname" {
		t.Errorf("name %q", p.Name)
	}
}

// A file may bear the kernel's mark in its own name.
func TestProcessesAreNotFooledByAName(t *testing.T) {
	pid, path, _ := startChild(t, false)
	marked := path + deletedMark
	if err := os.Rename(path, marked); err != nil {
		t.Fatal(err)
	}
	all, _ := table[Process](t, new(Host), "processes")
	if p := processOf(t, all, pid); string(p.Exe) != marked || p.ExeDeleted || p.ExeLinks != 1 {
		t.Errorf("exe %q deleted %t links %d", p.Exe, p.ExeDeleted, p.ExeLinks)
	}
}

func TestProcessesHashNoMoreThanAllowed(t *testing.T) {
	all, record := table[Process](t, &Host{Limits: Limits{ExeBytes: 1}}, "processes")
	p := processOf(t, all, os.Getpid())
	if p.ExeSHA256 != "" || p.Unread["exe_sha256"] == "" {
		t.Errorf("hash %q, unread %q", p.ExeSHA256, p.Unread)
	}
	if e := find(t, record, filepath.Join("/proc", itoa(os.Getpid()), "exe_sha256")); e.Error == "" {
		t.Errorf("on record is %+v", e)
	}
}

// One process of a root of our own, whose files are as hostile as can be.
func TestProcessesOfAFakeRoot(t *testing.T) {
	root := t.TempDir()
	place(t, root, map[string]string{
		"proc/uptime":        "1000.00 1.00\n",
		"proc/7/stat":        "7 (a) R 1\n(b)) S 1 7 7 34816 -1 4194304 0 0 0 0 11 12 0 0 20 0 3 0 555 0 0\n",
		"proc/7/status":      "Name:\ta\\nUid:\t0\nUmask:\t0022\nTgid:\t7\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nNSpid:\t7\t1\nSeccomp:\t2\nNoNewPrivs:\t1\nCapEff:\t000001ffffffffff\nVmRSS:\t   12 kB\nTracerPid:\t9\n",
		"proc/7/comm":        "a) R 1\n(b)\n",
		"proc/7/cmdline":     strings.Repeat("x\x00", maxCmdline),
		"proc/7/environ":     "A=1\x00B=\xff\x00",
		"proc/7/loginuid":    "1000",
		"proc/7/sessionid":   "4294967295",
		"proc/7/cgroup":      "0::/system.slice/x.service\n",
		"proc/8/stat":        "8 (zombie) Z 1\n",
		"proc/not-a-process": "",
	})
	for name, target := range map[string]string{"exe": "/tmp/x (deleted)", "cwd": "/tmp", "root": "/", "ns/net": "net:[42]", "ns/mnt": "mnt:[what]"} {
		path := filepath.Join(root, "proc/7", name)
		os.MkdirAll(filepath.Dir(path), 0o755)
		if err := os.Symlink(target, path); err != nil {
			t.Fatal(err)
		}
	}
	all, record := table[Process](t, &Host{Root: root}, "processes")
	if len(all) != 1 {
		t.Fatalf("%d processes, want 1", len(all))
	}
	p := all[0]
	if p.Name != "a) R 1\n(b)" || p.State != "S" || p.PPID != 1 || p.TTY != "136:0" || p.StartTicks != 555 || p.UserTicks != 11 || p.Threads != 3 {
		t.Errorf("of stat: %+v", p)
	}
	if p.UID != 1 || p.EUID != 2 || p.FSGID != 8 || p.TracerPID != 9 || p.Seccomp != 2 || !p.NoNewPrivs || p.CapEffective != "000001ffffffffff" || p.RSSBytes != 12<<10 || !slices.Equal(p.NSPID, []int{7, 1}) {
		t.Errorf("of status: %+v", p.Status)
	}
	if age := time.Since(p.Started); age < 994*time.Second || age > 20*time.Minute { // 1000 s - 5.55 s, and as long as this test takes
		t.Errorf("started %s ago, want some 994 s", age)
	}
	if !p.CmdlineTruncated || len(p.Cmdline) != maxCmdline/2 || !slices.Equal(p.Environ, []Text{"A=1", "B=\xff"}) {
		t.Errorf("%d arguments, cut %t; environ %q", len(p.Cmdline), p.CmdlineTruncated, p.Environ)
	}
	if !p.ExeDeleted || p.Exe != "/tmp/x (deleted)" || *p.LoginUID != 1000 || p.SessionID != nil || p.Namespaces["net"] != 42 {
		t.Errorf("of links: %+v", p)
	}
	if p.Unread["ns/mnt"] == "" || find(t, record, "/proc/7/ns/mnt").Error == "" {
		t.Errorf("an odd link went unsaid: %v", p.Unread)
	}
	if find(t, record, "/proc/8").Error == "" {
		t.Error("an odd stat went unsaid")
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("7 (a) R 1\n(b)) S 1 7 7 34816 -1 4194304 0 0 0 0 11 12 0 0 20 0 3 0 555 0 0\n"))
	f.Add([]byte(")("))
	f.Fuzz(func(t *testing.T, data []byte) {
		var p Process
		if err := parseStat(data, &p); err == nil && len(p.State) != 1 {
			t.Errorf("state %q of %q", p.State, data)
		}
	})
}

func FuzzParseStatus(f *testing.F) {
	f.Add([]byte("Tgid:\t7\nUid:\t1\t2\t3\t4\nGroups:\t1 2 3 \nNSpid:\t7\t1\nCapEff:\t000001ffffffffff\nVmRSS:\t12 kB\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var p Process
		parseStatus(data, &p)
		if len(p.Groups) > maxGroups || len(p.NSPID) > 33 || len(p.CapEffective) > 16 {
			t.Errorf("unbounded: %+v", p.Status)
		}
	})
}

func FuzzSplitNUL(f *testing.F) {
	f.Add([]byte("a\x00\x00b"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var back []byte
		for _, part := range splitNUL(data) {
			back = append(append(back, part...), 0)
		}
		if len(data) > 0 && string(back) != strings.TrimSuffix(string(data), "\x00")+"\x00" {
			t.Errorf("%q came back as %q", data, back)
		}
	})
}

func FuzzParseTag(f *testing.F) {
	f.Add("net:[4026531840]")
	f.Fuzz(func(t *testing.T, target string) {
		if n, err := parseTag(target, "net"); err == nil && n == 0 && !strings.Contains(target, "0") {
			t.Errorf("%q is no number", target)
		}
	})
}

func FuzzParseSmall(f *testing.F) {
	f.Add([]byte("1000.00 1.00\n"))
	f.Add([]byte("pos:\t7\nflags:\t02100002\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if up, err := parseUptime(data); err == nil && up < 0 {
			t.Errorf("%q is before boot", data)
		}
		parseAuditID(data)
		var row OpenFile
		if parseFDInfo(data, &row); len(row.Flags) > 16 || len(row.Locks) > maxLocks {
			t.Errorf("unbounded: %+v", row)
		}
	})
}

func BenchmarkProcesses(b *testing.B) {
	h := new(Host)
	for b.Loop() {
		var rec Record
		if err := h.Volatile()[0].Write(b.Context(), io.Discard, &rec); err != nil {
			b.Fatal(err)
		}
	}
	pids, _ := h.pids()
	b.ReportMetric(float64(len(pids)), "processes")
}

func BenchmarkSockets(b *testing.B) {
	for range 2000 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		defer l.Close()
	}
	for b.Loop() {
		var rec Record
		if err := new(Host).Volatile()[1].Write(b.Context(), io.Discard, &rec); err != nil {
			b.Fatal(err)
		}
	}
}
