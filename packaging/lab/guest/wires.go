package guest

import (
	"fmt"
	"io"
	"net"
	"sync"
)

// tailSize bounds what is kept of the console.
const tailSize = 16 << 10

// tail keeps the last bytes written and forwards all of them. It never fails, so
// a broken reader of the console cannot stop the guest.
type tail struct {
	forward io.Writer

	mu   sync.Mutex // guards kept and orders writes to forward
	kept []byte
}

// Write implements io.Writer and always takes all of p.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, p...)
	if over := len(t.kept) - tailSize; over > 0 {
		t.kept = append(t.kept[:0], t.kept[over:]...)
	}
	_, _ = t.forward.Write(p) // documented in Config.Console
	return len(p), nil
}

// String returns what is kept.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.kept)
}

// maxCalls bounds the connections that a beacon holds.
const maxCalls = 8

// beacon is the intruder's home: it accepts connections on loopback, says
// nothing, and holds them until it is closed.
type beacon struct {
	listener net.Listener
	ended    chan struct{}
}

func listenBeacon() (*beacon, error) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("cannot listen for the intruder's call: %w", err)
	}
	b := &beacon{listener: listener, ended: make(chan struct{})}
	go b.hold()
	return b, nil
}

func (b *beacon) port() int { return b.listener.Addr().(*net.TCPAddr).Port }

func (b *beacon) hold() {
	defer close(b.ended)
	var held []net.Conn
	defer func() {
		for _, conn := range held {
			conn.Close()
		}
	}()
	for {
		conn, err := b.listener.Accept()
		if err != nil {
			return
		}
		if len(held) == maxCalls {
			conn.Close()
			continue
		}
		held = append(held, conn)
	}
}

// close ends the connections and waits for hold.
func (b *beacon) close() {
	b.listener.Close()
	<-b.ended
}
