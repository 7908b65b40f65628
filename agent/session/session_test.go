package session

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/quicklime-ir/quicklime/agent/pack"
	"github.com/quicklime-ir/quicklime/agent/throttle"
	"github.com/quicklime-ir/quicklime/agent/upload"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/identity"
	"github.com/quicklime-ir/quicklime/proto/identity/identitytest"
	"github.com/quicklime-ir/quicklime/proto/seekable"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var me = identity.AgentID{TrustDomain: "test", Account: "111122223333", Region: "eu-central-1", Instance: "i-0123456789abcdef0"}

// bench is a collector, or a node of one, that a test plays by hand.
type bench struct {
	wire.UnimplementedAgentServiceServer
	server  *grpc.Server
	streams chan *stream
	open    func() (*wire.OpenItemReply, error)
	opened  *wire.OpenItemRequest  // the last; a test reads it after the call
	granted *wire.GrantPartRequest // the last
}

// stream is one attachment, as the collector sees it.
type stream struct {
	wire.AgentService_AttachServer
	end chan struct{} // closing it cuts the stream
}

func (b *bench) Attach(s wire.AgentService_AttachServer) error {
	if _, err := identity.Peer(s.Context()); err != nil {
		return err
	}
	one := &stream{s, make(chan struct{})}
	b.streams <- one
	select {
	case <-one.end:
		return status.Error(codes.Unavailable, "cut by the test")
	case <-s.Context().Done():
		return nil
	}
}

func (b *bench) OpenItem(_ context.Context, q *wire.OpenItemRequest) (*wire.OpenItemReply, error) {
	b.opened = q
	return b.open()
}

func (b *bench) GrantPart(_ context.Context, q *wire.GrantPartRequest) (*wire.GrantPartReply, error) {
	b.granted = q
	return &wire.GrantPartReply{Url: "https://s3/part"}, nil
}

// attach starts a collector and a session with it.
func attach(t *testing.T, handle Handler) (*bench, *Session) {
	t.Helper()
	ca := identitytest.New(t)
	b := newBench(t, ca)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.serve(t, listener)
	return b, run(t, ca, Config{Collectors: []string{listener.Addr().String()}}, handle)
}

// newBench makes a node that listens nowhere yet.
func newBench(t *testing.T, ca *identitytest.Authority) *bench {
	t.Helper()
	config, err := identity.ServerTLS(ca.Server(t))
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{streams: make(chan *stream, 8), server: grpc.NewServer(grpc.Creds(credentials.NewTLS(config)),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingAfter - 5*time.Second}))}
	wire.RegisterAgentServiceServer(b.server, b)
	return b
}

// serve serves until the test ends, or the server is stopped.
func (b *bench) serve(t *testing.T, listener net.Listener) {
	served := make(chan error, 1)
	go func() { served <- b.server.Serve(listener) }()
	t.Cleanup(func() {
		b.server.Stop()
		<-served
	})
}

// run runs a session until the test ends.
func run(t *testing.T, ca *identitytest.Authority, cfg Config, handle Handler) *Session {
	t.Helper()
	config, err := identity.ClientTLS(ca.Agent(t, me))
	if err != nil {
		t.Fatal(err)
	}
	cfg.TLS, cfg.Log = config, slog.New(slog.DiscardHandler)
	cfg.Hello = func() *wire.Hello { return &wire.Hello{Hostname: "victim"} }
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx, handle) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ran; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
	})
	return s
}

// next gives the next stream, past its hello.
func (b *bench) next(t *testing.T) *stream {
	t.Helper()
	return b.nextWithin(t, time.Minute)
}

func (b *bench) nextWithin(t *testing.T, limit time.Duration) *stream {
	t.Helper()
	select {
	case s := <-b.streams:
		if m := s.read(t); m.GetHello().GetHostname() != "victim" {
			t.Fatalf("a stream began with %v, want a hello", m)
		}
		return s
	case <-time.After(limit):
		t.Fatal("the agent did not attach")
		return nil
	}
}

