package steps

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/fleet"
	"github.com/quicklime-ir/quicklime/collector/playbook"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// leastWait is how long an agent may still take to attach when the case's
// patience has run out: long enough for one that is just reconnecting.
const leastWait = 5 * time.Second

// cleanup bounds the bookkeeping after a capture whose time is over.
const cleanup = time.Minute

// An order can hold what a case may ask for.
const _ = uint(wire.MaxProcessMemory - casefile.MaxProcessMemory)

// capture orders evidence of a kind from the agent and waits for it. It
// believes the ledger, not the agent, about what was stored; what came
// before a failure is kept as partial.
func (s *Story) capture(kind evidence.Kind) func(context.Context, *playbook.Run) error {
	return func(ctx context.Context, run *playbook.Run) error {
		c, err := run.Case(ctx)
		if err != nil {
			return playbook.Again{Err: err}
		}
		id := c.ID + "/" + string(kind)
		sum, _ := c.Asked(id)
		result, err := s.Fleet.Capture(ctx, fleet.Capture{
			ID: id, Case: c.ID, Instance: c.Instance, Kind: kind, Definitions: s.Definitions, ProcessMemory: sum.ProcessMemory,
			MemorySource: s.MemorySource, Compression: s.Compression, Limits: s.MemoryLimits, Asked: asked(c, id),
			Absent: max(leastWait, s.Limits.Agent-time.Since(c.Opened), s.Fleet.Comeback(ctx, c.Instance, s.Limits.Agent)),
			Away:   s.Limits.Agent, Stall: s.Limits.Stall,
		})
		if stopping(ctx) {
			return context.Cause(ctx)
		}
		if errors.Is(err, fleet.ErrNotOrdered) {
			return playbook.Again{Err: err}
		}
		if err == nil {
			err = resultError(result)
		}
		after, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanup)
		defer cancel()
		return s.book(after, run, c.ID, kind, result, err)
	}
}

// asked gives what operators have asked of a capture before the collector was
// restarted, nil where that is nothing.
func asked(c casefile.Case, id string) *wire.ControlCaptureRequest {
	sum, ok := c.Asked(id)
	if !ok {
		return nil
	}
	q := &wire.ControlCaptureRequest{CaseId: c.ID, Paused: sum.Paused, Cancel: sum.Cancel}
	if sum.Limits != nil {
		q.Limits = &wire.Limits{CpuPercent: sum.Limits.CPUPercent, BytesPerSecond: sum.Limits.BytesPerSecond}
	}
	return q
}

// book closes what the capture left open, and writes down what there is.
func (s *Story) book(ctx context.Context, run *playbook.Run, caseID string, kind evidence.Kind, result fleet.Result, why error) error {
	reason := "the capture ended without it"
	if why != nil {
		reason = why.Error()
	}
	if err := s.Ledger.CloseAll(ctx, caseID, kind, reason); err != nil {
		run.Log.Error("cannot close items, sealing will try again", "error", err)
	}
	items, err := s.Ledger.Items(ctx, caseID)
	if err != nil {
		return playbook.Again{Err: errors.Join(why, err)} // the evidence is there, and the agent tells its result again
	}
	fact := casefile.Event{Items: withoutParts(items)}
	if result.Agent.Name != "" {
		fact.Agent = &result.Agent
	}
	got := 0
	for _, item := range items {
		if item.Kind != kind {
			continue
		}
		if item.Size > 0 {
			got++
		}
		if item.Status != evidence.Whole && why == nil {
			why = fmt.Errorf("%s is %s: %s", item.FileName(), item.Status, item.Error)
		}
	}
	if got == 0 && why == nil {
		why = errors.New("the agent stored nothing")
	}
	if why != nil {
		fact.Missing = &evidence.Missing{Kind: kind, Reason: why.Error()}
	}
	if _, err := run.Learn(ctx, fact); err != nil {
		return playbook.Again{Err: errors.Join(why, err)}
	}
	if why != nil && got > 0 {
		return playbook.Partial{Err: why}
	}
	return why
}

// resultError says what an agent's result lacks.
func resultError(r fleet.Result) error {
	if r.Outcome == wire.Outcome_OUTCOME_WHOLE {
		return nil
	}
	why := r.Error
	if why == "" {
		why = "the agent gave no reason"
	}
	for _, v := range r.Refused {
		why += fmt.Sprintf("; source %s: %s, %s", v.GetSource(), v.GetReason(), v.GetDetail())
	}
	return errors.New(why)
}

// withoutParts leaves the parts of items to the ledger and the manifest.
func withoutParts(items []evidence.Item) []evidence.Item {
	var out []evidence.Item
	for _, item := range items {
		item.Parts, item.RAM = nil, nil
		out = append(out, item)
	}
	return out
}
