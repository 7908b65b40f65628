package casefile

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func joined(event, id, kind string, severity float64) Event {
	return Event{Type: FindingJoined, Finding: &Finding{EventID: event, ID: id, Type: kind, Severity: severity, Title: "t"}}
}

func TestNewsStayUntilTheyAreTold(t *testing.T) {
	c := apply(t, opened(t), joined("e2", "f2", "B", 7), joined("e3", "f1", "Backdoor:EC2/C&CActivity.B", 9), joined("e4", "f4", "B", 8))
	want := []News{{EventID: "e2", Type: "B", Title: "t", Severity: 7, Worst: 8, NewType: true},
		{EventID: "e3", Type: "Backdoor:EC2/C&CActivity.B", Title: "t", Severity: 9, Worst: 8}}
	if diff := cmp.Diff(want, c.Untold); diff != "" {
		t.Error(diff)
	}
	after := apply(t, c, Event{Type: NewsTold, Told: []string{"e2", "e4", "no such event"}})
	if diff := cmp.Diff(want[1:], after.Untold); diff != "" {
		t.Error(diff)
	}
	if len(c.Untold) != 2 {
		t.Error("the case before it was changed")
	}
}

// TestAFullCaseDoesNotTellForEver: a finding that it has no room for would be
// a new type each time.
func TestAFullCaseDoesNotTellForEver(t *testing.T) {
	c := opened(t)
	for n := range 3 * maxFindings {
		c = apply(t, c, joined(fmt.Sprint("e", n), fmt.Sprint("g", n), fmt.Sprint("Type", n), 7))
	}
	if len(c.Untold) != maxFindings-1 || c.Uncounted == 0 {
		t.Errorf("%d news, %d findings not kept", len(c.Untold), c.Uncounted)
	}
}
