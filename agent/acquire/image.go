package acquire

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/quicklime-ir/quicklime/agent/arena"
	"github.com/quicklime-ir/quicklime/agent/memory"
	"github.com/quicklime-ir/quicklime/agent/pack"
	"github.com/quicklime-ir/quicklime/agent/throttle"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

// imageJob is the capture of one image.
//
// Encoders, one for each processor, read and pack a part each; what they have
// packed is sent beside them. The buffers go round: an encoder takes a free
// one, and it is free again when its part is stored. There is a fixed number
// of them, so a full uplink makes the encoders wait, and nothing is dropped.
type imageJob struct {
	source      memory.Source
	parts       [][]lime.Range
	order       []int32 // numbers of parts, first to last
	slot        Slot
	meter       *meter
	compression evidence.Compression
	auto        bool // compress only while the uplink is the slower one
	use         budget
	throttle    *throttle.Throttle
	arena       *arena.Arena

	free    chan []byte        // buffers
	readers chan memory.Reader // of the source: one for each encoder, or one for all
	sending atomic.Int32       // parts on their way

	mu   sync.Mutex
	next int // index into order; owned by mu
}

// run takes every part that is not stored yet. When reading fails, what was
// read until then is still sent; when sending fails, reading ends.
func (j *imageJob) run(ctx context.Context) error {
	done, err := j.supply()
	defer done()
	if err != nil {
		return err
	}
	sending, sendCtx := errgroup.WithContext(ctx)
	readCtx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	defer context.AfterFunc(sendCtx, func() { stop(context.Cause(sendCtx)) })()
	reading, readCtx := errgroup.WithContext(readCtx)
	for range j.use.encoders {
		reading.Go(func() error {
			return j.encode(readCtx, func(part pack.Part, buffer []byte) {
				sending.Go(func() error { return j.send(sendCtx, part, buffer) })
			})
		})
	}
	failed := reading.Wait()
	if err := sending.Wait(); err != nil {
		return err
	}
	return failed
}

// supply fills the channels of buffers and readers. What it gives back
// returns all of them; it is called when nobody uses them any more.
func (j *imageJob) supply() (done func(), err error) {
	var undo []func()
	done = func() {
		for _, f := range undo {
			f()
		}
	}
	j.free = make(chan []byte, j.use.buffers)
	for range j.use.buffers {
		b, free, err := j.arena.Alloc(j.use.buffer)
		if err != nil {
			return done, err
		}
		undo = append(undo, free)
		j.free <- b
	}
	count := j.use.encoders
	if n := j.source.Readers(); n > 0 {
		count = min(n, count)
	}
	j.readers = make(chan memory.Reader, count)
	for range count {
		r, err := j.source.Open()
		if err != nil {
			return done, fmt.Errorf("cannot open memory source %s: %w", j.source.Name(), err)
		}
		undo = append(undo, func() { _ = r.Close() }) // it was only read
		j.readers <- r
	}
	return done, nil
}

// encode reads and packs parts until none is left, and hands each on with
// its buffer.
//
// A part's number is taken with a reader in hand, as a source that is read in
// order wants, and with a buffer, so that a place that wants parts in order
// never waits for one that has none.
func (j *imageJob) encode(ctx context.Context, send func(pack.Part, []byte)) error {
	builder, err := pack.NewBuilder(j.compression)
	if err != nil {
		return err
	}
	for {
		buffer, err := take(ctx, j.free)
		if err != nil {
			return err
		}
		part, ok, err := j.fill(ctx, builder, buffer)
		if err != nil || !ok {
			j.free <- buffer
			return err
		}
		began := time.Now()
		if part, err = j.seal(builder, part); err != nil {
			j.free <- buffer
			return err
		}
		j.sending.Add(1)
		send(part, buffer)
		if err := j.throttle.Work(ctx, time.Since(began), j.use.encoders); err != nil {
			return err
		}
	}
}

