// Package gate bounds what the agents' listener takes upon itself.
//
// When a node is lost, the agents of all of it come to the others at once.
// Those who are in, with their orders, are not to wait for those who come: no
// more handshakes compute at a time than half of the processors, and the others
// wait for their turn.
//
// What is over a bound is closed before it costs anything: an agent waits a
// random time, longer after each try, so who is sent away comes back spread
// over time, while those who are in are served. One address has a share of
// every bound, so that no single host keeps the others out.
package gate

import (
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Defaults of Limits.
const (
	DefaultAgents     = 16_000
	DefaultPerAddress = 256

	connectsPerCPU   = 250         // a second: a handshake is 1 to 2 ms of work, so half of the time is left for those who are in
	handshakesPerCPU = 128         // each may wait for a distant agent for half a second
	share            = 4           // one address may take up one in so many
	instanceAttaches = 60          // of one instance at once: one that is killed again and again goes on each time
	instanceEvery    = time.Second // and one more after each
	maxRemembered    = 1 << 16     // addresses and instances, each of some 200 bytes
	tellEvery        = 10 * time.Second
)

// Limits are the bounds; 0 is the default, which is told in brackets.
type Limits struct {
	Agents     int // connections at a time (16,000)
	PerAddress int // of one IPv4 address or IPv6 /64 (256)
	Handshakes int // TLS handshakes at a time (128 for each processor)
	Connects   int // new connections a second, and at once (250 for each processor)
}

func (l Limits) orDefault() Limits {
	cpus := runtime.GOMAXPROCS(0)
	for _, one := range []struct {
		to    *int
		value int
	}{
		{&l.Agents, DefaultAgents}, {&l.PerAddress, DefaultPerAddress},
		{&l.Handshakes, handshakesPerCPU * cpus}, {&l.Connects, connectsPerCPU * cpus},
	} {
		if *one.to <= 0 {
			*one.to = one.value
		}
	}
	return l
}

// Stats counts what the gate has seen. What begins with Shed was sent away,
// for the first reason that held.
type Stats struct {
	Limits Limits // in force

	Open        int // connections now, those in handshakes included
	Handshaking int // of these: TLS handshakes that are not over
	Streams     int // attached agents now

	Connected      uint64 // connections that were let in, since the start
	Attached       uint64 // agents that were let in
	FailedShakes   uint64 // TLS handshakes that failed, or were given up
	ShedFull       uint64 // connections: as many as may be were open
	ShedAddress    uint64 // connections: their address had its share
	ShedHandshakes uint64 // connections: as many handshakes as may be were in progress
	ShedConnects   uint64 // connections: too many came within a second
	ShedAttaches   uint64 // agents: as many as may be were attached, or one attached too often
}

// Shed is how many connections and agents were sent away.
func (s Stats) Shed() uint64 {
	return s.ShedFull + s.ShedAddress + s.ShedHandshakes + s.ShedConnects + s.ShedAttaches
}

// Gate holds the bounds of one listener. It may be used by many goroutines.
type Gate struct {
	limits Limits
	log    *slog.Logger

	mu        sync.Mutex
	stats     Stats         // owned by mu
	said      time.Time     // when sheds were logged last; owned by mu
	connects  *rate.Limiter // of all addresses
	turns     chan struct{} // a place for each handshake that may compute
	addresses *book[netip.Prefix]
	instances *book[string]
}

// New makes a gate.
func New(l Limits, log *slog.Logger) *Gate {
	l = l.orDefault()
	connects := max(l.Connects/share, 1)
	return &Gate{
		limits: l, log: log, stats: Stats{Limits: l}, connects: rate.NewLimiter(rate.Limit(l.Connects), l.Connects),
		turns:     make(chan struct{}, max(runtime.GOMAXPROCS(0)/2, 1)),
		addresses: newBook[netip.Prefix](rate.Limit(connects), connects),
		instances: newBook[string](rate.Every(instanceEvery), instanceAttaches),
	}
}

// Stats gives the counts.
func (g *Gate) Stats() Stats {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.stats
}

// Listener gives a listener that hands on what is let in, and closes the
// rest.
func (g *Gate) Listener(l net.Listener) net.Listener { return &listener{l, g} }

type listener struct {
	net.Listener
	gate *Gate
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		address := prefixOf(raw.RemoteAddr())
		if from := l.gate.enter(address, time.Now()); from != nil {
			return &conn{Conn: raw, gate: l.gate, from: from}, nil
		}
		if tcp, ok := raw.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // a reset: nothing of it stays behind here
		}
		_ = raw.Close()
	}
}

// enter lets a connection in, or counts why not and gives nil. What the
// address alone exceeds is looked at before what it shares with others.
func (g *Gate) enter(address netip.Prefix, now time.Time) *entry {
	g.mu.Lock()
	defer g.mu.Unlock()
	from := g.addresses.of(address, now)
	switch {
	case g.stats.Open >= g.limits.Agents:
		g.stats.ShedFull++
	case from == nil || from.open >= g.limits.PerAddress || from.handshaking >= max(g.limits.Handshakes/share, 1) || !from.often.AllowN(now, 1):
		g.stats.ShedAddress++
	case g.stats.Handshaking >= g.limits.Handshakes:
		g.stats.ShedHandshakes++
	case !g.connects.AllowN(now, 1):
		g.stats.ShedConnects++
	default:
		from.open++
		from.handshaking++
		g.stats.Open++
		g.stats.Handshaking++
		g.stats.Connected++
		return from
	}
	g.tell(now)
	return nil
}

// tell logs that somebody was sent away, now and then; the caller holds mu.
func (g *Gate) tell(now time.Time) {
	if now.Sub(g.said) < tellEvery {
		return
	}
	g.said = now
	s := g.stats
	g.log.Warn("agents are sent away, and will come back", "open", s.Open, "handshaking", s.Handshaking, "attached", s.Streams,
		"shed_full", s.ShedFull, "shed_address", s.ShedAddress, "shed_handshakes", s.ShedHandshakes, "shed_connects", s.ShedConnects, "shed_attaches", s.ShedAttaches)
}

func prefixOf(a net.Addr) netip.Prefix {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{} // all others count as one
	}
	return Prefix(tcp.AddrPort().Addr())
}

// Prefix gives what counts as one address where somebody is to have no more
// than a share: an IPv6 host has a /64. What is no address has the zero
// Prefix.
func Prefix(ip netip.Addr) netip.Prefix {
	ip, bits := ip.Unmap().WithZone(""), 64
	if ip.Is4() {
		bits = 32
	}
	p, _ := ip.Prefix(bits)
	return p
}
