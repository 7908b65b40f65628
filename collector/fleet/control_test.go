package fleet

import (
	"errors"
	"log/slog"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// expect receives a message and holds it against what the test wants.
func (a *agent) expect(t *testing.T, what string, is func(*wire.CollectorMessage) bool) {
	t.Helper()
	if m, err := a.Recv(); err != nil || !is(m) {
		t.Fatalf("message %v, error %v; want %s", m, err, what)
	}
}

func order(m *wire.CollectorMessage) bool { return m.GetOrder().GetId() == "c1/memory" }

func control(paused bool, l *wire.Limits) func(*wire.CollectorMessage) bool {
	return func(m *wire.CollectorMessage) bool {
		return proto.Equal(m.GetControl(), &wire.Control{OrderId: "c1/memory", Paused: paused, Limits: l})
	}
}

// TestACaptureIsControlledWhileItRuns: the agent is told the whole state at
// each change, and again after the order when it comes back.
func TestACaptureIsControlledWhileItRuns(t *testing.T) {
	h := newHouse(t)
	first, err := h.attach(t, victim, hello())
	if err != nil {
		t.Fatal(err)
	}
	c := memory(victim)
	c.Limits = &wire.Limits{CpuPercent: 50}
	result, cancel := h.capture(t, c)
	defer func() { cancel(); result() }()
	first.expect(t, "the order with its limits", func(m *wire.CollectorMessage) bool {
		return order(m) && m.GetOrder().GetMemory().GetLimits().GetCpuPercent() == 50
	})
	if got := h.Control(&wire.ControlCaptureRequest{CaseId: "c2", Paused: proto.Bool(true)}); got != nil {
		t.Errorf("another case's control applies to %v", got)
	}
	if got := h.Control(&wire.ControlCaptureRequest{CaseId: "c1", Paused: proto.Bool(true)}); !slices.Equal(got, []string{"c1/memory"}) {
		t.Errorf("it applies to %v", got)
	}
	first.expect(t, "a pause that leaves the limits", control(true, &wire.Limits{CpuPercent: 50}))
	h.Control(&wire.ControlCaptureRequest{CaseId: "c1", Limits: &wire.Limits{BytesPerSecond: 1 << 20}})
	first.expect(t, "limits that leave the pause", control(true, &wire.Limits{BytesPerSecond: 1 << 20}))
	if p := h.Progress("c1"); len(p) != 1 || !p[0].GetPaused() || p[0].GetOrderId() != "c1/memory" {
		t.Errorf("progress %v, want one that is paused, though its agent has said nothing", p)
	}
	second, err := h.attach(t, victim, hello())
	if err != nil {
		t.Fatal(err)
	}
	second.expect(t, "the order", order)
	second.expect(t, "the state", control(true, &wire.Limits{BytesPerSecond: 1 << 20}))
	h.Control(&wire.ControlCaptureRequest{CaseId: "c1", Paused: proto.Bool(false), Limits: &wire.Limits{}})
	second.expect(t, "that it goes on without limits", control(false, &wire.Limits{}))
}

func TestAnOperatorEndsACapture(t *testing.T) {
	h := newHouse(t)
	a, err := h.attach(t, victim, hello())
	if err != nil {
		t.Fatal(err)
	}
	result, cancel := h.capture(t, memory(victim))
	defer cancel()
	a.expect(t, "the order", order)
	for range 2 { // the second finds it ended, or ending
		h.Control(&wire.ControlCaptureRequest{CaseId: "c1", Cancel: "the host is needed"})
	}
	if _, err := result(); !errors.Is(err, ErrEnded) || !strings.Contains(err.Error(), "the host is needed") {
		t.Errorf("error %v", err)
	}
	a.expect(t, "that the agent is told to stop, and why", func(m *wire.CollectorMessage) bool {
		return m.GetCancel().GetOrderId() == "c1/memory" && strings.Contains(m.GetCancel().GetReason(), "the host is needed")
	})
	if got := h.Control(&wire.ControlCaptureRequest{CaseId: "c1", Paused: proto.Bool(true)}); got != nil {
		t.Errorf("a capture that has ended is controlled: %v", got)
	}
}

// TestWhatWasAskedOutlivesTheCollector: a capture that is taken up again is
// as its operator left it.
func TestWhatWasAskedOutlivesTheCollector(t *testing.T) {
	t.Run("paused", func(t *testing.T) {
		h := newHouse(t)
		c := memory(victim)
		c.Limits, c.Asked = &wire.Limits{CpuPercent: 50}, &wire.ControlCaptureRequest{Paused: proto.Bool(true)}
		result, cancel := h.capture(t, c)
		defer func() { cancel(); result() }()
		a, err := h.attach(t, victim, hello())
		if err != nil {
			t.Fatal(err)
		}
		a.expect(t, "the order", order)
		a.expect(t, "the pause", control(true, &wire.Limits{CpuPercent: 50}))
	})
	t.Run("ended", func(t *testing.T) {
		h := newHouse(t)
		c := memory(victim)
		c.Asked = &wire.ControlCaptureRequest{Cancel: "the host is needed"}
		result, cancel := h.capture(t, c)
		defer cancel()
		if _, err := result(); !errors.Is(err, ErrEnded) {
			t.Errorf("error %v", err)
		}
	})
}

// TestWhatIsNoStall: the limit is 30 s, the agent has made no progress for
// as long as it says, and only what the collector has asked for excuses it.
func TestWhatIsNoStall(t *testing.T) {
	ask := func(paused bool, l *wire.Limits) *wire.ControlCaptureRequest {
		return &wire.ControlCaptureRequest{Paused: proto.Bool(paused), Limits: l}
	}
	tests := []struct {
		name   string
		asked  []*wire.ControlCaptureRequest
		says   *wire.Progress
		still  time.Duration
		absent bool
		want   error
	}{
		{"it moves", nil, nil, 29 * time.Second, false, nil},
		{"it stands still", nil, nil, 30 * time.Second, false, ErrStalled},
		{"it is paused", []*wire.ControlCaptureRequest{ask(true, nil)}, nil, time.Hour, false, nil},
		{"it is paused, and its agent gone", []*wire.ControlCaptureRequest{ask(true, nil)}, nil, time.Hour, true, ErrAbsent},
		{"it says that it is paused", nil, &wire.Progress{Paused: true}, 30 * time.Second, false, ErrStalled},
		{"it was paused", []*wire.ControlCaptureRequest{ask(true, nil), ask(false, nil)}, nil, 30 * time.Second, false, ErrStalled},
		{"its bandwidth is so low that a part takes minutes", []*wire.ControlCaptureRequest{ask(false, &wire.Limits{BytesPerSecond: 1 << 20})}, nil, 285 * time.Second, false, nil},
		{"but it takes longer than that", []*wire.ControlCaptureRequest{ask(false, &wire.Limits{BytesPerSecond: 1 << 20})}, nil, 286 * time.Second, false, ErrStalled},
		{"its bandwidth was low", []*wire.ControlCaptureRequest{ask(false, &wire.Limits{BytesPerSecond: 1 << 20}), ask(false, &wire.Limits{})}, nil, 30 * time.Second, false, ErrStalled},
		{"it rests for its CPU share", []*wire.ControlCaptureRequest{ask(false, &wire.Limits{CpuPercent: 1})}, nil, 59 * time.Second, false, nil},
		{"but it rests for too long", []*wire.ControlCaptureRequest{ask(false, &wire.Limits{CpuPercent: 1})}, nil, time.Minute, false, ErrStalled},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := New(&books{}, "test", slog.New(slog.DiscardHandler))
			c := memory(victim)
			run := &capture{Capture: c, agent: keyOf(victim), order: orderOf(c, time.Hour), seen: time.Now()}
			f.captures[c.ID] = run
			a := &attached{id: victim, hello: hello(), out: make(chan *wire.CollectorMessage, outbox), cancel: func(error) {}}
			if !tt.absent {
				f.agents[run.agent] = a
			}
			if tt.says != nil {
				tt.says.OrderId = c.ID
				f.progress(a, tt.says)
			}
			for _, q := range tt.asked {
				run.ask(q)
			}
			began := time.Now()
			run.moved = began
			if err := f.check(run, began.Add(tt.still)); !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
				t.Errorf("after %v: %v, want %v", tt.still, err, tt.want)
			}
		})
	}
}

