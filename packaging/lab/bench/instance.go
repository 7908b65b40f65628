package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/quicklime-ir/quicklime/packaging/lab/guest"
	"github.com/quicklime-ir/quicklime/packaging/lab/world"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

const busybox = "/usr/bin/busybox"

// Bounds of the guest.
const (
	memoryMiB   = 512
	bootLimit   = 2 * time.Minute
	scratchSize = 2 * memoryMiB << 20 // a disk for one dump
)

// toolsAt is where the AWS CLI's root is in the guest; below it, at mnt, is
// the scratch disk.
const toolsAt = "/mnt/tools"

// instance is the booted guest, the world that it belongs to, and the run
// that it is measured for.
type instance struct {
	o     Options
	w     *world.World
	vm    *guest.VM
	facts guest.Facts
	watch *watch
}

// inGuest measures what needs a real kernel, all in one boot of it.
func inGuest(ctx context.Context, o Options, dir string) (err error) {
	logs, err := os.Create(filepath.Join(dir, "lab.log"))
	if err != nil {
		return err
	}
	defer logs.Close()
	w, err := world.Start(ctx, world.Config{Dir: dir, Binaries: o.Binaries, Log: logs, Guest: true, Collector: collectorFlags("auto")})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	g := &instance{o: o, w: w, watch: newWatch(w.S3)}
	if err := g.boot(ctx, dir); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w\nthe console ends:\n%s\nthe logs end:\n%s", err, g.vm.ConsoleTail(), w.LogTail())
		}
		err = errors.Join(err, g.vm.Stop())
	}()
	if slices.Contains(o.Parts, Kcore) {
		if err := g.kcore(ctx); err != nil {
			return err
		}
	}
	if slices.Contains(o.Parts, Object) {
		return g.objects(ctx)
	}
	return nil
}

// boot starts the guest with the reader's program and the disks.
func (g *instance) boot(ctx context.Context, dir string) error {
	cfg, err := g.w.Guest(g.o.Kit, world.Victim)
	if err != nil {
		return err
	}
	cfg.MemoryMiB = memoryMiB
	reader := filepath.Join(dir, "readbench")
	if err := buildReader(ctx, g.o.Source, reader); err != nil {
		return err
	}
	program, err := os.ReadFile(reader)
	if err != nil {
		return err
	}
	cfg.Files[readerPath] = guest.File{Mode: 0o755, Data: program}
	if slices.Contains(g.o.Parts, Object) {
		tools, err := toolsDisk(ctx, g.o.Cache, g.o.Log)
		if err != nil {
			return err
		}
		scratch := filepath.Join(dir, "scratch.img")
		if err := guest.MakeDisk(ctx, scratch, scratchSize); err != nil {
			return err
		}
		cfg.Disks = []guest.Disk{{Path: tools, ReadOnly: true}, {Path: scratch}}
	}
	if g.vm, err = guest.Boot(ctx, cfg); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	if g.facts, err = g.vm.Ready(limited); err != nil {
		return errors.Join(err, g.vm.Stop())
	}
	g.o.Log.Info("the guest is up", "kernel", g.facts.Release, "after", g.facts.BootTime.Round(time.Millisecond))
	return nil
}

// imageSize is that of a LiME image of the guest, in bytes.
func (g *instance) imageSize() int64 {
	var ranges []lime.Range
	for _, r := range g.facts.SystemRAM {
		ranges = append(ranges, lime.Range{Start: r.Start, End: r.End})
	}
	return int64(lime.Size(ranges))
}

// run runs a program in the guest, and gives what it said; an exit code other
// than 0 is an error.
func (g *instance) run(ctx context.Context, limit time.Duration, argv ...string) ([]byte, error) {
	ended, err := g.vm.Run(ctx, limit, argv...)
	if err != nil {
		return nil, err
	}
	if ended.Exit != 0 {
		return nil, fmt.Errorf("%s ended with exit code %d in the guest: %s", argv[0], ended.Exit, ended.Output[max(0, len(ended.Output)-2048):])
	}
	return ended.Output, nil
}

// script runs shell commands in the guest, up to the first that fails.
func (g *instance) script(ctx context.Context, limit time.Duration, text string) error {
	_, err := g.run(ctx, limit, busybox, "sh", "-c", "set -e -o pipefail\n"+text)
	return err
}
