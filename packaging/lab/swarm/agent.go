package swarm

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quicklime-ir/quicklime/agent/session"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// addresses are so many of loopback, from which the agents come in turn.
const addresses = 100

// agent is one of the swarm: the real session, with a certificate of its own,
// and nothing behind it. An order ends at once, with the result FAILED.
type agent struct {
	instance string
	from     net.IP
	herd     *herd
	session  *session.Session

	mu       sync.Mutex
	conn     net.Conn // the last that it dialled; owned by mu
	attached bool     // it has said hello on conn; owned by mu
}

// errHeld ends a dial that had to wait for the cut to be over.
var errHeld = errors.New("held until all are cut off")

// order is one that an agent has got.
type order struct {
	caseID   string
	kind     evidence.Kind
	received time.Time
}

func newAgent(h *herd, i int, instance string, config *tls.Config) (*agent, error) {
	a := &agent{instance: instance, from: net.IPv4(127, 1, 0, byte(1+i%addresses)), herd: h}
	var err error
	a.session, err = session.New(session.Config{Collectors: []string{h.collector}, Hello: a.hello, Dial: a.dial, Log: slog.New(h.counts), TLS: config})
	return a, err
}

// run attaches until ctx ends.
func (a *agent) run(ctx context.Context) error {
	return a.session.Run(ctx, func(_ context.Context, o session.Order, _ func(session.Progress)) session.Result {
		a.herd.counts.got(order{caseID: o.Case, kind: o.Kind, received: time.Now()})
		return session.Result{Error: "an agent of the swarm captures nothing"}
	})
}

// hello is of the size of a real one. It is made when a stream has begun.
func (a *agent) hello() *wire.Hello {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.attached = true
	return &wire.Hello{
		AgentVersion: "v1.0.0-swarm", BinarySha256: make([]byte, 32), Hostname: "ip-10-0-2-11.eu-central-1.compute.internal", BootId: "8d0f1c1e-6a2b-4b52-9d0c-3d0e8c8a2f11",
		KernelRelease: "6.1.0-28-cloud-amd64", KernelVersion: "#1 SMP PREEMPT_DYNAMIC Debian 6.1.119-1 (2024-11-22)", RamBytes: 8 << 30, WallClock: timestamppb.Now(),
		MemorySources: []*wire.SourceVerdict{
			{Source: "kcore", Usable: true, Detail: "9 ranges, 8 GiB"},
			{Source: "lime", Reason: "no_module", Detail: "/usr/lib/quicklime/modules/6.1.0-28-cloud-amd64/lime.ko: no such file"},
		},
	}
}

func (a *agent) dial(ctx context.Context, addr string) (net.Conn, error) {
	if a.herd.holds() {
		return nil, errHeld // this try has no time left
	}
	conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: a.from}}).DialContext(ctx, "tcp", addr)
	if errors.Is(err, syscall.ECONNRESET) {
		// On loopback the reset of one who is sent away may come before connect
		// has returned, which no network is fast enough for.
		here, there := net.Pipe()
		there.Close()
		return here, nil
	}
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.conn, a.attached = conn, false
	return &watched{conn, a}, nil
}

// watched tells its agent when it is closed.
type watched struct {
	net.Conn
	of *agent
}

func (w *watched) Close() error {
	w.of.mu.Lock()
	if w.of.conn == w.Conn {
		w.of.attached = false
	}
	w.of.mu.Unlock()
	return w.Conn.Close()
}

// cut breaks the agent's connection, as a network does that has failed.
func (a *agent) cut() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if tcp, ok := a.conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
		_ = tcp.Close()
	}
	a.attached = false
}

func (a *agent) isAttached() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.attached
}
