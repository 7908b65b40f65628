package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quicklime-ir/quicklime/collector/store"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/identity"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// Bounds of what an agent may say.
const (
	maxWord    = 256  // bytes of a name
	maxText    = 2048 // bytes of an error or a kernel banner
	maxSources = 16
	outbox     = 16 // messages that may wait for a slow agent; a slower one is cut off
)

// attached is one agent's stream. Fields below are owned by Fleet.mu.
type attached struct {
	id     identity.AgentID
	hello  *wire.Hello
	ahead  time.Duration // its clock, against ours
	since  time.Time
	seen   time.Time
	out    chan *wire.CollectorMessage
	cancel context.CancelCauseFunc
	ended  time.Time // when it left

	told     int64                     // revision of what the store knows of it; 0: nothing yet
	unsure   bool                      // the store may know that it is here, its answer was lost
	alert    bool                      // its host cannot be captured, and nobody was told
	progress map[string]*wire.Progress // of its orders, that the store does not know yet
}

var (
	errReplaced = errors.New("the same agent attached anew")
	errSlow     = errors.New("the agent takes no messages")
)

// send queues a message; an agent whose queue is full is cut off and comes
// back.
func (a *attached) send(m *wire.CollectorMessage) {
	select {
	case a.out <- m:
	default:
		a.cancel(errSlow)
	}
}

// Attach implements wire.AgentServiceServer.
func (f *Fleet) Attach(stream wire.AgentService_AttachServer) error {
	id, err := f.peer(stream.Context())
	if err != nil {
		return err
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	hello := first.GetHello()
	if err := checkHello(hello); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	f.mu.Lock()
	cutOff := f.cutOff
	f.mu.Unlock()
	if cutOff {
		return statusOf(errAlone)
	}
	now := time.Now()
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	a := &attached{id: id, hello: hello, ahead: hello.GetWallClock().AsTime().Sub(now), since: now, seen: now,
		out: make(chan *wire.CollectorMessage, outbox), cancel: cancel,
		progress: map[string]*wire.Progress{}}
	f.enter(a)
	defer f.leave(a)
	received := make(chan error, 1)
	go func() { received <- f.receive(stream, a) }() // ends with the stream, when Attach returns
	for {
		select {
		case m := <-a.out:
			if err := stream.Send(m); err != nil {
				return err
			}
		case err := <-received:
			return err
		case <-ctx.Done():
			return statusOf(context.Cause(ctx))
		}
	}
}

// statusOf is what an agent hears when its stream is ended. One that is sent
// away from a node that is cut off asks again sooner than one that finds nobody.
func statusOf(why error) error {
	if errors.Is(why, errAlone) {
		return status.Error(codes.ResourceExhausted, why.Error())
	}
	return status.Error(codes.Aborted, why.Error())
}

// enter makes an agent the one of its instance on this node, and sends it the
// orders that run there.
func (f *Fleet) enter(a *attached) {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := keyOf(a.id)
	if old := f.agents[key]; old != nil {
		old.cancel(errReplaced)
	}
	f.agents[key] = a
	delete(f.left, key)
	nudge(f.untold)
	f.log.Info("agent attached", "agent", a.id.String(), "version", a.hello.GetAgentVersion(), "kernel", a.hello.GetKernelRelease(), "clock_ahead", a.ahead)
	for _, c := range f.captures {
		if c.agent == key {
			c.send(a)
		}
	}
}

func (f *Fleet) leave(a *attached) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.agents[keyOf(a.id)] != a {
		return
	}
	delete(f.agents, keyOf(a.id))
	a.ended = time.Now()
	if a.told != 0 || a.unsure { // else nobody knows that it was here
		f.left[keyOf(a.id)] = a
		nudge(f.untold)
	}
	f.log.Warn("agent left", "agent", a.id.String())
}

// receive takes an agent's messages until the stream ends.
func (f *Fleet) receive(stream wire.AgentService_AttachServer, a *attached) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := f.hear(stream.Context(), a, m); err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
	}
}

// hear takes one message.
func (f *Fleet) hear(ctx context.Context, a *attached, m *wire.AgentMessage) error {
	f.mu.Lock()
	a.seen = time.Now()
	f.mu.Unlock()
	switch body := m.GetBody().(type) {
	case *wire.AgentMessage_Heartbeat:
	case *wire.AgentMessage_Progress:
		f.progress(a, body.Progress)
	case *wire.AgentMessage_Result:
		return f.result(ctx, a, body.Result)
	default:
		return errors.New("message without a body, or a second hello")
	}
	return nil
}

// progress follows an order.
func (f *Fleet) progress(a *attached, p *wire.Progress) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.captures[p.GetOrderId()]
	if c == nil || c.agent != keyOf(a.id) {
		return
	}
	now := bounded(p)
	c.advance(now)
	a.progress[c.id] = now
}

