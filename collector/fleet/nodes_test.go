package fleet

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quicklime-ir/quicklime/collector/store"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/identity/identitytest"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

func whole() *wire.AgentMessage {
	return &wire.AgentMessage{Body: &wire.AgentMessage_Result{Result: &wire.OrderResult{OrderId: "c1/memory", Outcome: wire.Outcome_OUTCOME_WHOLE}}}
}

func isTaken(m *wire.CollectorMessage) bool { return m.GetTaken().GetOrderId() == "c1/memory" }

// TestAnAgentServesACaseOfAnotherNode: its order, its progress, its evidence
// and its result go through the node that it hangs on.
func TestAnAgentServesACaseOfAnotherNode(t *testing.T) {
	first := newHouse(t)
	second := first.next(t)
	a, result, cancel := first.serve(t, second)
	defer cancel()
	a.Send(&wire.AgentMessage{Body: &wire.AgentMessage_Progress{Progress: &wire.Progress{OrderId: "c1/memory", BytesRead: 42}}})
	first.awaitCapture(t, "c1/memory", func(c *capture) bool { return c.progress.GetBytesRead() == 42 })
	part := &wire.GrantPartRequest{OrderId: "c1/memory", ItemId: "memory.memory", Number: 1, Size: 9, Sha256: make([]byte, 32)}
	if r, err := a.GrantPart(t.Context(), part); err != nil || r.GetUrl() == "" {
		t.Errorf("grant %v, %v", r, err)
	}
	a.Send(whole())
	a.expect(t, "that its result is taken", isTaken)
	if r, err := result(); err != nil || r.Outcome != wire.Outcome_OUTCOME_WHOLE || r.Agent.Hostname != "victim" {
		t.Errorf("result %+v, %v", r, err)
	}
	var err error
	for range 1000 {
		if _, err = a.GrantPart(t.Context(), part); err != nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a grant after the end: %v", err)
	}
}

// TestAnAgentMovesInTheMidstOfACapture from the node that runs its case to
// another.
func TestAnAgentMovesInTheMidstOfACapture(t *testing.T) {
	first := newHouse(t)
	second := first.next(t)
	result, cancel := first.capture(t, memory(victim))
	defer cancel()
	for _, node := range []*house{first, second} {
		a, err := node.attach(t, victim, hello())
		if err != nil {
			t.Fatal(err)
		}
		a.expect(t, "the order", isOrder)
		if node == second {
			a.Send(whole())
			a.expect(t, "that its result is taken", isTaken)
		}
	}
	if r, err := result(); err != nil || r.Outcome != wire.Outcome_OUTCOME_WHOLE {
		t.Errorf("result %+v, %v", r, err)
	}
}

// TestACaptureOutlivesTheNodeThatRunsItsCase: who takes the case up finds the
// order given, and its result.
func TestACaptureOutlivesTheNodeThatRunsItsCase(t *testing.T) {
	first := newHouse(t)
	second := first.next(t)
	a, result, stop := first.serve(t, second)
	stop()
	if _, err := result(); !errors.Is(err, context.Canceled) {
		t.Errorf("a node that stops gave %v", err)
	}
	a.Send(whole())
	a.expect(t, "that its result is taken, and not that it should stop", isTaken)
	again, cancel := second.capture(t, memory(victim))
	defer cancel()
	if r, err := again(); err != nil || r.Outcome != wire.Outcome_OUTCOME_WHOLE {
		t.Errorf("result %+v, %v", r, err)
	}
}

