// Package export gives the memory image of a case in the form that a tool
// wants: one LiME stream, the bytes of RAM alone, or an image in which each
// byte lies at its physical address.
//
// Parts are fetched and decompressed side by side and written in their order,
// so that a pipe serves as well as a file, and no part's bytes are written
// before its stored bytes have the hash that the manifest says.
package export

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

// Format is what an image becomes.
type Format string

// The formats.
const (
	LiME   Format = "lime"   // one LiME v1 stream; memory that is missing has no record
	Raw    Format = "raw"    // the ranges of RAM, one after the other; what is missing is zeros
	Padded Format = "padded" // each byte at its physical address; holes and what is missing are zeros
	Zst    Format = "zst"    // as it is stored: LiME in zstd, with its seek table
)

// Errors that callers branch on.
var (
	// ErrFault says that a part is not what the manifest says.
	ErrFault = errors.New("evidence does not hold")
	// ErrReader says that whoever read the stream has gone.
	ErrReader = errors.New("the reader of the pipe has gone")
)

// Bounds of what one worker holds: a part's stored bytes, pieces that wait to
// be written, and a zstd window. A part that is larger than maxHeld is read
// twice, to be hashed and then to be written.
const (
	maxHeld    = 32 << 20
	pieceBytes = 256 << 10
	pieces     = 64
	maxWorkers = 8
)

// Options say how to export.
type Options struct {
	Format   Format
	Parallel int // parts at a time, maxWorkers at most; 0 is one for each processor
	// KeepGoing writes zeros for a part that cannot be read or is not what the
	// manifest says, and goes on.
	KeepGoing bool
	Progress  func(Progress) // called often, by one goroutine; may be nil
}

// Progress is how much of the image's stored parts is written, in bytes
// before compression; Format Zst counts the stored bytes.
type Progress struct{ Done, Total uint64 }

// Result is what was exported.
type Result struct {
	Bytes   uint64       // of the output
	Missing []lime.Range // memory that no stored part holds
	Faulty  []Fault      // parts that are zeros as they could not be had
	Resumed int          // parts that an earlier export had written
}

// Fault is a part that could not be had, and why.
type Fault struct {
	Part int32  `json:"part"`
	Why  string `json:"why"`
}

// job is one export.
type job struct {
	objects evidence.Objects
	item    evidence.Item
	o       Options
	parts   []evidence.Part // to be written, ascending
	offsets []int64         // of parts in the object
	total   uint64          // of Progress
	done    uint64          // of Progress; owned by the writer
}

// sink takes the output: pieces that ascend and do not overlap. What lies
// between them is zeros.
type sink interface {
	writeAt(at uint64, p []byte) error
	end(size uint64) error // the output has so many bytes
}

// place is how far an export has come: parts that are written, and where the
// next one's output begins or may begin.
type place struct {
	Parts  int     `json:"parts"`
	Offset uint64  `json:"offset"`
	Faulty []Fault `json:"faulty,omitempty"`
}

func newJob(objects evidence.Objects, item evidence.Item, o Options) (*job, error) {
	if o.Parallel <= 0 {
		o.Parallel = runtime.GOMAXPROCS(0)
	}
	o.Parallel = min(o.Parallel, maxWorkers)
	j := &job{objects: objects, item: item, o: o}
	if err := j.check(); err != nil {
		return nil, fmt.Errorf("cannot export %s: %w", item.Key, err)
	}
	data, _ := item.Split()
	if j.parts = data; o.Format == Zst {
		j.parts = item.Parts
	}
	offset := int64(0)
	for _, p := range item.Parts {
		j.offsets = append(j.offsets, offset)
		offset += int64(p.Size)
	}
	for _, p := range j.parts {
		j.total += j.weight(p)
	}
	return j, nil
}

// check refuses what cannot be exported, whoever wrote its manifest.
func (j *job) check() error {
	if j.item.Kind != evidence.Memory || j.item.Format != evidence.LiME {
		return errors.New("it is no memory image")
	}
	if err := j.item.Check(); err != nil {
		return fmt.Errorf("its manifest does not hold: %w", err)
	}
	if len(j.item.Parts) == 0 {
		return errors.New("nothing of it was stored")
	}
	for _, p := range j.item.Parts {
		if p.Size < 1 || p.Size > evidence.MaxPartBytes || p.RawSize > math.MaxInt64/evidence.MaxParts {
			return fmt.Errorf("part %d of %d bytes, %d before compression, is none that S3 could have", p.Number, p.Size, p.RawSize)
		}
	}
	if last := j.item.RAM[len(j.item.RAM)-1].End; last >= math.MaxInt64 {
		return fmt.Errorf("memory at %08x is beyond what a file can have", last)
	}
	switch j.o.Format {
	case LiME, Raw, Padded:
	case Zst:
		if j.item.Compression != evidence.Zstd {
			return fmt.Errorf("it is stored without compression; export it with format %s", LiME)
		}
		if j.o.KeepGoing {
			return fmt.Errorf("format %s has no zeros for a part that fails; export it with another one to keep going", Zst)
		}
	default:
		return fmt.Errorf("format %.40q is unknown, want %s, %s, %s or %s", string(j.o.Format), LiME, Raw, Padded, Zst)
	}
	return nil
}

