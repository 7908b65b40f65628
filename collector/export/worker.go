package export

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

// maxWindow bounds what a frame may make a decoder hold. Source: RFC 8878,
// section 3.1.1.1.2, which asks this much of every decoder.
const maxWindow = 8 << 20

// tries is how often a part is fetched that cannot be read to its end.
const tries = 3

// task is one part on its way from a worker to the writer.
type task struct {
	index int
	out   chan piece // closed by nobody: its last piece says so
}

// piece is a stretch of a part's output.
type piece struct {
	at   uint64 // from where the part's output begins
	data []byte
	free chan []byte // takes data back

	last  bool  // there is no more, and no data
	fault error // why there is not all
}

// worker fetches, hashes and decompresses parts, one at a time.
type worker struct {
	*job
	decoder *zstd.Decoder
	held    []byte      // a part's stored bytes
	free    chan []byte // pieces that are not on their way
}

func newWorker(j *job) (*worker, error) {
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(maxWindow))
	if err != nil {
		return nil, fmt.Errorf("cannot make decompressor: %w", err)
	}
	w := &worker{job: j, decoder: decoder, free: make(chan []byte, pieces)}
	for range pieces {
		w.free <- nil // made when it is needed
	}
	return w, nil
}

func (w *worker) close() { w.decoder.Close() }

// errChanged says that bytes were written which are not those that were hashed:
// no zeros can stand for them any more.
var errChanged = errors.New("it changed while it was read")

// do gives a part's pieces to the writer, and then its last. What is wrong
// with the part is told there; an error ends the export.
func (w *worker) do(ctx context.Context, t *task) error {
	part := w.parts[t.index]
	out := &output{ctx: ctx, to: t.out, free: w.free}
	fault := w.part(ctx, part, w.offsets[t.index], out)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(fault, errChanged):
		return fmt.Errorf("cannot export part %d: %w", part.Number, fault)
	case fault == nil || w.o.KeepGoing:
		if err := out.flush(); err != nil {
			return err
		}
	}
	return out.send(piece{last: true, fault: fault})
}

// part writes one part to out. After a fault out has, where that is wanted,
// zeros for what is not there.
func (w *worker) part(ctx context.Context, part evidence.Part, offset int64, out *output) error {
	src, err := w.fetch(ctx, part, offset)
	if w.o.Format == Zst {
		if err != nil {
			return err
		}
		return errors.Join(out.copy(src), src.Close())
	}
	walk := &records{out: out, format: w.o.Format, want: lime.Merge(part.Ranges)}
	if err == nil {
		// What is wrong inside may come of bytes that changed: closing tells.
		if err = w.unpack(src, part, walk); err != nil {
			err = errors.Join(err, src.Close())
		}
	}
	if err == nil || ctx.Err() != nil || !w.o.KeepGoing {
		return err
	}
	return errors.Join(err, walk.fill())
}

// unpack decompresses a part and walks its records, to the last byte.
func (w *worker) unpack(src io.ReadCloser, part evidence.Part, walk *records) error {
	var raw io.Reader = src
	if w.item.Compression == evidence.Zstd {
		if err := w.decoder.Reset(src); err != nil {
			return fmt.Errorf("cannot decompress: %w", err)
		}
		raw = w.decoder
	}
	counted := &io.LimitedReader{R: raw, N: int64(part.RawSize) + 1}
	if err := walk.walk(bufio.NewReaderSize(counted, 64<<10)); err != nil {
		return fmt.Errorf("%w: %w", ErrFault, err)
	}
	if read := int64(part.RawSize) + 1 - counted.N; read != int64(part.RawSize) {
		return fmt.Errorf("%w: it has %d bytes, the manifest says %d", ErrFault, read, part.RawSize)
	}
	return src.Close()
}

// fetch gives the stored bytes of a part, which have the hash that the
// manifest says. Closing it tells whether they still had it, where they were
// read again.
func (w *worker) fetch(ctx context.Context, part evidence.Part, offset int64) (io.ReadCloser, error) {
	var err error
	for range tries {
		if part.Size <= maxHeld {
			if cap(w.held) < int(part.Size) {
				w.held = make([]byte, part.Size)
			}
			w.held = w.held[:part.Size]
			if err = w.read(ctx, part, offset, w.held); err == nil {
				return io.NopCloser(bytes.NewReader(w.held)), nil
			}
		} else if err = w.read(ctx, part, offset, nil); err == nil {
			return w.again(ctx, part, offset)
		}
		if ctx.Err() != nil || errors.Is(err, ErrFault) {
			return nil, err
		}
	}
	return nil, err
}

