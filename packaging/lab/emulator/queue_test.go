package emulator_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	eventtypes "github.com/aws/aws-sdk-go-v2/service/eventbridge/types"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/google/go-cmp/cmp"

	"github.com/quicklime-ir/quicklime/packaging/lab/emulator"
)

func entries(source, detail string) []eventtypes.PutEventsRequestEntry {
	return []eventtypes.PutEventsRequestEntry{{Source: &source, DetailType: aws.String("Test"), Detail: &detail}}
}

func (l *lab) receive(t *testing.T, hide, wait int32) []types.Message {
	t.Helper()
	out, err := l.sqs.ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{QueueUrl: aws.String(l.QueueURL()), MaxNumberOfMessages: 10, VisibilityTimeout: hide,
		WaitTimeSeconds: wait, MessageSystemAttributeNames: []types.MessageSystemAttributeName{"All"}})
	if err != nil {
		t.Fatal(err)
	}
	return out.Messages
}

func (l *lab) show(t *testing.T, m types.Message, seconds int32) error {
	_, err := l.sqs.ChangeMessageVisibility(t.Context(), &sqs.ChangeMessageVisibilityInput{QueueUrl: aws.String(l.QueueURL()), ReceiptHandle: m.ReceiptHandle, VisibilityTimeout: seconds})
	return err
}

func (l *lab) remove(t *testing.T, handle string) error {
	_, err := l.sqs.DeleteMessage(t.Context(), &sqs.DeleteMessageInput{QueueUrl: aws.String(l.QueueURL()), ReceiptHandle: &handle})
	return err
}

func TestAMessageIsReceivedAndDeleted(t *testing.T) {
	l := start(t, nil)
	if _, err := l.sqs.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: aws.String(l.QueueURL()), MessageBody: aws.String("hello <ü>")}); err != nil {
		t.Fatal(err)
	}
	got := l.receive(t, 60, 0)
	if len(got) != 1 || *got[0].Body != "hello <ü>" || got[0].Attributes["ApproximateReceiveCount"] != "1" {
		t.Fatalf("%+v", got)
	}
	if again := l.receive(t, 60, 0); len(again) != 0 {
		t.Errorf("received twice: %+v", again)
	}
	if s := l.State().Queue; s.InFlight != 1 || s.Visible != 0 {
		t.Errorf("%+v", s)
	}
	if err := l.show(t, got[0], 12*60*60); codeOf(err) != "InvalidParameterValue" {
		t.Errorf("invisible for more than 12 hours since its receive: %v", err)
	}
	if err := l.show(t, got[0], 11*60*60); err != nil {
		t.Error(err)
	}
	if err := l.show(t, got[0], 0); err != nil {
		t.Error(err)
	}
	if err := l.show(t, got[0], 0); codeOf(err) != "MessageNotInflight" {
		t.Errorf("not in flight: %v", err)
	}
	second := l.receive(t, 60, 0)
	if len(second) != 1 || second[0].Attributes["ApproximateReceiveCount"] != "2" {
		t.Fatalf("%+v", second)
	}
	if err := l.remove(t, *got[0].ReceiptHandle); err != nil || l.State().Queue.InFlight != 1 {
		t.Errorf("an old handle deletes nothing: %v", err)
	}
	for range 2 { // twice: done already is fine
		if err := l.remove(t, *second[0].ReceiptHandle); err != nil || l.State().Queue.InFlight != 0 {
			t.Errorf("%v, %+v", err, l.State().Queue)
		}
	}
	if err := l.remove(t, "made up"); codeOf(err) != "ReceiptHandleIsInvalid" {
		t.Errorf("%v", err)
	}
}

