package acquire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"time"

	"github.com/quicklime-ir/quicklime/agent/arena"
	"github.com/quicklime-ir/quicklime/agent/memory"
	"github.com/quicklime-ir/quicklime/agent/pack"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

// sampleTime is how long an estimate looks.
const sampleTime = time.Second

// Estimate is what an image of this host would cost, from a sample of its
// memory. Nothing of the sample is kept, and nothing was sent, so the uplink
// is not in it.
type Estimate struct {
	Source   string
	RAM      uint64 // bytes to read
	Sampled  uint64 // bytes of the sample
	Unread   uint64 // bytes of it that could not be read
	Encoders int
	Buffers  uint64 // bytes of memory that a capture takes at most

	ReadRate float64 // bytes of one reader each second
	ZstdRate float64 // bytes of one encoder each second, reading and hashing included
	AsIsRate float64 // the same without compression
	Ratio    float64 // bytes read for each byte that zstd stores
}

// Estimate samples memory for a second, evenly. It never loads a module:
// where the order leaves the source open it is kcore.
func (a *Acquirer) Estimate(ctx context.Context, order Order) (Estimate, []memory.Refusal, error) {
	options := a.Memory
	if options.Prefer = order.MemorySource; options.Prefer == "" || options.Prefer == "auto" {
		options.Prefer = "kcore"
	}
	if options.Prefer == "lime" {
		return Estimate{}, nil, errors.New("cannot estimate by lime: a sample would load its module and send all of memory; use kcore")
	}
	buffers := new(arena.Arena)
	options.Alloc = allocFrom(buffers)
	source, refused, err := a.source(ctx, options)
	if err != nil {
		return Estimate{}, refused, err
	}
	defer source.Close()
	use := budgetFor(source.Ranges(), runtime.GOMAXPROCS(0))
	e := Estimate{Source: source.Name(), RAM: total(source.Ranges()), Encoders: use.encoders, Buffers: use.takes(source.Ranges(), use.encoders, use.buffers)}
	return e, refused, e.sample(ctx, source, buffers)
}

// sample reads chunks from everywhere, and packs each in both ways.
func (e *Estimate) sample(ctx context.Context, source memory.Source, buffers *arena.Arena) error {
	reader, err := source.Open()
	if err != nil {
		return fmt.Errorf("cannot open memory source %s: %w", source.Name(), err)
	}
	defer reader.Close()
	builder, err := pack.NewBuilder(evidence.Zstd)
	if err != nil {
		return err
	}
	buffer, free, err := buffers.Alloc(pack.Capacity(memory.MaxRead, 1))
	if err != nil {
		return err
	}
	defer free()
	chunks := chunksOf(source.Ranges())
	var reading, compressing, storing time.Duration
	var stored uint64
	began := time.Now()
	for n := 0; n < len(chunks) && time.Since(began) < sampleTime; n++ {
		chunk := chunks[spread(n, len(chunks))]
		start := time.Now()
		b, gaps, err := reader.ReadPhys(ctx, chunk.Start, int(chunk.Len()))
		if err != nil {
			return fmt.Errorf("cannot read a sample of memory: %w", err)
		}
		reading += time.Since(start)
		for _, g := range gaps {
			e.Unread += g.Range.Len()
		}
		size, took, err := packed(builder, buffer, b, builder.Write)
		if err != nil {
			return err
		}
		stored, compressing = stored+size, compressing+took
		if _, took, err = packed(builder, buffer, b, builder.Store); err != nil {
			return err
		}
		storing += took
		e.Sampled += uint64(len(b))
	}
	e.ReadRate = rate(e.Sampled, reading)
	e.ZstdRate = rate(e.Sampled, reading+compressing)
	e.AsIsRate = rate(e.Sampled, reading+storing)
	e.Ratio = float64(e.Sampled) / float64(max(stored, 1))
	return nil
}

// packed packs one chunk, without what fills up a short part.
func packed(builder *pack.Builder, buffer, chunk []byte, add func([]byte) error) (uint64, time.Duration, error) {
	start := time.Now()
	builder.Reset(1, buffer)
	if err := add(chunk); err != nil {
		return 0, 0, err
	}
	part, err := builder.Finish(true)
	return uint64(len(part.Bytes)), time.Since(start), err
}

// chunksOf cuts ranges into reads of MaxRead, the last of each excepted. On
// large hosts it leaves most of them out: some ten thousand are more than a
// second has time for.
func chunksOf(ranges []lime.Range) []lime.Range {
	const most = 1 << 14
	step := max(memory.MaxRead, total(ranges)/most)
	var out []lime.Range
	for _, r := range ranges {
		for at, left := r.Start, r.Len(); left > 0; at, left = at+min(step, left), left-min(step, left) {
			out = append(out, lime.Range{Start: at, End: at + min(left, memory.MaxRead) - 1})
		}
	}
	return out
}

// spread gives the nth of count places, such that the first few are already
// far apart, and none comes twice.
func spread(n, count int) int {
	stride := count*5/8 + 1
	for gcd(stride, count) != 1 {
		stride++
	}
	return n * stride % count
}

func gcd(a, b int) int {
	for b > 0 {
		a, b = b, a%b
	}
	return a
}

func rate(bytes uint64, took time.Duration) float64 {
	return float64(bytes) / max(took.Seconds(), 1e-9)
}

// Times gives how long an image would take by zstd and as it is, were the
// uplink no limit, or one of so many bytes each second; 0 is no limit.
func (e Estimate) Times(uplink uint64) (zstd, asIs time.Duration) {
	seconds := func(rate, bytes float64) time.Duration {
		s := float64(e.RAM) / (rate * float64(e.Encoders))
		if uplink > 0 {
			s = max(s, bytes/float64(uplink))
		}
		return time.Duration(s * float64(time.Second))
	}
	return seconds(e.ZstdRate, float64(e.RAM)/e.Ratio), seconds(e.AsIsRate, float64(e.RAM))
}

// WriteText writes the estimate for a person.
func (e Estimate) WriteText(w io.Writer, uplink uint64) error {
	const mib = 1 << 20
	zstd, asIs := e.Times(uplink)
	_, err := fmt.Fprintf(w, `source        %s
RAM           %d MiB
sample        %d MiB, %d KiB of it could not be read
one reader    %.0f MiB/s
processors    %d, each %.0f MiB/s with zstd and %.0f MiB/s without
memory taken  %d MiB at most
with zstd     about %d MiB in %v
as it is      %d MiB in %v
`, e.Source, e.RAM/mib, e.Sampled/mib, e.Unread>>10, e.ReadRate/mib, e.Encoders, e.ZstdRate/mib, e.AsIsRate/mib, e.Buffers/mib,
		uint64(float64(e.RAM)/e.Ratio)/mib, zstd.Round(100*time.Millisecond), e.RAM/mib, asIs.Round(100*time.Millisecond))
	if err == nil && uplink == 0 {
		_, err = fmt.Fprintln(w, "The uplink is not in it: name what it does with --uplink, in MiB each second.")
	}
	return err
}
