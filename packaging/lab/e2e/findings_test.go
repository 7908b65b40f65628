package e2e

import (
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
	for _, f := range []world.Finding{first, other, again} {
		if err := w.Find(f); err != nil {
			t.Fatal(err)
		}
	}
	c := awaitCases(t, w, 1)[0]
	if len(c.Findings) != 2 || c.Findings[0].Count+c.Findings[1].Count != 6 {
		t.Errorf("findings %+v; want two, the one at its fifth count", c.Findings)
	}
	contained(t, w, world.Victim)
}

// TestWhoIsOnlyTold: findings that must not start anything.
func TestWhoIsOnlyTold(t *testing.T) {
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
	bad := `{"version":"0","detail-type":"GuardDuty Finding","source":"aws.guardduty","detail":{"id":7}}`
	w.AWS.SendRaw(bad)
	if err := w.Find(world.Compromised(world.Victim)); err != nil {
		t.Fatal(err)
	}
	awaitCases(t, w, 1)
	deadline := time.Now().Add(30 * time.Second)
	for !slices.Equal(w.AWS.State().Queue.DeadLetters, []string{bad}) {
		if time.Now().After(deadline) {
			t.Fatalf("the dead-letter queue has %q", w.AWS.State().Queue.DeadLetters)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if logs := string(w.Logs()); !strings.Contains(logs, "malformed") {
		t.Errorf("the log does not say what is wrong")
	}
}
