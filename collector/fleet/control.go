package fleet

import (
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// Bounds of what an agent says of its pace.
const (
	maxRate = 1 << 40             // bytes a second
	maxLeft = 30 * 24 * time.Hour // an estimate beyond it says nothing
)

// What limits may make a capture look like: no part is stored while all that
// an agent may hold at a time is sent at its bandwidth, and nothing is read
// while it rests for its CPU share.
const (
	mostHeld = 256 << 20 // bytes
	mostRest = 30 * time.Second
)

// Running names the orders that run for a case.
func (f *Fleet) Running(caseID string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for id, c := range f.captures {
		if c.Case == caseID {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// Control does to the captures that run for a case what an operator asks,
// and names their orders. An agent that is away is told when it comes back.
func (f *Fleet) Control(q *wire.ControlCaptureRequest) []string {
	ids := f.Running(q.GetCaseId())
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, id := range ids {
		c := f.captures[id]
		if c == nil {
			continue // it has just ended
		}
		out = append(out, id)
		c.ask(q)
		if a := f.agents[c.agent]; a != nil && c.control != nil {
			a.send(&wire.CollectorMessage{Body: &wire.CollectorMessage_Control{Control: c.control}})
		}
		f.log.Info("capture controlled", "order", id, "instance", c.Instance.ID, "paused", c.paused(),
			"cpu_percent", c.limits().GetCpuPercent(), "bytes_per_second", c.limits().GetBytesPerSecond(), "cancel", q.GetCancel())
	}
	return out
}

// ask changes the state in which the capture should be; the caller holds mu,
// or is the only one to know the capture. The control that was sent before
// may still be read by its sender, so a new one is made.
func (c *capture) ask(q *wire.ControlCaptureRequest) {
	if q.GetCancel() != "" {
		select {
		case c.cancel <- q.GetCancel():
		default: // it is cancelled already
		}
	}
	if q == nil || q.Paused == nil && q.Limits == nil {
		return
	}
	next := &wire.Control{OrderId: c.ID, Paused: c.paused(), Limits: c.limits()}
	if q.Paused != nil {
		next.Paused = q.GetPaused()
	}
	if q.Limits != nil {
		next.Limits = proto.CloneOf(q.GetLimits())
	}
	c.control, c.moved = next, time.Now()
}

// send orders the capture from an agent, and says how it is to go on where
// somebody has asked; the caller holds mu.
func (c *capture) send(a *attached) {
	a.send(&wire.CollectorMessage{Body: &wire.CollectorMessage_Order{Order: c.order}})
	if c.control != nil {
		a.send(&wire.CollectorMessage{Body: &wire.CollectorMessage_Control{Control: c.control}})
	}
}

// paused reports whether an operator wants the capture to stand still.
func (c *capture) paused() bool { return c.control.GetPaused() }

// limits are those in force.
func (c *capture) limits() *wire.Limits {
	if c.control != nil {
		return c.control.GetLimits()
	}
	return c.order.GetMemory().GetLimits()
}

// patience is how long the capture may make no progress. What an operator has
// asked for is no stall; what its agent says of itself counts for nothing.
func (c *capture) patience() time.Duration {
	patience := c.Stall
	if rate := c.limits().GetBytesPerSecond(); rate > 0 {
		patience += min(time.Duration(float64(mostHeld)/float64(rate)*float64(time.Second)), maxLeft)
	}
	if c.limits().GetCpuPercent() > 0 {
		patience += mostRest
	}
	return patience
}

// now gives how far the capture is, for operators; the caller holds mu.
// Whether it is paused is told as it was asked for.
func (c *capture) now() *wire.Progress {
	p := &wire.Progress{}
	if c.progress != nil {
		p = proto.CloneOf(c.progress)
	}
	p.OrderId, p.Paused = c.ID, c.paused()
	return p
}

// Progress gives how far the running captures of a case have come, by the
// names of their orders.
func (f *Fleet) Progress(caseID string) []*wire.Progress {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*wire.Progress
	for _, c := range f.captures {
		if c.Case == caseID {
			out = append(out, c.now())
		}
	}
	slices.SortFunc(out, func(a, b *wire.Progress) int { return strings.Compare(a.GetOrderId(), b.GetOrderId()) })
	return out
}

// bounded gives what an agent says of its progress, within bounds.
func bounded(p *wire.Progress) *wire.Progress {
	out := &wire.Progress{
		BytesRead: p.GetBytesRead(), BytesTotal: p.GetBytesTotal(), BytesStored: p.GetBytesStored(), PartsStored: p.GetPartsStored(),
		Doing: word(p.GetDoing()), Retries: p.GetRetries(),
		ReadPerSecond: min(p.GetReadPerSecond(), maxRate), StoredPerSecond: min(p.GetStoredPerSecond(), maxRate),
	}
	if _, ok := wire.Uplink_name[int32(p.GetUplink())]; ok {
		out.Uplink = p.GetUplink()
	}
	if left := p.GetLeft(); left.IsValid() && left.AsDuration() > 0 && left.AsDuration() <= maxLeft {
		out.Left = durationpb.New(left.AsDuration())
	}
	return out
}
