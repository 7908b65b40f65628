package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/quicklime-ir/quicklime/collector/store"
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

// control is the state in which a capture should be.
type control struct {
	Paused bool    `json:"paused,omitempty"`
	Limits *limits `json:"limits,omitempty"` // nil: as ordered
	Cancel string  `json:"cancel,omitempty"` // why an operator wants it to end
	Over   string  `json:"over,omitempty"`   // why it was given up
}

type limits struct {
	CPUPercent     uint32 `json:"cpuPercent"`
	BytesPerSecond uint64 `json:"bytesPerSecond"`
}

func (c control) encode() []byte {
	value, err := json.Marshal(c)
	if err != nil {
		panic(err) // it has no field that could fail
	}
	return value
}

// controlOf is the state that operators have asked for before, and whether
// they have.
func controlOf(c Capture) (state control, asked bool) {
	return state, state.ask(c.Asked)
}

// ask changes the state as an operator asks, and says whether that was
// anything.
func (c *control) ask(q *wire.ControlCaptureRequest) bool {
	if q == nil || q.Paused == nil && q.Limits == nil && q.GetCancel() == "" {
		return false
	}
	if q.Paused != nil {
		c.Paused = q.GetPaused()
	}
	if l := q.GetLimits(); l != nil {
		c.Limits = &limits{l.GetCpuPercent(), l.GetBytesPerSecond()}
	}
	if c.Cancel == "" { // the first reason counts
		c.Cancel = q.GetCancel()
	}
	return true
}

// Running names the orders that run for a case.
func (f *Fleet) Running(caseID string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for id, c := range f.captures {
		if c.caseID == caseID {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// Control does to the captures that run for a case what an operator asks,
// and names their orders. An agent that is away is told when it comes back.
func (f *Fleet) Control(ctx context.Context, q *wire.ControlCaptureRequest) ([]string, error) {
	var out []string
	for _, id := range f.Running(q.GetCaseId()) {
		err := f.change(ctx, id, func(c *control) { c.ask(q) })
		if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrLost) {
			continue // it has just ended
		}
		if err != nil {
			return out, fmt.Errorf("cannot control capture %s: %w", id, err)
		}
		out = append(out, id)
		f.log.Info("capture controlled", "case", q.GetCaseId(), "order", id, "paused", q.Paused, "cpu_percent", q.GetLimits().GetCpuPercent(),
			"bytes_per_second", q.GetLimits().GetBytesPerSecond(), "cancel", q.GetCancel())
	}
	return out, nil
}

// change changes the state in which a capture should be, or gives
// store.ErrNotFound where there is no such capture.
func (f *Fleet) change(ctx context.Context, id string, do func(c *control)) error {
	key := partKey(id, controlPart)
	return store.Repeat(tries, func() error {
		_, order, err := f.cfg.Store.Get(ctx, orderKey(id))
		if err != nil {
			return err
		}
		var state control
		value, revision, err := f.cfg.Store.Get(ctx, key)
		if err == nil {
			err = json.Unmarshal(value, &state)
		}
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		do(&state)
		_, err = f.cfg.Store.Put(store.While(ctx, orderKey(id), order), key, state.encode(), revision)
		return err
	})
}

// controlled takes the state in which a capture should be, and tells its agent
// if that hangs on this node; the caller holds mu.
func (f *Fleet) controlled(c *capture, value []byte) error {
	var state control
	if err := json.Unmarshal(value, &state); err != nil {
		return err
	}
	before := c.control
	c.control = state
	if before.Paused == state.Paused && sameLimits(before.Limits, state.Limits) {
		return nil
	}
	c.moved = time.Now()
	if a := f.agents[c.agent]; a != nil {
		a.send(c.controlMessage())
	}
	return nil
}

func sameLimits(a, b *limits) bool { return a == b || a != nil && b != nil && *a == *b }

func (c *capture) controlMessage() *wire.CollectorMessage {
	return &wire.CollectorMessage{Body: &wire.CollectorMessage_Control{
		Control: &wire.Control{OrderId: c.id, Paused: c.control.Paused, Limits: c.limits()}}}
}

// send orders the capture from an agent, and says how it is to go on where
// somebody has asked; the caller holds mu.
func (c *capture) send(a *attached) {
	a.send(c.message())
	if c.control.Paused || c.control.Limits != nil {
		a.send(c.controlMessage())
	}
}

// limits are those in force.
func (c *capture) limits() *wire.Limits {
	if l := c.control.Limits; l != nil {
		return &wire.Limits{CpuPercent: l.CPUPercent, BytesPerSecond: l.BytesPerSecond}
	}
	return c.order.GetMemory().GetLimits()
}

// patience is how long the capture may make no progress. What an operator has
// asked for is no stall; what its agent says of itself counts for nothing.
func (c *capture) patience(stall time.Duration) time.Duration {
	if rate := c.limits().GetBytesPerSecond(); rate > 0 {
		stall += min(time.Duration(float64(mostHeld)/float64(rate)*float64(time.Second)), maxLeft)
	}
	if c.limits().GetCpuPercent() > 0 {
		stall += mostRest
	}
	return stall
}

// now gives how far the capture is, for operators; the caller holds mu.
// Whether it is paused is told as it was asked for.
func (c *capture) now() *wire.Progress {
	p := &wire.Progress{}
	if c.progress != nil {
		p = proto.CloneOf(c.progress)
	}
	p.OrderId, p.Paused = c.id, c.control.Paused
	return p
}

// Progress gives how far the running captures of a case have come, by the
// names of their orders.
func (f *Fleet) Progress(caseID string) []*wire.Progress {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*wire.Progress
	for _, c := range f.captures {
		if c.caseID == caseID {
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
