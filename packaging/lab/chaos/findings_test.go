package chaos

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/quicklime-ir/quicklime/collector/finding"
	"github.com/quicklime-ir/quicklime/packaging/lab/world"
)

// find has a finder send all that it has, and gives what came through.
func find(t *testing.T, seed uint64, hosts int) (events []string, sent []Sent) {
	t.Helper()
	f := &finder{random: rand.New(rand.NewPCG(seed, 0)), room: func() bool { return true }, deliver: func(event string) error {
		events = append(events, event)
		return nil
	}}
	for n := range hosts {
		f.hosts = append(f.hosts, new(world.World).Host(n))
	}
	if err := f.run(t.Context(), time.Millisecond); err != nil {
		t.Fatal(err)
	}
	return events, f.sent
}

// TestFindings: each host is named, what is delivered is what a collector acts
// on, and the noise is there: repeats, updates, old events after new ones.
func TestFindings(t *testing.T) {
	const hosts = 100
	events, sent := find(t, 1, hosts)
	named, kinds := map[string]bool{}, map[string]int{}
	ids, newest := map[string]bool{}, map[string]int{}
	for _, e := range events {
		f, err := finding.Parse([]byte(e))
		if err != nil {
			t.Fatal(err)
		}
		v := finding.Triage(f, 7)
		at := slices.IndexFunc(sent, func(s Sent) bool { return s.Event == f.EventID })
		if !v.Act || at < 0 || len(v.Targets) != len(sent[at].Instances) {
			t.Fatalf("event %s: verdict %+v", e, v)
		}
		for _, i := range v.Targets {
			named[i.InstanceID] = true
		}
		switch {
		case ids[f.EventID] && f.Count < newest[f.ID]:
			kinds["an old event after a newer one"]++
		case ids[f.EventID]:
			kinds["the same event again"]++
		case newest[f.ID] > 0:
			kinds["an update"]++
		case len(v.Targets) > 1:
			kinds["of two instances"]++
		}
		ids[f.EventID], newest[f.ID] = true, max(newest[f.ID], f.Count)
	}
	if len(named) != hosts || len(ids) != len(sent) || len(kinds) != 4 {
		t.Errorf("%d hosts, %d of %d events, %v", len(named), len(ids), len(sent), kinds)
	}
}

// TestTheSameSeedIsTheSameWeather, but for the times.
func TestTheSameSeedIsTheSameWeather(t *testing.T) {
	names := func(seed uint64) (out []string) {
		_, sent := find(t, seed, 20)
		for _, s := range sent {
			out = append(out, fmt.Sprint(s.Event, s.Instances))
		}
		return out
	}
	if a, b := names(7), names(7); !slices.Equal(a, b) {
		t.Errorf("%v\n%v", a, b)
	}
	if slices.Equal(names(7), names(8)) {
		t.Error("another seed is the same")
	}
}
