package world

import (
	"testing"

	"github.com/quicklime-ir/quicklime/collector/finding"
)

// TestTheLabsFindingsAreWhatTheCollectorReads, and mean what their names say.
func TestTheLabsFindingsAreWhatTheCollectorReads(t *testing.T) {
	sample := Compromised("i-99999999")
	sample.Sample = true
	tests := []struct {
		name    string
		finding Finding
		act     bool
		targets int
	}{
		{"a compromised instance", Compromised(Victim), true, 1},
		{"a sample", sample, false, 0},
		{"an access key with an instance's details", Finding{Type: "UnauthorizedAccess:IAMUser/InstanceCredentialExfiltration", Severity: 8, ResourceType: "AccessKey", Instance: Victim}, false, 0},
		{"an attack sequence", Finding{Type: "AttackSequence:EC2/CompromisedInstanceGroup", Severity: 9, ResourceType: "AttackSequence", Sequence: []string{Victim, Neighbour}}, true, 2},
	}
	for _, tt := range tests {
		f, err := finding.Parse([]byte(tt.finding.Event("6f1c1e0a-5a0c-4b35-9d0e-0f6f7c1d2a01")))
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if v := finding.Triage(f, 7); v.Act != tt.act || v.Act && len(v.Targets) != tt.targets {
			t.Errorf("%s: verdict %+v", tt.name, v)
		}
	}
}
