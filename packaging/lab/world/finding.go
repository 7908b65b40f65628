package world

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"time"
)

// Finding is what the lab's GuardDuty says. Its JSON has the shape that
// EventBridge delivers as detail, as far as the lab needs it.
type Finding struct {
	ID           string // made up when empty
	Type         string
	Title        string
	Severity     float64
	ResourceType string
	Instance     string   // "" leaves instanceDetails out
	Sequence     []string // instances of an attack sequence
	Sample       bool
	Count        int
}

// Compromised is the finding that opens a case: command-and-control traffic
// from an instance.
func Compromised(instance string) Finding {
	return Finding{Type: "Backdoor:EC2/C&CActivity.B", Title: "The EC2 instance " + instance + " queries a command and control server.",
		Severity: 8, ResourceType: "Instance", Instance: instance, Count: 1}
}

// Detail is the finding as JSON.
func (f Finding) Detail(region, account string) json.RawMessage {
	if f.ID == "" {
		f.ID = randomID()
	}
	now := time.Now().UTC().Format("2006-01-02T15:04:05.000Z")
	resource := map[string]any{"resourceType": f.ResourceType}
	if f.Instance != "" {
		resource["instanceDetails"] = map[string]any{
			"instanceId": f.Instance, "instanceType": "m5.large", "launchTime": "2026-11-01T00:00:00.000Z", "platform": nil,
			"imageId": "ami-0123456789abcdef0", "availabilityZone": region + "a", "instanceState": "running", "tags": []any{},
			"iamInstanceProfile": nil, "networkInterfaces": []any{},
		}
	}
	service := map[string]any{
		"serviceName": "guardduty", "detectorId": "12abc34d567e8fa901bc2d34e56789f0", "resourceRole": "ACTOR",
		"additionalInfo": map[string]any{"value": "{}", "type": "default"}, "eventFirstSeen": now, "eventLastSeen": now,
		"archived": false, "count": max(f.Count, 1), "evidence": nil,
		"action": map[string]any{"actionType": "DNS_REQUEST", "dnsRequestAction": map[string]any{"domain": "c2.example.net", "protocol": "UDP", "blocked": false}},
	}
	if f.Sample {
		service["additionalInfo"] = map[string]any{"sample": true, "value": `{"sample":true}`, "type": "default"}
	}
	if len(f.Sequence) > 0 {
		var resources []any
		for _, id := range f.Sequence {
			resources = append(resources, map[string]any{"resourceType": "EC2_INSTANCE", "uid": id, "accountId": account, "region": region})
		}
		service["detection"] = map[string]any{"sequence": map[string]any{"uid": randomID(), "resources": resources}}
	}
	detail, err := json.Marshal(map[string]any{
		"schemaVersion": "2.0", "accountId": account, "region": region, "partition": "aws", "id": f.ID,
		"arn":  "arn:aws:guardduty:" + region + ":" + account + ":detector/12abc34d567e8fa901bc2d34e56789f0/finding/" + f.ID,
		"type": f.Type, "resource": resource, "service": service, "severity": f.Severity,
		"createdAt": now, "updatedAt": now, "title": f.Title, "description": f.Title,
	})
	if err != nil {
		panic(err) // the map above always marshals
	}
	return detail
}

// Event is the finding as EventBridge delivers it, under an id of the
// caller's, so that it can be delivered twice.
func (f Finding) Event(id string) string {
	event, err := json.Marshal(map[string]any{"version": "0", "id": id, "detail-type": "GuardDuty Finding", "source": "aws.guardduty",
		"account": Account, "time": time.Now().UTC().Format(time.RFC3339), "region": Region, "resources": []any{}, "detail": f.Detail(Region, Account)})
	if err != nil {
		panic(err) // the map above always marshals
	}
	return string(event)
}

func randomID() string {
	b := make([]byte, 16)
	rand.Read(b)
	return hex.EncodeToString(b)
}
