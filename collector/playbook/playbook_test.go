package playbook

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/store"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// shelf is a docket in memory.
type shelf struct {
	mu      sync.Mutex
	cases   map[string]casefile.Case
	events  []string
	broken  error // what Record and Disown answer while it is set
	changed chan struct{}
	owners  *store.MemoryStore
}

func newShelf(t *testing.T, steps ...string) *shelf {
	c, err := casefile.Open("c1", casefile.Event{Type: casefile.CaseOpened, Finding: &casefile.Finding{ID: "f"},
		Opened: &casefile.Opening{Act: true, Steps: steps, Instance: evidence.Instance{ID: "i-01234567"}}})
	if err != nil {
		t.Fatal(err)
	}
	return &shelf{cases: map[string]casefile.Case{"c1": c}, changed: make(chan struct{}, 1), owners: store.Memory()}
}

func (s *shelf) Queue(ctx context.Context) ([]casefile.Place, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cases["c1"].State != casefile.Running {
		return nil, nil
	}
	p := casefile.Place{ID: "c1"}
	if _, _, err := s.owners.Get(ctx, "owner/c1"); err == nil {
		p.Owner, p.Ours = "this node", true
	}
	return []casefile.Place{p}, nil
}

func (s *shelf) Own(ctx context.Context, id string) (store.Claim, error) {
	return s.owners.Claim(ctx, "owner/"+id, nil)
}

func (s *shelf) Disown(ctx context.Context, claim store.Claim) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return s.broken
	}
	return s.owners.Delete(ctx, claim.Key, claim.Revision)
}

func (s *shelf) Get(_ context.Context, id string) (casefile.Case, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cases[id], nil
}

func (s *shelf) Record(ctx context.Context, id string, e casefile.Event) (casefile.Case, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return casefile.Case{}, s.broken
	}
	if _, err := s.owners.Put(ctx, "event/"+strconv.Itoa(len(s.events)), nil, 0); err != nil {
		return casefile.Case{}, err // by who is not the owner
	}
	e.Time = time.Now()
	c, err := s.cases[id].Apply(e)
	if err == nil {
		s.cases[id] = c
		s.events = append(s.events, e.Type+" "+e.Step+" "+string(e.Outcome))
	}
	return c, err
}

func (s *shelf) Changed() <-chan struct{} { return s.changed }

func (s *shelf) outcomes() map[string]casefile.Outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]casefile.Outcome{}
	for _, step := range s.cases["c1"].Steps {
		out[step.Name] = step.Outcome
	}
	return out
}

// runUntilEnded runs the shelf's case to its end, in a synctest bubble.
func runUntilEnded(t *testing.T, s *shelf, steps ...Step) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- (&Runner{Docket: s, Steps: steps, Caps: DefaultCaps, Log: slog.New(slog.DiscardHandler)}).Run(ctx)
	}()
	for {
		time.Sleep(time.Second)
		if c, _ := s.Get(ctx, "c1"); c.State == casefile.Ended {
			break
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Run ended with %v", err)
	}
}

func step(name string, do func(context.Context, *Run) error) Step {
	return Step{Name: name, Limit: time.Minute, Do: do}
}

func fine(context.Context, *Run) error { return nil }

// TestEveryStepIsTakenWhateverHappensBefore: a compromised instance is
// contained even where all that came before went wrong.
func TestEveryStepIsTakenWhateverHappensBefore(t *testing.T) {
	tests := []struct {
		name string
		do   func(context.Context, *Run) error
		want casefile.Outcome
	}{
		{"it works", fine, casefile.Done},
		{"it is refused", func(context.Context, *Run) error { return errors.New("UnauthorizedOperation") }, casefile.Failed},
		{"it does a part", func(context.Context, *Run) error { return Partial{errors.New("half")} }, casefile.Partly},
		{"it panics", func(context.Context, *Run) error { panic("boom") }, casefile.Failed},
		{"it hangs", func(ctx context.Context, _ *Run) error { <-ctx.Done(); return context.Cause(ctx) }, casefile.Failed},
		{"it is throttled for ever", func(context.Context, *Run) error { return Again{errors.New("RequestLimitExceeded")} }, casefile.Failed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newShelf(t, "memory", "contain")
				runUntilEnded(t, s, step("memory", tt.do), step("contain", fine))
				if got := s.outcomes(); got["memory"] != tt.want || got["contain"] != casefile.Done {
					t.Errorf("outcomes %v, want memory %s and contain done", got, tt.want)
				}
			})
		})
	}
}

func TestAStepThatAsksIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, tries := newShelf(t, "image"), 0
		runUntilEnded(t, s, step("image", func(context.Context, *Run) error {
			if tries++; tries < 4 {
				return Again{errors.New("Throttling")}
			}
			return nil
		}))
		if tries != 4 || s.outcomes()["image"] != casefile.Done {
			t.Errorf("%d tries, outcomes %v; want 4 and done", tries, s.outcomes())
		}
	})
}

