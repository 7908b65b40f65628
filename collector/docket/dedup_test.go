package docket_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/docket"
	"github.com/quicklime-ir/quicklime/collector/locker"
	"github.com/quicklime-ir/quicklime/collector/store"
)

const account, region = "111122223333", "eu-central-1"

var hosts = []string{"i-0000000000000000a", "i-0000000000000000b", "i-0000000000000000c"}

// noBucket takes every journal entry.
type noBucket struct{}

func (noBucket) Put(context.Context, string, []byte) (locker.Object, error) {
	return locker.Object{}, nil
}

// told is one event: a version of a finding.
type told struct {
	Event    int
	Finding  int // its id and its type
	Hosts    []string
	Sample   bool
	Count    int
	Severity float64
	Updated  int // minutes
}

func (e told) eventID() string { return fmt.Sprintf("6f1c1e0a-5a0c-4b35-9d0e-%012d", e.Event) }

// raw is the event as EventBridge delivers it; an attack sequence where there
// are several hosts.
func (e told) raw() []byte {
	resource, detection := fmt.Sprintf(`{"resourceType":"Instance","instanceDetails":{"instanceId":%q}}`, e.Hosts[0]), "null"
	if len(e.Hosts) > 1 {
		var all []string
		for _, h := range e.Hosts {
			all = append(all, fmt.Sprintf(`{"resourceType":"EC2_INSTANCE","uid":%q}`, h))
		}
		resource, detection = `{"resourceType":"AttackSequence"}`, `{"sequence":{"resources":[`+strings.Join(all, ",")+`]}}`
	}
	return fmt.Appendf(nil, `{"version":"0","id":%q,"detail-type":"GuardDuty Finding","source":"aws.guardduty","account":%q,"time":"2026-11-20T09:41:07Z",
		"region":%q,"resources":[],"detail":{"accountId":%q,"region":%q,"id":"finding-%d","type":"Type:EC2/%d","severity":%v,"title":"as event %d says",
		"updatedAt":"2026-11-20T10:%02d:00Z","resource":%s,"service":{"count":%d,"detection":%s,"additionalInfo":{"sample":%t}}}}`,
		e.eventID(), account, region, account, region, e.Finding, e.Finding, e.Severity, e.Event, e.Updated, resource, e.Count, detection, e.Sample)
}

// subjects are whose cases the event belongs to: each host's, or, where
// nothing is done, the finding's own.
func (e told) subjects() []string {
	if e.Sample || e.Severity < 7 {
		return []string{fmt.Sprint("finding-", e.Finding)}
	}
	return e.Hosts
}

// newer says which of two versions of a finding is the later one.
func newer(a, b told) int {
	return cmp.Or(cmp.Compare(a.Count, b.Count), cmp.Compare(a.Updated, b.Updated), cmp.Compare(a.eventID(), b.eventID()))
}

// outline is what of a case must not depend on the order: its findings, and
// the events that it took.
type outline struct {
	Findings map[string]string // by id: latest event, count, worst severity
	Seen     []string
	Entries  int // of its journal: one for each event
}

// model is the cases of a set of events.
func model(events []told) map[string]outline {
	latest, worst, seen := map[string]map[int]told{}, map[string]map[int]float64{}, map[string][]string{}
	for _, e := range events {
		for _, s := range e.subjects() {
			if latest[s] == nil {
				latest[s], worst[s] = map[int]told{}, map[int]float64{}
			}
			if known, ok := latest[s][e.Finding]; !ok || newer(e, known) > 0 {
				latest[s][e.Finding] = e
			}
			worst[s][e.Finding] = max(worst[s][e.Finding], e.Severity)
			seen[s] = append(seen[s], e.eventID())
		}
	}
	out := map[string]outline{}
	for s, findings := range latest {
		o := outline{Findings: map[string]string{}, Seen: slices.Sorted(slices.Values(seen[s])), Entries: len(seen[s])}
		for id, e := range findings {
			o.Findings[fmt.Sprint("finding-", id)] = fmt.Sprint("as event ", e.Event, " says, count ", e.Count, ", severity ", worst[s][id])
		}
		out[s] = o
	}
	return out
}