func (s *stream) read(t *testing.T) *wire.AgentMessage {
	t.Helper()
	m, err := s.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (s *stream) order(t *testing.T, o *wire.Order) {
	t.Helper()
	if err := s.Send(&wire.CollectorMessage{Body: &wire.CollectorMessage_Order{Order: o}}); err != nil {
		t.Fatal(err)
	}
}

// result reads until a result comes.
func (s *stream) result(t *testing.T) *wire.OrderResult {
	t.Helper()
	for {
		if r := s.read(t).GetResult(); r != nil {
			return r
		}
	}
}

func memoryOrder(id string) *wire.Order {
	return &wire.Order{Id: id, CaseId: "c", TimeLimit: durationpb.New(time.Minute), Capture: &wire.Order_Memory{Memory: &wire.MemoryCapture{}}}
}

func TestAnOrderRunsOnceHoweverOftenItIsSent(t *testing.T) {
	var runs atomic.Int32
	b, _ := attach(t, func(_ context.Context, o Order, _ func(Progress)) Result {
		runs.Add(1)
		return Result{Outcome: evidence.Whole, Source: o.MemorySource}
	})
	first := b.next(t)
	first.order(t, memoryOrder("c/memory"))
	first.order(t, memoryOrder("c/memory"))
	if r := first.result(t); r.GetOutcome() != wire.Outcome_OUTCOME_WHOLE || r.GetSource() != "auto" {
		t.Errorf("result %v", r)
	}
	close(first.end)
	second := b.next(t)
	second.order(t, memoryOrder("c/memory")) // as a collector does that was restarted
	if r := second.result(t); r.GetOutcome() != wire.Outcome_OUTCOME_WHOLE {
		t.Errorf("result on the second stream: %v", r)
	}
	if runs.Load() != 1 {
		t.Errorf("the order ran %d times", runs.Load())
	}
}

func TestAnOrderOutlivesItsStream(t *testing.T) {
	release := make(chan struct{})
	b, _ := attach(t, func(ctx context.Context, _ Order, _ func(Progress)) Result {
		select {
		case <-release:
			return Result{Outcome: evidence.Whole}
		case <-ctx.Done():
			return Result{Error: "its context ended with the stream"}
		}
	})
	first := b.next(t)
	first.order(t, memoryOrder("c/memory"))
	for first.read(t).GetProgress() == nil {
	}
	close(first.end)
	second := b.next(t)
	close(release)
	if r := second.result(t); r.GetOutcome() != wire.Outcome_OUTCOME_WHOLE {
		t.Errorf("result %v", r)
	}
}

func TestACancelledOrderEndsWithTheReason(t *testing.T) {
	b, _ := attach(t, func(ctx context.Context, _ Order, _ func(Progress)) Result {
		<-ctx.Done()
		return Result{Outcome: evidence.Partial, Error: context.Cause(ctx).Error()}
	})
	s := b.next(t)
	s.order(t, memoryOrder("c/memory"))
	if err := s.Send(&wire.CollectorMessage{Body: &wire.CollectorMessage_Cancel{Cancel: &wire.CancelOrder{OrderId: "c/memory", Reason: "stalled"}}}); err != nil {
		t.Fatal(err)
	}
	if r := s.result(t); r.GetOutcome() != wire.Outcome_OUTCOME_PARTIAL || !strings.Contains(r.GetError(), "stalled") {
		t.Errorf("result %v", r)
	}
}

// TestAnOrderIsControlledWhileItRuns: the collector's last word holds, and
// its words on other orders do nothing.
func TestAnOrderIsControlledWhileItRuns(t *testing.T) {
	running := make(chan Order, 1)
	b, _ := attach(t, func(ctx context.Context, o Order, report func(Progress)) Result {
		report(Progress{BytesRead: 1 << 20, BytesTotal: 1 << 40, Uplink: upload.Failing, Retries: 3})
		running <- o
		<-ctx.Done()
		return Result{Error: context.Cause(ctx).Error()}
	})
	s := b.next(t)
	order := memoryOrder("c/memory")
	order.GetMemory().Limits = &wire.Limits{CpuPercent: 50, BytesPerSecond: 1 << 20}
	control := func(id string, paused bool, l *wire.Limits) {
		t.Helper()
		if err := s.Send(&wire.CollectorMessage{Body: &wire.CollectorMessage_Control{Control: &wire.Control{OrderId: id, Paused: paused, Limits: l}}}); err != nil {
			t.Fatal(err)
		}
	}
	control("c/memory", true, nil) // before the order: not known
	s.order(t, order)
	o := <-running
	if got, want := o.Throttle.Limits(), (throttle.Limits{CPUPercent: 50, BytesPerSecond: 1 << 20}); got != want || o.Throttle.Paused() {
		t.Errorf("it begins with %+v, paused %v; want %+v", got, o.Throttle.Paused(), want)
	}
	if p := s.progressOf(t, func(p *wire.Progress) bool { return p.GetReadPerSecond() > 0 || p.GetRetries() > 0 }); p.GetPaused() || p.GetUplink() != wire.Uplink_UPLINK_FAILING || p.GetRetries() != 3 {
		t.Errorf("progress %v", p)
	}
	control("c/live", true, nil)
	control("c/memory", true, &wire.Limits{CpuPercent: 25})
	if p := s.progressOf(t, (*wire.Progress).GetPaused); p.GetLeft() != nil || p.GetReadPerSecond() != 0 {
		t.Errorf("progress %v, want no pace while it is paused", p)
	}
	if got, want := o.Throttle.Limits(), (throttle.Limits{CPUPercent: 25}); got != want {
		t.Errorf("it goes on with %+v, want %+v and nothing else", got, want)
	}
	s.order(t, order) // a repeat changes nothing
	control("c/memory", false, nil)
	s.progressOf(t, func(p *wire.Progress) bool { return !p.GetPaused() })
	if got := o.Throttle.Limits(); got != (throttle.Limits{}) {
		t.Errorf("it goes on with %+v, want none", got)
	}
}

// progressOf reads until a progress is as the test wants it.
func (s *stream) progressOf(t *testing.T, is func(*wire.Progress) bool) *wire.Progress {
	t.Helper()
	for {
		if p := s.read(t).GetProgress(); p != nil && is(p) {
			return p
		}
	}
}

func TestWhatACompressionMeansInAnOrder(t *testing.T) {
	memory := func(c wire.Compression) *wire.Order {
		return &wire.Order{Capture: &wire.Order_Memory{Memory: &wire.MemoryCapture{Compression: c}}}
	}
	live := func(c wire.Compression) *wire.Order {
		return &wire.Order{Capture: &wire.Order_Live{Live: &wire.ArtifactCapture{Compression: c}}}
	}
	tests := []struct {
		name  string
		order *wire.Order
		want  evidence.Compression
	}{
		{"memory, left open", memory(wire.Compression_COMPRESSION_UNSPECIFIED), evidence.Auto},
		{"memory, auto", memory(wire.Compression_COMPRESSION_AUTO), evidence.Auto},
		{"memory, zstd", memory(wire.Compression_COMPRESSION_ZSTD), evidence.Zstd},
		{"memory, none", memory(wire.Compression_COMPRESSION_NONE), evidence.None},
		{"files, left open", live(wire.Compression_COMPRESSION_UNSPECIFIED), evidence.Zstd},
		{"files, auto", live(wire.Compression_COMPRESSION_AUTO), evidence.Zstd},
		{"files, none", live(wire.Compression_COMPRESSION_NONE), evidence.None},
	}
	for _, tt := range tests {
		tt.order.Id, tt.order.TimeLimit = "a", durationpb.New(time.Minute)
		if o, err := orderFromWire(tt.order); err != nil || o.Compression != tt.want || o.Throttle == nil {
			t.Errorf("%s: order %+v, %v; want %s", tt.name, o, err, tt.want)
		}
	}
}

func TestOrdersThatCannotBeRun(t *testing.T) {
	b, _ := attach(t, func(context.Context, Order, func(Progress)) Result {
		t.Error("an order that cannot be run was run")
		return Result{}
	})
	s := b.next(t)
	tests := []struct {
		name  string
		order *wire.Order
		want  string
	}{
		{"no capture", &wire.Order{Id: "a", TimeLimit: durationpb.New(time.Minute)}, "no capture"},
		{"no time limit", &wire.Order{Id: "b", Capture: &wire.Order_Live{Live: &wire.ArtifactCapture{}}}, "time limit"},
		{"a compression of a newer collector", &wire.Order{Id: "c", TimeLimit: durationpb.New(time.Minute),
			Capture: &wire.Order_Live{Live: &wire.ArtifactCapture{Compression: 99}}}, "compression"},
		{"a source of a newer collector", &wire.Order{Id: "d", TimeLimit: durationpb.New(time.Minute),
			Capture: &wire.Order_Memory{Memory: &wire.MemoryCapture{Source: 99}}}, "memory source"},
	}
	for _, tt := range tests {
		s.order(t, tt.order)
		for {
			r := s.result(t)
			if r.GetOrderId() != tt.order.GetId() {
				continue // one of before, not taken yet
			}
			if r.GetOutcome() != wire.Outcome_OUTCOME_FAILED || !strings.Contains(r.GetError(), tt.want) {
				t.Errorf("%s: result %v, want a failure that names %q", tt.name, r, tt.want)
			}
			break
		}
	}
}

func TestALedgerCallWaitsForTheCollector(t *testing.T) {
	b, s := attach(t, nil)
	b.next(t)
	answers := []error{status.Error(codes.Unavailable, "restarting"), status.Error(codes.Internal, "hiccup"), nil}
	b.open = func() (*wire.OpenItemReply, error) {
		err := answers[0]
		answers = answers[1:]
		return &wire.OpenItemReply{ItemId: "memory.memory", Stored: []*wire.StoredPart{{Number: 3, Size: 9}}}, err
	}
	id, stored, closed, err := s.OpenItem(t.Context(), "c/memory", evidence.Item{Name: "memory"})
	if err != nil || id != "memory.memory" || closed || len(stored) != 1 || stored[0].Number != 3 {
		t.Errorf("item %q, stored %v, closed %v, error %v", id, stored, closed, err)
	}
}

// TestTenThousandStoredParts: the largest image that goes on.
func TestTenThousandStoredParts(t *testing.T) {
	b, s := attach(t, nil)
	b.next(t)
	reply := &wire.OpenItemReply{ItemId: "memory.memory"}
	for n := range int32(evidence.MaxParts) {
		reply.Stored = append(reply.Stored, &wire.StoredPart{Number: n + 1, Size: 1 << 32, Sha256: make([]byte, 32)})
	}
	b.open = func() (*wire.OpenItemReply, error) { return reply, nil }
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, stored, _, err := s.OpenItem(ctx, "c/memory", evidence.Item{Name: "memory"})
	if err != nil || len(stored) != evidence.MaxParts || stored[9999].Number != evidence.MaxParts {
		t.Errorf("%d parts, error %v", len(stored), err)
	}
}

// TestWhatTheLedgerIsTold of a part and of its item.
func TestWhatTheLedgerIsTold(t *testing.T) {
	b, s := attach(t, nil)
	b.next(t)
	b.open = func() (*wire.OpenItemReply, error) { return &wire.OpenItemReply{}, nil }
	if _, _, _, err := s.OpenItem(t.Context(), "c/memory", evidence.Item{Name: "memory", PageFlags: "read"}); err != nil {
		t.Fatal(err)
	}
	frames := []seekable.Frame{{Stored: 7, Raw: 1 << 20}, {Stored: 3, Raw: 5}}
	if _, err := s.GrantPart(t.Context(), "c/memory", "memory.memory", pack.Part{Number: 1, Frames: frames}); err != nil {
		t.Fatal(err)
	}
	if b.opened.GetPageFlags() != "read" || len(b.granted.GetFrames()) != 2 || b.granted.GetFrames()[1].GetRaw() != 5 {
		t.Errorf("opened %v, granted %v", b.opened, b.granted)
	}
}

func TestARefusalOfTheLedgerIsFinal(t *testing.T) {
	b, s := attach(t, nil)
	b.next(t)
	b.open = func() (*wire.OpenItemReply, error) {
		return nil, status.Error(codes.FailedPrecondition, "order does not run")
	}
	if _, _, _, err := s.OpenItem(t.Context(), "c/memory", evidence.Item{Name: "memory"}); !errors.Is(err, upload.ErrRefused) || !strings.Contains(err.Error(), "does not run") {
		t.Errorf("error %v, want a refusal with the collector's words", err)
	}
}

func FuzzOrderFromWire(f *testing.F) {
	f.Add("c/memory", int32(1), int32(2), int64(60))
	f.Fuzz(func(t *testing.T, id string, source, compression int32, seconds int64) {
		o, err := orderFromWire(&wire.Order{Id: id, TimeLimit: &durationpb.Duration{Seconds: seconds},
			Capture: &wire.Order_Memory{Memory: &wire.MemoryCapture{Source: wire.MemorySource(source), Compression: wire.Compression(compression)}}})
		if err == nil && (o.ID == "" || o.TimeLimit <= 0 || o.Compression == "" || o.MemorySource == "") {
			t.Errorf("order %+v was taken", o)
		}
	})
}
