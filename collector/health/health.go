// Package health says whether the collector can do its work, to whoever
// watches over it.
//
// Two questions are answered, and a probe that is wired to the wrong one does
// harm. /healthz asks whether this process is of any use: red only where it
// needs a restart or a person. /readyz asks whether it can work now: red
// while something that it needs is away, and green again by itself.
//
// What it needs is looked at in the background, each thing on its own period
// and within a bound, so that asking often asks nobody else. What is told is
// for operators: names of parts, errors and times, no finding and no evidence.
package health

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// Defaults and bounds of a check.
const (
	defaultEvery = 10 * time.Second
	defaultLimit = 5 * time.Second
	maxError     = 1024 // bytes of a told error
)

// Check looks at one thing that the collector needs.
type Check struct {
	Name string // one word, such as "bucket"
	// Run gives nil if the thing is well. Its error is read by a responder at
	// three in the morning: it says what cannot be done, why, and what helps.
	// It must return soon after ctx is done, which is after Limit. It is not
	// run twice at once.
	Run   func(ctx context.Context) error
	Every time.Duration // from the end of one run to the next; 0: 10 s
	Limit time.Duration // 0: 5 s
	// Before is what is said until the first run, where there is more to say
	// than that it was not run yet.
	Before string
}

// Final is the error of a check of something that will not come back in this
// process: it needs a restart, or a person.
type Final struct{ Err error }

func (f Final) Error() string { return f.Err.Error() }

func (f Final) Unwrap() error { return f.Err }

// Failing is a check that does not hold.
type Failing struct {
	Check string    `json:"check"`
	Error string    `json:"error"`
	Since time.Time `json:"since"`
	Final bool      `json:"final,omitempty"` // needs a restart or a person
}

// Report answers one of the two questions.
type Report struct {
	OK      bool      `json:"ok"`
	Failing []Failing `json:"failing,omitempty"`
}

// state is what a check said last.
type state int

const (
	unknown state = iota // nothing yet
	green
	red   // it may recover by itself
	final // it will not
)

// watched is a check and what it said last, which Monitor.mu guards.
type watched struct {
	Check
	state state
	since time.Time // of the first run that did not hold, since one did
	err   string
}

// Monitor runs checks and remembers their last answers. Make it with New.
type Monitor struct {
	log     *slog.Logger
	started time.Time

	mu       sync.Mutex
	checks   []*watched // the list is never changed
	stopping time.Time  // zero while it works; under mu
}

// New makes a monitor of checks, none of which has been run yet.
func New(log *slog.Logger, checks ...Check) *Monitor {
	m := &Monitor{log: log, started: time.Now()}
	for _, c := range checks {
		if c.Every <= 0 {
			c.Every = defaultEvery
		}
		if c.Limit <= 0 {
			c.Limit = defaultLimit
		}
		m.checks = append(m.checks, &watched{Check: c})
	}
	return m
}

// Run runs the checks until ctx ends and all have returned.
func (m *Monitor) Run(ctx context.Context) error {
	var all sync.WaitGroup
	for _, c := range m.checks {
		all.Go(func() {
			for ctx.Err() == nil {
				m.run(ctx, c)
				sleep(ctx, c.Every)
			}
		})
	}
	all.Wait()
	return nil
}

// run runs a check once. One that hangs is red as soon as its time is over,
// and is waited for, so that no more than one of it is under way.
func (m *Monitor) run(ctx context.Context, c *watched) {
	bounded, cancel := context.WithTimeout(ctx, c.Limit)
	defer cancel()
	answer := make(chan error, 1)
	go func() { answer <- safely(bounded, c.Run) }() // ends before run does
	select {
	case err := <-answer:
		if ctx.Err() == nil {
			m.note(c, err)
		}
	case <-bounded.Done():
		late := fmt.Errorf("no answer for %v", c.Limit)
		if ctx.Err() == nil {
			m.note(c, late)
		}
		if err := <-answer; err != nil && ctx.Err() == nil {
			m.note(c, fmt.Errorf("%w: %w", late, err))
		}
	}
}

// safely turns a panic of a check into its failure: the collector does not
// end because of who looks at it.
func safely(ctx context.Context, run func(context.Context) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the check itself failed, which is a fault of this program: %v", p)
		}
	}()
	return run(ctx)
}

// note remembers an answer, and logs it if it is another one than before.
func (m *Monitor) note(c *watched, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	was, now := c.state, stateOf(err)
	if now == green {
		if was > green {
			m.log.Info("check holds again", "check", c.Name, "after", time.Since(c.since).Round(time.Second))
		}
		c.state, c.since, c.err = green, time.Time{}, ""
		return
	}
	if was <= green {
		c.since = time.Now()
	}
	c.state, c.err = now, clip(err.Error())
	switch {
	case now == final && was != final:
		m.log.Error("check failed for good: this needs a restart or a person", "check", c.Name, "error", c.err)
	case now == red && was <= green:
		m.log.Error("check failed: the collector is not ready", "check", c.Name, "error", c.err)
	}
}

func stateOf(err error) state {
	switch {
	case err == nil:
		return green
	case errors.As(err, new(Final)):
		return final
	}
	return red
}

// Stopping makes the collector not ready from now on, as it ends.
func (m *Monitor) Stopping() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopping.IsZero() {
		m.stopping = time.Now()
	}
}

// Healthy says whether the process can do its work, or could by waiting.
func (m *Monitor) Healthy() Report { return m.report(final) }

// Ready says whether it can do its work now.
func (m *Monitor) Ready() Report {
	r := m.report(red)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.checks {
		if c.state == unknown {
			r.add(Failing{Check: c.Name, Error: cmp.Or(c.Before, "not checked yet: the collector has just begun"), Since: m.started})
		}
	}
	if !m.stopping.IsZero() {
		r.add(Failing{Check: "collector", Error: "it is shutting down: its cases go on with the next start, or on another node", Since: m.stopping})
	}
	return r
}

// report names the checks that are as bad as worst, or worse.
func (m *Monitor) report(worst state) Report {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := Report{OK: true}
	for _, c := range m.checks {
		if c.state >= worst {
			r.add(Failing{Check: c.Name, Error: c.err, Since: c.since, Final: c.state == final})
		}
	}
	return r
}

func (r *Report) add(f Failing) {
	f.Since = f.Since.UTC()
	r.OK, r.Failing = false, append(r.Failing, f)
}

// Holds says of each check whether it held when it was last run.
func (m *Monitor) Holds() map[string]bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string]bool{}
	for _, c := range m.checks {
		out[c.Name] = c.state == green
	}
	return out
}

// clip bounds an error; what is no text in it goes too.
func clip(text string) string {
	if len(text) > maxError {
		text = text[:maxError] + "…"
	}
	return strings.ToValidUTF8(text, "")
}

// sleep returns after d or when ctx is done.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