// TestAResultOutlivesTheNodeThatHasHeardIt and could not write down that its
// case's step has ended: who takes the case up has it too, whether the agent is
// there or not, and until the case is over.
func TestAResultOutlivesTheNodeThatHasHeardIt(t *testing.T) {
	first := newHouse(t)
	second := first.next(t)
	a, result, cancel := first.serve(t, first)
	defer cancel()
	a.Send(whole())
	if r, err := result(); err != nil || r.Outcome != wire.Outcome_OUTCOME_WHOLE {
		t.Fatalf("result %+v, %v", r, err)
	}
	a.CloseSend()
	again := memory(victim)
	again.Absent = time.Millisecond
	result, cancel = second.capture(t, again)
	defer cancel()
	if r, err := result(); err != nil || r.Outcome != wire.Outcome_OUTCOME_WHOLE || r.Agent.Hostname != "victim" {
		t.Errorf("another node has %+v, %v", r, err)
	}
	if err := second.EndAll(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	if left, err := second.cfg.Store.List(t.Context(), ""); err != nil || slices.ContainsFunc(left, func(e store.Entry) bool {
		return strings.Contains(e.Key, "c1/memory")
	}) {
		t.Errorf("of a case that is over there is %v, %v", left, err)
	}
}

// TestAnAgentIsWhereItsNodeLives: the others know it to be there as long as
// the node is, and what it was when it is not.
func TestAnAgentIsWhereItsNodeLives(t *testing.T) {
	first := newHouse(t)
	second := first.next(t)
	if _, err := second.attach(t, victim, hello()); err != nil {
		t.Fatal(err)
	}
	agents := func() *wire.AttachedAgent {
		all, err := first.Agents(t.Context())
		if err != nil || len(all) != 1 {
			t.Fatalf("agents %v, %v", all, err)
		}
		return all[0]
	}
	if a := agents(); !a.GetPresent() || a.GetNode() != "second" || a.GetHello().GetHostname() != "victim" {
		t.Errorf("the first node knows %v", a)
	}
	if i := memory(victim).Instance; !first.present(t.Context(), i) {
		t.Error("it is absent")
	}
	second.state.Expire() // the node hangs; it comes back
	for range 2000 {
		if agents().GetPresent() {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if !agents().GetPresent() {
		t.Error("a node that came back has lost its agent")
	}
	second.stop()
	second.state.Expire() // the node is dead
	if a := agents(); a.GetPresent() || a.GetHello().GetHostname() != "victim" {
		t.Errorf("of an agent whose node is dead the first knows %v", a)
	}
	c := memory(victim)
	c.Absent = time.Millisecond
	result, cancel := first.capture(t, c)
	defer cancel()
	if r, err := result(); !errors.Is(err, ErrAbsent) || r.Agent.Hostname != "victim" {
		t.Errorf("result %+v, %v", r, err)
	}
}

// TestAnAgentSpeaksWhileItIsAnnounced: what it says is not read in the midst of
// being written.
func TestAnAgentSpeaksWhileItIsAnnounced(t *testing.T) {
	f := New(Config{Store: store.Memory(), Node: "first", Log: slog.New(slog.DiscardHandler)})
	a := attachedHere(victim)
	f.enter(a)
	var both sync.WaitGroup
	both.Go(func() {
		for range 100 {
			if err := f.hear(t.Context(), a, &wire.AgentMessage{Body: &wire.AgentMessage_Heartbeat{}}); err != nil {
				t.Error(err)
			}
		}
	})
	both.Go(func() {
		for range 100 {
			f.tellNews(t.Context())
			f.mu.Lock()
			a.told = 0
			f.mu.Unlock()
		}
	})
	both.Wait()
	if last, _, err := f.lastSeen(t.Context(), keyOf(a.id).key()); err != nil || last.GetNode() != "first" {
		t.Errorf("it was not announced: %v, %v", last, err)
	}
}

// TestAnAgentMayTakeAWhileToComeBack where its node died, or where it left not
// long ago.
func TestAnAgentMayTakeAWhileToComeBack(t *testing.T) {
	first, i := newHouse(t), memory(victim).Instance
	if d := first.Comeback(t.Context(), i, time.Hour); d != 0 {
		t.Errorf("one that nobody has seen has %v", d)
	}
	if _, err := first.attach(t, victim, hello()); err != nil {
		t.Fatal(err)
	}
	if d := first.Comeback(t.Context(), i, time.Hour); d != 0 {
		t.Errorf("one that is here has %v", d)
	}
	second := first.next(t)
	first.stop()
	first.state.Expire() // the first node is dead
	if d := second.Comeback(t.Context(), i, time.Hour); d < comeback-time.Minute || d > comeback {
		t.Errorf("one whose node died just now has %v", d)
	}
	second.began = time.Now().Add(-comeback)
	if d := second.Comeback(t.Context(), i, time.Hour); d != moving {
		t.Errorf("one whose node was lost while this one was here has %v", d)
	}
	c := memory(victim)
	c.Absent = time.Millisecond
	result, cancel := second.capture(t, c)
	defer cancel()
	if _, err := result(); !errors.Is(err, ErrAbsent) {
		t.Errorf("error %v", err)
	}
	if d := second.Comeback(t.Context(), i, time.Nanosecond); d != 0 {
		t.Errorf("one that was waited for has %v", d)
	}
	a, err := second.attach(t, victim, hello())
	if err != nil {
		t.Fatal(err)
	}
	a.CloseSend()
	var d time.Duration
	for late := time.Now().Add(5 * time.Second); d == 0 && time.Now().Before(late); time.Sleep(time.Millisecond) {
		d = second.Comeback(t.Context(), i, time.Hour)
	}
	if d < 59*time.Minute || d > time.Hour {
		t.Errorf("one that left just now has %v of an hour", d)
	}
	if d := second.Comeback(t.Context(), i, time.Nanosecond); d != 0 {
		t.Errorf("one that left longer ago than one may be away has %v", d)
	}
}

// TestAnAgentThatLeftIsRemembered, but not by the node that it has left for
// another.
func TestAnAgentThatLeftIsRemembered(t *testing.T) {
	h := newHouse(t)
	a, err := h.attach(t, victim, hello())
	if err != nil {
		t.Fatal(err)
	}
	a.CloseSend()
	for range 2000 {
		all, err := h.Agents(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(all) == 1 && !all[0].GetPresent() && all[0].GetLeft() != nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Error("it is not known that the agent has left")
}

// flaky is a store whose changes fail while it is down.
type flaky struct {
	store.Store
	mu   sync.Mutex
	down bool // owned by mu
}

func (s *flaky) set(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

func (s *flaky) Put(ctx context.Context, key string, value []byte, revision int64) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return 0, errors.New("no leader")
	}
	return s.Store.Put(ctx, key, value, revision)
}

func (s *flaky) Claim(ctx context.Context, key string, value []byte) (store.Claim, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return store.Claim{}, errors.New("no leader")
	}
	return s.Store.Claim(ctx, key, value)
}

// TestANodeThatDoesNotHearTheOthers has no agents: it sends them away, lets
// none in, and takes them again when it hears the others. A node alone keeps
// them, as they could go nowhere.
func TestANodeThatDoesNotHearTheOthers(t *testing.T) {
	for _, several := range []bool{true, false} {
		state := store.Memory()
		s := &flaky{Store: state}
		h := houseOf(t, Config{Node: "first", Store: s, Several: several}, state, identitytest.New(t))
		a, err := h.attach(t, victim, hello())
		if err != nil {
			t.Fatal(err)
		}
		s.set(true)
		state.Expire()
		if !several {
			time.Sleep(50 * time.Millisecond)
			if !h.has(victim) {
				t.Error("a node alone has sent its agent away")
			}
			continue
		}
		if _, err := a.Recv(); err == nil {
			t.Error("the agent is still here")
		}
		again, err := h.dial(t, victim).Attach(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		again.Send(&wire.AgentMessage{Body: &wire.AgentMessage_Hello{Hello: hello()}})
		if _, err := again.Recv(); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("an agent that comes is told %v", err)
		}
		s.set(false)
		for h.isCutOff() {
			time.Sleep(10 * time.Millisecond)
		}
		if _, err := h.attach(t, victim, hello()); err != nil {
			t.Error(err)
		}
	}
}

func (h *house) isCutOff() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.cutOff
}

// TestAResultIsTakenOnceItIsDurable, and not before.
func TestAResultIsTakenOnceItIsDurable(t *testing.T) {
	state := store.Memory()
	s := &flaky{Store: state}
	h := houseOf(t, Config{Node: "first", Store: s}, state, identitytest.New(t))
	a, result, cancel := h.serve(t, h)
	defer cancel()
	s.set(true)
	a.Send(whole())
	a.Send(&wire.AgentMessage{Body: &wire.AgentMessage_Result{Result: &wire.OrderResult{OrderId: "c9/memory"}}})
	a.expect(t, "that the result of an order that nobody gave is taken", func(m *wire.CollectorMessage) bool { return m.GetTaken().GetOrderId() == "c9/memory" })
	s.set(false)
	a.Send(whole())
	a.expect(t, "that its result is taken", isTaken)
	if r, err := result(); err != nil || r.Outcome != wire.Outcome_OUTCOME_WHOLE {
		t.Errorf("result %+v, %v", r, err)
	}
}

// TestAHostThatCannotBeCapturedIsToldOnce, and again when it comes to be so
// anew.
func TestAHostThatCannotBeCapturedIsToldOnce(t *testing.T) {
	var told []string
	fails := true
	alert := func(_ context.Context, hosts []*wire.AttachedAgent) error {
		if fails {
			fails = false
			return errors.New("no webhook answers")
		}
		for _, a := range hosts {
			told = append(told, a.GetId())
		}
		return nil
	}
	state := store.Memory()
	h := houseOf(t, Config{Node: "first", Store: state, Alert: alert}, state, identitytest.New(t))
	locked, fine := hello(), hello()
	locked.MemorySources = []*wire.SourceVerdict{{Source: "kcore", Reason: "lockdown"}, {Source: "lime", Reason: "no_module"}}
	fine.MemorySources = []*wire.SourceVerdict{{Source: "kcore", Usable: true}}
	for n, tt := range []struct {
		hello *wire.Hello
		times int // told in all
	}{{locked, 1}, {locked, 1}, {fine, 1}, {locked, 2}} {
		a, err := h.attach(t, victim, tt.hello)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			h.alert(t.Context())
		}
		if len(told) != tt.times {
			t.Errorf("after hello %d it was told %d times, want %d", n, len(told), tt.times)
		}
		a.CloseSend()
		for h.has(victim) {
			time.Sleep(time.Millisecond)
		}
	}
	if !slices.Contains(told, victim.String()) {
		t.Errorf("told of %q", told)
	}
}

// TestOrdersOfACaseThatIsOver are taken back, and no others.
func TestOrdersOfACaseThatIsOver(t *testing.T) {
	h := newHouse(t)
	h.stop()
	ordered(t, h.Fleet, memory(victim))
	other := memory(intruder)
	other.ID, other.Case = "c10/memory", "c10"
	ordered(t, h.Fleet, other)
	if err := h.EndAll(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	entries, err := h.state.List(t.Context(), capturePrefix)
	if err != nil || len(entries) != 1 || entries[0].Key != "capture/c10/memory" {
		t.Errorf("there is %v, %v", entries, err)
	}
}

// TestAnOrderThatCannotBeWrittenDown is told from a capture that was given up:
// the store may be back soon.
func TestAnOrderThatCannotBeWrittenDown(t *testing.T) {
	state := store.Memory()
	f := New(Config{Store: state, Node: "first", Log: slog.New(slog.DiscardHandler)})
	if err := state.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := f.Capture(ctx, Capture{ID: "c-1/live", Case: "c-1", Kind: evidence.Live}); !errors.Is(err, ErrNotOrdered) {
		t.Errorf("%v", err)
	}
}
