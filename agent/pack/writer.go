package pack

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// Sink takes parts. The bytes of a part are valid until Put returns.
type Sink interface {
	Put(ctx context.Context, p Part) error
}

// errClosed says that something was written after the end.
var errClosed = errors.New("cannot write: stream is closed")

// Writer cuts a stream into parts and hands each to a Sink. It holds one
// part: PartBytes, and two frames and some slack more.
type Writer struct {
	ctx      context.Context // of the whole stream, as an io.Writer has none
	sink     Sink
	builder  *Builder
	buffer   []byte // of the part at hand
	free     func() // gives it back
	frame    []byte // input that does not fill a frame yet
	partSize int
	parts    int32
	started  time.Time
	booted   time.Duration // started, by the clock that counts from boot
	closed   bool
	err      error // the first; every later call gives it again
}

// NewWriter returns a Writer, which must be closed. Put is called with ctx.
func NewWriter(ctx context.Context, sink Sink, o Options) (*Writer, error) {
	if o.PartBytes == 0 {
		o.PartBytes = defaultPartBytes
	}
	if o.PartBytes < evidence.MinPartBytes {
		return nil, fmt.Errorf("cannot cut parts of %d bytes: S3 wants %d at least", o.PartBytes, evidence.MinPartBytes)
	}
	if o.PartBytes > evidence.MaxPartBytes/2 {
		return nil, fmt.Errorf("cannot cut parts of %d bytes: want %d at most", o.PartBytes, int64(evidence.MaxPartBytes/2))
	}
	builder, err := NewBuilder(o.Compression)
	if err != nil {
		return nil, err
	}
	if o.Alloc == nil {
		o.Alloc = func(n int) ([]byte, func()) { return make([]byte, n), func() {} }
	}
	buffer, free := o.Alloc(Capacity(o.PartBytes+FrameBytes, 0))
	builder.Reset(1, buffer[:0])
	return &Writer{ctx: ctx, sink: sink, builder: builder, buffer: buffer[:0], free: free, frame: make([]byte, 0, FrameBytes), partSize: o.PartBytes, started: time.Now(), booted: SinceBoot()}, nil
}

// Write implements io.Writer.
func (w *Writer) Write(p []byte) (int, error) {
	if w.closed && w.err == nil {
		return 0, errClosed
	}
	n := 0
	for w.err == nil && n < len(p) {
		room := min(FrameBytes-len(w.frame), len(p)-n)
		w.frame = append(w.frame, p[n:n+room]...)
		n += room
		if len(w.frame) == FrameBytes {
			w.flush()
		}
	}
	return n, w.err
}

// flush packs the frame, and sends the part when it is large enough.
func (w *Writer) flush() {
	if w.err = w.builder.Write(w.frame); w.err != nil {
		return
	}
	w.frame = w.frame[:0]
	if w.builder.Len() >= w.partSize {
		w.send(false)
	}
}

func (w *Writer) send(last bool) {
	if w.parts == evidence.MaxParts {
		w.err = fmt.Errorf("cannot store more than %d parts: take less, or make parts larger", evidence.MaxParts)
		return
	}
	part, err := w.builder.Finish(last)
	if err != nil {
		w.err = err
		return
	}
	part.Frames = nil // only an image has a seek table
	part.Started, part.Ended, part.Monotonic = w.started, time.Now(), w.booted
	if w.err = w.sink.Put(w.ctx, part); w.err != nil {
		return
	}
	w.parts++
	w.builder.Reset(w.parts+1, w.buffer)
	w.started, w.booted = time.Now(), SinceBoot()
}

// Close sends the last part. A compressed stream of nothing is one part, an
// empty frame. An uncompressed one has no byte to store and is no part: no
// grant is given for zero bytes, and Parts, being 0, says that none is
// missing. Closing again gives what the first time gave.
func (w *Writer) Close() error {
	if w.closed {
		return w.err
	}
	w.closed = true
	defer w.free()
	if w.err != nil {
		return w.err
	}
	if w.flush(); w.err == nil && (w.builder.Len() > 0 || w.parts == 0 && w.builder.encoder != nil) {
		w.send(true)
	}
	return w.err
}

// Parts is how many parts the Sink has taken.
func (w *Writer) Parts() int32 { return w.parts }
