package session

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/identity"
	"github.com/quicklime-ir/quicklime/proto/identity/identitytest"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// where gives the node that the agent attaches to next, and its stream.
func where(t *testing.T, nodes ...*bench) (*bench, *stream) {
	t.Helper()
	late := time.After(time.Minute)
	for {
		for _, b := range nodes {
			select {
			case s := <-b.streams:
				b.streams <- s
				return b, b.next(t)
			default:
			}
		}
		select {
		case <-late:
			t.Fatal("the agent attached to no node")
		case <-time.After(time.Millisecond):
		}
	}
}

func other(b *bench, nodes []*bench) *bench {
	if b == nodes[0] {
		return nodes[1]
	}
	return nodes[0]
}

// TestANodeDiesWhileACaptureRuns: the capture goes on, its calls of the ledger
// and its result go to the other node, which knew nothing of it.
func TestANodeDiesWhileACaptureRuns(t *testing.T) {
	ca := identitytest.New(t)
	var addresses []string
	nodes := []*bench{newBench(t, ca), newBench(t, ca)}
	for _, b := range nodes {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		b.open = func() (*wire.OpenItemReply, error) { return &wire.OpenItemReply{ItemId: "memory.memory"}, nil }
		b.serve(t, listener)
		addresses = append(addresses, listener.Addr().String())
	}
	goOn, s := make(chan struct{}), (*Session)(nil)
	s = run(t, ca, Config{Collectors: addresses}, func(ctx context.Context, o Order, _ func(Progress)) Result {
		<-goOn
		if _, _, _, err := s.OpenItem(ctx, o.ID, evidence.Item{Name: "memory"}); err != nil {
			return Result{Error: err.Error()}
		}
		return Result{Outcome: evidence.Whole}
	})
	first, stream := where(t, nodes...)
	stream.order(t, memoryOrder("c/memory"))
	for stream.read(t).GetProgress() == nil { // it runs
	}
	first.server.Stop()
	close(goOn) // the ledger is called while there is no node
	second := other(first, nodes)
	if r := second.next(t).result(t); r.GetOutcome() != wire.Outcome_OUTCOME_WHOLE {
		t.Errorf("result %v", r)
	}
	if first.opened != nil || second.opened.GetOrderId() != "c/memory" {
		t.Errorf("the first node was asked %v, the second %v", first.opened, second.opened)
	}
}

// TestAResultIsRepeatedUntilANodeHasTakenIt, whichever that is.
func TestAResultIsRepeatedUntilANodeHasTakenIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, _, _ := bubble(t, func(context.Context, Order, func(Progress)) Result { return Result{Outcome: evidence.Whole} })
		first, stream := where(t, keys(nodes)...)
		stream.order(t, memoryOrder("c/memory"))
		stream.result(t)
		stream.result(t)    // again, as it is not taken
		first.server.Stop() // it has taken it down nowhere
		second := other(first, keys(nodes))
		stream = second.next(t)
		if r := stream.result(t); r.GetOrderId() != "c/memory" {
			t.Errorf("result %v", r)
		}
		if err := stream.Send(&wire.CollectorMessage{Body: &wire.CollectorMessage_Taken{Taken: &wire.ResultTaken{OrderId: "c/memory"}}}); err != nil {
			t.Fatal(err)
		}
		stream.order(t, memoryOrder("c/volatile"))
		for r := stream.result(t); r.GetOrderId() != "c/volatile"; r = stream.result(t) {
		}
		close(stream.end)
		if r := second.next(t).result(t); r.GetOrderId() != "c/volatile" {
			t.Errorf("result %v, want the one that is not taken", r)
		}
	})
}

func TestTheCertificateMustBeOfTheNameThatWasDialled(t *testing.T) {
	ca := identitytest.New(t) // its servers are 127.0.0.1 and localhost
	b := newBench(t, ca)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.serve(t, listener)
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	s := run(t, ca, Config{Collectors: []string{"localhost:" + port}}, nil)
	b.next(t)
	for host, want := range map[string]codes.Code{"localhost": codes.OK, "stranger.example": codes.Unavailable} {
		conn, err := s.connect(node{addr: listener.Addr().String(), name: host + ":" + port}, credentials.NewTLS(s.cfg.TLS))
		if err != nil {
			t.Fatal(err)
		}
		b.open = func() (*wire.OpenItemReply, error) { return &wire.OpenItemReply{}, nil }
		if _, err := wire.NewAgentServiceClient(conn).OpenItem(t.Context(), &wire.OpenItemRequest{}); status.Code(err) != want {
			t.Errorf("as %s: %v, want %v", host, err, want)
		}
		conn.Close()
	}
}

