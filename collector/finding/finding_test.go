package finding

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	account = "111122223333"
	region  = "eu-central-1"
	host    = "i-0c3f9a5b7d1e24680"
)

func fixture(t testing.TB, name string) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// with returns the fixture with the value at path, dotted, set; value nil is
// JSON null, and drop removes it.
func with(t testing.TB, name, path string, value any) []byte {
	t.Helper()
	var doc map[string]any
	if err := json.Unmarshal(fixture(t, name), &doc); err != nil {
		t.Fatal(err)
	}
	steps := strings.Split(path, ".")
	at := doc
	for _, step := range steps[:len(steps)-1] {
		at = at[step].(map[string]any)
	}
	last := steps[len(steps)-1]
	at[last] = value
	if value == drop {
		delete(at, last)
	}
	raw, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

type dropped struct{}

var drop any = dropped{}

func parse(t testing.TB, raw []byte) *Finding {
	t.Helper()
	f, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestParseReadsAnInstanceFinding(t *testing.T) {
	raw := fixture(t, "instance.json")
	got := parse(t, raw)
	want := &Finding{
		EventID: "6f1c1e0a-5a0c-4b35-9d0e-0f6f7c1d2a01", ID: "1ac6f0d2b4e84a3f9c7b5d3e1f2a4c68",
		Account: account, Region: region, Type: "Backdoor:EC2/C&CActivity.B",
		Title:       "Command and control server IP address queried by EC2 instance i-0c3f9a5b7d1e24680.",
		Description: "EC2 instance i-0c3f9a5b7d1e24680 is communicating with a known command and control server.",
		Severity:    8, ResourceType: "Instance", Count: 3,
		CreatedAt: time.Date(2026, 11, 20, 9, 35, 40, 112e6, time.UTC),
		UpdatedAt: time.Date(2026, 11, 20, 9, 40, 59, 873e6, time.UTC),
		Targets:   []Target{{account, region, host}}, Raw: raw,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	raw[0] = 'x'
	if got.Raw[0] != '{' {
		t.Error("the finding shares the caller's buffer")
	}
}

func TestParseTakesTimesAsNumbersAndNulls(t *testing.T) {
	f := parse(t, fixture(t, "container.json"))
	if want := time.UnixMilli(1763631340370); f.CreatedAt.Sub(want).Abs() > time.Millisecond {
		t.Errorf("createdAt in seconds reads as %v, want %v", f.CreatedAt, want)
	}
	if want := time.UnixMilli(1763631640373); f.UpdatedAt.Sub(want).Abs() > time.Millisecond {
		t.Errorf("updatedAt in milliseconds reads as %v, want %v", f.UpdatedAt, want)
	}
	for _, odd := range []any{nil, drop, "yesterday", -1, 1e300, true, []any{}} {
		if f := parse(t, with(t, "instance.json", "detail.createdAt", odd)); !f.CreatedAt.IsZero() {
			t.Errorf("createdAt %v reads as %v, want the zero time", odd, f.CreatedAt)
		}
	}
}

func TestParseListsEveryInstanceOfASequenceOnce(t *testing.T) {
	f := parse(t, fixture(t, "sequence.json"))
	want := []Target{
		{account, region, host},
		{"444455556666", "eu-west-1", "i-0aaaaaaaaaaaaaaa1"},
		{"777788889999", "us-gov-west-1", "i-12ab34cd"},
	}
	if diff := cmp.Diff(want, f.Targets); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"shop-web-3"}, f.Unread); diff != "" {
		t.Error(diff)
	}
	if f.Account != account {
		t.Errorf("account %s is the administrator's, want the member's", f.Account)
	}
}

func TestParseBoundsWhatItKeeps(t *testing.T) {
	f := parse(t, with(t, "instance.json", "detail.description", strings.Repeat("é", 20000)))
	if f.Description != strings.Repeat("é", maxDescription) {
		t.Errorf("description has %d bytes, want %d characters of two", len(f.Description), maxDescription)
	}
	var many []any
	for i := range 3 * maxTargets {
		uid := "i-" + strings.Repeat("0", 13) + strings.ToLower(string("0123456789abcdef"[i>>8&15])) +
			string("0123456789abcdef"[i>>4&15]) + string("0123456789abcdef"[i&15]) + "a"
		many = append(many, map[string]any{"resourceType": "EC2_INSTANCE", "uid": uid})
	}
	f = parse(t, with(t, "sequence.json", "detail.service.detection.sequence.resources", many))
	if len(f.Targets) != maxTargets || len(f.Unread) != maxTargets {
		t.Errorf("%d targets and %d unread, want %d each", len(f.Targets), len(f.Unread), maxTargets)
	}
}

func TestParseNamesWhatIsWrong(t *testing.T) {
	set := func(path string, v any) []byte { return with(t, "instance.json", path, v) }
	for _, c := range []struct {
		name string
		raw  []byte
		says string
	}{
		{"empty", nil, "$ is not JSON"},
		{"text", []byte("hello"), "$ is not JSON"},
		{"half", fixture(t, "instance.json")[:400], "$ is not JSON"},
		{"list", []byte("[]"), "$ is not an object"},
		{"two", []byte("{}{}"), "$ goes on after the first value"},
		{"not UTF-8", []byte("{\"version\":\"\xff\"}"), "$ is not UTF-8"},
		{"too big", bytes.Repeat([]byte(" "), MaxSize+1), "$ is 1048577 bytes"},
		{"version", set("version", "1"), `$.version is "1"; it must be "0"`},
		{"another event", set("detail-type", "Scheduled Event"), `$.detail-type is "Scheduled Event"`},
		{"another source", set("source", "custom.guardduty"), "$.source"},
		{"no event id", set("id", drop), "$.id is missing; it must be the UUID"},
		{"event id", set("id", "../../etc"), "$.id"},
		{"envelope account", set("account", "12"), "$.account"},
		{"envelope region", set("region", "mars"), "$.region"},
		{"no detail", set("detail", nil), "$.detail is missing"},
		{"detail as text", set("detail", "{}"), "$.detail is \"{}\""},
		{"finding id", set("detail.id", "a/b"), "$.detail.id"},
		{"account", set("detail.accountId", 111122223333), "$.detail.accountId is 111122223333; it must be an account id of 12 digits"},
		{"region", set("detail.region", "eu-central-1\n"), `$.detail.region is "eu-central-1\n"`},
		{"type", set("detail.type", " "), "$.detail.type"},
		{"severity as text", set("detail.severity", "8"), "$.detail.severity"},
		{"severity too high", set("detail.severity", 11), "it must be a number from 0 to 10"},
		{"severity beyond float", []byte(strings.Replace(string(set("detail.severity", 8)), `"severity":8`, `"severity":1e999`, 1)), "$.detail.severity"},
		{"resource", set("detail.resource", nil), "$.detail.resource.resourceType is missing"},
		{"PascalCase", []byte(strings.ReplaceAll(string(fixture(t, "instance.json")), `"accountId"`, `"AccountId"`)), "$.detail.accountId is missing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, err := Parse(c.raw)
			if f != nil || !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, %v; want ErrMalformed with %q", f, err, c.says)
			}
		})
	}
}