// progressed gives what the store does not know yet of orders' progress.
func (f *Fleet) progressed() map[string]*wire.Progress {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]*wire.Progress{}
	for _, a := range f.agents {
		for id, p := range a.progress {
			out[id] = p
			delete(a.progress, id)
		}
	}
	return out
}

// tellProgress writes down how far a capture has come. Where that fails, the
// next is soon there.
func (f *Fleet) tellProgress(ctx context.Context, id string, p *wire.Progress) {
	f.mu.Lock()
	c := f.captures[id]
	revision := int64(0)
	if c != nil {
		revision = c.progressAt
	}
	f.mu.Unlock()
	if c == nil {
		return
	}
	value, err := proto.Marshal(p)
	if err == nil {
		_, err = f.cfg.Store.Put(c.while(ctx), partKey(id, progressPart), value, revision)
	}
	if err != nil && !errors.Is(err, store.ErrLost) && !errors.Is(err, store.ErrConflict) && ctx.Err() == nil {
		f.log.Warn("cannot tell the other nodes how far a capture is", "case", c.caseID, "instance", c.instance.ID, "order", id, "error", err)
	}
}

// result ends an order. It is durable before the agent is told that it was
// taken; until then the agent says it again. A result for an order that does
// not run is taken too, so that the agent forgets it.
func (f *Fleet) result(ctx context.Context, a *attached, r *wire.OrderResult) error {
	if len(r.GetRefusedSources()) > maxSources {
		return errors.New("result with too many refused sources")
	}
	c, err := f.lookup(ctx, r.GetOrderId())
	switch {
	case errors.Is(err, store.ErrNotFound):
	case err != nil:
		f.log.Error("cannot take a result, it will come again", "agent", a.id.String(), "error", err)
		return nil
	case c.agent == keyOf(a.id):
		if err := f.keepResult(ctx, a, c, r); err != nil {
			f.log.Error("cannot write down a result, it will come again", "case", c.caseID, "instance", c.instance.ID, "order", c.id, "error", err)
			return nil
		}
	}
	a.send(&wire.CollectorMessage{Body: &wire.CollectorMessage_Taken{Taken: &wire.ResultTaken{OrderId: r.GetOrderId()}}})
	return nil
}

// keepResult writes a result down. The first one counts, and one whose order
// has ended meanwhile counts for nothing.
func (f *Fleet) keepResult(ctx context.Context, a *attached, c *capture, r *wire.OrderResult) error {
	for _, v := range r.GetRefusedSources() {
		bound(v)
	}
	value, err := json.Marshal(Result{Outcome: r.GetOutcome(), Error: text(r.GetError()), Source: word(r.GetSource()),
		Refused: r.GetRefusedSources(), Agent: describe(a.hello, a.ahead)})
	if err != nil {
		return err
	}
	_, err = f.cfg.Store.Put(c.while(ctx), partKey(c.id, resultPart), value, 0)
	if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrLost) {
		return nil
	}
	return err
}

// describe gives an agent in the words of evidence.
func describe(h *wire.Hello, ahead time.Duration) evidence.Agent {
	d := evidence.Agent{
		Software: evidence.Software{Name: "quicklime-agent", Version: h.GetAgentVersion()},
		Hostname: h.GetHostname(), KernelRelease: h.GetKernelRelease(),
		KernelVersion: h.GetKernelVersion(), BootID: h.GetBootId(), ClockAhead: ahead,
	}
	copy(d.SHA256[:], h.GetBinarySha256())
	return d
}

// wire gives the agent for operators; the caller holds mu.
func (a *attached) wire() *wire.AttachedAgent {
	return &wire.AttachedAgent{Id: a.id.String(), Hello: proto.CloneOf(a.hello),
		Attached: timestamppb.New(a.since), LastSeen: timestamppb.New(a.seen)}
}

// checkHello bounds what an agent says of itself.
func checkHello(h *wire.Hello) error {
	if h == nil {
		return errors.New("the first message must be a hello")
	}
	if len(h.GetBinarySha256()) != len(evidence.Digest{}) || len(h.GetMemorySources()) > maxSources {
		return errors.New("hello without the binary's SHA-256, or with too many memory sources")
	}
	h.AgentVersion, h.Hostname = word(h.GetAgentVersion()), word(h.GetHostname())
	h.KernelRelease, h.KernelVersion, h.BootId = word(h.GetKernelRelease()), text(h.GetKernelVersion()), word(h.GetBootId())
	for _, v := range h.GetMemorySources() {
		bound(v)
	}
	return nil
}

func bound(v *wire.SourceVerdict) {
	v.Source, v.Reason, v.Detail = word(v.GetSource()), word(v.GetReason()), text(v.GetDetail())
}

func word(s string) string { return cut(s, maxWord) }

func text(s string) string { return cut(s, maxText) }

// cut bounds a text in bytes; half a character at its end goes too, as the
// wire takes only UTF-8.
func cut(s string, most int) string { return strings.ToValidUTF8(s[:min(len(s), most)], "") }
