package world

import (
	"encoding/json"
	"fmt"
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
		envelope := fmt.Sprintf(`{"version":"0","id":"6f1c1e0a-5a0c-4b35-9d0e-0f6f7c1d2a01","detail-type":"GuardDuty Finding","source":"aws.guardduty",
			"account":%q,"time":"2026-11-20T09:41:07Z","region":%q,"resources":[],"detail":%s}`, Account, Region, tt.finding.Detail(Region, Account))
		if !json.Valid([]byte(envelope)) {
			t.Fatalf("%s: not JSON: %s", tt.name, envelope)
		}
		f, err := finding.Parse([]byte(envelope))
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if v := finding.Triage(f, 7); v.Act != tt.act || v.Act && len(v.Targets) != tt.targets {
			t.Errorf("%s: verdict %+v", tt.name, v)
		}
	}
}
