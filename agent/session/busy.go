package session

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"

	"google.golang.org/grpc/credentials"
)

// errBusy is the kind of errors of a node that is there, and sends agents
// away: it closes connections before it has said a word.
var errBusy = errors.New("the collector is busy")

// listening are TLS credentials that know such a node.
type listening struct {
	credentials.TransportCredentials
	busy *atomic.Bool
}

// ClientHandshake is that of the credentials.
func (l listening) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	ear := &ear{Conn: raw}
	conn, info, err := l.TransportCredentials.ClientHandshake(ctx, authority, ear)
	l.busy.Store(err != nil && ctx.Err() == nil && !ear.heard.Load())
	return conn, info, err
}

// Clone keeps what is known.
func (l listening) Clone() credentials.TransportCredentials {
	return listening{l.TransportCredentials.Clone(), l.busy}
}

// why gives the reason of a failed try.
func (l listening) why(err error) error {
	if err != nil && l.busy.Load() {
		return fmt.Errorf("%w: %w", errBusy, err)
	}
	return err
}

// ear is a connection that knows whether anything was heard on it.
type ear struct {
	net.Conn
	heard atomic.Bool
}

func (e *ear) Read(b []byte) (int, error) {
	n, err := e.Conn.Read(b)
	if n > 0 {
		e.heard.Store(true)
	}
	return n, err
}