func TestErrorsDoNotRepeatHostileTextAtLength(t *testing.T) {
	_, err := Parse(with(t, "instance.json", "detail.region", strings.Repeat("\u202e\x1b[31m", 5000)))
	if err == nil || len(err.Error()) > 2048 || strings.ContainsAny(err.Error(), "\u202e\x1b") {
		t.Errorf("error is %d bytes: %.200q", len(err.Error()), err)
	}
}

func TestTriage(t *testing.T) {
	set := func(fixture, path string, v any) []byte { return with(t, fixture, path, v) }
	kind := func(resourceType string) []byte {
		return set("instance.json", "detail.resource.resourceType", resourceType)
	}
	id := func(v any) []byte { return set("instance.json", "detail.resource.instanceDetails.instanceId", v) }
	hit := []string{host}
	for _, c := range []struct {
		name string
		raw  []byte
		want []string // instances acted on
		says string
	}{
		{"instance", fixture(t, "instance.json"), hit, "severity 8 on " + host},
		{"exactly the threshold", set("instance.json", "detail.severity", 7), hit, "severity 7"},
		{"below the threshold", set("instance.json", "detail.severity", 6.9), nil, "severity 6.9 is below the threshold 7"},
		{"container on an instance", fixture(t, "container.json"), hit, host},
		{"container elsewhere", set("container.json", "detail.resource.instanceDetails", nil), nil, "names no EC2 instance"},
		{"EKS", kind("EKSCluster"), hit, host},
		{"EKS as the console spells it", kind("EKS cluster"), hit, host},
		{"ECS", kind("ECSCluster"), hit, host},
		{"old instance id", id("i-12ab34cd"), []string{"i-12ab34cd"}, "i-12ab34cd"},
		{"upper case id", id("i-0C3F9A5B7D1E24680"), nil, `could not be read, the first is "i-0C3F9A5B7D1E24680"`},
		{"id with a newline", id(host + "\n"), nil, "could not be read"},
		{"id as a number", id(7), nil, "names no EC2 instance"},
		{"several at once", fixture(t, "sequence.json"), []string{host, "i-0aaaaaaaaaaaaaaa1", "i-12ab34cd"}, "1 names could not be read"},
		{"sequence without machines", set("sequence.json", "detail.service.detection", nil), nil, "names no EC2 instance"},
		{"key used from an instance", fixture(t, "accesskey.json"), nil, "it names " + host},
		{"bucket read with an instance's key", kind("S3Bucket"), nil, "it names " + host},
		{"object", fixture(t, "s3object.json"), nil, "S3Object, which is not an EC2 instance"},
		{"database", kind("RDSDBInstance"), nil, "RDSDBInstance, which is not a machine"},
		{"limitless database", kind("RDSLimitlessDB"), nil, "not a machine"},
		{"function", kind("Lambda"), nil, "not a machine"},
		{"a kind of tomorrow", kind("QuantumThing"), nil, "not a machine"},
		{"sample", fixture(t, "sample.json"), nil, "sample"},
		{"sample by its flag alone", set("instance.json", "detail.service.additionalInfo.sample", true), nil, "sample"},
		{"sample inside the value", set("instance.json", "detail.service.additionalInfo.value", `{"sample": true}`), nil, "sample"},
		{"sample inside a nested value", set("instance.json", "detail.service.additionalInfo.value", map[string]any{"sample": "true"}), nil, "sample"},
		{"sample by its instance alone", id("i-99999999"), nil, "sample"},
		{"not a sample", set("instance.json", "detail.service.additionalInfo.sample", false), hit, host},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := Triage(parse(t, c.raw), 7)
			var got []string
			for _, target := range v.Targets {
				got = append(got, target.InstanceID)
			}
			if diff := cmp.Diff(c.want, got); diff != "" || v.Act != (len(c.want) > 0) {
				t.Errorf("act %t: %s", v.Act, diff)
			}
			if !strings.Contains(v.Reason, c.says) {
				t.Errorf("reason %q does not say %q", v.Reason, c.says)
			}
		})
	}
}

