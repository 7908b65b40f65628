package gate

import (
	"net"
	"syscall"

	"google.golang.org/grpc/credentials"
)

// conn is a connection that was let in. Its counts are given back once, by
// whatever comes first.
type conn struct {
	net.Conn
	gate   *Gate
	from   *entry // owned by gate.mu
	shaken bool   // its handshake is over; owned by gate.mu
	closed bool   // owned by gate.mu

	computes bool // it has a turn; of the goroutine that shakes hands alone
}

// Read gives the turn of a handshake to others while the agent is waited for,
// which may be far away, or may mean to say nothing.
func (c *conn) Read(b []byte) (int, error) {
	if !c.computes {
		return c.Conn.Read(b)
	}
	<-c.gate.turns
	n, err := c.Conn.Read(b)
	c.gate.turns <- struct{}{} // those before it compute for some milliseconds each
	return n, err
}

// SyscallConn lets gRPC set socket options, as on the connection itself.
func (c *conn) SyscallConn() (syscall.RawConn, error) {
	if raw, ok := c.Conn.(syscall.Conn); ok {
		return raw.SyscallConn()
	}
	return nil, syscall.EINVAL
}

// begin takes a turn, and end gives it back.
func (c *conn) begin() {
	c.gate.turns <- struct{}{}
	c.computes = true
}

func (c *conn) end() {
	c.computes = false
	<-c.gate.turns
}

// shake ends the handshake in the counts.
func (c *conn) shake(ok bool) {
	c.gate.mu.Lock()
	defer c.gate.mu.Unlock()
	c.shakeLocked(ok)
}

func (c *conn) shakeLocked(ok bool) {
	if c.shaken {
		return
	}
	c.shaken = true
	c.gate.stats.Handshaking--
	c.from.handshaking--
	if !ok {
		c.gate.stats.FailedShakes++
	}
}

func (c *conn) Close() error {
	c.leave()
	return c.Conn.Close()
}

func (c *conn) leave() {
	c.gate.mu.Lock()
	defer c.gate.mu.Unlock()
	if c.closed {
		return
	}
	c.closed = true
	c.shakeLocked(false)
	c.gate.stats.Open--
	c.from.open--
}

// Credentials gives credentials that tell the gate when a handshake is over.
func (g *Gate) Credentials(c credentials.TransportCredentials) credentials.TransportCredentials {
	return shaker{c}
}

type shaker struct {
	credentials.TransportCredentials
}

func (s shaker) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, ok := raw.(*conn)
	if !ok {
		return s.TransportCredentials.ServerHandshake(raw)
	}
	c.begin()
	out, info, err := s.TransportCredentials.ServerHandshake(raw)
	c.end()
	c.shake(err == nil)
	return out, info, err
}

func (s shaker) Clone() credentials.TransportCredentials {
	return shaker{s.TransportCredentials.Clone()}
}
