package memory

import (
	"context"
	"errors"
	"io"
	"time"
)

// Bounds of reads that hang, as reads of pages do that a Xen hypervisor has
// not backed.
const (
	readLimit = 10 * time.Second
	maxHung   = 4 // reads that were given up and have not returned
)

var (
	errHung        = errors.New("the read hung and was given up")
	errTooManyHung = errors.New("too many reads hang")
)

// handle is an open file.
type handle interface {
	io.ReaderAt
	io.Closer
}

// patient reads through a handle, and gives a read up that hangs. Nothing
// can end such a read: its goroutine, its handle and its buffer are left to
// it until the kernel lets go, and the next read has a new handle.
type patient struct {
	open    func() (handle, error)
	current handle
	buffer  []byte // of the reading goroutine, which may outlive a call
	limit   time.Duration
	hung    chan struct{} // a token for each read that has not returned
}

// readAt fills p, or fails as the kernel does, after limit as errHung.
func (f *patient) readAt(ctx context.Context, p []byte, offset int64) error {
	if f.hung == nil {
		f.hung = make(chan struct{}, maxHung)
	}
	if cap(f.buffer) < len(p) {
		f.buffer = make([]byte, len(p))
	}
	file, buffer := f.current, f.buffer[:len(p)]
	select {
	case f.hung <- struct{}{}:
	default:
		return errTooManyHung
	}
	done := make(chan error, 1)
	go func() {
		n, err := file.ReadAt(buffer, offset)
		if n == len(buffer) {
			err = nil
		}
		<-f.hung // before done: the next read may begin at once
		done <- err
	}()
	timer := time.NewTimer(f.limit)
	defer timer.Stop()
	select {
	case err := <-done:
		if err == nil {
			copy(p, buffer)
		}
		return err
	case <-ctx.Done():
		return errors.Join(context.Cause(ctx), f.abandon(done, file))
	case <-timer.C:
		return errors.Join(errHung, f.abandon(done, file))
	}
}

// abandon leaves a read to itself. Its handle is closed when it returns.
func (f *patient) abandon(done <-chan error, file handle) error {
	go func() {
		<-done
		file.Close()
	}()
	f.buffer = nil
	var err error
	f.current, err = f.open()
	return err
}

func (f *patient) close() error {
	if f.current == nil {
		return nil
	}
	return f.current.Close()
}