// TestABusyNodeIsKnown from one that refuses the agent, and from one that
// never answers.
func TestABusyNodeIsKnown(t *testing.T) {
	ca, strangers := identitytest.New(t), identitytest.New(t)
	config, err := identity.ClientTLS(ca.Agent(t, me))
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{Collectors: []string{"127.0.0.1:1"}, TLS: config, Hello: func() *wire.Hello { return &wire.Hello{} }, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	stranger := newBench(t, strangers)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	stranger.serve(t, listener)
	closer, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		for {
			conn, err := closer.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	t.Cleanup(func() { closer.Close(); <-closed })
	for addr, busy := range map[string]bool{closer.Addr().String(): true, listener.Addr().String(): false, "127.0.0.1:1": false} {
		if err := s.attach(t.Context(), node{addr, addr}, true, nil); err == nil || errors.Is(err, errBusy) != busy {
			t.Errorf("%s: %v, busy %v", addr, err, busy)
		}
	}
}

// wires are connections within a bubble of synctest: one listener for each
// node, and a switch that stops what a node does as SIGSTOP would: what is
// sent to it is kept by the kernel, and nothing comes back.
type wires struct {
	mu        sync.Mutex
	listeners map[string]*bufconn.Listener
	stopped   map[string]chan struct{} // closed when the node goes on
}

func (w *wires) dial(ctx context.Context, addr string) (net.Conn, error) {
	conn, err := w.listeners[addr].DialContext(ctx)
	if err != nil {
		return nil, err
	}
	return &wired{Conn: conn, of: w, addr: addr, closed: make(chan struct{})}, nil
}

// stop stops a node, until the test ends.
func (w *wires) stop(t *testing.T, addr string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	goOn := make(chan struct{})
	w.stopped[addr] = goOn
	t.Cleanup(func() { close(goOn) })
}

// wired is the agent's end of a connection.
type wired struct {
	net.Conn
	of     *wires
	addr   string
	once   sync.Once
	closed chan struct{}
}

func (c *wired) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

func (c *wired) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.of.mu.Lock()
	stopped := c.of.stopped[c.addr]
	c.of.mu.Unlock()
	if stopped == nil {
		return n, err
	}
	select {
	case <-stopped:
		return n, err
	case <-c.closed:
		return 0, net.ErrClosed
	}
}

// bubble makes nodes in a bubble of synctest, and a session with them.
func bubble(t *testing.T, handle Handler) (nodes map[*bench]string, w *wires, s *Session) {
	ca := identitytest.New(t)
	w = &wires{listeners: map[string]*bufconn.Listener{}, stopped: map[string]chan struct{}{}}
	nodes = map[*bench]string{}
	for _, addr := range []string{"127.0.0.1:1", "127.0.0.1:2"} {
		b := newBench(t, ca)
		w.listeners[addr] = bufconn.Listen(1 << 20)
		b.serve(t, w.listeners[addr])
		nodes[b] = addr
	}
	return nodes, w, run(t, ca, Config{Collectors: []string{"127.0.0.1:1", "127.0.0.1:2"}, Dial: w.dial}, handle)
}

func keys(nodes map[*bench]string) (out []*bench) {
	for b := range nodes {
		out = append(out, b)
	}
	return out
}

// TestANodeThatStopsIsLeft though the agent has nothing to say to it, and the
// connection stays open.
func TestANodeThatStopsIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, w, _ := bubble(t, nil)
		first, _ := where(t, keys(nodes)...)
		time.Sleep(3 * time.Minute)
		w.stop(t, nodes[first])
		began := time.Now()
		other(first, keys(nodes)).nextWithin(t, 2*(pingAfter+pingLimit))
		if took := time.Since(began); took > pingAfter+pingLimit+firstBackoff+time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// TestANodeThatAcceptsAndNeverAnswers is not waited for long.
func TestANodeThatAcceptsAndNeverAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, w, _ := bubble(t, nil)
		first, stream := where(t, keys(nodes)...)
		w.stop(t, nodes[other(first, keys(nodes))])
		for range 5 { // whichever is tried first
			close(stream.end)
			began := time.Now()
			stream = first.next(t)
			if took := time.Since(began); took > 2*connectLimit+lastBackoff {
				t.Errorf("it took %v", took)
			}
		}
	})
}

// TestANodeThatServesNoCallsIsLeft: it holds the stream, but is cut off from
// the other nodes, and so can record nothing.
func TestANodeThatServesNoCallsIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, _, s := bubble(t, nil)
		first, _ := where(t, keys(nodes)...)
		first.open = func() (*wire.OpenItemReply, error) { return nil, status.Error(codes.Unavailable, "no quorum") }
		second := other(first, keys(nodes))
		second.open = func() (*wire.OpenItemReply, error) { return &wire.OpenItemReply{ItemId: "memory.memory"}, nil }
		began := time.Now()
		id, _, _, err := s.OpenItem(t.Context(), "c/memory", evidence.Item{Name: "memory"})
		if err != nil || id != "memory.memory" || time.Since(began) > 2*callLimit {
			t.Errorf("item %q, %v after %v", id, err, time.Since(began))
		}
		second.next(t)
	})
}

// TestAnOldConnectionIsRenewed, but not while an order runs.
func TestAnOldConnectionIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		nodes, _, _ := bubble(t, func(context.Context, Order, func(Progress)) Result {
			<-release
			return Result{Error: "released"}
		})
		first, stream := where(t, keys(nodes)...)
		order := memoryOrder("c/memory")
		order.TimeLimit = nil
		stream.order(t, order) // refused at once, as it has no time limit
		if r := stream.result(t); r.GetError() == "" {
			t.Fatalf("result %v", r)
		}
		if err := stream.Send(&wire.CollectorMessage{Body: &wire.CollectorMessage_Taken{Taken: &wire.ResultTaken{OrderId: "c/memory"}}}); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		stream = other(first, keys(nodes)).nextWithin(t, 2*renewAfter)
		if took := time.Since(began); took < renewAfter || took > renewAfter+renewAfter/5 {
			t.Errorf("renewed after %v", took)
		}
		order = memoryOrder("c/live")
		order.TimeLimit.Seconds = 24 * 3600
		stream.order(t, order)
		drained := make(chan error, 1)
		go func() { // the agent reports each second
			for {
				if _, err := stream.Recv(); err != nil {
					drained <- err
					return
				}
			}
		}()
		select {
		case err := <-drained:
			t.Errorf("the stream of a running order ended: %v", err)
		case <-time.After(5 * time.Hour):
		}
		close(release)
		close(stream.end)
		if err := <-drained; errors.Is(err, nil) {
			t.Error("the stream did not end")
		}
		where(t, keys(nodes)...)
	})
}
