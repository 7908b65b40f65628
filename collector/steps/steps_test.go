package steps

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/aws/smithy-go"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/cloud"
	"github.com/quicklime-ir/quicklime/collector/fleet"
	"github.com/quicklime-ir/quicklime/collector/notify"
	"github.com/quicklime-ir/quicklime/collector/playbook"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// The steps as a whole are tested in the lab, against a strict EC2 and a real
// S3. Here stands what they decide by themselves.

func TestTheOrderOfTheStory(t *testing.T) {
	got := Names((&Story{}).Steps())
	want := []string{"notify", "protect", "volatile", "symbols", "memory", "live", "image", "contain", "verify", "seal", "report"}
	if !slices.Equal(got, want) {
		t.Errorf("the steps are %v, want %v", got, want)
	}
}

func TestWhichErrorsAreTriedAgain(t *testing.T) {
	api := func(code string) error { return &smithy.GenericAPIError{Code: code} }
	gone := api("InvalidNetworkInterfaceID.NotFound")
	tests := []struct {
		name  string
		step  string
		err   error
		again bool
	}{
		{"throttled", Contain, api("RequestLimitExceeded"), true},
		{"the connection was cut", Contain, errors.New("read: connection reset by peer"), true},
		{"not allowed", Contain, api("UnauthorizedOperation"), false},
		{"no such instance", Protect, api("InvalidInstanceID.NotFound"), false},
		{"it is terminated", Protect, cloud.ErrNoInstance, false},
		{"nothing went wrong", Protect, nil, false},
		{"no room for another group", Contain, api("SecurityGroupLimitExceeded"), false},
		{"no room for another snapshot", Image, api("SnapshotLimitExceeded"), false},
		{"an interface was detached since it was listed", Contain, gone, true},
		{"one was detached, one cannot be tagged", Contain, errors.Join(gone, api("TagLimitExceeded")), true},
	}
	for _, tt := range tests {
		if err := retry(tt.step, tt.err); errors.As(err, new(playbook.Again)) != tt.again || (err == nil) != (tt.err == nil) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// TestTheGroupsBeforeStay: a step that is repeated after a crash finds
// interfaces that it has isolated itself.
func TestTheGroupsBeforeStay(t *testing.T) {
	known := []evidence.Interface{{ID: "eni-1", Before: []string{"sg-web"}}}
	got := withBefore(known, []cloud.Interface{{ID: "eni-1", Groups: []string{"sg-isolation"}}, {ID: "eni-2", Groups: []string{"sg-db"}}})
	if len(got) != 2 || got[0].Before[0] != "sg-web" || got[1].Before[0] != "sg-db" {
		t.Errorf("interfaces %+v", got)
	}
	if len(known) != 1 {
		t.Error("what was known was changed")
	}
}

func TestWhatAnAgentsResultLacks(t *testing.T) {
	if err := resultError(fleet.Result{Outcome: wire.Outcome_OUTCOME_WHOLE}); err != nil {
		t.Errorf("a whole result: %v", err)
	}
	err := resultError(fleet.Result{Outcome: wire.Outcome_OUTCOME_FAILED, Error: "no memory source",
		Refused: []*wire.SourceVerdict{{Source: "lime", Reason: "no_module", Detail: "for 6.1.0"}}})
	if err == nil || !strings.Contains(err.Error(), "no memory source; source lime: no_module, for 6.1.0") {
		t.Errorf("a failed result: %v", err)
	}
	if err := resultError(fleet.Result{Outcome: wire.Outcome_OUTCOME_PARTIAL}); err == nil {
		t.Error("a partial result without a reason passes for whole")
	}
}

func TestAnotherAccountIsNotActedIn(t *testing.T) {
	s := &Story{Account: "111122223333"}
	_, err := s.ec2(casefile.Case{Instance: evidence.Instance{ID: "i-1", Account: "999900001111"}})
	if err == nil || !strings.Contains(err.Error(), "999900001111") || !strings.Contains(err.Error(), "111122223333") {
		t.Errorf("error %v, want both accounts named", err)
	}
}

func TestTheReportSaysWhatIsWrongFirst(t *testing.T) {
	step := func(name string, o casefile.Outcome) casefile.Step {
		return casefile.Step{Name: name, Outcome: o, Detail: "because"}
	}
	tests := []struct {
		name  string
		steps []casefile.Step
		want  string
	}{
		{"all is well", []casefile.Step{step(Memory, casefile.Done), step(Contain, casefile.Done), step(Verify, casefile.Done)}, "evidence is whole, instance is isolated"},
		{"memory is missing", []casefile.Step{step(Memory, casefile.Failed), step(Contain, casefile.Done), step(Verify, casefile.Done)}, "not all is well"},
		{"containment failed", []casefile.Step{step(Memory, casefile.Done), step(Contain, casefile.Failed), step(Verify, casefile.Failed)}, "NOT CONTAINED"},
		{"reading back failed", []casefile.Step{step(Memory, casefile.Done), step(Contain, casefile.Done), step(Verify, casefile.Failed)}, "NOT CONTAINED"},
		{"an object is not as it was", []casefile.Step{step(Memory, casefile.Done), step(Contain, casefile.Done), step(Verify, casefile.Partly)}, "not all is well"},
	}
	for _, tt := range tests {
		m := reportOf(casefile.Case{Instance: evidence.Instance{ID: "i-1"}, Steps: tt.steps})
		if !strings.Contains(m.Title, tt.want) {
			t.Errorf("%s: title %q, want %q", tt.name, m.Title, tt.want)
		}
		if i := slices.IndexFunc(m.Fields, func(f notify.Field) bool { return f.Name == "What isolation does not stop" }); i < 0 {
			t.Errorf("%s: the report does not say what isolation does not stop", tt.name)
		}
	}
}