// read reads a part and wants its hash. It keeps its bytes where there is room
// for them.
func (w *worker) read(ctx context.Context, part evidence.Part, offset int64, into []byte) error {
	src, err := w.objects.OpenRange(ctx, w.item.Key, offset, int64(part.Size))
	if err != nil {
		return err
	}
	defer src.Close()
	sum := sha256.New()
	var n int64
	if into != nil {
		read, e := io.ReadFull(src, into)
		n, err = int64(read), e
		sum.Write(into[:read])
	} else {
		n, err = io.Copy(sum, io.LimitReader(src, int64(part.Size)))
	}
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || err == nil && n < int64(part.Size):
		return fmt.Errorf("%w: the object is cut after %d of its %d bytes", ErrFault, n, part.Size)
	case err != nil:
		return fmt.Errorf("cannot read on after %d of its %d bytes: %w", n, part.Size, err)
	}
	return wantHash(sum, part)
}

// again reads a part that was hashed and is too large to be held.
func (w *worker) again(ctx context.Context, part evidence.Part, offset int64) (io.ReadCloser, error) {
	src, err := w.objects.OpenRange(ctx, w.item.Key, offset, int64(part.Size))
	if err != nil {
		return nil, err
	}
	return &rehashed{src: src, part: part, hash: sha256.New(), left: int64(part.Size)}, nil
}

// rehashed reads a part for the second time.
type rehashed struct {
	src  io.ReadCloser
	part evidence.Part
	hash hash.Hash
	left int64
	shut bool
}

// Read implements io.Reader.
func (r *rehashed) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	n, err := r.src.Read(p[:min(int64(len(p)), r.left)])
	r.hash.Write(p[:n])
	r.left -= int64(n)
	if errors.Is(err, io.EOF) && r.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// Close wants what was read to be what was hashed before. Closing again does
// nothing.
func (r *rehashed) Close() error {
	if r.shut {
		return nil
	}
	r.shut = true
	_, err := io.Copy(io.Discard, r)
	if err = errors.Join(err, r.src.Close()); err == nil {
		err = wantHash(r.hash, r.part)
	}
	if err != nil {
		err = fmt.Errorf("%w: %w", errChanged, err)
	}
	return err
}

func wantHash(sum hash.Hash, part evidence.Part) error {
	if got := evidence.Digest(sum.Sum(nil)); got != part.SHA256 {
		return fmt.Errorf("%w: its SHA-256 is %v, the manifest's %v", ErrFault, got, part.SHA256)
	}
	return nil
}

// output cuts what a worker writes into pieces.
type output struct {
	ctx  context.Context
	to   chan<- piece
	free chan []byte
	now  piece // being filled; data is nil where there is none
}

// room gives a place for at least one byte of output at an offset.
func (o *output) room(at uint64) ([]byte, error) {
	if full := len(o.now.data) == cap(o.now.data); o.now.data != nil && (full || at != o.now.at+uint64(len(o.now.data))) {
		if err := o.flush(); err != nil {
			return nil, err
		}
	}
	if o.now.data == nil {
		select {
		case data := <-o.free:
			if data == nil {
				data = make([]byte, 0, pieceBytes)
			}
			o.now = piece{at: at, data: data[:0], free: o.free}
		case <-o.ctx.Done():
			return nil, context.Cause(o.ctx)
		}
	}
	return o.now.data[len(o.now.data):cap(o.now.data)], nil
}

// filled says that n bytes of the room were used.
func (o *output) filled(n int) { o.now.data = o.now.data[:len(o.now.data)+n] }

func (o *output) write(at uint64, p []byte) error {
	for len(p) > 0 {
		room, err := o.room(at)
		if err != nil {
			return err
		}
		n := copy(room, p)
		o.filled(n)
		p, at = p[n:], at+uint64(n)
	}
	return nil
}

// zeros writes n zeros.
func (o *output) zeros(at, n uint64) error {
	for n > 0 {
		room, err := o.room(at)
		if err != nil {
			return err
		}
		room = room[:min(uint64(len(room)), n)]
		clear(room)
		o.filled(len(room))
		at, n = at+uint64(len(room)), n-uint64(len(room))
	}
	return nil
}

// copy writes all that is read.
func (o *output) copy(src io.Reader) error {
	for at := uint64(0); ; {
		room, err := o.room(at)
		if err != nil {
			return err
		}
		n, err := src.Read(room)
		o.filled(n)
		at += uint64(n)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// flush sends the piece that is being filled.
func (o *output) flush() error {
	p := o.now
	if o.now = (piece{}); p.data == nil {
		return nil
	}
	return o.send(p)
}

func (o *output) send(p piece) error {
	select {
	case o.to <- p:
		return nil
	case <-o.ctx.Done():
		return context.Cause(o.ctx)
	}
}
