package wires

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"github.com/quicklime-ir/quicklime/packaging/lab/process"
)

const (
	insideRole = "QUICKLIME_TEST_INSIDE"
	echoRole   = "QUICKLIME_TEST_ECHO"
)

// TestMain lets the test binary run once more in namespaces, and play a node
// there.
func TestMain(m *testing.M) {
	if addr := os.Getenv(echoRole); addr != "" {
		echo(addr)
	}
	os.Exit(m.Run())
}

// echo listens at an address, connects to whom it is told by a line on each
// connection, and says whether it could.
func echo(addr string) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		panic(err)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			panic(err)
		}
		go func() {
			defer c.Close()
			var to string
			if _, err := fmt.Fscanln(c, &to); err == nil {
				fmt.Fprintln(c, reaches(to))
			}
		}()
	}
}

// reaches says whether a connection comes about, within a time in which the
// kernel has asked three times who has the address.
func reaches(addr string) bool {
	c, err := net.DialTimeout("tcp", addr, 500*time.Millisecond)
	if err != nil {
		return false
	}
	return c.Close() == nil
}

// TestWires runs itself again in namespaces of its own.
func TestWires(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it takes root to make namespaces")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("iproute2 is not installed")
	}
	if os.Getenv(insideRole) != "" {
		inside(t)
		return
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := Command(t.Context(), os.Args[0], "-test.run=^TestWires$", "-test.v")
	cmd.Env = append(os.Environ(), insideRole+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func inside(t *testing.T) {
	w, err := Lay(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	lab, err := net.Listen("tcp", Hub+":7")
	if err != nil {
		t.Fatal(err)
	}
	defer lab.Close()
	for n := range 2 {
		node, err := process.Start(process.Spec{Path: os.Args[0], Env: []string{echoRole + "=" + Addr(n) + ":7"}, Netns: w.Namespace(n), Log: t.Output()})
		if err != nil {
			t.Fatal(err)
		}
		defer node.Kill()
		for !reaches(Addr(n) + ":7") {
			select {
			case <-node.Done():
				t.Fatal(node.Err())
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	type cut func(context.Context) (func(context.Context) error, error)
	tests := []struct {
		name                              string
		cut                               cut
		labTo0, labTo1, zeroToOne, oneTo0 bool
	}{
		{"whole", func(context.Context) (func(context.Context) error, error) {
			return func(context.Context) error { return nil }, nil
		}, true, true, true, true},
		{"nobody hears node 0", func(ctx context.Context) (func(context.Context) error, error) { return w.Mute(ctx, 0) }, false, true, false, false},
		{"node 0 hears nobody", func(ctx context.Context) (func(context.Context) error, error) { return w.Deafen(ctx, 0) }, false, true, false, false},
		{"between the nodes", func(ctx context.Context) (func(context.Context) error, error) { return w.Part(ctx, 0, 1) }, true, true, false, false},
	}
	for _, tt := range tests {
		mend, err := tt.cut(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, look := range []struct {
			what      string
			got, want bool
		}{
			{"the lab reaches node 0", reaches(Addr(0) + ":7"), tt.labTo0},
			{"the lab reaches node 1", reaches(Addr(1) + ":7"), tt.labTo1},
		} {
			if look.got != look.want {
				t.Errorf("%s: %s: %v, want %v", tt.name, look.what, look.got, look.want)
			}
		}
		if tt.labTo0 { // else nobody can ask it
			if got := asks(t, 0, Addr(1)+":7"); got != tt.zeroToOne {
				t.Errorf("%s: node 0 reaches node 1: %v, want %v", tt.name, got, tt.zeroToOne)
			}
		}
		if got := asks(t, 1, Addr(0)+":7"); got != tt.oneTo0 {
			t.Errorf("%s: node 1 reaches node 0: %v, want %v", tt.name, got, tt.oneTo0)
		}
		if !asks(t, 1, Hub+":7") {
			t.Errorf("%s: node 1 does not reach the lab", tt.name)
		}
		if err := mend(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !reaches(Addr(0)+":7") || !asks(t, 0, Addr(1)+":7") || !asks(t, 1, Addr(0)+":7") {
			t.Errorf("%s: it is not mended", tt.name)
		}
	}
}

// asks has a node try to reach an address.
func asks(t *testing.T, n int, addr string) bool {
	t.Helper()
	c, err := net.DialTimeout("tcp", Addr(n)+":7", 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintln(c, addr)
	said, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(said) == "true\n"
}
