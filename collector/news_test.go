package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/docket"
	"github.com/quicklime-ir/quicklime/collector/playbook"
	"github.com/quicklime-ir/quicklime/collector/store"
)

// town is some nodes of a collector, each with a herald, and who hears them.
type town struct {
	nodes   []*docket.Docket
	stores  []*store.MemoryStore
	mu      sync.Mutex
	heard   []string                  // case and what was untold, under mu
	refuses func(node, nth int) error // of the nth message; nil: none is refused
}

// settle starts the heralds in a bubble, until the test ends.
func settle(t *testing.T, nodes int, refuses func(node, nth int) error) *town {
	t.Helper()
	v := &town{refuses: refuses}
	first := store.Memory()
	var heralds sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(func() { cancel(); heralds.Wait() })
	for n := range nodes {
		one := first
		if n > 0 {
			one = first.Another()
		}
		d := docket.New(docket.Config{Store: one, Node: fmt.Sprint("n", n), Bucket: noBucket{}, Threshold: 7, Steps: []string{"contain"},
			RecordSteps: []string{"contain"}, Log: slog.New(slog.DiscardHandler), Now: time.Now})
		v.nodes, v.stores = append(v.nodes, d), append(v.stores, one)
		herald := &playbook.Herald{Docket: d, Log: slog.New(slog.DiscardHandler), Tell: func(_ context.Context, c casefile.Case) ([]string, error) { return v.hear(n, c) }}
		heralds.Go(func() { _ = herald.Run(ctx) }) // ends with ctx
	}
	return v
}

func (v *town) hear(node int, c casefile.Case) (told []string, err error) {
	var words []string
	for _, n := range c.Untold {
		if told = append(told, n.EventID); n.Message != "" {
			words = append(words, n.Message)
			break // each is told alone
		}
		words = append(words, fmt.Sprintf("%s %g>%g %t", n.Type, n.Worst, n.Severity, n.NewType))
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.heard = append(v.heard, strings.Join(words, ", "))
	if v.refuses != nil {
		err = v.refuses(node, len(v.heard))
	}
	return told, err
}

// take hands an event in at a node, and waits until every herald rests.
func (v *town) take(t *testing.T, node int, event string) string {
	t.Helper()
	ids, err := v.nodes[node].Open(t.Context(), []byte(event))
	if err != nil || len(ids) != 1 {
		t.Fatalf("%v, %v", ids, err)
	}
	synctest.Wait()
	return ids[0]
}

func versionOf(n int, kind string, severity float64) string {
	event := strings.Replace(findingEvent(n, victim), "Backdoor:EC2/C&CActivity.B", kind, 1)
	return strings.Replace(event, `"severity":8`, fmt.Sprintf(`"severity":%g`, severity), 1)
}

// TestAMessageThatNobodyTookIsToldOnce, and then what joined meanwhile.
func TestAMessageThatNobodyTookIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := settle(t, 2, func(_, nth int) error {
			if nth <= 2 {
				return errors.New("429")
			}
			return nil
		})
		id := v.take(t, 0, versionOf(1, "A", 8))
		for range 2 { // a step that was begun again owes it no second time
			if _, err := v.nodes[1].Record(t.Context(), id, casefile.Event{Type: casefile.Fact, Owed: casefile.Beginning}); err != nil {
				t.Fatal(err)
			}
		}
		v.take(t, 1, versionOf(2, "A", 9))
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if want := []string{"beginning", "A 8>9 false"}; !slices.Equal(v.heard[2:], want) {
			t.Errorf("told %q, want two refusals and %q", v.heard, want)
		}
		if c, err := v.nodes[0].Get(t.Context(), id); err != nil || len(c.Untold) > 0 {
			t.Errorf("untold %v, %v", c.Untold, err)
		}
	})
}