// outlines is the cases of a docket.
func outlines(t *rapid.T, d *docket.Docket) map[string]outline {
	all, err := d.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]outline{}
	for _, c := range all {
		subject := c.Instance.ID
		if !c.Act {
			subject = c.Findings[0].ID
		}
		if _, twice := out[subject]; twice {
			t.Errorf("%s has two open cases", subject)
		}
		o := outline{Findings: map[string]string{}, Seen: slices.Sorted(slices.Values(c.Seen)), Entries: c.Journal.Entries}
		for _, f := range c.Findings {
			if _, twice := o.Findings[f.ID]; twice {
				t.Errorf("case %s has finding %s twice", c.ID, f.ID)
			}
			o.Findings[f.ID] = fmt.Sprint(f.Title, ", count ", f.Count, ", severity ", f.Severity)
		}
		out[subject] = o
	}
	return out
}

// someEvents draws findings about a few instances, with their updates.
func someEvents(t *rapid.T) []told {
	var events []told
	for f := range rapid.IntRange(1, 5).Draw(t, "findings") {
		about := rapid.SliceOfNDistinct(rapid.SampledFrom(hosts), 1, 3, rapid.ID).Draw(t, "hosts")
		sample := rapid.IntRange(0, 5).Draw(t, "sample") == 0
		for range rapid.IntRange(1, 4).Draw(t, "versions") {
			events = append(events, told{Event: len(events), Finding: f, Hosts: about, Sample: sample, Count: rapid.IntRange(1, 3).Draw(t, "count"),
				Severity: rapid.SampledFrom([]float64{4, 7, 8, 9.5}).Draw(t, "severity"), Updated: rapid.IntRange(0, 3).Draw(t, "updated")})
		}
	}
	return events
}

// TestAnyDeliveryGivesTheSameCases: events that come at least once, in any
// order, and several at a time give the cases of each event once.
func TestAnyDeliveryGivesTheSameCases(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		events := someEvents(t)
		deliveries := slices.Clone(events)
		for range rapid.IntRange(0, 2*len(events)).Draw(t, "duplicates") {
			deliveries = append(deliveries, rapid.SampledFrom(events).Draw(t, "again"))
		}
		deliveries = rapid.Permutation(deliveries).Draw(t, "order")
		d := docket.New(docket.Config{Store: store.Memory(), Node: "n", Bucket: noBucket{}, Threshold: 7, Steps: []string{"contain"},
			RecordSteps: []string{"notify"}, Log: slog.New(slog.DiscardHandler), Now: time.Now})
		deliver(t, d, deliveries, rapid.IntRange(1, 4).Draw(t, "hands"))
		if diff := gocmp.Diff(model(events), outlines(t, d)); diff != "" {
			t.Errorf("%s", diff)
		}
	})
}

// deliver hands events in by so many at a time.
func deliver(t *rapid.T, d *docket.Docket, deliveries []told, hands int) {
	next := make(chan told)
	var all sync.WaitGroup
	for range hands {
		all.Go(func() {
			for e := range next {
				if err := d.Take(context.Background(), e.raw()); err != nil {
					t.Errorf("event %d: %v", e.Event, err)
				}
			}
		})
	}
	for _, e := range deliveries {
		next <- e
	}
	close(next)
	all.Wait()
}

// TestSeveralNodesGiveTheSameCases: the queue gives an event to one node now,
// and to another a moment later.
func TestSeveralNodesGiveTheSameCases(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		events, shared := someEvents(t), store.Memory()
		var nodes []*docket.Docket
		for n := range 3 {
			nodes = append(nodes, docket.New(docket.Config{Store: shared.Another(), Node: fmt.Sprint("n", n), Bucket: noBucket{}, Threshold: 7, Steps: []string{"contain"},
				RecordSteps: []string{"notify"}, Log: slog.New(slog.DiscardHandler), Now: time.Now}))
		}
		var all sync.WaitGroup
		for _, d := range nodes {
			mine := rapid.Permutation(events).Draw(t, "order")
			all.Go(func() { deliver(t, d, mine, 2) })
		}
		all.Wait()
		if diff := gocmp.Diff(model(events), outlines(t, nodes[0])); diff != "" {
			t.Errorf("%s", diff)
		}
	})
}