// TestEachStepHasItsPatience: the pauses between its tries double, half of each
// at random, up to what the step says.
func TestEachStepHasItsPatience(t *testing.T) {
	for name, tt := range map[string]struct {
		retry Retry
		most  []time.Duration
	}{
		"as all have it":      {Retry{}, []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 30 * time.Second, 30 * time.Second}},
		"each second counts":  {Retry{500 * time.Millisecond, 2 * time.Second}, []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second, 2 * time.Second}},
		"it begins late":      {Retry{First: time.Minute}, []time.Duration{time.Minute, time.Minute}},
		"nobody waits for it": {Retry{Most: 5 * time.Minute}, []time.Duration{time.Second, 2 * time.Second, 4 * time.Second}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newShelf(t, "contain")
				var at []time.Time
				one := step("contain", func(context.Context, *Run) error {
					if at = append(at, time.Now()); len(at) > len(tt.most) {
						return nil
					}
					return Again{errors.New("Throttling")}
				})
				one.Retry, one.Limit = tt.retry, time.Hour
				runUntilEnded(t, s, one)
				for i, most := range tt.most {
					if pause := at[i+1].Sub(at[i]); pause < most/2 || pause >= most {
						t.Errorf("pause %d is %v, want %v to %v", i, pause, most/2, most)
					}
				}
			})
		})
	}
}

// TestAStepWaitsForTheStore, whatever it made of the store's error.
func TestAStepWaitsForTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, tries := newShelf(t, "verify"), 0
		runUntilEnded(t, s, step("verify", func(context.Context, *Run) error {
			if tries++; tries < 4 {
				return Partial{errors.Join(errors.New("something else"), fmt.Errorf("cannot list: %w", store.ErrUnavailable))}
			}
			return nil
		}))
		if tries != 4 || s.outcomes()["verify"] != casefile.Done {
			t.Errorf("%d tries, outcomes %v; want 4 and done", tries, s.outcomes())
		}
	})
}

func TestAStepIsWrittenDownBeforeItActs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(t, "contain")
		var before []string
		runUntilEnded(t, s, step("contain", func(context.Context, *Run) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			before = slices.Clone(s.events)
			return nil
		}))
		if !slices.Equal(before, []string{"step_started contain "}) {
			t.Errorf("when the step acted, the events were %q", before)
		}
	})
}

// TestARestartTakesTheCaseUpWhereItWas stops the runner inside the second
// step, and starts another.
func TestARestartTakesTheCaseUpWhereItWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(t, "volatile", "memory", "contain")
		counts := map[string]int{}
		count := func(name string, do func(context.Context, *Run) error) Step {
			return step(name, func(ctx context.Context, r *Run) error { counts[name]++; return do(ctx, r) })
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		hang := func(ctx context.Context, _ *Run) error { <-ctx.Done(); return ctx.Err() }
		first := &Runner{Docket: s, Caps: DefaultCaps, Log: slog.New(slog.DiscardHandler),
			Steps: []Step{count("volatile", fine), count("memory", hang), count("contain", fine)}}
		go func() { done <- first.Run(ctx) }()
		synctest.Wait()
		cancel()
		<-done
		if got := s.outcomes(); got["memory"] != "" {
			t.Fatalf("a step that was interrupted has outcome %q", got["memory"])
		}
		runUntilEnded(t, s, count("volatile", fine), count("memory", fine), count("contain", fine))
		if counts["volatile"] != 1 || counts["memory"] != 2 || counts["contain"] != 1 {
			t.Errorf("steps were taken %v times, want volatile 1, memory 2, contain 1", counts)
		}
	})
}

// TestACaseThatIsLostIsLeftAlone: a node that loses its case stops, and what
// it still does changes nothing; then the case is taken up again, and the step
// has the deadline that it had.
func TestACaseThatIsLostIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, tries := newShelf(t, "memory"), 0
		var deadlines []time.Time
		runUntilEnded(t, s, Step{Name: "memory", Limit: time.Hour, Do: func(ctx context.Context, run *Run) error {
			end, _ := ctx.Deadline()
			deadlines = append(deadlines, end)
			if tries++; tries > 1 {
				return nil
			}
			time.Sleep(time.Minute)
			s.owners.Expire()
			<-ctx.Done()
			if _, err := run.Learn(context.WithoutCancel(ctx), casefile.Event{}); !errors.Is(err, store.ErrLost) {
				t.Errorf("a change by who has lost the case: %v", err)
			}
			return nil
		}})
		if tries != 2 || s.outcomes()["memory"] != casefile.Done {
			t.Errorf("%d tries, outcomes %v", tries, s.outcomes())
		}
		if !deadlines[0].Equal(deadlines[1]) {
			t.Errorf("the deadline was %v, and then %v", deadlines[0], deadlines[1])
		}
	})
}

func TestACaseWhoseRecordFailsIsTakenUpAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(t, "contain")
		s.broken = errors.New("disk full")
		time.AfterFunc(2*time.Minute, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.broken = nil
		})
		runUntilEnded(t, s, step("contain", fine))
		if s.outcomes()["contain"] != casefile.Done {
			t.Error("the case was not taken up again when the disk had room")
		}
	})
}

func TestAnUnknownStepFailsByName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(t, "teleport", "contain")
		runUntilEnded(t, s, step("contain", fine))
		c, _ := s.Get(t.Context(), "c1")
		if c.Steps[0].Outcome != casefile.Failed || c.Steps[0].Detail == "" || c.Steps[1].Outcome != casefile.Done {
			t.Errorf("steps ended as %+v", c.Steps)
		}
	})
}
