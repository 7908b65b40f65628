// Package playbook runs the steps of each case, one after the other, once,
// across restarts.
//
// A step is written down before it acts and after it has ended; a collector
// that dies in between begins the same step again, so a step must be
// harmless to repeat. A step that fails is recorded with its reason and the
// next one follows: nothing that goes wrong earlier keeps a compromised
// instance from being contained.
package playbook

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/quicklime-ir/quicklime/collector/casefile"
)

// Bounds of a runner.
const (
	maxCases     = 64 // run at a time
	firstBackoff = time.Second
	lastBackoff  = 30 * time.Second
	rescanEvery  = 30 * time.Second // for cases whose record failed
)

// Step is one step of the story of a case.
type Step struct {
	Name  string
	Limit time.Duration // it is given up after this time, tries and waits included
	// Do acts. It may have run before, wholly or in part. A nil error is
	// done; Partial and Again say what they say; any other error is final.
	Do func(ctx context.Context, run *Run) error
}

// Docket is where cases and their events are kept.
type Docket interface {
	List(ctx context.Context) ([]casefile.Case, error)
	Get(ctx context.Context, id string) (casefile.Case, error)
	// Record returns once the event is durable.
	Record(ctx context.Context, id string, e casefile.Event) (casefile.Case, error)
	Opened() <-chan struct{}
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
	Log    *slog.Logger
}

// Run runs cases until ctx ends; then it waits for their steps to stop where
// they are, to be taken up again by the next Run.
func (r *Runner) Run(ctx context.Context) error {
	var cases sync.WaitGroup
	defer cases.Wait()
	var mu sync.Mutex
	active := map[string]bool{} // owned by mu
	slots := make(chan struct{}, maxCases)
	rescan := time.NewTicker(rescanEvery)
	defer rescan.Stop()
	for {
		list, err := r.Docket.List(ctx)
		if err != nil && ctx.Err() == nil {
			r.Log.Error("cannot list cases, will try again", "error", err)
		}
		for _, c := range list {
			mu.Lock()
			start := c.State == casefile.Running && !active[c.ID]
			active[c.ID] = active[c.ID] || start
			mu.Unlock()
			if !start {
				continue
			}
			cases.Go(func() {
				defer func() {
					mu.Lock()
					defer mu.Unlock()
					delete(active, c.ID)
				}()
				select {
				case slots <- struct{}{}:
					defer func() { <-slots }()
				case <-ctx.Done():
					return
				}
				if err := r.story(ctx, c); err != nil && ctx.Err() == nil {
					r.Log.Error("case stopped, will be taken up again", "case", c.ID, "error", err)
				}
			})
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-r.Docket.Opened():
		case <-rescan.C:
		}
	}
}

// story takes a case's steps until all have ended.
func (r *Runner) story(ctx context.Context, c casefile.Case) error {
	for {
		name, again := c.Next()
		if name == "" {
			r.Log.Info("case ended", "case", c.ID, "instance", c.Instance.ID, "summary", c.Summary())
			return nil
		}
		log := r.Log.With("case", c.ID, "instance", c.Instance.ID, "step", name)
		log.Info("step begins", "again", again)
		if _, err := r.Docket.Record(ctx, c.ID, casefile.Event{Type: casefile.StepStarted, Step: name}); err != nil {
			return err
		}
		err := r.take(ctx, name, &Run{Log: log, id: c.ID, docket: r.Docket})
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		end := casefile.Event{Type: casefile.StepEnded, Step: name, Outcome: outcome(err)}
		if err != nil {
			end.Detail = clip(err.Error())
		}
		log.Info("step ended", "outcome", end.Outcome, "detail", end.Detail)
		if c, err = r.Docket.Record(ctx, c.ID, end); err != nil {
			return err
		}
	}
}

// take does one step, as often as it asks to be tried again.
func (r *Runner) take(ctx context.Context, name string, run *Run) error {
	for _, step := range r.Steps {
		if step.Name != name {
			continue
		}
		ctx, cancel := context.WithTimeoutCause(ctx, step.Limit, fmt.Errorf("step %s passed its limit of %v", name, step.Limit))
		defer cancel()
		backoff := firstBackoff
		for {
			err := do(ctx, step, run)
			if !errors.As(err, new(Again)) {
				return err
			}
			run.Log.Warn("step will be tried again", "error", err)
			select {
			case <-ctx.Done():
				return errors.Join(context.Cause(ctx), err)
			case <-time.After(backoff/2 + rand.N(backoff/2)):
			}
			backoff = min(2*backoff, lastBackoff)
		}
	}
	return fmt.Errorf("cannot take step %q: this collector does not know it", name)
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
