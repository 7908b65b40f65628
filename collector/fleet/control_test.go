package fleet

import (
	"errors"
	"log/slog"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/quicklime-ir/quicklime/collector/store"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// expect receives a message and holds it against what the test wants.
func (a *agent) expect(t *testing.T, what string, is func(*wire.CollectorMessage) bool) {
	t.Helper()
	if m, err := a.Recv(); err != nil || !is(m) {
		t.Fatalf("message %v, error %v; want %s", m, err, what)
	}
}

func isOrder(m *wire.CollectorMessage) bool { return m.GetOrder().GetId() == "c1/memory" }

func isControl(paused bool, l *wire.Limits) func(*wire.CollectorMessage) bool {
	return func(m *wire.CollectorMessage) bool {
		return proto.Equal(m.GetControl(), &wire.Control{OrderId: "c1/memory", Paused: paused, Limits: l})
	}
}

// ask is Control, which does not fail.
func (h *house) ask(t *testing.T, q *wire.ControlCaptureRequest) []string {
	t.Helper()
	ids, err := h.Control(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	return ids
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
		return isOrder(m) && m.GetOrder().GetMemory().GetLimits().GetCpuPercent() == 50
	})
	if got := h.ask(t, &wire.ControlCaptureRequest{CaseId: "c2", Paused: proto.Bool(true)}); got != nil {
		t.Errorf("another case's control applies to %v", got)
	}
	if got := h.ask(t, &wire.ControlCaptureRequest{CaseId: "c1", Paused: proto.Bool(true)}); !slices.Equal(got, []string{"c1/memory"}) {
		t.Errorf("it applies to %v", got)
	}
	first.expect(t, "a pause that leaves the limits", isControl(true, &wire.Limits{CpuPercent: 50}))
	h.ask(t, &wire.ControlCaptureRequest{CaseId: "c1", Limits: &wire.Limits{BytesPerSecond: 1 << 20}})
	first.expect(t, "limits that leave the pause", isControl(true, &wire.Limits{BytesPerSecond: 1 << 20}))
	if p := h.Progress("c1"); len(p) != 1 || !p[0].GetPaused() || p[0].GetOrderId() != "c1/memory" {
		t.Errorf("progress %v, want one that is paused, though its agent has said nothing", p)
	}
	second, err := h.attach(t, victim, hello())
	if err != nil {
		t.Fatal(err)
	}
	second.expect(t, "the order", isOrder)
	second.expect(t, "the state", isControl(true, &wire.Limits{BytesPerSecond: 1 << 20}))
	h.ask(t, &wire.ControlCaptureRequest{CaseId: "c1", Paused: proto.Bool(false), Limits: &wire.Limits{}})
	second.expect(t, "that it goes on without limits", isControl(false, &wire.Limits{}))
}

func TestAnOperatorEndsACapture(t *testing.T) {
	h := newHouse(t)
	a, result, cancel := h.serve(t, h)
	defer cancel()
	for range 2 { // the second finds it ended, or ending
		h.ask(t, &wire.ControlCaptureRequest{CaseId: "c1", Cancel: "the host is needed"})
	}
	if _, err := result(); !errors.Is(err, ErrEnded) || !strings.Contains(err.Error(), "the host is needed") {
		t.Errorf("error %v", err)
	}
	a.expect(t, "that the agent is told to stop, and why", func(m *wire.CollectorMessage) bool {
		return m.GetCancel().GetOrderId() == "c1/memory" && strings.Contains(m.GetCancel().GetReason(), "the host is needed")
	})
	if got := h.ask(t, &wire.ControlCaptureRequest{CaseId: "c1", Paused: proto.Bool(true)}); got != nil {
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
		a.expect(t, "the order", isOrder)
		a.expect(t, "the pause", isControl(true, &wire.Limits{CpuPercent: 50}))
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
			f := New(Config{Store: store.Memory(), Ledger: &books{}, Log: slog.New(slog.DiscardHandler)})
			c := memory(victim)
			run := ordered(t, f, c)
			if tt.says != nil {
				tt.says.OrderId = c.ID
				f.progress(attachedHere(victim), tt.says)
			}
			for _, q := range tt.asked {
				run.control.ask(q)
			}
			began := time.Now()
			run.moved = began
			w := watcher{Capture: c, seen: began}
			if err := w.check(run, !tt.absent, began.Add(tt.still)); !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
				t.Errorf("after %v: %v, want %v", tt.still, err, tt.want)
			}
		})
	}
}

// TestAnAgentThatIsLostIsWaitedFor longer than one that was not there.
func TestAnAgentThatIsLostIsWaitedFor(t *testing.T) {
	began := time.Now()
	c := memory(victim)
	c.Absent, c.Away = 5*time.Second, time.Minute
	w := watcher{Capture: c, seen: began}
	for _, step := range []struct {
		after   time.Duration
		present bool
		want    error
	}{{4 * time.Second, false, nil}, {4 * time.Second, true, nil}, {63 * time.Second, false, nil}, {64 * time.Second, false, ErrAbsent}} {
		if err := w.check(nil, step.present, began.Add(step.after)); !errors.Is(err, step.want) {
			t.Errorf("after %v: %v, want %v", step.after, err, step.want)
		}
	}
	w = watcher{Capture: c, seen: began}
	if err := w.check(nil, false, began.Add(5*time.Second)); !errors.Is(err, ErrAbsent) {
		t.Errorf("one that was not there: %v", err)
	}
}

// TestThePauseIsNotChargedAfterwards: the stall's clock begins anew when the
// capture goes on.
func TestThePauseIsNotChargedAfterwards(t *testing.T) {
	h := newHouse(t)
	c := memory(victim)
	result, cancel := h.capture(t, c)
	defer func() { cancel(); result() }()
	run := h.awaitCapture(t, c.ID, func(*capture) bool { return true })
	h.ask(t, &wire.ControlCaptureRequest{CaseId: "c1", Paused: proto.Bool(true)})
	h.awaitCapture(t, c.ID, func(c *capture) bool { return c.control.Paused })
	h.mu.Lock()
	run.moved = time.Now().Add(-time.Hour)
	h.mu.Unlock()
	h.ask(t, &wire.ControlCaptureRequest{CaseId: "c1", Paused: proto.Bool(false)})
	h.awaitCapture(t, c.ID, func(c *capture) bool { return !c.control.Paused })
	h.mu.Lock()
	defer h.mu.Unlock()
	w := watcher{Capture: c}
	if err := w.check(run, true, time.Now().Add(20*time.Second)); err != nil {
		t.Errorf("20 s after it went on: %v", err)
	}
	if err := w.check(run, true, time.Now().Add(31*time.Second)); !errors.Is(err, ErrStalled) {
		t.Errorf("31 s after it went on: %v", err)
	}
}

// awaitCapture waits until this node has heard something of a capture.
func (h *house) awaitCapture(t *testing.T, id string, is func(*capture) bool) *capture {
	t.Helper()
	for range 2000 {
		h.mu.Lock()
		c := h.captures[id]
		ok := c != nil && is(c)
		h.mu.Unlock()
		if ok {
			return c
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("this node has not heard of it")
	return nil
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
