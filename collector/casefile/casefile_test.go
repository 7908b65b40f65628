package casefile

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/quicklime-ir/quicklime/proto/evidence"
)

var at = time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)

func opened(t *testing.T) Case {
	t.Helper()
	c, err := Open("20261123-abc", Event{Type: CaseOpened, Time: at,
		Finding: &Finding{EventID: "e1", ID: "f1", Type: "Backdoor:EC2/C&CActivity.B", Severity: 8},
		Opened:  &Opening{Act: true, Reason: "instance", Steps: []string{"memory", "contain"}, Instance: evidence.Instance{ID: "i-01234567"}}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func apply(t *testing.T, c Case, events ...Event) Case {
	t.Helper()
	for _, e := range events {
		var err error
		if c, err = c.Apply(e); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func TestACaseTellsItsNextStep(t *testing.T) {
	c := opened(t)
	story := []struct {
		event Event
		next  string
		begun bool
		state State
	}{
		{Event{Type: StepStarted, Step: "memory"}, "memory", true, Running},
		{Event{Type: StepEnded, Step: "memory", Outcome: Failed, Detail: "no agent"}, "contain", false, Running},
		{Event{Type: StepStarted, Step: "contain"}, "contain", true, Running},
		{Event{Type: StepEnded, Step: "contain", Outcome: Done}, "", false, Ended},
	}
	for _, s := range story {
		c = apply(t, c, s.event)
		if next, begun := c.Next(); next != s.next || begun != s.begun || c.State != s.state {
			t.Errorf("after %s %s: next %q (begun %v), state %s; want %q (%v), %s", s.event.Type, s.event.Step, next, begun, c.State, s.next, s.begun, s.state)
		}
	}
	if !strings.Contains(c.Summary(), "memory failed: no agent") {
		t.Errorf("the summary %q does not say what is missing", c.Summary())
	}
}

func TestFindingsJoin(t *testing.T) {
	tests := []struct {
		name    string
		joining Finding
		want    []float64 // severities, one for each finding kept
	}{
		{"the same finding again", Finding{EventID: "e2", ID: "f1", Type: "Backdoor:EC2/C&CActivity.B", Severity: 8, Count: 2}, []float64{8}},
		{"the same finding, worse", Finding{EventID: "e2", ID: "f1", Type: "Backdoor:EC2/C&CActivity.B", Severity: 9}, []float64{9}},
		{"an older update comes late: the worst severity stays", Finding{EventID: "e0", ID: "f1", Type: "Backdoor:EC2/C&CActivity.B", Severity: 5}, []float64{8}},
		{"another finding", Finding{EventID: "e3", ID: "f2", Type: "CryptoCurrency:EC2/BitcoinTool.B", Severity: 7}, []float64{8, 7}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := opened(t)
			c := apply(t, before, Event{Type: FindingJoined, Finding: &tt.joining})
			var got []float64
			for _, f := range c.Findings {
				got = append(got, f.Severity)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
			if !c.Known(tt.joining.EventID) {
				t.Error("the case does not know the event that it took")
			}
			if diff := cmp.Diff(opened(t), before); diff != "" {
				t.Errorf("applying changed the case before it: %s", diff)
			}
		})
	}
}

// TestTheLatestUpdateStays, whichever comes first; both events are known, so
// that neither is taken for news when it is delivered again.
func TestTheLatestUpdateStays(t *testing.T) {
	older := Finding{EventID: "e2", ID: "f1", Type: "Backdoor:EC2/C&CActivity.B", Severity: 9, Count: 2}
	newer := Finding{EventID: "e3", ID: "f1", Type: "Backdoor:EC2/C&CActivity.B", Severity: 8, Count: 5}
	for _, order := range [][]Finding{{older, newer}, {newer, older}} {
		c := opened(t)
		for _, f := range order {
			c = apply(t, c, Event{Type: FindingJoined, Finding: &f})
		}
		if len(c.Findings) != 1 || c.Findings[0].EventID != "e3" || c.Findings[0].Severity != 9 {
			t.Errorf("findings %+v; want the fifth count, with the worst severity", c.Findings)
		}
		for _, id := range []string{"e1", "e2", "e3"} {
			if !c.Known(id) {
				t.Errorf("event %s is forgotten", id)
			}
		}
	}
}

func TestFindingsAreBounded(t *testing.T) {
	c := opened(t)
	for i := range 3 * maxFindings {
		c = apply(t, c, Event{Type: FindingJoined, Finding: &Finding{ID: strings.Repeat("x", i+1), Type: "T"}})
	}
	if len(c.Findings) != maxFindings || c.Uncounted != 2*maxFindings+1 {
		t.Errorf("%d findings kept, %d counted; want %d and %d", len(c.Findings), c.Uncounted, maxFindings, 2*maxFindings+1)
	}
}

func TestTheFirstReadingOfProtectionStays(t *testing.T) {
	c := apply(t, opened(t),
		Event{Type: Fact, Protection: &Protection{ShutdownBehavior: "terminate"}},
		Event{Type: Fact, Protection: &Protection{TerminationProtected: true, ShutdownBehavior: "stop"}})
	if c.Protection.TerminationProtected || c.Protection.ShutdownBehavior != "terminate" {
		t.Errorf("a repeated step overwrote what was before: %+v", c.Protection)
	}
}

func TestWhatCannotBeApplied(t *testing.T) {
	closed := apply(t, opened(t),
		Event{Type: StepEnded, Step: "memory", Outcome: Failed}, Event{Type: StepEnded, Step: "contain", Outcome: Done}, Event{Type: CaseClosed, Detail: "rebuilt"})
	tests := []struct {
		name string
		c    Case
		e    Event
		want string
	}{
		{"a closed case", closed, Event{Type: Fact}, "closed"},
		{"the closing of a running case", opened(t), Event{Type: CaseClosed}, "running"},
		{"a step that it has not", opened(t), Event{Type: StepStarted, Step: "teleport"}, `"teleport"`},
		{"a control that asks nothing", opened(t), Event{Type: Controlled}, "cannot control"},
		{"an event of a newer collector", opened(t), Event{Type: "moved"}, "unknown"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := tt.c.Apply(tt.e); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one that says %q", err, tt.want)
			}
		})
	}
}

// TestWhatOperatorsAsked: the last word of each sort holds, for the captures
// that it was said of.
func TestWhatOperatorsAsked(t *testing.T) {
	memory, live := []string{"c/memory"}, []string{"c/live"}
	yes, no := true, false
	ask := func(c Control) Event { return Event{Type: Controlled, Time: at, Control: &c} }
	c := apply(t, opened(t),
		ask(Control{Orders: memory, Paused: &yes}),
		ask(Control{Orders: memory, Limits: &Limits{CPUPercent: 50}}),
		ask(Control{Orders: live, Cancel: "the host is needed"}),
		ask(Control{Orders: memory, Limits: &Limits{BytesPerSecond: 1 << 20}}),
		ask(Control{Orders: memory, Paused: &no}))
	got, ok := c.Asked("c/memory")
	if diff := cmp.Diff(Control{Paused: &no, Limits: &Limits{BytesPerSecond: 1 << 20}}, got); diff != "" || !ok {
		t.Error(diff)
	}
	if got, ok := c.Asked("c/live"); got.Cancel != "the host is needed" || got.Paused != nil || !ok {
		t.Errorf("of the files: %+v", got)
	}
	if got, ok := c.Asked("c/volatile"); ok {
		t.Errorf("of the tables: %+v", got)
	}
	if len(c.Controls) != 5 || !c.Controls[0].Time.Equal(at) || c.Controls[0].String() != "c/memory paused" || c.Controls[2].String() != "c/live ended: the host is needed" {
		t.Errorf("controls %v", c.Controls)
	}
	for len(c.Controls) < maxControls {
		c = apply(t, c, ask(Control{Orders: memory, Paused: &yes}))
	}
	if _, err := c.Apply(ask(Control{Orders: memory, Paused: &no})); err == nil {
		t.Error("controls have no bound")
	}
}

// TestMoreIsAskedForBeforeItBegins: of processes all that were named are taken,
// up to a bound; once the step has begun, none is.
func TestMoreIsAskedForBeforeItBegins(t *testing.T) {
	order := opened(t).ID + "/memory" // this story's only capture
	ask := func(pids ...int32) Event {
		return Event{Type: Controlled, Time: at, Control: &Control{Orders: []string{order}, ProcessMemory: pids}}
	}
	c := apply(t, opened(t), ask(7), ask(8, 9))
	got, _ := c.Asked(order)
	if diff := cmp.Diff([]int32{7, 8, 9}, got.ProcessMemory); diff != "" || c.Controls[1].String() != order+" to take the memory of [8 9]" {
		t.Error(diff, c.Controls)
	}
	if _, err := c.Apply(ask(make([]int32, MaxProcessMemory-2)...)); err == nil || !strings.Contains(err.Error(), "65 processes: want 64 at most") {
		t.Errorf("too many: %v", err)
	}
	c = apply(t, c, Event{Type: StepStarted, Step: "memory", Time: at})
	if _, err := c.Apply(ask(10)); err == nil || !strings.Contains(err.Error(), "it has begun") {
		t.Errorf("too late: %v", err)
	}
}

func TestACaseSurvivesItsJSON(t *testing.T) {
	c := apply(t, opened(t), Event{Type: StepStarted, Step: "memory", Time: at},
		Event{Type: Fact, Image: &evidence.Image{ID: "ami-1"}, Interfaces: []evidence.Interface{{ID: "eni-1", Before: []string{"sg-1"}}}})
	raw, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	var back Case
	if err := json.Unmarshal(raw, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(c, back); diff != "" {
		t.Error(diff)
	}
}
