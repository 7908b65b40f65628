// Package playbook runs the steps of each case, one after the other, once,
// across restarts and nodes.
//
// A case is run by the one node that owns it. A node that dies, or hangs, loses
// its cases after some seconds; another takes each up where it was, and what
// the first still wants to write down is refused.
//
// A step is written down before it acts and after it has ended; where a node
// dies in between, the same step is begun again, so a step must be harmless to
// repeat. A step that fails is recorded with its reason and the next one
// follows: nothing that goes wrong earlier keeps a compromised instance from
// being contained.
package playbook

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/store"
)

// Bounds of a runner.
const (
	firstBackoff = time.Second
	lastBackoff  = 30 * time.Second
	rescanEvery  = 30 * time.Second // in case that a change of the queue was missed
	restAfter    = 30 * time.Second // of a case that could not go on
	leastTime    = time.Minute      // of a step that is taken up again, however late
	disownLimit  = 5 * time.Second
)

// Step is one step of the story of a case.
type Step struct {
	Name  string
	Limit time.Duration // it is given up after this time, tries and waits included
	Retry Retry
	// Do acts. It may have run before, wholly or in part. A nil error is
	// done; Partial and Again say what they say; what the store could not do
	// now is tried again, too; any other error is final.
	Do func(ctx context.Context, run *Run) error
}

// Retry is how long a step waits until it is tried again: First, then twice as
// long each time, Most at most, and half of it at random. What is not tried
// again is the step's own to say, by its error.
type Retry struct{ First, Most time.Duration }

// orDefault is 1 s to 30 s where nothing is said.
func (r Retry) orDefault() Retry {
	return Retry{First: cmp.Or(r.First, firstBackoff), Most: cmp.Or(r.Most, max(r.First, lastBackoff))}
}

// Docket is where cases and their events are kept, for all nodes.
type Docket interface {
	// Queue gives the cases whose steps are not all taken, oldest first.
	Queue(ctx context.Context) ([]casefile.Place, error)
	// Own makes this node the one that runs a case, or gives
	// store.ErrConflict; Disown ends that.
	Own(ctx context.Context, id string) (store.Claim, error)
	Disown(ctx context.Context, claim store.Claim) error
	Get(ctx context.Context, id string) (casefile.Case, error)
	// Record returns once the event is durable.
	Record(ctx context.Context, id string, e casefile.Event) (casefile.Case, error)
	// Changed yields a token when there may be a case to run.
	Changed() <-chan struct{}
}

// Partial is the error of a step that did only a part of its work.
type Partial struct{ Err error }

func (p Partial) Error() string { return p.Err.Error() }

func (p Partial) Unwrap() error { return p.Err }

// Again is the error of a step that may succeed when it is tried again.
type Again struct{ Err error }

func (a Again) Error() string { return a.Err.Error() }

func (a Again) Unwrap() error { return a.Err }

// Run is one case while its steps are taken.
type Run struct {
	Log *slog.Logger // with the case and the step on each line

	id     string
	docket Docket
}

// Case is the case as it stands now.
func (r *Run) Case(ctx context.Context) (casefile.Case, error) { return r.docket.Get(ctx, r.id) }

// Learn records facts.
func (r *Run) Learn(ctx context.Context, fact casefile.Event) (casefile.Case, error) {
	fact.Type = casefile.Fact
	return r.docket.Record(ctx, r.id, fact)
}

// Runner runs every running case of a docket.
type Runner struct {
	Docket Docket
	Steps  []Step
	Caps   Caps
	Log    *slog.Logger

	Observer Observer // nil: nobody
}

// finished is a case that this node no longer runs, and why it could not go
// on.
type finished struct {
	id  string
	err error
}

