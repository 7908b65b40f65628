package process

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

const parentRole = "QUICKLIME_TEST_PARENT"

// TestMain lets the test binary play the parent that is killed.
func TestMain(m *testing.M) {
	if os.Getenv(parentRole) != "" {
		child, err := Start(Spec{Path: "/bin/sleep", Args: []string{"600"}})
		if err != nil {
			panic(err)
		}
		fmt.Println(child.Pid())
		<-child.Done()
		return
	}
	goleak.VerifyTestMain(m)
}

func start(t *testing.T, spec Spec) *Child {
	t.Helper()
	c, err := Start(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Kill(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestAChildDiesWithTheLab(t *testing.T) {
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), parentRole+"=1")
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	pid := readPid(t, bufio.NewReader(out))
	if !lives(pid) {
		t.Fatalf("process %d is dead before its parent", pid)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait() // it was killed
	wantDead(t, pid)
}

// TestAChildOutlivesOtherThreads starts a child from a thread that ends. A
// child that hung on that thread would be killed with it.
func TestAChildOutlivesOtherThreads(t *testing.T) {
	started := make(chan *Child)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		c, err := Start(Spec{Path: "/bin/sleep", Args: []string{"600"}})
		if err != nil {
			t.Error(err)
		}
		started <- c
	}()
	c := <-started
	defer c.Kill()
	select {
	case <-c.Done():
		t.Errorf("it ended: %v", c.Err())
	case <-time.After(300 * time.Millisecond):
	}
}

func TestStop(t *testing.T) {
	for _, tt := range []struct {
		name, script string
		paused       bool
		end          string // how it ended
	}{
		{"a child that ends when asked", "echo ready; exec sleep 600", false, "signal: terminated"},
		{"a child that ends in its own way", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done", false, "exit status 7"},
		{"a child that will not", "trap '' TERM; echo ready; while :; do sleep 1; done", false, "signal: killed"},
		{"a child that is paused", "echo ready; exec sleep 600", true, "signal: killed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			log := make(lines, 10)
			c := start(t, Spec{Path: "/bin/sh", Args: []string{"-c", tt.script}, Log: log})
			<-log
			if tt.paused {
				pause(t, c)
			}
			if err := c.Stop(300 * time.Millisecond); err != nil {
				t.Fatal(err)
			}
			if err := c.Wait(); err == nil || err.Error() != tt.end {
				t.Errorf("it ended with %v, want %s", err, tt.end)
			}
			if err := c.Stop(time.Second); err != nil {
				t.Errorf("stopping it again: %v", err)
			}
		})
	}
}

// pause stops a child's clock, and waits until the kernel has done it: of two
// signals that wait, SIGTERM goes before SIGSTOP.
func pause(t *testing.T, c *Child) {
	t.Helper()
	if err := c.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for range 500 {
		if state(c.Pid()) == "T" {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("process %d is not paused", c.Pid())
}

// TestWhatAChildStartedEndsWithIt leaves a grandchild that ignores SIGTERM.
func TestWhatAChildStartedEndsWithIt(t *testing.T) {
	log := make(lines, 10)
	c := start(t, Spec{Path: "/bin/sh", Args: []string{"-c", "(trap '' TERM; exec sleep 600) & echo $!; wait"}, Log: log})
	grandchild := readPid(t, bufio.NewReader(strings.NewReader(<-log)))
	if err := c.Stop(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	wantDead(t, grandchild)
}

func TestAwait(t *testing.T) {
	never := func() bool { return false }
	soon, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for _, tt := range []struct {
		name, path string
		ctx        context.Context
		want       string
	}{
		{"it fails", "/bin/false", t.Context(), "cannot use s3: it ended before it was ready: exit status 1"},
		{"it ends", "/bin/true", t.Context(), "cannot use s3: it ended before it was ready: exit status 0"},
		{"it hangs", "/bin/sh", soon, "cannot use s3: it is not ready: context deadline exceeded"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec := Spec{Path: tt.path, Name: "s3"}
			if tt.path == "/bin/sh" {
				spec.Args = []string{"-c", "exec sleep 600"}
			}
			if err := start(t, spec).Await(tt.ctx, never); err == nil || err.Error() != tt.want {
				t.Errorf("error %v, want %s", err, tt.want)
			}
		})
	}
}

func TestWhatAChildGets(t *testing.T) {
	var log bytes.Buffer
	dir := t.TempDir()
	c := start(t, Spec{Path: "/bin/sh", Args: []string{"-c", `echo "$A"; pwd >&2`}, Env: []string{"A=one"}, Dir: dir, Log: &log})
	if err := c.Wait(); err != nil {
		t.Fatal(err)
	}
	if want := "one\n" + dir + "\n"; log.String() != want {
		t.Errorf("it logged %q, want %q", log.String(), want)
	}
}

func TestAMissingProgramIsNamed(t *testing.T) {
	if _, err := Start(Spec{Path: "/nowhere/quicklime-lab"}); err == nil || !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "quicklime-lab") {
		t.Errorf("error %v", err)
	}
}

// lines is a log of which a test reads what is written, write by write.
type lines chan string

func (l lines) Write(b []byte) (int, error) {
	l <- string(b)
	return len(b), nil
}

func readPid(t *testing.T, r *bufio.Reader) int {
	t.Helper()
	line, err := r.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func wantDead(t *testing.T, pid int) {
	t.Helper()
	for range 500 {
		if !lives(pid) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("process %d lives", pid)
}

// lives reports whether a process is there and is not a zombie.
func lives(pid int) bool {
	s := state(pid)
	return s != "" && s != "Z"
}

// state is a process's, "" where there is none. Source: proc(5), stat.
func state(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return after[:min(1, len(after))]
}

// TestANamespaceOfItsOwn: the child is born there, and the lab stays where it
// is.
func TestANamespaceOfItsOwn(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it takes root to make a network namespace")
	}
	here, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	other := exec.Command("/bin/sleep", "600")
	other.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := other.Start(); err != nil {
		t.Skipf("cannot make a network namespace: %v", err)
	}
	t.Cleanup(func() { _ = other.Process.Kill(); _ = other.Wait() })
	there := fmt.Sprintf("/proc/%d/ns/net", other.Process.Pid)
	want, err := os.Readlink(there)
	if err != nil || want == here {
		t.Fatalf("%s, %v", want, err)
	}
	c := start(t, Spec{Path: "/bin/sleep", Args: []string{"600"}, Netns: there})
	if got, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", c.Pid())); err != nil || got != want {
		t.Errorf("the child is in %s, want %s (%v)", got, want, err)
	}
	if got, err := os.Readlink("/proc/thread-self/ns/net"); err != nil || got != here {
		t.Errorf("the lab is in %s, want %s (%v)", got, here, err)
	}
	if _, err := Start(Spec{Path: "/bin/sleep", Netns: "/dev/null"}); err == nil || !strings.Contains(err.Error(), "network namespace") {
		t.Errorf("a child in no namespace: %v", err)
	}
}