// weight is what a part counts in Progress.
func (j *job) weight(p evidence.Part) uint64 {
	if j.o.Format == Zst {
		return p.Size
	}
	return lime.Total(p.Ranges)
}

// begin is where the output of a part begins, if the one before it ended at
// offset.
func (j *job) begin(p evidence.Part, offset uint64) uint64 {
	switch j.o.Format {
	case Raw:
		return uint64(p.Number-1) * j.item.PartRAMBytes
	case Padded:
		return 0 // its pieces say where they are
	}
	return offset
}

// end is where the output of a part ends, whether it has all of it or not; in
// the forms that have no zeros for a part it is what was written.
func (j *job) end(p evidence.Part, written uint64) uint64 {
	switch j.o.Format {
	case Raw:
		return j.begin(p, 0) + lime.Total(p.Ranges)
	case Padded:
		return p.Ranges[len(p.Ranges)-1].End + 1
	}
	return written
}

// size is how long the whole output is, if the last part ended at offset.
func (j *job) size(offset uint64) uint64 {
	switch j.o.Format {
	case Raw:
		return lime.Total(j.item.RAM)
	case Padded:
		return j.item.RAM[len(j.item.RAM)-1].End + 1
	}
	return offset
}

// run writes the parts from a place on, and calls after each one; it gives the
// place that it came to, also with an error. The goroutines that it starts
// have ended when it returns.
func (j *job) run(ctx context.Context, out sink, from place, after func(place) error) (place, error) {
	for _, p := range j.parts[:from.Parts] {
		j.done += j.weight(p)
	}
	group, ctx := errgroup.WithContext(ctx)
	order, tasks := make(chan *task, j.o.Parallel), make(chan *task)
	group.Go(func() error {
		defer close(order)
		defer close(tasks)
		for n := from.Parts; n < len(j.parts); n++ {
			t := &task{index: n, out: make(chan piece, pieces+1)}
			for _, queue := range []chan *task{order, tasks} {
				select {
				case queue <- t:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
		}
		return nil
	})
	for range j.o.Parallel {
		group.Go(func() error {
			w, err := newWorker(j)
			if err != nil {
				return err
			}
			defer w.close()
			for t := range tasks {
				if err := w.do(ctx, t); err != nil {
					return err
				}
			}
			return nil
		})
	}
	now := from
	group.Go(func() error {
		for t := range order {
			next, err := j.write(ctx, out, t, now)
			if err != nil {
				return err
			}
			now = next
			if err := after(now); err != nil {
				return err
			}
		}
		return context.Cause(ctx)
	})
	err := group.Wait()
	if err == nil {
		now.Offset = j.size(now.Offset)
		err = out.end(now.Offset)
	}
	return now, err
}

// write takes the pieces of one part and gives the place after it.
func (j *job) write(ctx context.Context, out sink, t *task, now place) (place, error) {
	part := j.parts[t.index]
	base := j.begin(part, now.Offset)
	written := base
	before := j.done
	for {
		select {
		case <-ctx.Done():
			return now, context.Cause(ctx)
		case p := <-t.out:
			if p.last {
				if p.fault != nil {
					fault := Fault{part.Number, p.fault.Error()}
					if !j.o.KeepGoing {
						return now, fmt.Errorf("cannot export part %d: %w", part.Number, p.fault)
					}
					now.Faulty = append(now.Faulty, fault)
				}
				j.done = before + j.weight(part)
				j.tell()
				return place{t.index + 1, j.end(part, written), now.Faulty}, nil
			}
			if err := out.writeAt(base+p.at, p.data); err != nil {
				return now, err
			}
			written = base + p.at + uint64(len(p.data))
			j.done = min(j.done+uint64(len(p.data)), before+j.weight(part))
			p.free <- p.data // has room for each piece of its worker
			j.tell()
		}
	}
}

func (j *job) tell() {
	if j.o.Progress != nil {
		j.o.Progress(Progress{j.done, j.total})
	}
}

// result is what an export that ended at a place has given.
func (j *job) result(at place, resumed int) Result {
	return Result{Bytes: at.Offset, Missing: j.item.Missing(), Faulty: at.Faulty, Resumed: resumed}
}

// Lacks says in what the output is less than the image of the whole host; ""
// where it is not.
func (r Result) Lacks() string {
	var lacks []string
	if len(r.Missing) > 0 {
		lacks = append(lacks, fmt.Sprintf("%d bytes of memory in %d ranges, from %v on, were never stored", lime.Total(r.Missing), len(r.Missing), r.Missing[0]))
	}
	if n := len(r.Faulty); n > 0 {
		lacks = append(lacks, fmt.Sprintf("%d parts are zeros, as they could not be had; the first is part %d: %s", n, r.Faulty[0].Part, r.Faulty[0].Why))
	}
	return strings.Join(lacks, "; ")
}

// ToStream exports to a pipe, a socket, or whatever takes bytes in their
// order. Holes are written as zeros.
func ToStream(ctx context.Context, objects evidence.Objects, item evidence.Item, w io.Writer, o Options) (Result, error) {
	j, err := newJob(objects, item, o)
	if err != nil {
		return Result{}, err
	}
	at, err := j.run(ctx, &stream{w: w}, place{}, func(place) error { return nil })
	return j.result(at, 0), err
}
