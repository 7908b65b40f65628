// Package process starts the lab's child processes so that none outlives the
// lab, whatever ends it.
//
// Linux ends a child when the thread that started it ends (prctl(2),
// PR_SET_PDEATHSIG), so each child has a thread of its own that lives as
// long as it. What a child has itself started is ended with the child, but
// not by the lab's death: a child of the lab starts none, or sees to them.
package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Spec says what to start.
type Spec struct {
	Path string
	Args []string // without the program's name
	Env  []string // all of it; nil is the lab's own
	Dir  string
	Log  io.Writer // its standard output and error; nil is nowhere
	Name string    // in errors; "" is the program's name
	// Netns is the path of a network namespace that the child is born in; ""
	// is the lab's own. It takes CAP_SYS_ADMIN.
	Netns string
}

// Child is a running process.
type Child struct {
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended and err is set
	err  error

	mu    sync.Mutex
	ended bool // its process id may be another's now; owned by mu
}

// Start starts a child in a process group of its own, so that Ctrl-C in a
// terminal reaches the lab alone, which then ends its children in order.
func Start(spec Spec) (*Child, error) {
	c := &Child{name: spec.Name, cmd: exec.Command(spec.Path, spec.Args...), done: make(chan struct{})}
	if c.name == "" {
		c.name = filepath.Base(spec.Path)
	}
	c.cmd.Env, c.cmd.Dir, c.cmd.Stdout, c.cmd.Stderr = spec.Env, spec.Dir, spec.Log, spec.Log
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	c.cmd.WaitDelay = 2 * time.Second
	started := make(chan error)
	go c.live(spec.Netns, started) // ends with the child
	if err := <-started; err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", c.name, err)
	}
	return c, nil
}

// live keeps the thread that the child depends on until the child has ended,
// and ends what is left of its group.
func (c *Child) live(netns string, started chan<- error) {
	runtime.LockOSThread()
	defer close(c.done)
	err := enter(netns)
	if netns == "" {
		defer runtime.UnlockOSThread()
	} // else the thread, which is elsewhere now, ends with its goroutine
	if err == nil {
		err = c.cmd.Start()
	}
	started <- err
	if err != nil {
		return
	}
	for errors.Is(unix.Waitid(unix.P_PID, c.Pid(), nil, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
	}
	c.mu.Lock() // nobody has asked how it ended, so the id is still its own
	_ = syscall.Kill(-c.Pid(), syscall.SIGKILL)
	c.ended = true
	c.mu.Unlock()
	c.err = c.cmd.Wait()
}

// enter takes this thread into a network namespace.
func enter(netns string) error {
	if netns == "" {
		return nil
	}
	f, err := os.Open(netns)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("cannot enter network namespace %s: %w", netns, err)
	}
	return nil
}

// Done is closed when the child has ended.
func (c *Child) Done() <-chan struct{} { return c.done }

// Err tells how the child ended, once Done is closed: nil for exit code 0,
// else an *exec.ExitError.
func (c *Child) Err() error { return c.err }

// Wait waits until the child has ended, and tells how.
func (c *Child) Wait() error {
	<-c.done
	return c.err
}

// Pid is the child's process id.
func (c *Child) Pid() int { return c.cmd.Process.Pid }

// Signal sends a signal to the child's group. That it has ended is no error.
func (c *Child) Signal(s syscall.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return nil
	}
	if err := syscall.Kill(-c.Pid(), s); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("cannot signal %s, process %d: %w", c.name, c.Pid(), err)
	}
	return nil
}

// Kill ends the child's group at once, and waits for it.
func (c *Child) Kill() error {
	if err := c.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-c.done
	return nil
}

// Stop asks the child to end, and kills its group when it has not after
// grace.
func (c *Child) Stop(grace time.Duration) error {
	if err := c.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-c.done:
		return nil
	case <-timer.C:
		return c.Kill()
	}
}

// Await asks ready every 20 ms until it answers true, the child ends, or ctx
// does.
func (c *Child) Await(ctx context.Context, ready func() bool) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ready() {
		select {
		case <-c.done:
			return fmt.Errorf("cannot use %s: it ended before it was ready: %w", c.name, ended(c.err))
		case <-ctx.Done():
			return fmt.Errorf("cannot use %s: it is not ready: %w", c.name, context.Cause(ctx))
		case <-tick.C:
		}
	}
	return nil
}

// ended is an error also where the exit code was 0.
func ended(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}
