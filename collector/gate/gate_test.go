package gate

import (
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/time/rate"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/quicklime-ir/quicklime/proto/identity"
	"github.com/quicklime-ir/quicklime/proto/identity/identitytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.DiscardHandler)

// addr gives one address of many.
func addr(n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), 32)
}

func TestWhatIsOverABoundIsSentAway(t *testing.T) {
	wide := Limits{Agents: 1000, PerAddress: 1000, Handshakes: 1000, Connects: 1000}
	with := func(change func(*Limits)) Limits {
		l := wide
		change(&l)
		return l
	}
	tests := []struct {
		name   string
		limits Limits
		from   func(n int) netip.Prefix // of the nth connection
		shake  bool                     // each ends its handshake at once
		want   int                      // of 1,000 connections at one moment
		shed   func(Stats) uint64
	}{
		{"agents in all", with(func(l *Limits) { l.Agents = 10 }), addr, true, 10, func(s Stats) uint64 { return s.ShedFull }},
		{"handshakes in all", with(func(l *Limits) { l.Handshakes = 20 }), addr, false, 20, func(s Stats) uint64 { return s.ShedHandshakes }},
		{"connects in all", with(func(l *Limits) { l.Connects = 30 }), addr, true, 30, func(s Stats) uint64 { return s.ShedConnects }},
		{"agents of an address", with(func(l *Limits) { l.PerAddress = 40 }), func(int) netip.Prefix { return addr(1) }, true, 40, func(s Stats) uint64 { return s.ShedAddress }},
		{"an address's share of the handshakes", with(func(l *Limits) { l.Handshakes = 200 }), func(int) netip.Prefix { return addr(1) }, false, 50, func(s Stats) uint64 { return s.ShedAddress }},
		{"an address's share of the connects", with(func(l *Limits) { l.Connects = 240 }), func(int) netip.Prefix { return addr(1) }, true, 60, func(s Stats) uint64 { return s.ShedAddress }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g, now, in := New(tt.limits, quiet), time.Now(), 0
			for n := range 1000 {
				if from := g.enter(tt.from(n), now); from != nil {
					in++
					if tt.shake {
						(&conn{gate: g, from: from}).shake(true)
					}
				}
			}
			s := g.Stats()
			if in != tt.want || s.Open != in || s.Connected != uint64(in) || tt.shed(s) != uint64(1000-in) {
				t.Errorf("%d were let in, want %d; %+v", in, tt.want, s)
			}
		})
	}
}

// TestOneHostKeepsNobodyOut, though it connects without end.
func TestOneHostKeepsNobodyOut(t *testing.T) {
	g, now := New(Limits{Connects: 100, Handshakes: 400}, quiet), time.Now()
	in := 0
	for n := range 500 { // ten seconds
		now = now.Add(20 * time.Millisecond)
		for range 100 {
			if from := g.enter(addr(0), now); from != nil {
				(&conn{gate: g, from: from}).leave()
			}
		}
		if g.enter(addr(n+1), now) != nil {
			in++
		}
	}
	if in < 390 { // 400 handshakes may be in progress
		t.Errorf("of 500 others %d were let in: %+v", in, g.Stats())
	}
}

func TestTheDefaults(t *testing.T) {
	s := New(Limits{}, quiet).Stats()
	if s.Limits.Agents != DefaultAgents || s.Limits.PerAddress != DefaultPerAddress || s.Limits.Handshakes < handshakesPerCPU || s.Limits.Connects < connectsPerCPU {
		t.Errorf("%+v", s.Limits)
	}
}

func TestWhatCountsAsOneAddress(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.7:1":             "192.0.2.7/32",
		"[::ffff:192.0.2.7]:1":    "192.0.2.7/32",
		"[2001:db8:1:2:3::4]:1":   "2001:db8:1:2::/64",
		"[fe80::1:2:3:4%eth0]:80": "fe80::/64",
	} {
		if got := prefixOf(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(in))); got.String() != want {
			t.Errorf("%s counts as %v, want %s", in, got, want)
		}
	}
	if got := prefixOf(&net.UnixAddr{}); got.IsValid() {
		t.Errorf("a socket counts as %v", got)
	}
}

// house is a gate before a real listener, whose handshakes are real.
type house struct {
	*Gate
	addr  string
	agent *tls.Config
	conns chan net.Conn // whose handshake is over
}

