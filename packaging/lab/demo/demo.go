// Package demo runs the main job once, from the finding to the sealed case,
// on a real kernel, and checks from outside that all of it is true.
package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/desk"
	"github.com/quicklime-ir/quicklime/packaging/lab/guest"
	"github.com/quicklime-ir/quicklime/packaging/lab/world"
)

// Options say how to run.
type Options struct {
	Binaries world.Binaries
	Kit      *guest.Kit
	Memory   string // auto, kcore or lime
	// MemoryMiB is how much memory the instance has; 0 is 512.
	MemoryMiB int
	Keep      string    // folder that keeps what was made; "" keeps nothing
	Out       io.Writer // for the person who watches
}

// Limits of the demo. Software emulation is slow, so they are wide.
const (
	bootLimit = 2 * time.Minute
	caseLimit = 15 * time.Minute
)

// Run runs the demo. Nothing of it is left running when it returns; a nil
// error means that every check held.
func Run(ctx context.Context, o Options) (err error) {
	dir, done, err := folder(o.Keep)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	logs, err := os.Create(filepath.Join(dir, "lab.log"))
	if err != nil {
		return err
	}
	defer logs.Close()
	work := filepath.Join(dir, "lab")
	if err := os.MkdirAll(work, 0o700); err != nil {
		return err
	}
	w, err := world.Start(ctx, world.Config{Dir: work, Binaries: o.Binaries, Log: logs, Guest: true, ImagePending: 3 * time.Second, MissReads: 1,
		Collector: []string{"--memory-source", o.Memory, "--stall", "90s"}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	fmt.Fprintln(o.Out, "lab       an account, S3, Discord and a collector run on loopback")

	console, err := os.Create(filepath.Join(dir, "console.log"))
	if err != nil {
		return err
	}
	defer console.Close()
	vm, facts, err := boot(ctx, o, w, console)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, vm.Stop()) }()
	fmt.Fprintf(o.Out, "guest     kernel %s is up after %v; an intruder runs as pid %d from a deleted binary\n", facts.Release, facts.BootTime.Round(100*time.Millisecond), facts.DeletedPID)

	if err := attached(ctx, o.Out, w); err != nil {
		return errors.Join(err, errors.New(vm.ConsoleTail()))
	}
	began := time.Now()
	if err := w.Find(world.Compromised(world.Victim)); err != nil {
		return err
	}
	fmt.Fprintln(o.Out, "finding   GuardDuty says that", world.Victim, "is compromised")
	c, err := watch(ctx, o.Out, w, began)
	if err != nil {
		return errors.Join(err, fmt.Errorf("the logs end:\n%s", w.LogTail()))
	}
	agent, err := weigh(ctx, vm)
	if err != nil {
		return err
	}
	copied := filepath.Join(dir, "bucket")
	if err := download(ctx, w, copied); err != nil {
		return err
	}
	key := filepath.Join(dir, "verify.pub")
	if err := copyFile(filepath.Join(w.Data(), "verify.pub"), key); err != nil {
		return err
	}
	if err := show(ctx, o.Out, w, c); err != nil {
		return err
	}
	return check(ctx, o.Out, evidence{binaries: o.Binaries, copied: copied, key: key, image: filepath.Join(dir, "memory.lime"), facts: facts, c: c, agent: agent, out: o.Out})
}

// folder is where the demo works: the kept one, or a temporary one.
func folder(keep string) (dir string, done func() error, err error) {
	if keep == "" {
		dir, err = os.MkdirTemp("", "quicklime-demo-")
		return dir, func() error { return os.RemoveAll(dir) }, err
	}
	if dir, err = filepath.Abs(keep); err != nil {
		return "", nil, err
	}
	if err = os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, err
	}
	entries, err := os.ReadDir(dir)
	if err == nil && len(entries) > 0 {
		err = fmt.Errorf("cannot keep the demo's files in %s: it is not empty; name another folder", dir)
	}
	return dir, func() error { return os.RemoveAll(filepath.Join(dir, "lab")) }, err
}

// boot starts the instance with the agent in it.
func boot(ctx context.Context, o Options, w *world.World, console io.Writer) (*guest.VM, guest.Facts, error) {
	cfg, err := w.Guest(o.Kit, world.Victim)
	if err != nil {
		return nil, guest.Facts{}, err
	}
	cfg.Console, cfg.MemoryMiB = console, o.MemoryMiB
	vm, err := guest.Boot(ctx, cfg)
	if err != nil {
		return nil, guest.Facts{}, err
	}
	limited, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	facts, err := vm.Ready(limited)
	if err != nil {
		return nil, facts, errors.Join(err, vm.Stop())
	}
	return vm, facts, nil
}

// attached waits for the agent, and shows what it could do.
func attached(ctx context.Context, out io.Writer, w *world.World) error {
	ctx, cancel := context.WithTimeoutCause(ctx, bootLimit, errors.New("the agent does not attach"))
	defer cancel()
	for {
		client, err := desk.Dial(w.Data())
		if err == nil {
			agents, err := client.Agents(ctx)
			client.Close()
			if err == nil && len(agents) > 0 {
				var b bytes.Buffer
				if err := desk.PrintAgents(&b, agents); err != nil {
					return err
				}
				_, err := fmt.Fprintf(out, "agent     it is attached, and says:\n\n%s\n", b.String())
				return err
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// watch shows a line for each step, until the case has ended.
func watch(ctx context.Context, out io.Writer, w *world.World, began time.Time) (casefile.Case, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, caseLimit, fmt.Errorf("the case has not ended after %v", caseLimit))
	defer cancel()
	live := newLiner(out)
	for {
		cases, err := w.Cases(ctx)
		if err == nil && len(cases) > 0 {
			c, progress, err := w.Case(ctx, cases[0].ID)
			if err == nil {
				live.update(c, progress, began)
				if c.State == casefile.Ended {
					return c, nil
				}
			}
		}
		select {
		case <-ctx.Done():
			return casefile.Case{}, context.Cause(ctx)
		case <-time.After(250 * time.Millisecond):
		}
	}
}
