package acquire

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/quicklime-ir/quicklime/agent/memory"
	"github.com/quicklime-ir/quicklime/agent/pack"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

// Bounds of a memory capture.
const (
	readBytes      = 1 << 20   // of one read, and of one zstd frame
	smallPart      = 8 << 20   // RAM in a part, on small hosts
	largePart      = 16 << 20  // and on others
	smallHost      = 400 << 20 // RAM: a larger part would not fit its 5 %
	MaxWorkers     = 8
	leastMemory    = 12 << 20  // one worker must fit, whatever the host
	mostMemory     = 256 << 20 // of all workers
	shareOfRAM     = 20        // they use at most one part in so many: 5 %
	workerOverhead = 3 << 20   // a worker's read buffer and its encoder
)

// memory takes the image. Workers each take the next part, read it, pack it
// and store it; a full uplink makes them all wait, and nothing is dropped.
func (a *Acquirer) memory(ctx context.Context, order Order, place Place, m *meter) Result {
	options := a.Memory
	options.Prefer = order.MemorySource
	source, refused, err := memory.Open(ctx, options)
	if err != nil {
		return Result{Err: err, Refused: refused}
	}
	defer func() {
		if err := source.Close(); err != nil {
			a.Log.Error("memory source left something behind", "source", source.Name(), "error", err)
		}
	}()
	result := Result{Source: source.Name(), Refused: refused}
	for _, r := range refused {
		a.Log.Warn("memory source refused", "source", r.Source, "reason", r.Reason, "detail", r.Detail)
	}

	ranges := source.Ranges()
	partRAM, workers := budget(total(ranges), runtime.GOMAXPROCS(0))
	parts := lime.Plan(ranges, partRAM)
	m.total.Store(total(ranges))
	m.begin("memory")
	slot, err := place.Open(ctx, evidence.Item{
		Kind: evidence.Memory, Name: "memory", Format: evidence.LiME, Compression: order.Compression,
		Source: source.Name(), RAM: ranges, PartRAMBytes: partRAM,
	})
	if err != nil {
		result.Err = because(ctx, err)
		return result
	}
	if slot.Closed() {
		result.Status = evidence.Whole
		return result
	}
	job := &imageJob{source: source, parts: parts, slot: counted{slot, m}, meter: m, compression: order.Compression, partRAM: partRAM}
	err = because(ctx, job.run(ctx, workers))
	result.Status = evidence.Whole
	if err != nil {
		result.Status = evidence.Partial
	}
	if result.Err = closeSlot(ctx, slot, int32(len(parts)), err); result.Err != nil {
		result.Status = evidence.Partial
	}
	return result
}

// imageJob is the capture of one image.
type imageJob struct {
	source      memory.Source
	parts       [][]lime.Range
	slot        Slot
	meter       *meter
	compression evidence.Compression
	partRAM     uint64

	mu   sync.Mutex
	next int // index of the next part to take; owned by mu
}

// run starts the workers and waits for them.
func (j *imageJob) run(ctx context.Context, workers int) error {
	// Readers go round among the workers. A source that can only be read in
	// order has one, and whoever holds it takes the next part.
	readers := make(chan memory.Reader, workers)
	count := workers
	if n := j.source.Readers(); n > 0 {
		count = min(n, workers)
	}
	defer func() {
		for range count {
			(<-readers).Close()
		}
	}()
	for i := range count {
		r, err := j.source.Open()
		if err != nil {
			count = i
			return fmt.Errorf("cannot open memory source %s: %w", j.source.Name(), err)
		}
		readers <- r
	}
	group, ctx := errgroup.WithContext(ctx)
	for range workers {
		group.Go(func() error { return j.work(ctx, readers) })
	}
	return group.Wait()
}

// work takes parts until none is left.
func (j *imageJob) work(ctx context.Context, readers chan memory.Reader) error {
	builder, err := pack.NewBuilder(pack.Options{Compression: j.compression, PartBytes: int(j.partRAM)})
	if err != nil {
		return err
	}
	buffer := make([]byte, readBytes)
	for {
		reader := <-readers
		number, ok := j.take()
		if !ok || ctx.Err() != nil {
			readers <- reader
			return ctx.Err()
		}
		part, err := j.read(ctx, reader, builder, buffer, number)
		readers <- reader
		if err != nil {
			return fmt.Errorf("cannot read part %d of memory: %w", number, err)
		}
		if err := j.slot.Put(ctx, part); err != nil {
			return fmt.Errorf("cannot store part %d of memory: %w", number, err)
		}
	}
}

// take gives the number of the next part that is not stored yet.
func (j *imageJob) take() (int32, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.next < len(j.parts) {
		j.next++
		if number := int32(j.next); !j.slot.Has(number) {
			return number, true
		}
		j.meter.addRead(int(total(j.parts[j.next-1])))
	}
	return 0, false
}

// read packs one part: a LiME record for each of its ranges, so that any set
// of parts, in their order, is an image by itself.
func (j *imageJob) read(ctx context.Context, reader memory.Reader, builder *pack.Builder, buffer []byte, number int32) (pack.Part, error) {
	started, monotonic := time.Now(), pack.SinceBoot()
	ranges := j.parts[number-1]
	var gaps []evidence.Gap
	builder.Reset(number)
	for _, r := range ranges {
		if err := builder.Write(lime.AppendHeader(nil, r)); err != nil {
			return pack.Part{}, err
		}
		for addr := r.Start; ; {
			chunk := buffer[:min(uint64(len(buffer)), r.End-addr+1)]
			bad, err := reader.ReadPhys(ctx, chunk, addr)
			if err != nil {
				return pack.Part{}, err
			}
			gaps = append(gaps, bad...)
			if err := builder.Write(chunk); err != nil {
				return pack.Part{}, err
			}
			j.meter.addRead(len(chunk))
			last := addr + uint64(len(chunk)) - 1
			if last == r.End {
				break
			}
			addr = last + 1
		}
	}
	part, err := builder.Finish(int(number) == len(j.parts))
	part.Ranges, part.Gaps = ranges, gaps
	part.Started, part.Ended, part.Monotonic = started, time.Now(), monotonic
	return part, err
}

// budget says how much RAM a part holds and how many workers there are, so
// that at most 5 % of the host's memory and never over 256 MiB is used, and
// the parts are at most 10,000. On hosts of more than 2.4 TiB a single part
// is larger than that: S3's bound on parts wins.
func budget(ram uint64, cpus int) (partRAM uint64, workers int) {
	partRAM = largePart
	if ram < smallHost {
		partRAM = smallPart
	}
	for ram/partRAM >= evidence.MaxParts-1 {
		partRAM *= 2
	}
	all := min(max(ram/shareOfRAM, leastMemory), mostMemory)
	workers = int(all / (partRAM + workerOverhead))
	return partRAM, max(1, min(workers, MaxWorkers, 2*cpus))
}

func total(ranges []lime.Range) uint64 {
	var n uint64
	for _, r := range ranges {
		n += r.Len()
	}
	return n
}
