package emulator

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// maxEntries is how many events one PutEvents may hold.
const maxEntries = 10

// serveEvents speaks EventBridge's JSON protocol.
func (c *call) serveEvents() {
	if c.action != "PutEvents" {
		c.fail(http.StatusBadRequest, "UnknownOperationException", "The lab's EventBridge knows PutEvents alone")
		return
	}
	var in struct {
		Entries []struct {
			Source, DetailType, Detail string
			EventBusName               string
			Time                       *float64
			Resources                  []string
		}
	}
	if bad := c.decode(&in); bad != nil {
		c.fail(http.StatusBadRequest, bad.code, bad.message)
		return
	}
	if len(in.Entries) == 0 || len(in.Entries) > maxEntries {
		c.fail(http.StatusBadRequest, "ValidationException", "1 to 10 entries")
		return
	}
	var results []map[string]string
	failed := 0
	for _, entry := range in.Entries {
		code, message := "", ""
		switch {
		case strings.HasPrefix(entry.Source, "aws."):
			code, message = "NotAuthorizedForSourceException", "Not authorized for the source."
		case entry.Source == "" || entry.DetailType == "":
			code, message = "InvalidArgument", "Source and DetailType are required."
		case !json.Valid([]byte(entry.Detail)) || !strings.HasPrefix(strings.TrimSpace(entry.Detail), "{"):
			code, message = "MalformedDetail", "Detail is malformed."
		}
		if code != "" {
			failed++
			results = append(results, map[string]string{"ErrorCode": code, "ErrorMessage": message})
			continue
		}
		id, _, err := c.deliver(entry.Source, entry.DetailType, json.RawMessage(entry.Detail))
		if err != nil {
			c.fail(http.StatusInternalServerError, "InternalFailure", err.Error())
			return
		}
		results = append(results, map[string]string{"EventId": id})
	}
	c.answerJSON(map[string]any{"FailedEntryCount": failed, "Entries": results})
}

// DeliverGuardDuty is GuardDuty putting a finding on EventBridge, which no
// customer may do. It tells the event's id, and whether the rule matched.
func (e *Emulator) DeliverGuardDuty(detail json.RawMessage) (eventID string, matched bool, err error) {
	return e.deliver("aws.guardduty", "GuardDuty Finding", detail)
}

// Redeliver puts an envelope into the queue again, as EventBridge and SQS
// may: both deliver at least once.
func (e *Emulator) Redeliver(envelope string) { e.SendRaw(envelope) }

// deliver makes the envelope, and sends it where the rule says. Source:
// Amazon EventBridge User Guide, "Event structure".
func (e *Emulator) deliver(source, kind string, detail json.RawMessage) (id string, matched bool, err error) {
	id = uuid()
	envelope, err := json.Marshal(map[string]any{
		"version": "0", "id": id, "detail-type": kind, "source": source, "account": e.cfg.AccountID,
		"time": time.Now().UTC().Format("2006-01-02T15:04:05Z"), "region": e.cfg.Region, "resources": []string{}, "detail": detail,
	})
	if err != nil {
		return "", false, fmt.Errorf("cannot make event: %w", err)
	}
	if matched, err = e.pattern.matches(envelope); err != nil || !matched {
		return id, false, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.queue.send(string(envelope))
	return id, true, nil
}