func TestALongPollEndsWithAMessage(t *testing.T) {
	l := start(t, nil)
	sent := make(chan error, 1)
	go func() {
		time.Sleep(200 * time.Millisecond)
		sent <- l.SendRaw("late")
	}()
	from := time.Now()
	got := l.receive(t, 1, 20)
	if waited := time.Since(from); len(got) != 1 || waited < 200*time.Millisecond || waited > 10*time.Second {
		t.Errorf("%+v after %v", got, waited)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	// The message comes back while the next poll waits for it.
	if got := l.receive(t, 1, 20); len(got) != 1 || time.Since(from) > 15*time.Second {
		t.Errorf("%+v after %v", got, time.Since(from))
	}
	if got := l.receive(t, 60, 0); len(got) != 0 {
		t.Errorf("it is in flight: %+v", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := l.sqs.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{QueueUrl: aws.String(l.QueueURL()), WaitTimeSeconds: 20}); err == nil {
		t.Error("the poll outlives its caller")
	}
}

func TestRedrive(t *testing.T) {
	l := start(t, func(c *emulator.Config) { c.MaxReceives = 2 })
	if err := l.SendRaw("poison"); err != nil {
		t.Fatal(err)
	}
	for n := range 2 {
		got := l.receive(t, 60, 0)
		if len(got) != 1 {
			t.Fatalf("receive %d: %+v", n+1, got)
		}
		if err := l.show(t, got[0], 0); err != nil {
			t.Fatal(err)
		}
	}
	if got := l.receive(t, 60, 0); len(got) != 0 {
		t.Errorf("received too often: %+v", got)
	}
	if diff := cmp.Diff(emulator.QueueState{DeadLetters: []string{"poison"}}, l.State().Queue); diff != "" {
		t.Error(diff)
	}
	dead, err := l.sqs.ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{QueueUrl: aws.String(l.DeadLetterURL())})
	if err != nil || len(dead.Messages) != 1 || *dead.Messages[0].Body != "poison" {
		t.Errorf("%+v, %v", dead, err)
	}
	about, err := l.sqs.GetQueueAttributes(t.Context(), &sqs.GetQueueAttributesInput{QueueUrl: aws.String(l.QueueURL()), AttributeNames: []types.QueueAttributeName{"All"}})
	if err != nil || about.Attributes["ApproximateNumberOfMessages"] != "0" {
		t.Fatalf("%+v, %v", about, err)
	}
	var policy struct{ MaxReceiveCount int }
	if err := json.Unmarshal([]byte(about.Attributes["RedrivePolicy"]), &policy); err != nil || policy.MaxReceiveCount != 2 {
		t.Errorf("%s: %v", about.Attributes["RedrivePolicy"], err)
	}
}

func TestWhatSQSRefuses(t *testing.T) {
	l := start(t, nil)
	ctx, url := t.Context(), aws.String(l.QueueURL())
	receive := func(in sqs.ReceiveMessageInput) error { _, err := l.sqs.ReceiveMessage(ctx, &in); return err }
	send := func(in sqs.SendMessageInput) error { _, err := l.sqs.SendMessage(ctx, &in); return err }
	for _, c := range []struct {
		name, want string
		err        error
	}{
		{"unknown queue", "QueueDoesNotExist", receive(sqs.ReceiveMessageInput{QueueUrl: aws.String(l.QueueURL() + "x")})},
		{"too many messages", "InvalidParameterValue", receive(sqs.ReceiveMessageInput{QueueUrl: url, MaxNumberOfMessages: 11})},
		{"too long a wait", "InvalidParameterValue", receive(sqs.ReceiveMessageInput{QueueUrl: url, WaitTimeSeconds: 21})},
		{"unknown attribute", "InvalidAttributeName", receive(sqs.ReceiveMessageInput{QueueUrl: url, MessageSystemAttributeNames: []types.MessageSystemAttributeName{"Colour"}})},
		{"parameter that it does not read", "UnknownParameter", receive(sqs.ReceiveMessageInput{QueueUrl: url, ReceiveRequestAttemptId: aws.String("x")})},
		{"bytes that no message may have", "InvalidMessageContents", send(sqs.SendMessageInput{QueueUrl: url, MessageBody: aws.String("\x01")})},
		{"empty message", "MissingParameter", send(sqs.SendMessageInput{QueueUrl: url, MessageBody: aws.String("")})},
		{"long message", "InvalidParameterValue", send(sqs.SendMessageInput{QueueUrl: url, MessageBody: aws.String(strings.Repeat("x", 1<<20+1))})},
		{"action that it does not know", "InvalidAction", func() error { _, err := l.sqs.PurgeQueue(ctx, &sqs.PurgeQueueInput{QueueUrl: url}); return err }()},
	} {
		if codeOf(c.err) != c.want {
			t.Errorf("%s: %v, want %s", c.name, c.err, c.want)
		}
	}
}

func TestGuardDutyReachesTheQueueByTheRule(t *testing.T) {
	l := start(t, nil)
	detail := json.RawMessage(`{"severity":8.0,"title":"a <b> & c"}`)
	id, matched, err := l.DeliverGuardDuty(detail)
	if err != nil || !matched {
		t.Fatalf("%v, matched %t", err, matched)
	}
	var event map[string]any
	if err := json.Unmarshal([]byte(*l.receive(t, 60, 0)[0].Body), &event); err != nil {
		t.Fatal(err)
	}
	at, err := time.Parse("2006-01-02T15:04:05Z", event["time"].(string))
	if err != nil || time.Since(at) > time.Minute {
		t.Errorf("time %v: %v", event["time"], err)
	}
	delete(event, "time")
	want := map[string]any{"version": "0", "id": id, "detail-type": "GuardDuty Finding", "source": "aws.guardduty", "account": account, "region": region,
		"resources": []any{}, "detail": map[string]any{"severity": 8.0, "title": "a <b> & c"}}
	if diff := cmp.Diff(want, event); diff != "" {
		t.Error(diff)
	}
	if err := l.SetRule(`{"detail":{"severity":[{"numeric":[">=",9]}]}}`); err != nil {
		t.Fatal(err)
	}
	if _, matched, err := l.DeliverGuardDuty(detail); err != nil || matched || l.State().Queue.Visible != 0 {
		t.Errorf("matched %t, %v", matched, err)
	}
	if err := l.SetRule(`{"detail":{"severity":[{"atleast":9}]}}`); err == nil {
		t.Error("an unknown operator is taken")
	}
	if _, _, err := l.DeliverGuardDuty(json.RawMessage(`[]`)); err == nil {
		t.Error("a detail that is no object is taken")
	}
}

func TestPutEvents(t *testing.T) {
	l := start(t, func(c *emulator.Config) { c.Rule = `{"source":["lab","aws.guardduty"]}` })
	put := func(e ...eventtypes.PutEventsRequestEntry) (*eventbridge.PutEventsOutput, error) {
		return l.events.PutEvents(t.Context(), &eventbridge.PutEventsInput{Entries: e})
	}
	bus := entries("lab", "{}")[0]
	bus.EventBusName = aws.String("elsewhere")
	out, err := put(entries("aws.guardduty", "{}")[0], entries("lab", "{}")[0], entries("lab", "[]")[0], entries("", "{}")[0], entries("quiet", "{}")[0], bus)
	if err != nil {
		t.Fatal(err)
	}
	var codes []string
	for _, e := range out.Entries {
		codes = append(codes, aws.ToString(e.ErrorCode))
	}
	want := []string{"NotAuthorizedForSourceException", "", "MalformedDetail", "InvalidArgument", "", "InvalidArgument"}
	if diff := cmp.Diff(want, codes); diff != "" || out.FailedEntryCount != 4 || l.State().Queue.Visible != 1 {
		t.Errorf("%s, %d failed, queue %+v", diff, out.FailedEntryCount, l.State().Queue)
	}
	var many []eventtypes.PutEventsRequestEntry
	for range 11 {
		many = append(many, entries("lab", "{}")...)
	}
	if _, err := put(many...); codeOf(err) != "ValidationException" {
		t.Errorf("eleven entries: %v", err)
	}
	if _, err := l.events.ListRules(t.Context(), &eventbridge.ListRulesInput{}); codeOf(err) != "InvalidAction" {
		t.Errorf("%v", err)
	}
}
