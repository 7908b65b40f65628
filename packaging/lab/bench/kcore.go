package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"time"
)

// readerPath is the reader's program in the guest.
const readerPath = "/usr/lib/quicklime/readbench"

// readLimit bounds one reading of the guest's memory.
const readLimit = 2 * time.Minute

// buildReader builds it.
func buildReader(ctx context.Context, source, out string) error {
	_, err := command(ctx, filepath.Join(source, "packaging/lab"), []string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64"},
		"go", "build", "-trimpath", "-o", out, "./guest/readbench")
	return err
}

// kcore reads the guest's whole memory by dd, by one reader of ours and by
// two, and by what ours are made of, in turn, so that what else the host does
// strikes all alike.
func (g *instance) kcore(ctx context.Context) error {
	ways := []struct {
		name string
		args []string
		mibs []float64 // MiB of memory a second
	}{
		{name: "kcore_dd", args: []string{"dd"}},
		{name: "kcore_read", args: []string{"read", "1"}},
		{name: "kcore_read_2_readers", args: []string{"read", "2"}},
		{name: "kcore_pread", args: []string{"pread"}},
		{name: "kpageflags", args: []string{"flags"}},
	}
	for round := range g.o.Rounds {
		said := []any{"round", round + 1}
		var read uint64
		for i := range ways {
			w := &ways[i]
			r, err := g.reading(ctx, w.args)
			if err != nil {
				return err
			}
			if got := r.Bytes - r.Missing; i == 0 {
				read = got
			} else if w.name != "kpageflags" && got != read {
				return fmt.Errorf("cannot compare: dd took %d bytes, %v %d", read, w.args, got)
			}
			w.mibs = append(w.mibs, float64(read)/(1<<20)/r.Seconds)
			said = append(said, w.name, fmt.Sprintf("%.1f", w.mibs[round]))
		}
		g.o.Log.Info("read /proc/kcore, MiB/s", said...)
	}
	for _, w := range ways {
		if err := g.o.figure(w.name, median(w.mibs), "MiB/s"); err != nil {
			return err
		}
	}
	dd, one, two := median(ways[0].mibs), median(ways[1].mibs), median(ways[2].mibs)
	if err := g.o.figure("kcore_read_vs_dd", one/dd, "ratio"); err != nil {
		return err
	}
	return g.o.figure("kcore_read_2_readers_vs_1", two/one, "ratio")
}

// reading is what readbench prints.
type reading struct {
	Bytes   uint64  `json:"bytes"`
	Missing uint64  `json:"missing"`
	Seconds float64 `json:"seconds"`
}

func (g *instance) reading(ctx context.Context, way []string) (reading, error) {
	said, err := g.run(ctx, readLimit, append([]string{readerPath}, way...)...)
	if err != nil {
		return reading{}, err
	}
	return parseReading(said)
}

func parseReading(said []byte) (reading, error) {
	var r reading
	if err := json.Unmarshal(said, &r); err != nil {
		return r, fmt.Errorf("cannot read the report %.100q: %w", said, err)
	}
	if r.Seconds <= 0 || r.Bytes <= r.Missing {
		return r, fmt.Errorf("cannot use the report %.100q: it read nothing, or took no time", said)
	}
	return r, nil
}
