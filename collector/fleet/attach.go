package fleet

import (
	"context"
	"errors"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

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
	now := time.Now()
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	a := &attached{id: id, hello: hello, ahead: hello.GetWallClock().AsTime().Sub(now), since: now, seen: now,
		out: make(chan *wire.CollectorMessage, outbox), cancel: cancel}
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
			return status.Error(codes.Aborted, context.Cause(ctx).Error())
		}
	}
}

// enter makes an agent the one of its instance, and sends it the orders that
// run there.
func (f *Fleet) enter(a *attached) {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := keyOf(a.id)
	if old := f.agents[key]; old != nil {
		old.cancel(errReplaced)
	}
	f.agents[key] = a
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
	if f.agents[keyOf(a.id)] == a {
		delete(f.agents, keyOf(a.id))
		f.log.Warn("agent left", "agent", a.id.String())
	}
}

// receive takes an agent's messages until the stream ends.
func (f *Fleet) receive(stream wire.AgentService_AttachServer, a *attached) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := f.hear(a, m); err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
	}
}

// hear takes one message.
func (f *Fleet) hear(a *attached, m *wire.AgentMessage) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	a.seen = time.Now()
	switch body := m.GetBody().(type) {
	case *wire.AgentMessage_Heartbeat:
	case *wire.AgentMessage_Progress:
		f.progress(a, body.Progress)
	case *wire.AgentMessage_Result:
		return f.result(a, body.Result)
	default:
		return errors.New("message without a body, or a second hello")
	}
	return nil
}

// progress follows an order; the caller holds mu.
func (f *Fleet) progress(a *attached, p *wire.Progress) {
	c := f.captures[p.GetOrderId()]
	if c == nil || c.agent != keyOf(a.id) {
		return
	}
	old := c.progress
	if old == nil || p.GetBytesRead() > old.GetBytesRead() || p.GetBytesStored() > old.GetBytesStored() || p.GetPartsStored() > old.GetPartsStored() {
		c.moved = time.Now()
	}
	c.progress = bounded(p)
}

// result ends an order; the caller holds mu. A result for an order that does
// not run is taken too, so that the agent forgets it.
func (f *Fleet) result(a *attached, r *wire.OrderResult) error {
	if len(r.GetRefusedSources()) > maxSources {
		return errors.New("result with too many refused sources")
	}
	if c := f.captures[r.GetOrderId()]; c != nil && c.agent == keyOf(a.id) {
		for _, v := range r.GetRefusedSources() {
			bound(v)
		}
		select {
		case c.result <- Result{Outcome: r.GetOutcome(), Error: text(r.GetError()), Source: word(r.GetSource()), Refused: r.GetRefusedSources()}:
		default:
		}
	}
	a.send(&wire.CollectorMessage{Body: &wire.CollectorMessage_Taken{Taken: &wire.ResultTaken{OrderId: r.GetOrderId()}}})
	return nil
}

// describe gives the agent in the words of evidence; the caller holds mu.
func (a *attached) describe() evidence.Agent {
	d := evidence.Agent{
		Software: evidence.Software{Name: "quicklime-agent", Version: a.hello.GetAgentVersion()},
		Hostname: a.hello.GetHostname(), KernelRelease: a.hello.GetKernelRelease(),
		KernelVersion: a.hello.GetKernelVersion(), BootID: a.hello.GetBootId(), ClockAhead: a.ahead,
	}
	copy(d.SHA256[:], a.hello.GetBinarySha256())
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
