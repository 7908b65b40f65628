package playbook

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/quicklime-ir/quicklime/collector/casefile"
)

var noon = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// waiting is a case that was opened minutes before noon.
func waiting(id string, severity float64, minutes int) casefile.Place {
	return casefile.Place{ID: id, Severity: severity, Opened: noon.Add(-time.Duration(minutes) * time.Minute), Account: "111122223333", Region: "eu-central-1"}
}

func TestWhatIsTakenUpFirst(t *testing.T) {
	theirs, elsewhere, record := waiting("theirs", 9, 0), waiting("elsewhere", 7, 0), waiting("record", 9, 0)
	theirs.Owner, elsewhere.Region, record.Account = "b", "eu-west-1", ""
	kept, mine := waiting("kept", 7, 0), waiting("mine", 9, 0)
	kept.Owner, kept.Ours, mine.Owner, mine.Ours = "a", true, "a", true
	tests := []struct {
		name   string
		places []casefile.Place
		caps   Caps
		want   []string
	}{
		{"the most severe", []casefile.Place{waiting("a", 7, 0), waiting("b", 9, 0), waiting("c", 8, 0)}, DefaultCaps, []string{"b", "c", "a"}},
		{"of equal ones the oldest", []casefile.Place{waiting("a", 8, 2), waiting("b", 8, 1)}, DefaultCaps, []string{"a", "b"}},
		{"one that has waited for long", []casefile.Place{waiting("a", 9, 0), waiting("b", 7, 21)}, DefaultCaps, []string{"b", "a"}},
		{"nothing that another node runs", []casefile.Place{theirs, waiting("a", 7, 0)}, DefaultCaps, []string{"a"}},
		{"what runs here no more, though the store could not be told", []casefile.Place{kept, mine}, DefaultCaps, []string{"kept"}},
		{"nothing that runs here, or rests", []casefile.Place{mine, waiting("resting", 9, 0), waiting("a", 7, 0)}, DefaultCaps, []string{"a"}},
		{"those that only notify come last", []casefile.Place{record, waiting("a", 7, 0)}, DefaultCaps, []string{"a", "record"}},
		{"no more than the node may run", []casefile.Place{mine, waiting("a", 7, 0), waiting("b", 8, 0)}, Caps{2, 9}, []string{"b"}},
		{"no more than the region bears, whoever runs them", []casefile.Place{theirs, waiting("a", 9, 0), waiting("b", 8, 0), elsewhere}, Caps{9, 2}, []string{"a", "elsewhere"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := choose(tt.places, map[string]bool{"mine": true}, map[string]time.Time{"resting": noon.Add(time.Second)}, tt.caps, noon)
			if !slices.Equal(got, tt.want) {
				t.Errorf("chosen are %q, want %q", got, tt.want)
			}
		})
	}
}

// TestCapsHold for any queue, and no slot is left empty that a case could
// have.
func TestCapsHold(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		caps := Caps{Node: rapid.IntRange(1, 20).Draw(t, "node"), Region: rapid.IntRange(1, 10).Draw(t, "region")}
		places, running := []casefile.Place{}, map[string]bool{}
		for n := range rapid.IntRange(0, 60).Draw(t, "places") {
			p := waiting(fmt.Sprint(n), rapid.Float64Range(0, 10).Draw(t, "severity"), rapid.IntRange(0, 100).Draw(t, "minutes"))
			p.Account = rapid.SampledFrom([]string{"", "1", "2"}).Draw(t, "account")
			p.Owner = rapid.SampledFrom([]string{"", "", "b"}).Draw(t, "owner")
			places = append(places, p)
		}
		got := choose(places, running, nil, caps, noon)
		if len(got) > caps.Node {
			t.Fatalf("%d are taken up, the node may run %d", len(got), caps.Node)
		}
		busy := map[scope]int{}
		for _, p := range places {
			chosen := slices.Contains(got, p.ID)
			if chosen && p.Owner != "" {
				t.Fatalf("%s is another node's", p.ID)
			}
			if chosen || p.Owner != "" {
				busy[scopeOf(p)]++
			}
		}
		for _, p := range places {
			if p.Owner == "" && !slices.Contains(got, p.ID) && len(got) < caps.Node && !isRecord(p) && busy[scopeOf(p)] < caps.Region {
				t.Fatalf("%s could be taken up, and is not", p.ID)
			}
			if !isRecord(p) && slices.Contains(got, p.ID) && busy[scopeOf(p)] > caps.Region {
				t.Fatalf("%d run in %v, want %d at most", busy[scopeOf(p)], scopeOf(p), caps.Region)
			}
		}
	})
}

// BenchmarkChoose is one look at a queue of 10,000.
func BenchmarkChoose(b *testing.B) {
	var places []casefile.Place
	for n := range 10_000 {
		places = append(places, waiting(fmt.Sprint(n), float64(7+n%3), n%100))
	}
	for b.Loop() {
		choose(places, nil, nil, DefaultCaps, noon)
	}
}
