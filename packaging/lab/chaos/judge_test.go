package chaos

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/packaging/lab/emulator"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

var began = time.Date(2026, 11, 20, 9, 0, 0, 0, time.UTC)

func at(seconds int) time.Time { return began.Add(time.Duration(seconds) * time.Second) }

// good is the evidence of a case that lacks nothing and has nothing twice.
func good() Evidence {
	return Evidence{
		Sent:  []Sent{{"event-1", []string{"i-1"}, at(0)}, {"event-2", []string{"i-1"}, at(50)}},
		Marks: []Mark{{"i-1", at(2), "a"}, {"i-1", at(9), "b"}, {"i-1", at(14), manifest}, {"i-1", at(50), "journal/1"}},
		Cases: []casefile.Case{{ID: "c-1", State: casefile.Ended, Instance: evidence.Instance{ID: "i-1"}, Seen: []string{"event-1", "event-2"},
			Steps: []casefile.Step{{Name: "image", Tries: 2, Outcome: casefile.Done}}, Journal: evidence.JournalHead{Entries: 4}}},
		Papers: map[string]Papers{"c-1": {Journal: []casefile.Event{{Type: casefile.CaseOpened}, {Type: casefile.StepStarted, Step: "image"},
			{Type: casefile.StepStarted, Step: "image"}, {Type: casefile.StepEnded, Step: "image"}}}},
		Acts: []emulator.Act{
			{Time: at(5), Action: "CreateImage", Subject: "i-1", What: "image", Value: "c-1", Changed: true},
			{Time: at(6), Action: "CreateImage", Subject: "i-1", What: "image", Value: "c-1"}},
		Account: emulator.State{
			Instances:  []emulator.InstanceState{{ID: "i-1", TerminationProtected: true, ShutdownBehavior: "stop"}, {ID: "i-2", ShutdownBehavior: "terminate"}},
			Interfaces: []emulator.InterfaceState{{ID: "eni-1", Instance: "i-1", Groups: []string{"sg-iso"}}, {ID: "eni-2", Instance: "i-2", Groups: []string{"sg-web"}}},
			Groups:     []emulator.GroupState{{ID: "sg-iso"}, {ID: "sg-web", Egress: []emulator.Rule{{Protocol: "-1"}}}},
			Images:     []emulator.ImageState{{ID: "ami-1", Instance: "i-1", State: "available"}}},
		End: at(100),
	}
}

// TestJudge changes one thing at a time.
func TestJudge(t *testing.T) {
	tests := []struct {
		name          string
		change        func(*Evidence)
		lost, doubled int
		pause         int    // seconds
		says          string // in the faults
	}{
		{"nothing is wrong", func(e *Evidence) {}, 0, 0, 5, ""},
		{"no case", func(e *Evidence) { e.Cases = nil }, 1, 0, 5, "no case"},
		{"a case that runs", func(e *Evidence) { e.Cases[0].State, e.Cases[0].Steps[0].Outcome = casefile.Running, "" }, 1, 0, 5, "in step image"},
		{"a finding that no case knows", func(e *Evidence) { e.Cases[0].Seen = e.Cases[0].Seen[:1] }, 1, 0, 5, "event-2"},
		{"a step that failed", func(e *Evidence) { e.Cases[0].Steps[0].Outcome = casefile.Failed }, 1, 0, 5, "step image"},
		{"news that nobody was told", func(e *Evidence) {
			e.Cases[0].Untold = []casefile.News{{Message: casefile.Report, EventID: casefile.Report}}
		}, 1, 0, 5, "nobody was told of report"},
		{"evidence that does not hold", func(e *Evidence) { e.Papers["c-1"] = Papers{[]string{"part 3 is changed"}, e.Papers["c-1"].Journal} }, 1, 0, 5, "part 3"},
		{"a journal that lacks its end", func(e *Evidence) { e.Cases[0].Journal.Entries++ }, 1, 0, 5, "4 entries in the bucket, of 5"},
		{"no protection", func(e *Evidence) { e.Account.Instances[0].TerminationProtected = false }, 1, 0, 5, "protect"},
		{"an open interface", func(e *Evidence) { e.Account.Interfaces[0].Groups = []string{"sg-iso", "sg-web"} }, 1, 0, 5, "eni-1"},
		{"an interface in a group with rules", func(e *Evidence) { e.Account.Interfaces[0].Groups = []string{"sg-web"} }, 1, 0, 5, "eni-1"},
		{"no image", func(e *Evidence) { e.Account.Images = nil }, 1, 0, 5, "no image"},
		{"two findings of two instances", func(e *Evidence) { e.Sent = append(e.Sent, Sent{"event-3", []string{"i-1", "i-2"}, at(90)}) }, 2, 0, 10, "i-2: it has no case"},
		{"two cases", func(e *Evidence) { e.Cases = append(e.Cases, e.Cases[0]) }, 0, 1, 5, "has cases c-1 and c-1"},
		{"a case of nobody", func(e *Evidence) {
			e.Cases = append(e.Cases, casefile.Case{ID: "c-2", State: casefile.Ended, Instance: evidence.Instance{ID: "i-2"}})
		}, 0, 1, 5, "no finding named"},
		{"a step that ended twice", func(e *Evidence) {
			p := e.Papers["c-1"]
			e.Papers["c-1"] = Papers{Journal: append(slices.Clone(p.Journal), p.Journal[3])}
		}, 0, 1, 5, "step image of case c-1 ended twice"},
		{"two images", func(e *Evidence) { e.Acts[1].Changed = true }, 0, 1, 5, "CreateImage made image of i-1"},
		{"a case that stood still to the end", func(e *Evidence) { e.Marks, e.Acts = e.Marks[:1], nil }, 0, 0, 98, ""},
		{"a case that EC2 moved on", func(e *Evidence) {
			e.Marks = e.Marks[2:]
			e.Acts[0].Subject, e.Acts[1].Time = "eni-1", at(9)
		}, 0, 0, 5, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := good()
			tt.change(&e)
			v := Judge(e)
			if v.Lost != tt.lost || v.Doubled != tt.doubled || v.Pause != time.Duration(tt.pause)*time.Second || v.OK() != (tt.lost+tt.doubled == 0) {
				t.Errorf("%+v; want lost %d, doubled %d, pause %d s", v, tt.lost, tt.doubled, tt.pause)
			}
			if said := strings.Join(v.Faults, "\n"); !strings.Contains(said, tt.says) || tt.says == "" && said != "" {
				t.Errorf("faults:\n%s\nwant %q", said, tt.says)
			}
		})
	}
}

func TestThePauseSaysBetweenWhat(t *testing.T) {
	e := good()
	e.Marks, e.Acts = e.Marks[2:], e.Acts[1:]
	const want = "i-1, between CreateImage at 09:00:06.000 and manifest.json"
	if v := Judge(e); v.PauseOf != want {
		t.Errorf("%q, want %q", v.PauseOf, want)
	}
}

func TestTheLastLine(t *testing.T) {
	var b strings.Builder
	v := Verdict{Cases: 31, Lost: 1, Doubled: 2, Pause: 4250 * time.Millisecond, PauseOf: "i-1", Faults: []string{"LOST     i-1: it has no case"}}
	if err := v.WriteText(&b); err != nil || !strings.HasSuffix(b.String(), "\ncases 31, lost 1, doubled 2, longest pause 4.2 s\n") {
		t.Errorf("%s, %v", b.String(), err)
	}
}