// TestAClosedCaseKeepsWhatItTook: its events, delivered again, open nothing,
// and join no case that came after it.
func TestAClosedCaseKeepsWhatItTook(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		events := someEvents(t)
		d := docket.New(docket.Config{Store: store.Memory(), Node: "n", Bucket: noBucket{}, Threshold: 7, Steps: []string{"contain"},
			RecordSteps: []string{"contain"}, Log: slog.New(slog.DiscardHandler), Now: time.Now})
		deliver(t, d, events, 1)
		before, err := d.List(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range before {
			if _, err := d.Record(context.Background(), c.ID, casefile.Event{Type: casefile.StepEnded, Step: "contain", Outcome: casefile.Done}); err != nil {
				t.Fatal(err)
			}
			if err := d.Close(context.Background(), c.ID, "rebuilt"); err != nil {
				t.Fatal(err)
			}
		}
		deliver(t, d, rapid.Permutation(events).Draw(t, "order"), 2)
		fresh := events[0] // on its subjects there are new cases
		fresh.Event, fresh.Count = len(events), 9
		deliver(t, d, []told{fresh}, 1)
		deliver(t, d, rapid.Permutation(events).Draw(t, "order once more"), 2)
		after, err := d.List(context.Background())
		if err != nil || len(after) != len(before)+len(fresh.subjects()) {
			t.Fatalf("%d cases after %d, %v; want %d more", len(after), len(before), err, len(fresh.subjects()))
		}
		for id, c := range byID(after) {
			old, was := byID(before)[id]
			switch {
			case was && (c.State != casefile.Closed || len(c.Seen) != len(old.Seen)):
				t.Errorf("case %s changed: %+v", id, c)
			case !was && !slices.Equal(c.Seen, []string{fresh.eventID()}):
				t.Errorf("case %s took the events %v; want %s alone", id, c.Seen, fresh.eventID())
			}
		}
	})
}

// TestAnEventThatIsOlderThanManyCases opened the first of them, and is not
// taken for news.
func TestAnEventThatIsOlderThanManyCases(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	today := time.Now()
	d := docket.New(docket.Config{Store: store.Memory(), Node: "n", Bucket: noBucket{}, Threshold: 7, Steps: []string{"contain"},
		RecordSteps: []string{"contain"}, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return today }})
	open := func(n int) string {
		ids, err := d.Open(ctx, told{Event: n, Finding: n, Hosts: hosts[:1], Count: 1, Severity: 8}.raw())
		if err != nil || len(ids) != 1 {
			t.Fatalf("event %d: %v, %v", n, ids, err)
		}
		return ids[0]
	}
	var cases []string
	for n := range 15 {
		id := open(n)
		cases = append(cases, id)
		_, err := d.Record(ctx, id, casefile.Event{Type: casefile.StepEnded, Step: "contain", Outcome: casefile.Done})
		if err = errors.Join(err, d.Close(ctx, id, "rebuilt")); err != nil {
			t.Fatal(err)
		}
	}
	for n, want := range cases {
		if id := open(n); id != want {
			t.Errorf("event %d, delivered again, is of case %s, want %s", n, id, want)
		}
	}
	if all, err := d.List(ctx); err != nil || len(all) != len(cases) {
		t.Errorf("%d cases, %v", len(all), err)
	}
}

func byID(cases []casefile.Case) map[string]casefile.Case {
	return maps.Collect(func(yield func(string, casefile.Case) bool) {
		for _, c := range cases {
			if !yield(c.ID, c) {
				return
			}
		}
	})
}