// Run runs cases until ctx ends; then it waits for their steps to stop where
// they are, to be taken up again by another node, or the next Run.
func (r *Runner) Run(ctx context.Context) error {
	var cases sync.WaitGroup
	defer cases.Wait()
	running := map[string]bool{}
	resting := map[string]time.Time{} // until when
	done := make(chan finished, r.Caps.Node)
	rescan := time.NewTicker(rescanEvery)
	defer rescan.Stop()
	for {
		places, err := r.Docket.Queue(ctx)
		if err != nil && ctx.Err() == nil {
			r.Log.Error("cannot read the queue of cases, will try again", "error", err)
		}
		wakeUp(resting)
		for _, id := range choose(places, running, resting, r.Caps, time.Now()) {
			if claim, ok := r.own(ctx, id); ok {
				running[id] = true
				cases.Go(func() { done <- finished{id, r.run(ctx, id, claim)} })
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-r.Docket.Changed():
		case <-rescan.C:
		case end := <-done:
			delete(running, end.id)
			delete(resting, end.id)
			if end.err != nil && ctx.Err() == nil {
				r.Log.Error("case stopped here, will be taken up again", "case", end.id, "error", end.err)
				resting[end.id] = time.Now().Add(restAfter)
			}
		}
	}
}

// wakeUp forgets the cases that have rested.
func wakeUp(resting map[string]time.Time) {
	now := time.Now()
	maps.DeleteFunc(resting, func(_ string, until time.Time) bool { return !now.Before(until) })
}

// own makes a case this node's, unless another was quicker.
func (r *Runner) own(ctx context.Context, id string) (store.Claim, bool) {
	claim, err := r.Docket.Own(ctx, id)
	if err != nil && !errors.Is(err, store.ErrConflict) && ctx.Err() == nil {
		r.Log.Error("cannot take a case up, will try again", "case", id, "error", err)
	}
	return claim, err == nil
}

// run runs a case as long as it is this node's.
func (r *Runner) run(ctx context.Context, id string, claim store.Claim) error {
	mine, cancel := context.WithCancelCause(store.While(ctx, claim.Key, claim.Revision))
	defer cancel(nil)
	var watch sync.WaitGroup
	defer watch.Wait()
	over := make(chan struct{})
	defer close(over)
	watch.Go(func() {
		select {
		case <-claim.Lost:
			cancel(fmt.Errorf("this node has not been heard of for too long: %w", store.ErrLost))
		case <-over:
		}
	})
	err := r.story(mine, id)
	return errors.Join(err, disown(ctx, r.Docket, claim))
}

// disown ends a claim also where ctx is over, so that others need not wait for
// it to expire.
func disown(ctx context.Context, docket interface {
	Disown(ctx context.Context, claim store.Claim) error
}, claim store.Claim) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), disownLimit)
	defer cancel()
	return docket.Disown(ctx, claim)
}

// story takes a case's steps until all have ended.
func (r *Runner) story(ctx context.Context, id string) error {
	c, err := r.Docket.Get(ctx, id)
	if err != nil {
		return err
	}
	for {
		name, again := c.Next()
		if name == "" {
			r.Log.Info("case ended", "case", c.ID, "instance", c.Instance.ID, "summary", c.Summary())
			return nil
		}
		log := r.Log.With("case", c.ID, "instance", c.Instance.ID, "step", name)
		log.Info("step begins", "again", again)
		step := r.step(name)
		c, err = r.Docket.Record(ctx, c.ID, casefile.Event{Type: casefile.StepStarted, Step: name, Deadline: time.Now().Add(step.Limit).UTC()})
		if err != nil {
			return err
		}
		begun, _ := c.StepNamed(name)
		ended := r.begin(name)
		err := r.take(ctx, step, begun.Deadline, &Run{Log: log, id: c.ID, docket: r.Docket})
		if ctx.Err() != nil {
			ended("")
			return context.Cause(ctx)
		}
		end := casefile.Event{Type: casefile.StepEnded, Step: name, Outcome: outcome(err)}
		if err != nil {
			end.Detail = clip(err.Error())
		}
		log.Info("step ended", "outcome", end.Outcome, "detail", end.Detail)
		if c, err = r.Docket.Record(ctx, c.ID, end); err != nil {
			ended("")
			return err
		}
		ended(end.Outcome)
	}
}

// step gives a step by its name; one that this collector does not know fails.
func (r *Runner) step(name string) Step {
	for _, step := range r.Steps {
		if step.Name == name {
			return step
		}
	}
	return Step{Name: name, Limit: leastTime, Do: func(context.Context, *Run) error {
		return fmt.Errorf("cannot take step %q: this collector does not know it", name)
	}}
}

// take does one step, as often as it asks to be tried again, until its
// deadline. A step whose deadline passed while no node took it has a minute to
// see what there is.
func (r *Runner) take(ctx context.Context, step Step, deadline time.Time, run *Run) error {
	left := max(time.Until(deadline), min(step.Limit, leastTime))
	ctx, cancel := context.WithTimeoutCause(ctx, left, fmt.Errorf("step %s passed its limit of %v", step.Name, step.Limit))
	defer cancel()
	retry := step.Retry.orDefault()
	backoff := retry.First
	for {
		err := do(ctx, step, run)
		if !errors.As(err, new(Again)) && !errors.Is(err, store.ErrUnavailable) {
			return err
		}
		run.Log.Warn("step will be tried again", "error", err)
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-time.After(backoff/2 + rand.N(backoff/2)):
		}
		backoff = min(2*backoff, retry.Most)
	}
}

// do turns a panic of one step into its failure, as the steps after it must
// still be taken.
func do(ctx context.Context, step Step, run *Run) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("step %s panicked: %v", step.Name, p)
		}
	}()
	return step.Do(ctx, run)
}

func outcome(err error) casefile.Outcome {
	switch {
	case err == nil:
		return casefile.Done
	case errors.As(err, new(Partial)):
		return casefile.Partly
	}
	return casefile.Failed
}

func clip(text string) string {
	if len(text) > 2000 {
		return text[:2000] + "…"
	}
	return text
}
