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
// two, in turn, so that what else the host does strikes all alike.
func (g *instance) kcore(ctx context.Context) error {
	ways := [][]string{{"dd"}, {"read", "1"}, {"read", "2"}}
	rates := make([][]float64, len(ways)) // bytes a second
	for round := range g.o.Rounds {
		var read uint64
		for i, way := range ways {
			r, err := g.reading(ctx, way)
			if err != nil {
				return err
			}
			if got := r.Bytes - r.Missing; i == 0 {
				read = got
			} else if got != read {
				return fmt.Errorf("cannot compare: dd took %d bytes, %v %d", read, way, got)
			}
			rates[i] = append(rates[i], float64(read)/r.Seconds)
		}
		g.o.Log.Info("read /proc/kcore", "round", round+1, "dd", mib(rates[0][round]), "one", mib(rates[1][round]), "two", mib(rates[2][round]))
	}
	dd, one, two := median(rates[0]), median(rates[1]), median(rates[2])
	for _, f := range []struct {
		name  string
		value float64
		unit  string
	}{
		{"kcore_dd", dd / (1 << 20), "MiB/s"},
		{"kcore_read", one / (1 << 20), "MiB/s"},
		{"kcore_read_2_readers", two / (1 << 20), "MiB/s"},
		{"kcore_read_vs_dd", one / dd, "ratio"},
		{"kcore_read_2_readers_vs_1", two / one, "ratio"},
	} {
		if err := g.o.figure(f.name, f.value, f.unit); err != nil {
			return err
		}
	}
	return nil
}

func mib(rate float64) string { return fmt.Sprintf("%.1f MiB/s", rate/(1<<20)) }

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