// fill reads the next part into a buffer; there is none where ok is false.
func (j *imageJob) fill(ctx context.Context, builder *pack.Builder, buffer []byte) (part pack.Part, ok bool, err error) {
	reader, err := take(ctx, j.readers)
	if err != nil {
		return part, false, err
	}
	defer func() { j.readers <- reader }()
	number, ok := j.take()
	if !ok {
		return part, false, nil
	}
	builder.Reset(number, buffer)
	part, err = j.read(ctx, reader, builder, number)
	if err != nil {
		return part, false, fmt.Errorf("cannot read part %d of memory: %w", number, err)
	}
	return part, true, nil
}

// seal ends a part and hashes it, without its reader: the next part is read
// meanwhile.
func (j *imageJob) seal(builder *pack.Builder, read pack.Part) (pack.Part, error) {
	// A seek table follows the last part of an image in zstd.
	last := j.compression == evidence.None && int(read.Number) == len(j.parts)
	part, err := builder.Finish(last)
	if err != nil {
		return part, err
	}
	part.Ranges, part.Gaps = read.Ranges, read.Gaps
	part.Started, part.Ended, part.Monotonic = read.Started, read.Ended, read.Monotonic
	return part, nil
}

// send stores a part, and frees its buffer.
func (j *imageJob) send(ctx context.Context, part pack.Part, buffer []byte) error {
	err := j.slot.Put(ctx, part)
	j.sending.Add(-1)
	j.free <- buffer
	if err != nil {
		return fmt.Errorf("cannot store part %d of memory: %w", part.Number, err)
	}
	return nil
}

// take gives the number of the next part that is not stored yet.
func (j *imageJob) take() (int32, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.next < len(j.order) {
		number := j.order[j.next]
		j.next++
		if !j.slot.Has(number) {
			return number, true
		}
		j.meter.addRead(int(total(j.parts[number-1])))
	}
	return 0, false
}

// read packs one part: a LiME record for each of its ranges, so that any set
// of parts, in their order, is an image by itself.
func (j *imageJob) read(ctx context.Context, reader memory.Reader, builder *pack.Builder, number int32) (pack.Part, error) {
	part := pack.Part{Number: number, Ranges: j.parts[number-1], Started: time.Now(), Monotonic: pack.SinceBoot()}
	for _, r := range part.Ranges {
		if err := builder.Store(lime.AppendHeader(nil, r)); err != nil {
			return part, err
		}
		for addr, left := r.Start, r.Len(); left > 0; {
			began := time.Now()
			chunk, gaps, err := reader.ReadPhys(ctx, addr, int(min(left, memory.MaxRead)))
			if err != nil {
				return part, err
			}
			add := builder.Write
			if j.spare() {
				add = builder.Store
			}
			if err := add(chunk); err != nil {
				return part, err
			}
			part.Gaps = append(part.Gaps, gaps...)
			addr, left = addr+uint64(len(chunk)), left-uint64(len(chunk))
			j.meter.addRead(len(chunk))
			if err := j.throttle.Work(ctx, time.Since(began), j.use.encoders); err != nil {
				return part, err
			}
		}
	}
	part.Ended, part.Gaps = time.Now(), memory.Bound(part.Gaps)
	return part, nil
}

// spare reports whether the uplink could take more than it is given, so that
// compressing would only delay what is sent. With one buffer nobody can tell:
// then everything is compressed.
func (j *imageJob) spare() bool { return j.auto && j.use.buffers > j.use.encoders && !j.full() }

// full reports whether every buffer that an encoder can spare is on its way.
func (j *imageJob) full() bool { return int(j.sending.Load()) >= max(1, j.use.buffers-j.use.encoders) }

// take receives, unless ctx ends before.
func take[T any](ctx context.Context, from <-chan T) (T, error) {
	select {
	case v := <-from:
		return v, nil
	case <-ctx.Done():
		var none T
		return none, context.Cause(ctx)
	}
}
