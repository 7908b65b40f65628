package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/quicklime-ir/quicklime/collector/export"
	"github.com/quicklime-ir/quicklime/collector/proof"
	"github.com/quicklime-ir/quicklime/collector/unpack"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// errLacks says that what was exported is not all of the evidence.
var errLacks = errors.New("the export is not whole")

// exportCmd needs no service: only the objects and, for a proof, the key.
type exportCmd struct {
	evidenceFlags
	Case      string `arg:"" help:"The case's id."`
	Format    string `help:"Of the memory image: lime: one LiME stream. raw: the ranges of RAM, one after the other. padded: each byte at its physical address. zst: as it is stored. Of all else: files: tables and files in a folder. tar.gz: the same as one archive in UAC's layout." enum:"lime,raw,padded,zst,files,tar.gz" required:""`
	Out       string `help:"The file or folder, - for standard output. It must not exist; an image that was interrupted goes on." required:""`
	Item      string `help:"The image's key, where the case has several."`
	KeepGoing bool   `help:"Write zeros for a part that is not what the manifest says, and go on."`
}

func (c *exportCmd) Run(ctx context.Context, out io.Writer) error {
	objects, done, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer done()
	manifest, err := c.manifest(ctx, objects, c.Case)
	if err != nil {
		return err
	}
	if c.Format == "files" || c.Format == "tar.gz" {
		return c.unpack(ctx, objects, manifest, out)
	}
	item, err := c.image(manifest)
	if err != nil {
		return err
	}
	// A second signal ends at once what waits for the reader of a pipe.
	defer context.AfterFunc(ctx, func() { signal.Reset(os.Interrupt, syscall.SIGTERM) })()
	meter := export.NewMeter(os.Stderr)
	options := export.Options{Format: export.Format(c.Format), KeepGoing: c.KeepGoing, Progress: meter.Show}
	var result export.Result
	if c.Out == "-" {
		signal.Ignore(syscall.SIGPIPE) // the write's error is enough
		result, err = export.ToStream(ctx, objects, item, out, options)
	} else {
		result, err = export.ToFile(ctx, objects, item, c.Out, options)
	}
	meter.End()
	if err != nil {
		return err
	}
	if result.Resumed > 0 {
		fmt.Fprintf(os.Stderr, "quicklime-collector: went on after %d parts that were written before\n", result.Resumed)
	}
	if lacks := result.Lacks(); lacks != "" {
		return fmt.Errorf("%w: %s", errLacks, lacks)
	}
	return nil
}

// unpack exports what is no memory image.
func (c *exportCmd) unpack(ctx context.Context, objects proof.Objects, manifest evidence.Manifest, out io.Writer) error {
	if c.Item != "" || c.KeepGoing {
		return errors.New("--item and --keep-going are of memory images: an item that cannot be had is named, and the others are exported")
	}
	var result unpack.Result
	write := func(w io.Writer) (err error) {
		result, err = unpack.ToTarGz(ctx, objects, manifest, w)
		return err
	}
	var err error
	switch {
	case c.Format == "files" && c.Out == "-":
		return errors.New("a folder cannot go to standard output: export it with --format tar.gz, or name a folder with --out")
	case c.Format == "files":
		result, err = unpack.ToFolder(ctx, objects, manifest, c.Out)
	case c.Out == "-":
		signal.Ignore(syscall.SIGPIPE) // the write's error is enough
		err = write(out)
	default:
		err = writeNew(c.Out, write)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "quicklime-collector: %d members", result.Members)
	if result.Left > 0 {
		fmt.Fprintf(os.Stderr, ", %d of them left out or not as they were, the first is %s", result.Left, result.First)
	}
	fmt.Fprintln(os.Stderr)
	if lacks := result.Lacks(); lacks != "" {
		return fmt.Errorf("%w: %s", errLacks, lacks)
	}
	return nil
}

// image finds the image in the case's manifest.
func (c *exportCmd) image(manifest evidence.Manifest) (evidence.Item, error) {
	var found []evidence.Item
	for _, item := range manifest.Items {
		if item.Kind == evidence.Memory && item.Format == evidence.LiME && (c.Item == "" || c.Item == item.Key) {
			found = append(found, item)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case c.Item != "":
		return evidence.Item{}, fmt.Errorf("case %s has no memory image %s", c.Case, c.Item)
	case len(found) == 0:
		return evidence.Item{}, fmt.Errorf("case %s has no memory image", c.Case)
	}
	return evidence.Item{}, fmt.Errorf("case %s has %d memory images: name one with --item, the first is %s", c.Case, len(found), evidence.Plain(found[0].Key))
}
