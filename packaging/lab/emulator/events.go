package emulator

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Bounds of PutEvents. Source: EventBridge API reference, PutEvents.
const (
	maxEntries    = 10
	maxEntryBytes = 256 << 10 // of all entries of a request
)

// defaultRule is what the rule matches unless it is told otherwise.
const defaultRule = `{"source":["aws.guardduty"],"detail-type":["GuardDuty Finding"]}`

// rule is the one rule of the default bus; its target is the queue.
type rule struct {
	mu      sync.Mutex
	pattern pattern // under mu
}

func newRule(text string) (*rule, error) {
	if text == "" {
		text = defaultRule
	}
	p, err := parsePattern(text)
	if err != nil {
		return nil, fmt.Errorf("cannot read the rule's pattern: %w", err)
	}
	return &rule{pattern: p}, nil
}

func (r *rule) matches(event []byte) (bool, error) {
	value, err := decodeValue(event)
	if err != nil {
		return false, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pattern.match(value, true), nil
}

// SetRule replaces the rule's event pattern. A pattern that is not right leaves
// the rule as it was.
func (e *Emulator) SetRule(pattern string) error {
	next, err := newRule(pattern)
	if err != nil {
		return err
	}
	e.rule.mu.Lock()
	defer e.rule.mu.Unlock()
	e.rule.pattern = next.pattern
	return nil
}

// envelope is an event as EventBridge delivers it. Source: EventBridge user
// guide, "AWS service event metadata".
type envelope struct {
	Version    string          `json:"version"`
	ID         string          `json:"id"`
	DetailType string          `json:"detail-type"`
	Source     string          `json:"source"`
	Account    string          `json:"account"`
	Time       string          `json:"time"`
	Region     string          `json:"region"`
	Resources  []string        `json:"resources"`
	Detail     json.RawMessage `json:"detail"`
}

// DeliverGuardDuty publishes a finding as GuardDuty does. matched says whether
// the rule passed it on to the queue.
func (e *Emulator) DeliverGuardDuty(detail json.RawMessage) (eventID string, matched bool, err error) {
	if err := checkDetail(detail); err != nil {
		return "", false, fmt.Errorf("cannot deliver the finding: %w", err)
	}
	return e.publish(envelope{DetailType: "GuardDuty Finding", Source: "aws.guardduty", Detail: detail}, time.Now())
}

func checkDetail(detail []byte) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(detail, &fields); err != nil || fields == nil {
		return errors.New("its detail is not a JSON object")
	}
	return nil
}

// publish completes an event, and puts it into the queue where the rule
// matches.
func (e *Emulator) publish(event envelope, at time.Time) (id string, matched bool, err error) {
	event.Version, event.ID, event.Account, event.Region = "0", newUUID(), e.cfg.AccountID, e.cfg.Region
	event.Time = at.UTC().Format("2006-01-02T15:04:05Z")
	if event.Resources == nil {
		event.Resources = []string{}
	}
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(event); err != nil {
		return "", false, fmt.Errorf("cannot write event %s: %w", event.ID, err)
	}
	if matched, err = e.rule.matches(body.Bytes()); err != nil || !matched {
		return event.ID, false, err
	}
	return event.ID, true, e.SendRaw(strings.TrimSuffix(body.String(), "\n"))
}

// SendRaw puts any message into the queue that SQS would take.
func (e *Emulator) SendRaw(body string) error {
	if refusal := checkMessage(body, nil); refusal != nil {
		return fmt.Errorf("cannot send a message of %d bytes: %w", len(body), refusal)
	}
	if _, refusal := e.queues.main.put(body, nil, 0); refusal != nil {
		return fmt.Errorf("cannot send a message of %d bytes: %w", len(body), refusal)
	}
	return nil
}

type eventsService struct{ *Emulator }

func (eventsService) action(r *http.Request, _ []byte) string { return targetAction(r, "AWSEvents") }

func (eventsService) throttled() *Error { return refuse("ThrottlingException", "rate exceeded") }

func (eventsService) unavailable() *Error {
	return refuseWith(http.StatusServiceUnavailable, "ServiceUnavailable", "the service is unavailable; please try again shortly")
}

func (eventsService) write(w http.ResponseWriter, _ string, answer any, err *Error) {
	writeJSON(w, "1.1", "com.amazonaws.events", answer, err)
}

type putEntry struct {
	Source, DetailType, Detail, EventBusName string
	Resources                                []string
	Time                                     *float64 // seconds since 1970
}

type putResult struct {
	EventId      string `json:",omitempty"`
	ErrorCode    string `json:",omitempty"`
	ErrorMessage string `json:",omitempty"`
}

func (s eventsService) do(_ *http.Request, action string, body []byte) (any, *Error) {
	if action != "PutEvents" {
		return nil, refuse("InvalidAction", "the action %.100q is not valid for this service", action)
	}
	var in struct{ Entries []putEntry }
	if err := decode(body, &in); err != nil {
		return nil, err
	}
	if len(in.Entries) < 1 || len(in.Entries) > maxEntries {
		return nil, refuse("ValidationException", "%d entries are not 1 to %d", len(in.Entries), maxEntries)
	}
	size := 0
	for _, entry := range in.Entries {
		size += len(entry.Source) + len(entry.DetailType) + len(entry.Detail) + len(strings.Join(entry.Resources, ""))
	}
	if size > maxEntryBytes {
		return nil, refuse("ValidationException", "total size of the entries in the request is over the limit of %d bytes", maxEntryBytes)
	}
	var out struct {
		FailedEntryCount int
		Entries          []putResult
	}
	for _, entry := range in.Entries {
		result := s.put(entry)
		if result.ErrorCode != "" {
			out.FailedEntryCount++
		}
		out.Entries = append(out.Entries, result)
	}
	return out, nil
}

// put takes one entry; a refused one does not keep the others out.
func (s eventsService) put(entry putEntry) putResult {
	fail := func(code, message string) putResult { return putResult{ErrorCode: code, ErrorMessage: message} }
	switch bus := entry.EventBusName; {
	case strings.HasPrefix(entry.Source, "aws."):
		return fail("NotAuthorizedForSourceException", "not authorized for the source: sources that begin with aws. are those of AWS services")
	case entry.Source == "" || entry.DetailType == "" || entry.Detail == "":
		return fail("InvalidArgument", "parameters Source, DetailType and Detail are required")
	case checkDetail([]byte(entry.Detail)) != nil:
		return fail("MalformedDetail", "detail is malformed")
	case bus != "" && bus != "default" && bus != "arn:aws:events:"+s.cfg.Region+":"+s.cfg.AccountID+":event-bus/default":
		return fail("InvalidArgument", "there is no event bus of that name")
	}
	at := time.Now()
	if entry.Time != nil {
		at = time.Unix(int64(*entry.Time), 0)
	}
	id, _, err := s.publish(envelope{DetailType: entry.DetailType, Source: entry.Source, Resources: entry.Resources, Detail: json.RawMessage(entry.Detail)}, at)
	if err != nil {
		return fail("InternalFailure", err.Error())
	}
	return putResult{EventId: id}
}
