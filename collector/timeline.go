package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/quicklime-ir/quicklime/collector/proof"
	"github.com/quicklime-ir/quicklime/collector/timeline"
)

// timelineCmd needs no service: only the objects and, for a proof, the key.
type timelineCmd struct {
	evidenceFlags
	Case string `arg:"" help:"The case's id."`
	Out  string `help:"The file, - for standard output. It must not exist." required:""`
}

func (c *timelineCmd) Run(ctx context.Context, out io.Writer) error {
	objects, done, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer done()
	manifest, err := c.manifest(ctx, objects, c.Case)
	if err != nil {
		return err
	}
	entries, err := proof.Journal(ctx, objects, manifest)
	if err != nil {
		return err
	}
	var result timeline.Result
	write := func(w io.Writer) (err error) {
		result, err = timeline.Write(ctx, objects, manifest, entries, w)
		return err
	}
	if c.Out == "-" {
		signal.Ignore(syscall.SIGPIPE) // the write's error is enough
		err = write(out)
	} else {
		err = writeNew(c.Out, write)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "quicklime-collector: %d events\n", result.Events)
	if lacks := result.Lacks(); lacks != "" {
		return fmt.Errorf("%w: %s", errTimelineLacks, lacks)
	}
	return nil
}

// errTimelineLacks says that there are rows without their events.
var errTimelineLacks = errors.New("the timeline is not whole")

// writeNew writes a file that does not exist yet: NAME.part until it is
// whole, and not at all where that fails.
func writeNew(name string, write func(io.Writer) error) error {
	if _, err := os.Lstat(name); err == nil {
		return fmt.Errorf("cannot write %s: it is there already", name)
	}
	part := name + ".part"
	file, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", name, err)
	}
	err = errors.Join(write(file), file.Close())
	if err == nil {
		err = os.Link(part, name) // which, unlike a rename, never replaces
	}
	return errors.Join(err, os.Remove(part))
}
