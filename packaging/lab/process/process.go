// Package process starts the lab's child processes so that none outlives the
// lab, whatever ends it.
//
// Linux ends a child when the thread that started it ends (prctl(2),
// PR_SET_PDEATHSIG), so each child has a thread of its own that lives as
// long as it.
package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// Spec says what to start.
type Spec struct {
	Path string
	Args []string // without the program's name
	Env  []string // all of it
	Dir  string
	Log  io.Writer // its standard output and error
}

// Child is a running process.
type Child struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended and err is set
	err  error
}

// Start starts a child in a process group of its own, so that Ctrl-C in a
// terminal reaches the lab alone, which then ends its children in order.
func Start(spec Spec) (*Child, error) {
	c := &Child{cmd: exec.Command(spec.Path, spec.Args...), done: make(chan struct{})}
	c.cmd.Env, c.cmd.Dir, c.cmd.Stdout, c.cmd.Stderr = spec.Env, spec.Dir, spec.Log, spec.Log
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	c.cmd.WaitDelay = 2 * time.Second
	started := make(chan error)
	go func() { // owned by the child: ends with it
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(c.done)
		err := c.cmd.Start()
		started <- err
		if err == nil {
			c.err = c.cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", spec.Path, err)
	}
	return c, nil
}

// Done is closed when the child has ended.
func (c *Child) Done() <-chan struct{} { return c.done }

// Err tells how the child ended, once Done is closed.
func (c *Child) Err() error { return c.err }

// Pid is the child's process id.
func (c *Child) Pid() int { return c.cmd.Process.Pid }

// Signal sends a signal to the child's group.
func (c *Child) Signal(s syscall.Signal) error {
	select {
	case <-c.done:
		return nil
	default:
	}
	if err := syscall.Kill(-c.Pid(), s); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("cannot signal process %d: %w", c.Pid(), err)
	}
	return nil
}

// Kill ends the child at once, and waits for it.
func (c *Child) Kill() error {
	err := c.Signal(syscall.SIGKILL)
	<-c.done
	return err
}

// Stop asks the child to end, and kills it when it has not after grace.
func (c *Child) Stop(grace time.Duration) error {
	if err := c.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-c.done:
		return nil
	case <-time.After(grace):
		return c.Kill()
	}
}

// Await polls until ready answers true, the child ends, or ctx does.
func (c *Child) Await(ctx context.Context, ready func() bool) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ready() {
		select {
		case <-c.done:
			return fmt.Errorf("%s ended before it was ready: %v", c.cmd.Path, c.err)
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w", c.cmd.Path, context.Cause(ctx))
		case <-tick.C:
		}
	}
	return nil
}
