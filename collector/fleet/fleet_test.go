package fleet

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quicklime-ir/quicklime/collector/gate"
	"github.com/quicklime-ir/quicklime/collector/ledger"
	"github.com/quicklime-ir/quicklime/collector/locker"
	"github.com/quicklime-ir/quicklime/collector/store"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/identity"
	"github.com/quicklime-ir/quicklime/proto/identity/identitytest"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	victim   = identity.AgentID{TrustDomain: "test", Account: "111122223333", Region: "eu-central-1", Instance: "i-0123456789abcdef0"}
	intruder = identity.AgentID{TrustDomain: "test", Account: "111122223333", Region: "eu-central-1", Instance: "i-0fedcba9876543210"}
	stranger = identity.AgentID{TrustDomain: "elsewhere", Account: "111122223333", Region: "eu-central-1", Instance: "i-0123456789abcdef0"}
)

// books is a ledger that grants everything and remembers what it was asked.
type books struct {
	mu     sync.Mutex
	opened []evidence.Item // owned by mu
	parts  []evidence.Part // owned by mu
	err    error           // what Open answers; owned by mu
}

func (b *books) Open(_ context.Context, _, _ string, item evidence.Item) (ledger.Opened, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.opened = append(b.opened, item)
	return ledger.Opened{ID: "memory.memory"}, b.err
}

func (b *books) Grant(_ context.Context, _, _ string, part evidence.Part) (locker.Grant, bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.parts = append(b.parts, part)
	return locker.Grant{URL: "https://s3/part"}, false, nil
}

func (b *books) Close(context.Context, string, string, int32, string) (evidence.Item, error) {
	return evidence.Item{Status: evidence.Whole}, nil
}

// house is a fleet behind a real listener, one node of its collector.
type house struct {
	*Fleet
	state *store.MemoryStore
	books *books
	addr  string
	ca    *identitytest.Authority
	stop  func() // what Run does
}

func newHouse(t *testing.T) *house {
	t.Helper()
	state := store.Memory()
	return houseOf(t, Config{Node: "first", Store: state}, state, identitytest.New(t))
}

// next is another node of the same collector.
func (h *house) next(t *testing.T) *house {
	t.Helper()
	state := h.state.Another()
	return houseOf(t, Config{Node: "second", Store: state}, state, h.ca)
}

func houseOf(t *testing.T, cfg Config, state *store.MemoryStore, ca *identitytest.Authority) *house {
	t.Helper()
	h := &house{books: &books{}, ca: ca, state: state}
	log := slog.New(slog.DiscardHandler)
	cfg.Ledger, cfg.TrustDomain, cfg.Log = h.books, "test", log
	h.Fleet = New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- h.Run(ctx) }()
	h.stop = sync.OnceFunc(func() { cancel(); <-ran })
	t.Cleanup(h.stop)
	config, err := identity.ServerTLS(h.ca.Server(t))
	if err != nil {
		t.Fatal(err)
	}
	door := gate.New(gate.Limits{}, log)
	server := NewServer(h.Fleet, config, door, log)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.addr = listener.Addr().String()
	served := make(chan error, 1)
	go func() { served <- server.Serve(door.Listener(listener)) }()
	t.Cleanup(sync.OnceFunc(func() { server.Stop(); <-served }))
	return h
}

// agent is an agent played by hand.
type agent struct {
	wire.AgentServiceClient
	wire.AgentService_AttachClient
}

func hello() *wire.Hello {
	return &wire.Hello{AgentVersion: "1", Hostname: "victim", BinarySha256: make([]byte, 32), WallClock: timestamppb.Now()}
}

