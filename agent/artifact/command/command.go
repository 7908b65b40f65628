// Package command runs the few programs of the host whose output nothing else
// gives: how the packet filter is set.
//
// It exists to be the one place of the agent that can start a program. Which,
// and with which arguments, is a list in this file; no file, order or
// definition adds to it. There is no shell; a program gets no input, an
// environment of two variables, little time, and is cut off when it says too
// much.
package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"
)

// Bounds of one run.
const (
	maxTime   = 10 * time.Second
	maxOutput = 8 << 20 // bytes of standard output
	maxErrors = 4 << 10 // bytes of standard error
	graceTime = time.Second
)

// program is one that may run.
type program struct {
	argv []string
	// needs names files of which one must exist: signs that the kernel's part
	// is loaded already. Else the mere question could load it, which changes the
	// host.
	needs []string
}

var programs = []program{
	{[]string{"/usr/sbin/nft", "list", "ruleset"}, []string{"/sys/module/nf_tables"}},
	{[]string{"/usr/sbin/iptables-save", "-c"}, []string{"/proc/net/ip_tables_names", "/sys/module/nf_tables"}},
	{[]string{"/usr/sbin/ip6tables-save", "-c"}, []string{"/proc/net/ip6_tables_names", "/sys/module/nf_tables"}},
}

var (
	// ErrUnknown says that a command is none of the list, and was not run.
	ErrUnknown = errors.New("not run: no command but the agent's own is")
	// ErrNotNeeded says that the kernel has not loaded what it would ask.
	ErrNotNeeded = errors.New("not run: the kernel has no such part loaded, and to ask could load it")
	// ErrUnsafe says that someone other than root can write to the program.
	ErrUnsafe = errors.New("not run: others than root can write to it")

	errTooLong = fmt.Errorf("ended, as it took more than %v", maxTime)
)

// Known reports whether a command, its program and its arguments, may run.
func Known(argv []string) bool { return find(argv) != nil }

func find(argv []string) *program {
	for i := range programs {
		if slices.Equal(programs[i].argv, argv) {
			return &programs[i]
		}
	}
	return nil
}

// Output is what a command left.
type Output struct {
	Stdout []byte // at most 8 MiB
	Stderr []byte // at most 4 KiB
	Cut    bool   // there was more on standard output, and the command was ended
}

// Run runs a command of the list. Its error tells why it did not run, or did
// not end well; what it said until then is in Output.
func Run(ctx context.Context, argv []string) (Output, error) {
	p := find(argv)
	if p == nil {
		return Output{}, ErrUnknown
	}
	if len(p.needs) > 0 && !slices.ContainsFunc(p.needs, exists) {
		return Output{}, ErrNotNeeded
	}
	if err := trusted(argv[0]); err != nil {
		return Output{}, err
	}
	return run(ctx, argv, maxTime, maxOutput)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// trusted refuses a program that is not root's alone.
func trusted(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !info.Mode().IsRegular() || !ok || stat.Uid != 0 || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s: %w", path, ErrUnsafe)
	}
	return nil
}

// run starts the command in a process group of its own, which ends with it.
func run(ctx context.Context, argv []string, limit time.Duration, size int) (Output, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errTooLong)
	defer cancel()
	out := &capped{left: size, full: cancel}
	errs := &capped{left: maxErrors}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = out, errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = graceTime
	err := cmd.Run()
	switch {
	case out.cut:
		err = nil
	case err != nil && ctx.Err() != nil:
		err = context.Cause(ctx)
	}
	if err != nil {
		err = fmt.Errorf("cannot run %s: %w", argv[0], err)
	}
	return Output{out.Bytes(), errs.Bytes(), out.cut}, err
}

// capped keeps the first bytes that are written to it.
type capped struct {
	bytes.Buffer
	left int
	full func() // called when there are more; may be nil
	cut  bool
}

// ReadFrom hides the Buffer's own, which has no limit.
func (c *capped) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(struct{ io.Writer }{c}, r)
}

func (c *capped) Write(b []byte) (int, error) {
	n := min(len(b), c.left)
	c.Buffer.Write(b[:n])
	c.left -= n
	if n < len(b) && !c.cut {
		c.cut = true
		if c.full != nil {
			c.full()
		}
	}
	return len(b), nil
}

// Count says how many commands there are.
func Count() int { return len(programs) }
