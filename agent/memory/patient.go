package memory

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

// Bounds of reads that hang, as reads of pages do that a Xen hypervisor has
// not backed.
const (
	readLimit = 10 * time.Second
	maxHung   = 8 // reads of one reader that were given up and have not returned
)

var (
	errHung        = errors.New("the read hung and was given up")
	errTooManyHung = errors.New("too many reads hang")
	errLost        = errors.New("it is closed, or could not be opened again after a read that hung")
)

// handle is an open file.
type handle interface {
	io.ReaderAt
	io.Closer
}

// patient reads through a handle, and gives a read up that hangs. Nothing can
// end such a read: the goroutine that is in it, its handle and its buffer are
// left to it until the kernel lets go, and the next read has others.
//
// What is read is nowhere copied: the kernel writes into the buffer that the
// reader's caller gets to see. One goroutine does all reads until one hangs.
type patient struct {
	open  func() (handle, error)
	alloc func() ([]byte, func())
	limit time.Duration
	timer *time.Timer
	hand  *hand        // nil where there is none any more
	hung  atomic.Int32 // hands that were left and have not returned
}

// hand is a goroutine that reads, and what is its own while it does.
type hand struct {
	file    handle
	buffer  []byte
	free    func()
	asks    chan ask      // closed when nothing more is asked
	answers chan error    // of the one ask at a time, which nobody may wait for
	ended   chan struct{} // closed when the handle and the buffer are given back
	left    bool          // it was given up; set before asks is closed
}

// ask is for the bytes of a file at offset, to be put from lo to hi.
type ask struct {
	lo, hi int
	offset int64
}

func newPatient(open func() (handle, error), alloc func() ([]byte, func()), limit time.Duration) (*patient, error) {
	f := &patient{open: open, alloc: alloc, limit: limit, timer: time.NewTimer(limit)}
	f.timer.Stop()
	var err error
	if f.hand, err = f.newHand(); err != nil {
		return nil, err
	}
	return f, nil
}

// newHand starts a goroutine, for which close waits, or which was left.
func (f *patient) newHand() (*hand, error) {
	file, err := f.open()
	if err != nil {
		return nil, err
	}
	h := &hand{file: file, asks: make(chan ask, 1), answers: make(chan error, 1), ended: make(chan struct{})}
	h.buffer, h.free = f.alloc()
	if len(h.buffer) < MaxRead {
		h.free()
		return nil, errors.Join(fmt.Errorf("cannot get a buffer of %d bytes", MaxRead), file.Close())
	}
	go h.read(&f.hung)
	return h, nil
}

// read does what is asked, until nothing more is.
func (h *hand) read(hung *atomic.Int32) {
	defer close(h.ended)
	for a := range h.asks {
		n, err := h.file.ReadAt(h.buffer[a.lo:a.hi], a.offset)
		if n == a.hi-a.lo {
			err = nil
		}
		h.answers <- err
	}
	h.free()
	h.file.Close()
	if h.left {
		hung.Add(-1)
	}
}

// buffer is where the next read's bytes will be. A read that hangs takes it
// along; what was in it below that read is in the next one as well.
func (f *patient) buffer() []byte { return f.hand.buffer }

// readAt fills the buffer from lo to hi, or fails as the kernel does, after
// the limit as errHung.
func (f *patient) readAt(ctx context.Context, lo, hi int, offset int64) error {
	if f.hung.Load() >= maxHung {
		return errTooManyHung
	}
	f.hand.asks <- ask{lo, hi, offset}
	f.timer.Reset(f.limit)
	defer f.timer.Stop()
	select {
	case err := <-f.hand.answers:
		return err
	case <-ctx.Done():
		return errors.Join(context.Cause(ctx), f.leave(lo))
	case <-f.timer.C:
		if err := f.leave(lo); err != nil {
			return err
		}
		return errHung
	}
}

// leave leaves the hand to its read and takes another, with the same bytes
// below lo.
func (f *patient) leave(lo int) error {
	old := f.hand
	old.left = true
	f.hung.Add(1)
	var err error
	if f.hand, err = f.newHand(); err != nil {
		err = fmt.Errorf("%w: %w", errLost, err)
	} else {
		copy(f.hand.buffer[:lo], old.buffer)
	}
	close(old.asks)
	return err
}

// close gives the handle and the buffer back. Those of reads that hang are
// given back when these return.
func (f *patient) close() {
	if f.hand == nil {
		return
	}
	close(f.hand.asks)
	<-f.hand.ended
	f.hand = nil
}