func (h *house) dial(t *testing.T, id identity.AgentID) wire.AgentServiceClient {
	t.Helper()
	config, err := identity.ClientTLS(h.ca.Agent(t, id))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(h.addr, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return wire.NewAgentServiceClient(conn)
}

func (h *house) attach(t *testing.T, id identity.AgentID, hello *wire.Hello) (*agent, error) {
	t.Helper()
	a := &agent{AgentServiceClient: h.dial(t, id)}
	var err error
	if a.AgentService_AttachClient, err = a.Attach(t.Context()); err != nil {
		return a, err
	}
	if err := a.Send(&wire.AgentMessage{Body: &wire.AgentMessage_Hello{Hello: hello}}); err != nil && !errors.Is(err, io.EOF) { // why it ended, Recv says
		return a, err
	}
	if hello == nil || len(hello.GetBinarySha256()) == 0 || id.TrustDomain != "test" { // refused
		_, err := a.Recv()
		return a, err
	}
	for range 1000 {
		if h.has(id) {
			return a, nil
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("the agent is not attached")
	return a, nil
}

// has reports whether an agent hangs on this node, and the others know.
func (h *house) has(id identity.AgentID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	a := h.agents[keyOf(id)]
	return a != nil && a.told != 0
}

func memory(id identity.AgentID) Capture {
	return Capture{ID: "c1/memory", Case: "c1", Kind: evidence.Memory, Absent: 30 * time.Second, Stall: 30 * time.Second,
		Instance: evidence.Instance{ID: id.Instance, Account: id.Account, Region: id.Region}}
}

// capture runs a capture beside the test.
func (h *house) capture(t *testing.T, c Capture) (result func() (Result, error), cancel func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	type end struct {
		r   Result
		err error
	}
	done := make(chan end, 1)
	go func() {
		r, err := h.Capture(ctx, c)
		done <- end{r, err}
	}()
	return func() (Result, error) { e := <-done; return e.r, e.err }, cancel
}

// serve has the victim's agent, at a node, take the order of a case that this
// node runs.
func (h *house) serve(t *testing.T, at *house) (a *agent, result func() (Result, error), cancel func()) {
	t.Helper()
	a, err := at.attach(t, victim, hello())
	if err != nil {
		t.Fatal(err)
	}
	result, cancel = h.capture(t, memory(victim))
	a.expect(t, "the order", isOrder)
	return a, result, cancel
}

func TestAnOrderIsSentAndItsResultTaken(t *testing.T) {
	h := newHouse(t)
	a, err := h.attach(t, victim, hello())
	if err != nil {
		t.Fatal(err)
	}
	result, cancel := h.capture(t, memory(victim))
	defer cancel()
	m, err := a.Recv()
	if err != nil || m.GetOrder().GetId() != "c1/memory" || m.GetOrder().GetMemory() == nil {
		t.Fatalf("message %v, error %v", m, err)
	}
	a.Send(&wire.AgentMessage{Body: &wire.AgentMessage_Result{Result: &wire.OrderResult{OrderId: "c1/memory", Outcome: wire.Outcome_OUTCOME_WHOLE, Source: "kcore"}}})
	if m, err := a.Recv(); err != nil || m.GetTaken().GetOrderId() != "c1/memory" {
		t.Errorf("message %v, error %v; want that the result is taken", m, err)
	}
	r, err := result()
	if err != nil || r.Outcome != wire.Outcome_OUTCOME_WHOLE || r.Source != "kcore" || r.Agent.Hostname != "victim" {
		t.Errorf("result %+v, error %v", r, err)
	}
}

func TestAnOrderIsSentAgainToAnAgentThatComesBack(t *testing.T) {
	h := newHouse(t)
	result, cancel := h.capture(t, memory(victim))
	defer cancel()
	for range 2 {
		a, err := h.attach(t, victim, hello())
		if err != nil {
			t.Fatal(err)
		}
		if m, err := a.Recv(); err != nil || m.GetOrder().GetId() != "c1/memory" {
			t.Fatalf("message %v, error %v", m, err)
		}
	}
	cancel()
	if _, err := result(); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestWhyACaptureIsGivenUp(t *testing.T) {
	t.Run("no agent", func(t *testing.T) {
		h := newHouse(t)
		c := memory(victim)
		c.Absent = 10 * time.Millisecond
		result, cancel := h.capture(t, c)
		defer cancel()
		if _, err := result(); !errors.Is(err, ErrAbsent) || !strings.Contains(err.Error(), victim.Instance) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("no progress", func(t *testing.T) {
		h := newHouse(t)
		a, err := h.attach(t, victim, hello())
		if err != nil {
			t.Fatal(err)
		}
		c := memory(victim)
		c.Stall = 10 * time.Millisecond
		result, cancel := h.capture(t, c)
		defer cancel()
		if _, err := result(); !errors.Is(err, ErrStalled) {
			t.Errorf("error %v", err)
		}
		a.Recv() // the order
		if m, err := a.Recv(); err != nil || m.GetCancel().GetOrderId() != "c1/memory" {
			t.Errorf("message %v, error %v; want that the agent is told to stop", m, err)
		}
	})
}

// TestAnAgentActsForItsOwnInstanceAlone: whatever it writes into a message,
// it is whom its certificate names.
func TestAnAgentActsForItsOwnInstanceAlone(t *testing.T) {
	h := newHouse(t)
	result, cancel := h.capture(t, memory(victim))
	defer func() { cancel(); result() }()
	other := h.dial(t, intruder)
	for len(h.running()) == 0 {
		time.Sleep(time.Millisecond)
	}
	_, err := other.OpenItem(t.Context(), &wire.OpenItemRequest{OrderId: "c1/memory", Name: "memory", Format: wire.Format_FORMAT_LIME})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("opening another's item: %v", err)
	}
	_, err = other.GrantPart(t.Context(), &wire.GrantPartRequest{OrderId: "c1/memory", ItemId: "memory.memory", Sha256: make([]byte, 32)})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a grant for another's item: %v", err)
	}
	a, err := h.attach(t, intruder, hello())
	if err != nil {
		t.Fatal(err)
	}
	a.Send(&wire.AgentMessage{Body: &wire.AgentMessage_Result{Result: &wire.OrderResult{OrderId: "c1/memory", Outcome: wire.Outcome_OUTCOME_WHOLE}}})
	a.Recv() // it is taken, and believed by nobody
	if len(h.running()) != 1 {
		t.Error("another's result ended the capture")
	}
}

func (h *house) running() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var ids []string
	for id := range h.captures {
		ids = append(ids, id)
	}
	return ids
}

func TestWhoIsRefused(t *testing.T) {
	tests := []struct {
		name  string
		id    identity.AgentID
		hello *wire.Hello
		want  codes.Code
	}{
		{"an agent of another trust domain", stranger, hello(), codes.Unauthenticated},
		{"a hello without the binary's hash", victim, &wire.Hello{}, codes.InvalidArgument},
		{"a first message that is no hello", victim, nil, codes.InvalidArgument},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHouse(t)
			if _, err := h.attach(t, tt.id, tt.hello); status.Code(err) != tt.want {
				t.Errorf("error %v, want %v", err, tt.want)
			}
		})
	}
}

func TestWhatALedgerAnswersReachesTheAgent(t *testing.T) {
	h := newHouse(t)
	result, cancel := h.capture(t, memory(victim))
	defer func() { cancel(); result() }()
	api := h.dial(t, victim)
	for len(h.running()) == 0 {
		time.Sleep(time.Millisecond)
	}
	open := &wire.OpenItemRequest{OrderId: "c1/memory", Name: "memory", Format: wire.Format_FORMAT_LIME,
		Ranges: []*wire.PhysicalRange{{Start: 0, End: 4095}}, PartRamBytes: 4096, PageFlags: "read" + strings.Repeat("!", 1<<16)}
	if r, err := api.OpenItem(t.Context(), open); err != nil || r.GetItemId() != "memory.memory" {
		t.Errorf("reply %v, error %v", r, err)
	}
	h.books.err = ledger.ErrRefused
	if _, err := api.OpenItem(t.Context(), open); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a refusal came as %v", err)
	}
	h.books.err = errors.New("open /var/lib/quicklime/store: no space left on device")
	if _, err := api.OpenItem(t.Context(), open); status.Code(err) != codes.Unavailable || strings.Contains(err.Error(), "/var/lib") {
		t.Errorf("a fault of the collector came as %v, want Unavailable without its details", err)
	}
	if flags := h.books.opened[0].PageFlags; !strings.HasPrefix(flags, "read!") || len(flags) > maxText {
		t.Errorf("page flags of %d bytes reach the ledger", len(flags))
	}
	r, err := api.GrantPart(t.Context(), &wire.GrantPartRequest{OrderId: "c1/memory", ItemId: "memory.memory", Number: 1, Size: 9, Sha256: make([]byte, 32),
		Frames: []*wire.Frame{{Stored: 9, Raw: 0}}})
	if err != nil || r.GetUrl() != "https://s3/part" {
		t.Errorf("grant %v, error %v", r, err)
	}
	if frames := h.books.parts[0].Frames; len(frames) != 1 || frames[0].Stored != 9 {
		t.Errorf("frames %v reach the ledger", frames)
	}
	for name, bad := range map[string]*wire.GrantPartRequest{
		"frames of other sizes": {OrderId: "c1/memory", Sha256: make([]byte, 32), Size: 9, Frames: []*wire.Frame{{Stored: 8}}},
		"a hash of 31 bytes":    {OrderId: "c1/memory", Sha256: make([]byte, 31)},
		"ranges that overlap":   {OrderId: "c1/memory", Sha256: make([]byte, 32), Ranges: []*wire.PhysicalRange{{Start: 0, End: 9}, {Start: 9, End: 12}}},
		"a gap without reason":  {OrderId: "c1/memory", Sha256: make([]byte, 32), Gaps: []*wire.Gap{{Range: &wire.PhysicalRange{Start: 0, End: 9}}}},
	} {
		if _, err := api.GrantPart(t.Context(), bad); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	if c, err := api.CloseItem(t.Context(), &wire.CloseItemRequest{OrderId: "c1/memory", ItemId: "memory.memory", Parts: 1}); err != nil || !c.GetWhole() {
		t.Errorf("close %v, error %v", c, err)
	}
}

// ordered gives a fleet that does not run a capture, as it would hear of it.
func ordered(t *testing.T, f *Fleet, c Capture) *capture {
	t.Helper()
	if _, _, err := f.order(t.Context(), c, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	run, err := f.lookup(t.Context(), c.ID)
	if err != nil {
		t.Fatal(err)
	}
	f.captures[c.ID] = run
	return run
}

// TestAnOrderLeavesTimeWhateverTheClockSays, as nodes' clocks may differ.
func TestAnOrderLeavesTimeWhateverTheClockSays(t *testing.T) {
	for left, want := range map[time.Duration]time.Duration{-time.Hour: leastLimit, time.Second: leastLimit, time.Hour: time.Hour} {
		c := &capture{order: &wire.Order{}, deadline: time.Now().Add(left)}
		if got := c.message().GetOrder().GetTimeLimit().AsDuration(); got > want || got < want-time.Second {
			t.Errorf("%v before its deadline an order has %v, want %v", left, got, want)
		}
	}
}

func attachedHere(id identity.AgentID) *attached {
	return &attached{id: id, hello: hello(), out: make(chan *wire.CollectorMessage, outbox), cancel: func(error) {}, progress: map[string]*wire.Progress{}}
}

// FuzzHear feeds an attached agent's messages.
func FuzzHear(f *testing.F) {
	f.Add("c1/memory", uint64(1), "memory", "why", int32(2))
	f.Fuzz(func(t *testing.T, order string, n uint64, doing, why string, outcome int32) {
		fleet := New(Config{Store: store.Memory(), Ledger: &books{}, Log: slog.New(slog.DiscardHandler)})
		run := ordered(t, fleet, memory(victim))
		a := attachedHere(victim)
		for _, m := range []*wire.AgentMessage{
			{},
			{Body: &wire.AgentMessage_Hello{Hello: hello()}},
			{Body: &wire.AgentMessage_Heartbeat{}},
			{Body: &wire.AgentMessage_Progress{Progress: &wire.Progress{OrderId: order, BytesRead: n, Doing: doing}}},
			{Body: &wire.AgentMessage_Result{Result: &wire.OrderResult{OrderId: order, Error: why, Outcome: wire.Outcome(outcome)}}},
		} {
			_ = fleet.hear(t.Context(), a, m)
		}
		if p := run.progress; p != nil && len(p.GetDoing()) > maxWord {
			t.Errorf("an agent's word of %d bytes was kept", len(p.GetDoing()))
		}
	})
}