// TestThePauseIsNotChargedAfterwards: the stall's clock begins anew when the
// capture goes on.
func TestThePauseIsNotChargedAfterwards(t *testing.T) {
	f := New(&books{}, "test", slog.New(slog.DiscardHandler))
	c := memory(victim)
	run := &capture{Capture: c, agent: keyOf(victim), order: orderOf(c, time.Hour), moved: time.Now().Add(-time.Hour)}
	f.captures[c.ID], f.agents[run.agent] = run, &attached{id: victim, out: make(chan *wire.CollectorMessage, outbox), cancel: func(error) {}}
	f.Control(&wire.ControlCaptureRequest{CaseId: "c1", Paused: proto.Bool(true)})
	began := time.Now()
	f.Control(&wire.ControlCaptureRequest{CaseId: "c1", Paused: proto.Bool(false)})
	if err := f.check(run, began.Add(29*time.Second)); err != nil {
		t.Errorf("29 s after it went on: %v", err)
	}
	if err := f.check(run, time.Now().Add(31*time.Second)); !errors.Is(err, ErrStalled) {
		t.Errorf("31 s after it went on: %v", err)
	}
}

// FuzzBounded: whatever an agent says of its progress, an operator sees
// numbers that make sense and words that end.
func FuzzBounded(f *testing.F) {
	f.Add("memory", uint64(1), uint64(2), int64(60), int32(0), int32(2))
	f.Add(strings.Repeat("x", 10*maxWord), uint64(math.MaxUint64), uint64(math.MaxUint64), int64(math.MaxInt64), int32(-1), int32(99))
	f.Fuzz(func(t *testing.T, doing string, read, stored uint64, seconds int64, nanos, uplink int32) {
		p := bounded(&wire.Progress{Doing: doing, ReadPerSecond: read, StoredPerSecond: stored, Uplink: wire.Uplink(uplink), Paused: true,
			Left: &durationpb.Duration{Seconds: seconds, Nanos: nanos}})
		if len(p.GetDoing()) > maxWord || p.GetReadPerSecond() > maxRate || p.GetStoredPerSecond() > maxRate || p.GetPaused() {
			t.Errorf("kept %v", p)
		}
		if p.Left != nil && (!p.GetLeft().IsValid() || p.GetLeft().AsDuration() <= 0 || p.GetLeft().AsDuration() > maxLeft) {
			t.Errorf("kept an estimate of %v", p.GetLeft())
		}
		if _, ok := wire.Uplink_name[int32(p.GetUplink())]; !ok {
			t.Errorf("kept uplink %v", p.GetUplink())
		}
	})
}

// TestAnOrderThatHasEndedIsNotWaitedFor: a collector that has just started
// asks agents for patience, but not for what it has ended itself.
func TestAnOrderThatHasEndedIsNotWaitedFor(t *testing.T) {
	h := newHouse(t)
	h.mu.Lock()
	h.started = time.Now()
	h.mu.Unlock()
	api := h.dial(t, victim)
	closing := &wire.CloseItemRequest{OrderId: "c1/memory", ItemId: "memory.memory", Parts: 1}
	if _, err := api.CloseItem(t.Context(), closing); status.Code(err) != codes.Unavailable {
		t.Errorf("before the order: %v", err)
	}
	result, cancel := h.capture(t, memory(victim))
	for len(h.running()) == 0 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	result()
	if _, err := api.CloseItem(t.Context(), closing); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("after the order: %v", err)
	}
}
