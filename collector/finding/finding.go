package finding

import (
	"bytes"
	"encoding/json"
	"errors"
	"regexp"
	"time"
)

// Bounds of one finding. Text longer than its bound is cut, never refused.
const (
	MaxSize        = 1 << 20 // bytes of a whole event, the largest SQS message
	maxTargets     = 256     // instances read from one attack sequence
	maxType        = 256     // characters
	maxTitle       = 1024
	maxDescription = 8192
	maxName        = 128 // an instance name that could not be read
)

// RulePattern is the pattern of the one EventBridge rule that feeds the
// collector. There is one rule, and Triage sorts what it lets through, because
// several rules can silently disagree. The number is compared as a number: a
// list of values would miss 7.5.
const RulePattern = `{"source":["aws.guardduty"],"detail-type":["GuardDuty Finding"],` +
	`"detail":{"severity":[{"numeric":[">=",7]}]}}`

// ErrMalformed is wrapped by every error of Parse. No retry mends it: the event
// belongs in the dead-letter queue.
var ErrMalformed = errors.New("finding is malformed")

// Finding is what the collector uses of one GuardDuty finding.
type Finding struct {
	EventID      string          // id of the EventBridge event, a UUID; a second delivery repeats it
	ID           string          // GuardDuty's own id; updates of a finding repeat it
	Account      string          // 12 digits, the account of the resource (detail.accountId)
	Region       string          // as in "eu-central-1"
	Type         string          // as in "Backdoor:EC2/C&CActivity.B"
	Title        string          // for people; hostile text, escape it
	Description  string          // for people; hostile text, escape it
	Severity     float64         // 0 to 10; 7 and above is high, 9 and above critical
	ResourceType string          // as GuardDuty spells it
	Sample       bool            // made by CreateSampleFindings
	CreatedAt    time.Time       // zero where the finding does not say it
	UpdatedAt    time.Time       // zero where the finding does not say it
	Count        int             // times that it was seen, at least 1
	Targets      []Target        // instances that it names, each once, in its order
	Unread       []string        // names of instances that could not be read, cut; hostile text
	Raw          json.RawMessage // the whole event, byte for byte
}

// Target is an instance that a finding names.
type Target struct {
	Account    string // 12 digits
	Region     string
	InstanceID string // i- and 8 or 17 hexadecimal digits
}

// IsInstanceID reports whether s has the shape of an EC2 instance id.
func IsInstanceID(s string) bool { return instanceShape.MatchString(s) }

const sampleInstance = "i-99999999" // CreateSampleFindings names this one

var (
	eventShape    = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)
	idShape       = regexp.MustCompile(`^[0-9A-Za-z_-]{1,128}$`)
	accountShape  = regexp.MustCompile(`^[0-9]{12}$`)
	regionShape   = regexp.MustCompile(`^[a-z]{2,4}(-[a-z]{2,16}){1,3}-[0-9]{1,2}$`)
	instanceShape = regexp.MustCompile(`^i-([0-9a-f]{8}|[0-9a-f]{17})$`)
	arnShape      = regexp.MustCompile(`^arn:[a-z-]{3,20}:ec2:([a-z0-9-]*):([0-9]*):instance/(i-[0-9a-f]+)$`)
)

// Parse reads one EventBridge event. Its errors wrap ErrMalformed and name the
// JSON path, what is wrong there, and what belongs there.
//
// The account is detail.accountId: a delegated administrator receives its
// members' findings under its own account in the envelope.
func Parse(raw []byte) (*Finding, error) {
	event, err := decode(raw)
	if err != nil {
		return nil, err
	}
	r := &reader{}
	f := &Finding{Raw: bytes.Clone(raw)}
	readEnvelope(r, event, f)
	readDetail(r, event.get("detail"), f)
	if r.err != nil {
		return nil, r.err
	}
	return f, nil
}

func readEnvelope(r *reader, event node, f *Finding) {
	r.exactly(event.get("version"), "0")
	r.exactly(event.get("detail-type"), "GuardDuty Finding")
	r.exactly(event.get("source"), "aws.guardduty")
	f.EventID = r.shaped(event.get("id"), eventShape, "the UUID that EventBridge gives each event")
	r.shaped(event.get("account"), accountShape, "an account id of 12 digits")
	r.shaped(event.get("region"), regionShape, "a region, as in eu-central-1")
}

func readDetail(r *reader, detail node, f *Finding) {
	r.object(detail)
	service := detail.get("service")
	f.ID = r.shaped(detail.get("id"), idShape, "GuardDuty's id of the finding, up to 128 letters, digits, - and _")
	f.Account = r.shaped(detail.get("accountId"), accountShape, "an account id of 12 digits")
	f.Region = r.shaped(detail.get("region"), regionShape, "a region, as in eu-central-1")
	f.Type = cut(r.required(detail.get("type")), maxType)
	f.Severity = r.number(detail.get("severity"), 0, 10)
	f.ResourceType = cut(r.required(detail.get("resource").get("resourceType")), maxType)
	f.Title = cut(detail.get("title").text(), maxTitle)
	f.Description = cut(detail.get("description").text(), maxDescription)
	f.CreatedAt = detail.get("createdAt").instant()
	f.UpdatedAt = detail.get("updatedAt").instant()
	f.Count = service.get("count").count()
	readTargets(detail, f)
	f.Sample = isSample(service.get("additionalInfo"), f.Targets)
}

// readTargets looks where this kind of finding names its instances: an attack
// sequence lists them, every other kind describes one at most.
func readTargets(detail node, f *Finding) {
	if kindOf(f.ResourceType) != kindSequence {
		if id := detail.get("resource").get("instanceDetails").get("instanceId").text(); id != "" {
			f.add(id, f.Account, f.Region)
		}
		return
	}
	for _, resource := range detail.get("service").get("detection").get("sequence").get("resources").items() {
		if kindOf(resource.get("resourceType").text()) != kindMachine {
			continue
		}
		account, region := or(resource.get("accountId").text(), f.Account), or(resource.get("region").text(), f.Region)
		f.add(resource.get("uid").text(), account, region)
	}
}

// add notes the instance that name, an id or an ARN, stands for. An ARN's own
// account and region go before those given.
func (f *Finding) add(name, account, region string) {
	id := name
	if m := arnShape.FindStringSubmatch(name); m != nil {
		region, account, id = or(m[1], region), or(m[2], account), m[3]
	}
	t := Target{Account: account, Region: region, InstanceID: id}
	for _, known := range f.Targets {
		if known == t {
			return
		}
	}
	readable := IsInstanceID(id) && accountShape.MatchString(account) && regionShape.MatchString(region)
	if !readable || len(f.Targets) == maxTargets {
		if len(f.Unread) < maxTargets {
			f.Unread = append(f.Unread, cut(name, maxName))
		}
		return
	}
	f.Targets = append(f.Targets, t)
}

// isSample knows the three marks of CreateSampleFindings: additionalInfo.sample,
// the same inside the stringified additionalInfo.value, and the made-up instance.
func isSample(info node, targets []Target) bool {
	if info.get("sample").isTrue() {
		return true
	}
	if value, err := decode([]byte(info.get("value").text())); err == nil && value.get("sample").isTrue() {
		return true
	}
	if info.get("value").get("sample").isTrue() {
		return true
	}
	for _, t := range targets {
		if t.InstanceID == sampleInstance {
			return true
		}
	}
	return false
}

func or(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}