func newHouse(t *testing.T, l Limits) *house {
	t.Helper()
	ca := identitytest.New(t)
	server, err := identity.ServerTLS(ca.Server(t))
	if err != nil {
		t.Fatal(err)
	}
	h := &house{Gate: New(l, quiet), conns: make(chan net.Conn, 100)}
	id := identity.AgentID{TrustDomain: "test", Account: "111122223333", Region: "eu-central-1", Instance: "i-0123456789abcdef0"}
	if h.agent, err = identity.ClientTLS(ca.Agent(t, id)); err != nil {
		t.Fatal(err)
	}
	h.agent.ServerName, h.agent.NextProtos = "127.0.0.1", []string{"h2"}
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.addr = raw.Addr().String()
	done := make(chan struct{})
	listener, creds := h.Listener(raw), h.Credentials(credentials.NewTLS(server)).Clone()
	go func() {
		defer close(done)
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { // ends with the connection
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				over, _, err := creds.ServerHandshake(c)
				if err != nil {
					c.Close()
					return
				}
				h.conns <- over
			}()
		}
	}()
	t.Cleanup(func() {
		listener.Close()
		<-done
		for len(h.conns) > 0 {
			(<-h.conns).Close()
		}
		h.await(t, func(s Stats) bool { return s.Open == 0 && s.Handshaking == 0 })
	})
	return h
}

// await waits until the counts are as they should be.
func (h *house) await(t *testing.T, right func(Stats) bool) {
	t.Helper()
	for late := time.Now().Add(20 * time.Second); !right(h.Stats()); time.Sleep(time.Millisecond) {
		if time.Now().After(late) {
			t.Fatalf("the counts stay %+v", h.Stats())
		}
	}
}

func (h *house) dial(t *testing.T) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestAConnectionThatSaysNothingHoldsAHandshake, and one that is sent away
// knows it at once.
func TestAConnectionThatSaysNothingHoldsAHandshake(t *testing.T) {
	h := newHouse(t, Limits{Handshakes: 2 * share, Connects: 1000})
	silent := []net.Conn{h.dial(t), h.dial(t)} // the share of one address
	h.await(t, func(s Stats) bool { return s.Handshaking == 2 })
	if third, err := net.Dial("tcp", h.addr); err == nil { // else the reset has come already
		_ = third.SetReadDeadline(time.Now().Add(20 * time.Second))
		if n, err := third.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read %d bytes, %v, from a gate that is full", n, err)
		}
		third.Close()
	}
	silent[0].Close()
	h.await(t, func(s Stats) bool {
		return s.Handshaking == 1 && s.Open == 1 && s.FailedShakes == 1 && s.ShedAddress == 1
	})

	c := tls.Client(h.dial(t), h.agent)
	if err := c.HandshakeContext(t.Context()); err != nil {
		t.Fatalf("the place of one that left is taken: %v", err)
	}
	h.await(t, func(s Stats) bool { return s.Handshaking == 1 && s.Open == 2 })
	(<-h.conns).Close()
	h.await(t, func(s Stats) bool { return s.Open == 1 })
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the connection ended with %v", err)
	}
}

// TestAHandshakeThatWaitsHoldsNoTurn: more agents that say nothing than may
// compute at a time keep nobody out.
func TestAHandshakeThatWaitsHoldsNoTurn(t *testing.T) {
	h := newHouse(t, Limits{Handshakes: 1000, Connects: 1000})
	silent := 4 * cap(h.turns)
	for range silent {
		h.dial(t)
	}
	h.await(t, func(s Stats) bool { return s.Handshaking == silent })
	if err := tls.Client(h.dial(t), h.agent).HandshakeContext(t.Context()); err != nil {
		t.Errorf("an agent that speaks: %v", err)
	}
	h.await(t, func(s Stats) bool { return s.Handshaking == silent && s.Open == silent+1 })
}

// busy are credentials whose handshakes compute, and count how many do.
type busy struct {
	credentials.TransportCredentials
	now, most atomic.Int32
}

func (b *busy) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	defer b.compute()
	b.compute()
	_, err := raw.Read(make([]byte, 1))
	return raw, nil, err
}

func (b *busy) compute() {
	n := b.now.Add(1)
	for most := b.most.Load(); n > most && !b.most.CompareAndSwap(most, n); most = b.most.Load() {
	}
	time.Sleep(time.Millisecond)
	b.now.Add(-1)
}

