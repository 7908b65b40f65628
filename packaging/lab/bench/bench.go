// Package bench measures a capture against what it is to beat, on one
// host and in one run, as ratios between seconds of a software-emulated guest
// mean something where the seconds do not.
//
// Each figure is a line "name value unit". agent/memory/README.md and
// agent/artifact/README.md say what each means.
package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/quicklime-ir/quicklime/packaging/lab/guest"
	"github.com/quicklime-ir/quicklime/packaging/lab/world"
)

// Options say what to measure.
type Options struct {
	Binaries world.Binaries
	Kit      *guest.Kit
	Cache    string // folder that keeps the AWS CLI's disk
	Source   string // the repository, whose benchmarks are run
	Rounds   int    // of each reading of /proc/kcore; the median counts
	Parts    []string
	Out      io.Writer // gets the figures
	Log      *slog.Logger
}

// The parts of a run.
const (
	Kcore  = "kcore"  // reading /proc/kcore, against dd
	Object = "object" // from an order to an object, against the seed's ways
	Encode = "encode" // packing, against zstd and plain SHA-256
	Live   = "live"   // live response on a busy host, against ps, ss and lsof, and the commands by hand
	Walk   = "walk"   // the walks of a tree of files, against find and tar

	Failover = "failover" // from the death of one of three nodes until the others go on with its cases
)

// Parts are all of them.
var Parts = []string{Kcore, Object, Encode, Live, Walk, Failover}

// Run measures. It stops at the first thing that fails: a figure that could
// not be had is not printed.
func Run(ctx context.Context, o Options) (err error) {
	dir, err := os.MkdirTemp("", "quicklime-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	for _, part := range []struct {
		name string
		run  func(context.Context, Options) error
	}{{Encode, encode}, {Live, live}, {Walk, walk}, {Failover, failover}} {
		if !slices.Contains(o.Parts, part.name) {
			continue
		}
		if err := part.run(ctx, o); err != nil {
			return err
		}
	}
	if slices.Contains(o.Parts, Kcore) || slices.Contains(o.Parts, Object) {
		return inGuest(ctx, o, dir)
	}
	return nil
}

// figure prints one.
func (o Options) figure(name string, value float64, unit string) error {
	_, err := fmt.Fprintf(o.Out, "%s %.3f %s\n", name, value, unit)
	return err
}

// median of at least one value.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// command runs a program of the host's and gives its standard output.
func command(ctx context.Context, dir string, env []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		said := ""
		if errors.As(err, &exit) {
			said = ": " + string(exit.Stderr[max(0, len(exit.Stderr)-2048):])
		}
		return "", fmt.Errorf("cannot run %s: %w%s", filepath.Base(name), err, said)
	}
	return string(out), nil
}
