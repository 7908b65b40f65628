package e2e

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/packaging/lab/world"
)

// awaitCases waits until there are so many cases and all have ended.
func awaitCases(t *testing.T, w *world.World, n int) []casefile.Case {
	t.Helper()
	deadline := time.Now().Add(90 * time.Second)
	for time.Now().Before(deadline) {
		cases, err := w.Cases(t.Context())
		if err == nil && len(cases) == n && !slices.ContainsFunc(cases, func(c casefile.Case) bool { return c.State != casefile.Ended }) {
			return cases
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("there are not %d cases that have ended", n)
	return nil
}

// untouched wants EC2 as it was.
func untouched(t *testing.T, w *world.World) {
	t.Helper()
	s := w.AWS.State()
	if len(s.Created) != 0 || s.Instances[0].TerminationProtected {
		t.Errorf("something was done: created %v, instance %+v", s.Created, s.Instances[0])
	}
	for call := range s.Calls {
		if strings.HasPrefix(call, "ec2.") {
			t.Errorf("EC2 was called: %s", call)
		}
	}
}

// TestFindingsOnOneInstanceAreOneCase: GuardDuty tells the same incident
// several times, under several names.
func TestFindingsOnOneInstanceAreOneCase(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	attach(t, w, world.Victim)
	first := world.Compromised(world.Victim)
	first.ID = "1ac6f0d2b4e84a3f9c7b5d3e1f2a4c68"
	again := first
	again.Count = 5
	other := world.Compromised(world.Victim)
	other.Type, other.Severity = "CryptoCurrency:EC2/BitcoinTool.B!DNS", 7
	event := fmt.Sprintf(`{"version":"0","id":"6f1c1e0a-5a0c-4b35-9d0e-0f6f7c1d2a01","detail-type":"GuardDuty Finding","source":"aws.guardduty",
		"account":%q,"time":"2026-11-20T09:41:07Z","region":%q,"resources":[],"detail":%s}`, world.Account, world.Region, other.Detail(world.Region, world.Account))
	if err := errors.Join(w.Find(first), w.AWS.SendRaw(event), w.Find(again)); err != nil {
		t.Fatal(err)
	}
	c := awaitCases(t, w, 1)[0]
	if len(c.Findings) != 2 || c.Findings[0].Count+c.Findings[1].Count != 6 {
		t.Errorf("findings %+v; want two, the one at its fifth count", c.Findings)
	}
	allDone(t, c)
	if err := w.AWS.SendRaw(event); err != nil { // SQS delivers a message at least once
		t.Fatal(err)
	}
	awaitEmptyQueue(t, w)
	after := awaitCases(t, w, 1)[0]
	if after.ID != c.ID || len(after.Findings) != 2 || len(after.Seen) != len(c.Seen) {
		t.Errorf("an event that came twice changed case %s to %+v", c.ID, after)
	}
	contained(t, w, world.Victim)
	verify(t, w)
	if n := len(w.Discord.Messages()); n != 3 {
		t.Errorf("%d messages for one incident, want its beginning, the other type of finding, and its end", n)
	}
}

// awaitEmptyQueue waits until every message was taken, or put aside.
func awaitEmptyQueue(t *testing.T, w *world.World) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		q := w.AWS.State().Queue
		if q.Visible+q.InFlight == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the queue still has %d messages, and %d in flight", q.Visible, q.InFlight)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// TestWhoIsOnlyTold: findings that must not start anything.
func TestWhoIsOnlyTold(t *testing.T) {
	t.Parallel()
	sample := world.Compromised(world.Victim)
	sample.Sample = true
	tests := []struct {
		name    string
		finding world.Finding
		says    string
	}{
		{"an access key with an instance's details", world.Finding{Type: "UnauthorizedAccess:IAMUser/InstanceCredentialExfiltration.OutsideAWS",
			Title: "Credentials used from outside", Severity: 8, ResourceType: "AccessKey", Instance: world.Victim}, world.Victim},
		{"a bucket", world.Finding{Type: "Exfiltration:S3/AnomalousBehavior", Title: "Odd reads", Severity: 8, ResourceType: "S3Bucket"}, "S3Bucket"},
		{"a database", world.Finding{Type: "CredentialAccess:RDS/AnomalousBehavior.SuccessfulLogin", Title: "Odd login", Severity: 8, ResourceType: "RDSDBInstance"}, "RDSDBInstance"},
		{"a sample", sample, "sample"},
		{"the instance that does not exist", world.Compromised("i-99999999"), "sample"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := start(t, nil)
			attach(t, w, world.Victim)
			if err := w.Find(tt.finding); err != nil {
				t.Fatal(err)
			}
			c := awaitCases(t, w, 1)[0]
			if c.Act || !strings.Contains(strings.ToLower(c.Reason), strings.ToLower(tt.says)) {
				t.Errorf("acts %v, because %q; want a record that names %q", c.Act, c.Reason, tt.says)
			}
			messages := w.Discord.Messages()
			if len(messages) != 1 || !strings.Contains(messages[0].Embeds[0].Title, "nothing done") {
				t.Errorf("Discord was told %+v", messages)
			}
			untouched(t, w)
		})
	}
}

// TestAnAttackSequenceIsACaseForEachInstance: the worst findings name
// several hosts at once.
func TestAnAttackSequenceIsACaseForEachInstance(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	attach(t, w, world.Victim)
	attach(t, w, world.Neighbour)
	if err := w.Find(world.Finding{Type: "AttackSequence:EC2/CompromisedInstanceGroup", Title: "A group of instances", Severity: 9,
		ResourceType: "AttackSequence", Sequence: []string{world.Victim, world.Neighbour}}); err != nil {
		t.Fatal(err)
	}
	var instances []string
	for _, c := range awaitCases(t, w, 2) {
		instances = append(instances, c.Instance.ID)
		if s, _ := c.StepNamed("contain"); s.Outcome != casefile.Done {
			t.Errorf("%s: %s, %s", c.Instance.ID, s.Outcome, s.Detail)
		}
	}
	slices.Sort(instances)
	if !slices.Equal(instances, []string{world.Victim, world.Neighbour}) {
		t.Errorf("cases of %v", instances)
	}
	if s := w.AWS.State(); s.Created["image"] != 2 || s.Created["group"] != 1 {
		t.Errorf("created %v, want two images and the VPC's one group", s.Created)
	}
}

// TestAMalformedEventIsPutAside, with what is wrong in the log, and the next
// good one is taken.
func TestAMalformedEventIsPutAside(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	attach(t, w, world.Victim)
	bad := []struct{ body, says string }{
		{`{not json`, "$ is not JSON"},
		{`{"version":"0","detail-type":"GuardDuty Finding","source":"aws.guardduty","detail":{"id":7}}`, "$.id "},
	}
	for _, b := range bad {
		if err := w.AWS.SendRaw(b.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Find(world.Compromised(world.Victim)); err != nil {
		t.Fatal(err)
	}
	allDone(t, awaitCases(t, w, 1)[0])
	awaitEmptyQueue(t, w)
	letters := w.AWS.State().Queue.DeadLetters
	if len(letters) != len(bad) {
		t.Errorf("the dead-letter queue has %q", letters)
	}
	logs := strings.Split(string(w.Logs()), "\n")
	for _, b := range bad {
		if !slices.Contains(letters, b.body) {
			t.Errorf("%s is not in the dead-letter queue", b.body)
		}
		if !slices.ContainsFunc(logs, func(line string) bool {
			return strings.Contains(line, "dead-letter queue") && strings.Contains(line, "finding is malformed: "+b.says)
		}) {
			t.Errorf("the log does not say of %s: %s", b.body, b.says)
		}
	}
}
