package process

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
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
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait() // it was killed
	for range 500 {
		if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) || zombie(pid) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("process %d outlived its parent", pid)
}

// zombie reports whether a process has ended and nobody has asked how.
func zombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && strings.Contains(string(stat), ") Z ")
}

func TestStop(t *testing.T) {
	for _, tt := range []struct{ name, script string }{
		{"a child that ends when asked", "exec sleep 600"},
		{"a child that will not", "trap '' TERM; while :; do sleep 1; done"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Start(Spec{Path: "/bin/sh", Args: []string{"-c", tt.script}})
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Stop(200 * time.Millisecond); err != nil {
				t.Fatal(err)
			}
			select {
			case <-c.Done():
			default:
				t.Error("it runs still")
			}
		})
	}
}

func TestAwait(t *testing.T) {
	c, err := Start(Spec{Path: "/bin/false"})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Await(t.Context(), func() bool { return false }); err == nil || !strings.Contains(err.Error(), "exit status 1") {
		t.Errorf("error %v, want how the child ended", err)
	}
}
