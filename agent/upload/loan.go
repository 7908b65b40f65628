package upload

import (
	"errors"
	"io"
	"sync"
)

// errReturned ends what the transport still writes after a try is over.
var errReturned = errors.New("the try is over")

// loan lends a part's bytes to the HTTP transport for one try. The transport
// may go on reading a request's body after it has returned the response or
// an error; the bytes, however, are a buffer that the caller fills anew. So
// the transport gets copies only, and none after end.
type loan struct {
	turn  func(n int) error // waits until n bytes may be sent
	held  func()            // called when bytes begin to wait for their turn
	moved func()            // called when bytes move, and none waits any more

	mu      sync.Mutex
	bytes   []byte // owned by mu; not changed before end
	ended   bool   // owned by mu
	all     bool   // a body was read to its end; owned by mu
	waiting int    // bodies that wait for a turn; owned by mu
}

// end takes the bytes back. It waits for a copy that is being made.
func (l *loan) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bytes, l.ended = nil, true
}

// wait gives n bytes their turn. The caller holds mu; it is let go meanwhile,
// so that the loan can end, which is an error then.
func (l *loan) wait(n int) error {
	l.waiting++
	l.held()
	l.mu.Unlock()
	err := l.turn(n)
	l.mu.Lock()
	l.waiting--
	switch {
	case l.ended:
		return errReturned
	case err == nil && l.waiting == 0:
		l.moved()
	}
	return err
}

// read reports whether the transport has taken every byte.
func (l *loan) read() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all || len(l.bytes) == 0
}

// body gives the bytes from their beginning.
func (l *loan) body() *body { return &body{loan: l} }

// body is a request's body. It has no method but these two, so that nothing
// gets at the bytes but by Read's copy.
type body struct {
	loan   *loan
	offset int // owned by loan.mu
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	l := b.loan
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return 0, errReturned
	}
	n := min(len(p), len(l.bytes)-b.offset)
	if err := l.wait(n); err != nil {
		return 0, err
	}
	copy(p, l.bytes[b.offset:b.offset+n])
	b.offset += n
	if b.offset == len(l.bytes) {
		l.all = true
		if n == 0 {
			return 0, io.EOF
		}
	}
	return n, nil
}

// Close implements io.Closer.
func (b *body) Close() error { return nil }
