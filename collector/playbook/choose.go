package playbook

import (
	"cmp"
	"slices"
	"time"

	"github.com/quicklime-ir/quicklime/collector/casefile"
)

// Caps bound how many cases run at a time.
type Caps struct {
	Node   int // of one node
	Region int // of one account in one region, by all nodes together: what its API bears
}

// DefaultCaps are those where none are set.
var DefaultCaps = Caps{Node: 64, Region: 32}

// maxRecords bounds how many cases that only notify run at a time on a node:
// they wait for a webhook as a rule, and must not be in the way of the others.
const maxRecords = 8

// ageing is how long a case waits until it counts for one more of severity, so
// that the worse ones cannot keep it waiting for ever.
const ageing = 10 * time.Minute

// scope is what Caps.Region counts.
type scope struct{ account, region string }

func scopeOf(p casefile.Place) scope { return scope{p.Account, p.Region} }

// isRecord tells a case that acts on no instance.
func isRecord(p casefile.Place) bool { return p.Account == "" }

// choose gives the cases that a node takes up now: those that nobody runs, and
// of these the ones that act before those that only notify, the most severe
// first, and then the oldest. running are this node's own: one that is its own
// by the store alone runs nowhere, as the store could not be told. A case rests
// until it may be taken up again.
func choose(places []casefile.Place, running map[string]bool, resting map[string]time.Time, caps Caps, now time.Time) []string {
	var free []casefile.Place
	busy, records := map[scope]int{}, 0
	for _, p := range places {
		switch {
		case p.Owner != "" && !p.Ours || running[p.ID]:
			busy[scopeOf(p)]++
			if isRecord(p) && running[p.ID] {
				records++
			}
		case !now.Before(resting[p.ID]):
			free = append(free, p)
		}
	}
	slices.SortStableFunc(free, func(a, b casefile.Place) int {
		if isRecord(a) != isRecord(b) {
			return map[bool]int{true: 1, false: -1}[isRecord(a)]
		}
		return cmp.Compare(urgency(b, now), urgency(a, now))
	})
	var out []string
	for _, p := range free {
		if len(running)+len(out) >= caps.Node {
			break
		}
		if isRecord(p) {
			if records++; records > maxRecords {
				continue
			}
		} else if busy[scopeOf(p)] >= caps.Region {
			continue
		}
		busy[scopeOf(p)]++
		out = append(out, p.ID)
	}
	return out
}

// urgency is a case's severity, and more the longer it waits.
func urgency(p casefile.Place, now time.Time) float64 {
	return p.Severity + float64(now.Sub(p.Opened))/float64(ageing)
}