// TestWhatIsToldOfJoinedFindings at once, while the case stands at its first
// step, and what joins in silence.
func TestWhatIsToldOfJoinedFindings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := settle(t, 1, nil)
		id := v.take(t, 0, versionOf(1, "A", 8))
		for _, c := range []struct {
			name, event string
			want        []string
		}{
			{"another finding of the type", versionOf(2, "A", 8), nil},
			{"one that is less severe", versionOf(3, "A", 7), nil},
			{"one that is more severe", versionOf(4, "A", 9), []string{"A 8>9 false"}},
			{"the same event again", versionOf(4, "A", 9), nil},
			{"as severe as the worst", versionOf(5, "A", 9), nil},
			{"another type", versionOf(6, "B", 7), []string{"B 9>7 true"}},
			{"that type again", versionOf(7, "B", 8), nil},
			{"another type, and more severe", versionOf(8, "C", 9.5), []string{"C 9>9.5 true"}},
		} {
			v.heard = nil
			if again := v.take(t, 0, c.event); again != id || !slices.Equal(v.heard, c.want) {
				t.Errorf("%s: case %s, told %q, want %q", c.name, again, v.heard, c.want)
			}
		}
		end := casefile.Event{Type: casefile.StepEnded, Step: "contain", Outcome: casefile.Done}
		if _, err := v.nodes[0].Record(t.Context(), id, end); err != nil {
			t.Fatal(err)
		}
		v.heard = nil
		if v.take(t, 0, versionOf(9, "D", 7)); !slices.Equal(v.heard, []string{"D 9.5>7 true"}) {
			t.Errorf("after the case's end: %q", v.heard)
		}
	})
}

func TestNewsAreToldOnceByOneOfSeveralNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := settle(t, 3, nil)
		for n := range 20 {
			v.take(t, n%3, versionOf(n, fmt.Sprint("Type", n), 8))
		}
		if len(v.heard) != 19 { // the first one opens the case
			t.Errorf("told %d times: %q", len(v.heard), v.heard)
		}
	})
}

// TestNewsAreNeverToldByNobody: what could not be sent is sent later, also by
// another node, and what may have been sent is sent again.
func TestNewsAreNeverToldByNobody(t *testing.T) {
	for _, c := range []struct {
		name    string
		refuses func(v *town, node, nth int) error
		told    int
		within  time.Duration
	}{
		{"the receiver is away twice", func(_ *town, _, nth int) error {
			if nth <= 2 {
				return errors.New("503")
			}
			return nil
		}, 3, 3 * time.Minute},
		{"the node dies after it told, and before it wrote that down", func(v *town, node, nth int) error {
			if nth == 1 {
				v.stores[node].Expire()
			}
			return nil
		}, 2, 2 * time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var v *town
				v = settle(t, 2, func(node, nth int) error { return c.refuses(v, node, nth) })
				id := v.take(t, 0, versionOf(1, "A", 8))
				v.take(t, 0, versionOf(2, "B", 8))
				time.Sleep(c.within)
				synctest.Wait()
				if len(v.heard) != c.told {
					t.Errorf("told %d times, want %d: %q", len(v.heard), c.told, v.heard)
				}
				if left, err := v.nodes[0].News(t.Context()); err != nil || len(left) != 0 {
					t.Errorf("untold: %v, %v", left, err)
				}
				if one, err := v.nodes[1].Get(t.Context(), id); err != nil || len(one.Untold) != 0 {
					t.Errorf("the case: %+v, %v", one.Untold, err)
				}
				time.Sleep(time.Hour)
				if len(v.heard) != c.told {
					t.Errorf("told again later: %q", v.heard)
				}
			})
		})
	}
}

// TestWhoClosesACaseNeedsNoNews: they are not told of a case that is closed.
func TestWhoClosesACaseNeedsNoNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := settle(t, 1, func(int, int) error { return errors.New("404") })
		id := v.take(t, 0, versionOf(1, "A", 8))
		v.take(t, 0, versionOf(2, "B", 8))
		if left, err := v.nodes[0].News(t.Context()); err != nil || !slices.Equal(left, []string{id}) {
			t.Fatalf("untold: %v, %v", left, err)
		}
		if _, err := v.nodes[0].Record(t.Context(), id, casefile.Event{Type: casefile.StepEnded, Step: "contain", Outcome: casefile.Done}); err != nil {
			t.Fatal(err)
		}
		if err := v.nodes[0].Close(t.Context(), id, "rebuilt"); err != nil {
			t.Fatal(err)
		}
		if left, err := v.nodes[0].News(t.Context()); err != nil || len(left) != 0 {
			t.Errorf("untold: %v, %v", left, err)
		}
		heard := len(v.heard)
		if time.Sleep(time.Hour); len(v.heard) != heard {
			t.Errorf("told %d times after it was closed", len(v.heard)-heard)
		}
	})
}