// TestFewHandshakesComputeAtATime, though all of them could.
func TestFewHandshakesComputeAtATime(t *testing.T) {
	g, creds := New(Limits{}, quiet), &busy{}
	door := g.Credentials(creds)
	var all sync.WaitGroup
	for n := range 20 * cap(g.turns) {
		here, there := net.Pipe()
		defer there.Close()
		all.Go(func() {
			if _, err := there.Write([]byte{1}); err != nil {
				t.Error(err)
			}
		})
		all.Go(func() {
			if _, _, err := door.ServerHandshake(&conn{Conn: here, gate: g, from: g.enter(addr(n), time.Now())}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if most := int(creds.most.Load()); most != cap(g.turns) {
		t.Errorf("%d handshakes computed at a time, want %d", most, cap(g.turns))
	}
	if len(g.turns) != 0 {
		t.Errorf("%d turns were not given back", len(g.turns))
	}
}

func TestAHandshakeWithoutACertificateFails(t *testing.T) {
	h := newHouse(t, Limits{})
	h.agent.GetClientCertificate = nil
	c := tls.Client(h.dial(t), h.agent)
	_ = c.Handshake() // TLS 1.3 tells the client only when it reads
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("an agent without a certificate was let in")
	}
	h.await(t, func(s Stats) bool { return s.FailedShakes == 1 && s.Open == 0 })
}

func TestAnInstanceThatAttachesTooOften(t *testing.T) {
	g := New(Limits{Agents: 12}, quiet)
	for n := range instanceAttaches {
		leave, err := g.Attach("i-1")
		if err != nil {
			t.Fatalf("attachment %d: %v", n, err)
		}
		leave()
	}
	_, err := g.Attach("i-1")
	wantRetry(t, err, "too often")
	if _, err := g.Attach("i-2"); err != nil {
		t.Errorf("another instance: %v", err)
	}
}

func TestAsManyAgentsAsMayBe(t *testing.T) {
	g := New(Limits{Agents: 2}, quiet)
	first, err := g.Attach("i-1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Attach("i-2"); err != nil {
		t.Fatal(err)
	}
	_, err = g.Attach("i-3")
	wantRetry(t, err, "as many agents")
	first()
	if _, err := g.Attach("i-3"); err != nil {
		t.Errorf("after one has left: %v", err)
	}
	if s := g.Stats(); s.Streams != 2 || s.Attached != 3 || s.ShedAttaches != 1 {
		t.Errorf("%+v", s)
	}
}

// wantRetry wants a refusal that says when to come back.
func wantRetry(t *testing.T, err error, why string) {
	t.Helper()
	s := status.Convert(err)
	if s.Code() != codes.ResourceExhausted || !strings.Contains(s.Message(), why) || len(s.Details()) != 1 {
		t.Fatalf("refused with %v %v", err, s.Details())
	}
	if info, ok := s.Details()[0].(*errdetails.RetryInfo); !ok || info.GetRetryDelay().AsDuration() != retryAfter {
		t.Errorf("details %v", s.Details())
	}
}

// TestWhoComesIsForgotten, but nobody who is here, or has come too often.
func TestWhoComesIsForgotten(t *testing.T) {
	now := time.Now()
	b := newBook[string](rate.Every(time.Second), 10)
	b.most = 100
	b.of("here", now).open = 1
	hasty := b.of("hasty", now).often
	for hasty.AllowN(now, 1) {
	}
	for n := range 98 {
		if b.of(strconv.Itoa(n), now) == nil {
			t.Fatalf("no place for %d", n)
		}
	}
	if b.of("one more", now) == nil || len(b.entries) != 3 {
		t.Errorf("%d entries, want three: two that say something, and the new one", len(b.entries))
	}
	for n := range 200 {
		b.of(strconv.Itoa(n), now)
	}
	if len(b.entries) != 100 || b.of("yet another", now) != nil {
		t.Errorf("%d entries, want 100, as the book is swept once a second at most", len(b.entries))
	}
	now = now.Add(time.Minute)
	if b.of("yet another", now) == nil || b.entries["here"] == nil || b.entries["hasty"] != nil {
		t.Errorf("after a minute: %d entries", len(b.entries))
	}
}

func TestAgentsFitTheOpenFiles(t *testing.T) {
	tests := []struct {
		name   string
		files  uint64
		want   int
		warned bool
	}{
		{"enough", 65_536, DefaultAgents, false},
		{"just enough", DefaultAgents + spareFiles, DefaultAgents, false},
		{"one too few", DefaultAgents + spareFiles - 1, DefaultAgents - 1, true},
		{"few", 4096, 4096 - spareFiles, true},
		{"too few to serve anybody", 1024, 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var said strings.Builder
			l, err := Limits{}.within(tt.files, slog.New(slog.NewJSONHandler(&said, nil)))
			if (err != nil) != (tt.want == 0) || err == nil && l.Agents != tt.want || tt.warned != strings.Contains(said.String(), "LimitNOFILE") {
				t.Errorf("%d agents, %v, log %q", l.Agents, err, said.String())
			}
		})
	}
	if _, err := (Limits{Agents: 1}).Fit(quiet); err != nil {
		t.Errorf("here: %v", err)
	}
}
