package arena

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// field gives a number of kB from /proc/self/status, in bytes.
func field(t *testing.T, name string) int64 {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			kB, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kB << 10
		}
	}
	t.Fatalf("no %s in /proc/self/status", name)
	return 0
}

// TestBuffersAreLocked: what is given is locked, and given back it is gone.
func TestBuffersAreLocked(t *testing.T) {
	var a Arena
	before := field(t, "VmLck")
	b, free, err := a.Alloc(3<<20 + 1)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) != 3<<20+1 || cap(b) != len(b) || !bytes.Equal(b, make([]byte, len(b))) {
		t.Errorf("%d bytes with room for %d, not all zero", len(b), cap(b))
	}
	for i := range b {
		b[i] = byte(i)
	}
	if err := a.Unlocked(); err != nil {
		t.Skipf("this process may not lock memory: %v", err)
	}
	if got := field(t, "VmLck") - before; got < int64(len(b)) {
		t.Errorf("%d bytes are locked, want %d", got, len(b))
	}
	free()
	if got := field(t, "VmLck"); got != before || a.Taken() != 0 {
		t.Errorf("%d bytes are locked and %d taken after all were given back", got-before, a.Taken())
	}
}

// TestABufferThatCannotBeLocked is given all the same, and it is said why. A
// process of its own gives up the right to lock.
func TestABufferThatCannotBeLocked(t *testing.T) {
	if os.Getenv("QUICKLIME_TEST_NO_LOCK") == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), "QUICKLIME_TEST_NO_LOCK=1")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "cannot lock 1048576 bytes in memory") {
			t.Errorf("without the right to lock: %v\n%s", err, out)
		}
		return
	}
	runtime.LockOSThread() // capabilities are a thread's
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := errors.Join(unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{}), unix.Capset(&header, &none[0])); err != nil {
		t.Fatal(err)
	}
	var a Arena
	b, free, err := a.Alloc(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer free()
	b[0] = 1
	t.Log(a.Unlocked())
}
