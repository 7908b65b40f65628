package bench

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/quicklime-ir/quicklime/agent/memory/memorytest"
)

// encodeBytes is how much synthetic memory zstd and SHA-256 are given.
const encodeBytes = 256 << 20

// encode measures packing without a network: the benchmarks of the agent's own
// rooms, and what they are held against.
func encode(ctx context.Context, o Options) error {
	said, err := command(ctx, o.Source, nil, "go", "test", "-run", "^$", "-bench", ".", "-benchmem", "./agent/pack", "./agent/acquire")
	if err != nil {
		return err
	}
	figures, err := parseBenchmarks(said)
	if err != nil {
		return err
	}
	for _, f := range figures {
		if err := o.figure(f.name, f.value, f.unit); err != nil {
			return err
		}
	}
	if err := o.sha256(); err != nil {
		return err
	}
	for _, flags := range [][]string{{"-1"}, {"-1", "-T0"}} {
		if err := o.zstd(ctx, flags...); err != nil {
			return err
		}
	}
	return nil
}

// sha256 hashes the memory, which is the least that evidence costs.
func (o Options) sha256() error {
	hash := sha256.New()
	chunk := memorytest.Bytes(0, encodeChunk)
	began := time.Now()
	for range encodeBytes / encodeChunk {
		hash.Write(chunk)
	}
	return o.figure("synthetic_sha256", encodeBytes/1e6/time.Since(began).Seconds(), "MB/s")
}

// encodeChunk is what is made of the memory at a time, in bytes.
const encodeChunk = 4 << 20

// zstd has Debian's zstd compress the memory, from a pipe to a pipe.
func (o Options) zstd(ctx context.Context, flags ...string) error {
	cmd := exec.CommandContext(ctx, "zstd", append([]string{"-q", "-c"}, flags...)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	var out counter
	cmd.Stdout = &out
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("cannot start zstd: %w; install zstd", err)
	}
	err = writeMemory(in)
	if err := errors.Join(err, cmd.Wait()); err != nil {
		return fmt.Errorf("cannot compress with zstd %s: %w", strings.Join(flags, " "), err)
	}
	name := "synthetic_zstd" + strings.ReplaceAll(strings.Join(flags, ""), "-", "_")
	if err := o.figure(name, encodeBytes/1e6/time.Since(began).Seconds(), "MB/s"); err != nil {
		return err
	}
	return o.figure(name, float64(encodeBytes)/float64(out), "ratio")
}

// writeMemory writes the memory into a pipe and closes it.
func writeMemory(to io.WriteCloser) error {
	for at := uint64(0); at < encodeBytes; at += encodeChunk {
		if _, err := to.Write(memorytest.Bytes(at, encodeChunk)); err != nil {
			return errors.Join(err, to.Close())
		}
	}
	return to.Close()
}

// counter counts what is written to it.
type counter uint64

func (c *counter) Write(b []byte) (int, error) {
	*c += counter(len(b))
	return len(b), nil
}

// benchmarkFigure is one value of a benchmark.
type benchmarkFigure struct {
	name  string
	value float64
	unit  string
}

// benchmarkLine is one of go test's: the name, with the number of processors
// where that is not one, how often it ran, and pairs of value and unit.
// Source: golang.org/design/14313-benchmark-format.
var benchmarkLine = regexp.MustCompile(`^Benchmark(\S+?)(?:-\d+)?\s+\d+\s+(.+)$`)

// parseBenchmarks reads go test's output. A benchmark's name becomes lower
// case with underscores; where it has a rate, its time is not said besides.
func parseBenchmarks(said string) ([]benchmarkFigure, error) {
	var out []benchmarkFigure
	for line := range strings.Lines(said) {
		m := benchmarkLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		fields := strings.Fields(m[2])
		if len(fields)%2 != 0 {
			return nil, fmt.Errorf("cannot read the benchmark %q: a value has no unit", strings.TrimSpace(line))
		}
		rated := strings.Contains(m[2], " MB/s")
		for i := 0; i < len(fields); i += 2 {
			value, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return nil, fmt.Errorf("cannot read the benchmark %q: %w", strings.TrimSpace(line), err)
			}
			if rated && fields[i+1] == "ns/op" {
				continue
			}
			out = append(out, benchmarkFigure{snake(m[1]), value, fields[i+1]})
		}
	}
	if len(out) == 0 {
		return nil, errors.New("cannot tell what packing costs: go test printed no benchmark")
	}
	return out, nil
}

// snake writes PackAll/of-zeros as pack_all_of_zeros.
func snake(name string) string {
	var b strings.Builder
	last := '_'
	for _, r := range name {
		switch {
		case !unicode.IsLetter(r) && !unicode.IsDigit(r):
			r = '_'
		case unicode.IsUpper(r) && (unicode.IsLower(last) || unicode.IsDigit(last)):
			b.WriteRune('_')
		}
		if r != '_' || last != '_' {
			b.WriteRune(unicode.ToLower(r))
		}
		last = r
	}
	return b.String()
}
