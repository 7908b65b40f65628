// Package crowd makes a busy host out of namespaces of this one: thousands of
// processes, sockets and files that are real and end with it. Live response is
// measured on it.
package crowd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Size says how busy the host is.
type Size struct {
	Processes int
	Sockets   int // TCP, half of them accepted from the other half
	Files     int // below Tree, each of a few bytes
}

// Tree is where the crowd's files are, in its own mount namespace.
const Tree = "/run/crowd"

const (
	filesInFolder   = 1000
	socketsOfOne    = 4000 // and so many does one process hold at most
	descriptorsLeft = 64
)

// Command gives a command that runs a program of this host's among the crowd:
// "self" is a program that calls Run with the words after verb.
func Command(ctx context.Context, self, verb string, size Size, words ...string) *exec.Cmd {
	args := append([]string{verb, strconv.Itoa(size.Processes), strconv.Itoa(size.Sockets), strconv.Itoa(size.Files)}, words...)
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET,
		Pdeathsig:  syscall.SIGKILL,
	}
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Run makes the crowd in the namespaces that Command gave this process, then
// calls do. All of the crowd ends with this process, which is their first.
func Run(ctx context.Context, self, holdVerb string, size Size, do func(context.Context) error) error {
	if os.Getpid() != 1 {
		return errors.New("cannot make a crowd: this is not the first process of a namespace of its own")
	}
	for _, step := range []func() error{
		func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
		func() error { return unix.Mount("proc", "/proc", "proc", 0, "") },
		func() error { return unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=0755,nr_inodes=0,size=8g") },
		loopbackUp,
		func() error { return makeFiles(Tree, size.Files) },
		func() error { return holdSockets(ctx, self, holdVerb, size.Sockets) },
		func() error { return startProcesses(size.Processes - count()) },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("cannot make a crowd: %w", err)
		}
	}
	return do(ctx)
}

// count is how many processes there are.
func count() int {
	found, _ := filepath.Glob("/proc/[0-9]*")
	return len(found)
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}

func makeFiles(tree string, n int) error {
	for i := range n {
		dir := filepath.Join(tree, strconv.Itoa(i/filesInFolder))
		if i%filesInFolder == 0 {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i)), []byte(strconv.Itoa(i)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// startProcesses starts sleepers: each is a process of a page or two.
func startProcesses(n int) error {
	for range max(n, 0) {
		if _, err := os.StartProcess("/bin/busybox", []string{"sleep", "86400"}, &os.ProcAttr{Dir: "/"}); err != nil {
			return err
		}
	}
	return nil
}

// holdSockets starts as many holders as it takes, and waits until each has its
// sockets.
func holdSockets(ctx context.Context, self, verb string, n int) error {
	for held := 0; held < n; held += socketsOfOne {
		read, write, err := os.Pipe()
		if err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, self, verb, strconv.Itoa(min(socketsOfOne, n-held)))
		cmd.Stdout, cmd.Stderr = write, os.Stderr
		err = cmd.Start()
		write.Close()
		if err != nil {
			read.Close()
			return err
		}
		_, err = read.Read(make([]byte, 1))
		read.Close()
		if err != nil {
			return fmt.Errorf("a holder of sockets failed: %w", err)
		}
	}
	return nil
}

// Hold opens n TCP sockets on loopback, says so with a byte on standard
// output, and keeps them until ctx ends.
func Hold(ctx context.Context, n int) error {
	limit := uint64(n + descriptorsLeft)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
		return fmt.Errorf("cannot hold %d sockets: %w", n, err)
	}
	// On a host this busy probes get lost, and the kernel would close what is idle.
	listener, err := (&net.ListenConfig{KeepAlive: -1}).Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer listener.Close()
	held := make([]net.Conn, 0, n)
	for len(held)+1 < n {
		out, err := (&net.Dialer{KeepAlive: -1}).DialContext(ctx, "tcp4", listener.Addr().String())
		if err != nil {
			return err
		}
		in, err := listener.Accept()
		if err != nil {
			return err
		}
		held = append(held, out, in)
	}
	if _, err := os.Stdout.Write([]byte("+")); err != nil {
		return err
	}
	<-ctx.Done()
	runtime.KeepAlive(held) // a collected connection is closed
	return nil
}
