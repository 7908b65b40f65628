package docket

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/custody"
	"github.com/quicklime-ir/quicklime/collector/store"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// story is what happens to a case, one thing after the other.
func story(t *testing.T, d *Docket) []func(id string) {
	record := func(e casefile.Event) func(id string) {
		return func(id string) {
			if _, err := d.Record(t.Context(), id, e); err != nil {
				t.Fatal(err)
			}
		}
	}
	yes := true
	return []func(id string){
		func(string) { take(t, d, event(1, "1ac6f0d2b4e84a3f9c7b5d3e1f2a4c61", "Instance", victim, 7.5)) },
		record(casefile.Event{Type: casefile.StepStarted, Step: "memory", Deadline: time.Date(2026, 11, 26, 18, 30, 0, 5, time.UTC)}),
		func(string) { take(t, d, event(2, "2ac6f0d2b4e84a3f9c7b5d3e1f2a4c62", "Instance", victim, 9)) },
		record(casefile.Event{Type: casefile.Controlled, Control: &casefile.Control{Orders: []string{"x"}, Paused: &yes, Cancel: "why <b>"}}),
		record(casefile.Event{Type: casefile.StepStarted, Step: "memory"}),
		record(casefile.Event{Type: casefile.Fact, Items: []evidence.Item{{Kind: evidence.Memory, Name: "image", Status: evidence.Partial, Size: 7}},
			Missing: &evidence.Missing{Kind: evidence.Memory, Reason: "half of it"}}),
		record(casefile.Event{Type: casefile.StepEnded, Step: "memory", Outcome: casefile.Partly, Detail: "half of it"}),
		record(casefile.Event{Type: casefile.Fact, Image: &evidence.Image{ID: "ami-1"}, Interfaces: []evidence.Interface{{ID: "eni-1"}}}),
		record(casefile.Event{Type: casefile.StepStarted, Step: "contain"}),
		record(casefile.Event{Type: casefile.StepEnded, Step: "contain", Outcome: casefile.Done}),
		record(casefile.Event{Type: casefile.CaseClosed, Detail: "by an operator"}),
	}
}

func copyOf(t *testing.T, s store.Store) store.Store {
	t.Helper()
	out := store.Memory()
	all, err := s.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if _, err := out.Put(t.Context(), e.Key, e.Value, 0); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// TestAnOldStateIsRebuiltFromTheJournal: from a copy of the state at any
// moment, or none, and the journal at any later one, the case is as it was
// then, and so is the queue; what comes next goes on from there.
func TestAnOldStateIsRebuiltFromTheJournal(t *testing.T) {
	acts := len(story(t, nil))
	for lost := range acts + 1 {
		for old := range lost + 1 {
			ctx, now := t.Context(), store.Memory()
			d, b := newDocket(now)
			var id string
			var before store.Store
			for i, act := range story(t, d)[:lost] {
				if i == old {
					before = copyOf(t, now)
				}
				act(id)
				if all, err := d.List(ctx); err != nil || len(all) != 1 {
					t.Fatal(all, err)
				} else {
					id = all[0].ID
				}
			}
			if before == nil {
				before = copyOf(t, now)
			}
			if lost == 0 {
				continue
			}
			again, _ := newDocket(before)
			again.cfg.Bucket = b
			got, changed, err := again.Rebuild(ctx, id, b.chain(id, victim))
			if err != nil || changed != (old < lost) {
				t.Fatalf("from %d to %d: changed %v, %v", old, lost, changed, err)
			}
			want, err := d.Get(ctx, id)
			if err != nil {
				t.Fatal(err)
			}
			kept, err := again.Get(ctx, id)
			if err != nil || asJSON(t, want) != asJSON(t, got) || asJSON(t, want) != asJSON(t, kept) {
				t.Fatalf("from %d to %d, %v:\n%s\nwant\n%s", old, lost, err, asJSON(t, kept), asJSON(t, want))
			}
			queue, err := d.Queue(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if other, err := again.Queue(ctx); err != nil || asJSON(t, queue) != asJSON(t, other) {
				t.Errorf("from %d to %d the queue is %s, want %s (%v)", old, lost, asJSON(t, other), asJSON(t, queue), err)
			}
			next := event(3, "3ac6f0d2b4e84a3f9c7b5d3e1f2a4c63", "Instance", victim, 8)
			if joined := take(t, again, next); (joined == id) != (want.State != casefile.Closed) {
				t.Errorf("from %d to %d the next finding comes to case %s, the old one is %s", old, lost, joined, want.State)
			}
			if n, err := again.Unsent(ctx); err != nil || n > 0 {
				t.Errorf("from %d to %d the bucket refuses %d entries, %v", old, lost, n, err)
			}
		}
	}
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// TestAnotherJournalIsRefused: one that is broken, or that tells another story
// than the store, changes nothing.
func TestAnotherJournalIsRefused(t *testing.T) {
	noon := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC) // far from where the date, and a case's name, changes
	d, b := newDocket(store.Memory())
	d.cfg.Now = func() time.Time { return noon }
	for _, act := range story(t, d)[:1] {
		act("")
	}
	all, err := d.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	id := all[0].ID
	old := copyOf(t, d.cfg.Store)
	for _, act := range story(t, d)[1:5] {
		act(id)
	}
	journal := b.chain(id, victim)
	other, o := newDocket(store.Memory())
	other.cfg.Now = func() time.Time { return noon.Add(-time.Hour) }
	for _, act := range story(t, other)[:5] {
		act(id)
	}
	changed := slices.Clone(journal)
	changed[3] = []byte(strings.Replace(string(changed[3]), "why", "not", 1))
	for name, tt := range map[string]struct {
		journal [][]byte
		want    string
	}{
		"an entry is missing":    {slices.Delete(slices.Clone(journal), 2, 3), "journal entry 3 is missing"},
		"an entry is changed":    {changed, "changed"},
		"another case's journal": {o.chain(id, victim), "is not the one that the store has"},
	} {
		again, _ := newDocket(copyOf(t, old))
		_, _, err := again.Rebuild(t.Context(), id, tt.journal)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
		if c, err := again.Get(t.Context(), id); err != nil || c.Journal.Entries != 1 {
			t.Errorf("%s: the case has %d entries now, %v", name, c.Journal.Entries, err)
		}
	}
	empty, _ := newDocket(store.Memory())
	if _, _, err := empty.Rebuild(t.Context(), id, journal[1:]); !errors.Is(err, custody.ErrBroken) {
		t.Errorf("without its first entry: %v", err)
	}
	if _, changed, err := empty.Rebuild(t.Context(), id, nil); changed || err != nil {
		t.Errorf("of no journal: %v, %v", changed, err)
	}
}