func TestTriageNeverActsOnAnUnusableThreshold(t *testing.T) {
	if v := Triage(parse(t, fixture(t, "instance.json")), math.NaN()); v.Act {
		t.Errorf("acts: %s", v.Reason)
	}
}

func TestRulePatternIsOneJSONObject(t *testing.T) {
	var got map[string]any
	if err := json.Unmarshal([]byte(RulePattern), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"source": []any{"aws.guardduty"}, "detail-type": []any{"GuardDuty Finding"},
		"detail": map[string]any{"severity": []any{map[string]any{"numeric": []any{">=", 7.0}}}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// FuzzParse: whatever arrives, the answer is a finding within its bounds or
// ErrMalformed, and a sample is never acted on.
func FuzzParse(f *testing.F) {
	names, err := filepath.Glob("testdata/*.json")
	if err != nil || len(names) == 0 {
		f.Fatalf("no fixtures: %v", err)
	}
	for _, name := range names {
		f.Add(fixture(f, filepath.Base(name)))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := Parse(raw)
		if err != nil {
			if got != nil || !errors.Is(err, ErrMalformed) {
				t.Fatalf("got %v, %v", got, err)
			}
			return
		}
		v := Triage(got, 7)
		if v.Act && (got.Sample || got.Severity < 7 || len(v.Targets) == 0) {
			t.Fatalf("acts on %+v", got)
		}
		for _, target := range v.Targets {
			if !IsInstanceID(target.InstanceID) || !accountShape.MatchString(target.Account) || !regionShape.MatchString(target.Region) {
				t.Fatalf("target %+v", target)
			}
		}
		if !bytes.Equal(got.Raw, raw) {
			t.Fatal("raw bytes changed")
		}
	})
}
