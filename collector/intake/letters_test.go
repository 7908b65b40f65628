package intake

import (
	"context"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
)

// onlyGood takes everything but "bad", which is malformed.
func onlyGood(_ context.Context, body string, _ int) error {
	if body == "bad" {
		return malformed(body)
	}
	return nil
}

func TestWhatCannotBeReadIsInTheDeadLetterQueueWithTheReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &fakeQueue{maxReceives: 3}
		put := time.Now()
		api.put("bad", "good")
		stats, log := run(t, api, &fakeTaker{takes: onlyGood}, 10*time.Second)
		if len(api.letters) != 1 || len(api.dead) != 0 || len(api.live) != 0 {
			t.Fatalf("letters %+v, redriven %v, left %v", api.letters, api.dead, api.live)
		}
		if got := api.letters[0]; got.body != "bad" {
			t.Errorf("the body is %q", got.body)
		}
		for name, want := range map[string][2]string{
			"quicklime.reason":     {"String", "finding is malformed: $.detail is missing; send the event"},
			"quicklime.message-id": {"String", "m-bad"},
			"quicklime.receives":   {"Number", "1"},
			"quicklime.sent":       {"String", put.UTC().Format(time.RFC3339Nano)},
		} {
			got := api.letters[0].own[name]
			if aws.ToString(got.DataType) != want[0] || aws.ToString(got.StringValue) != want[1] {
				t.Errorf("%s is %q %q, want %q", name, aws.ToString(got.DataType), aws.ToString(got.StringValue), want)
			}
		}
		if stats.Taken != 1 || stats.Malformed != 1 || stats.Buried != 1 {
			t.Errorf("stats %+v", stats)
		}
		if !strings.Contains(log, "message=m-bad") || !strings.Contains(log, "$.detail is missing") {
			t.Errorf("log does not say which and why: %s", log)
		}
	})
}

// TestWhereDeadLettersGo tells each way in which one can fail to be sent.
// Nothing is ever deleted that is not in the dead-letter queue.
func TestWhereDeadLettersGo(t *testing.T) {
	for _, c := range []struct {
		name    string
		api     *fakeQueue
		letters int    // how many were sent
		dead    int    // how many redrive moved
		left    int    // how many stay in the queue
		takes   int    // at most, in ten minutes
		says    string // in the log
	}{
		{"sent", &fakeQueue{maxReceives: 3}, 1, 0, 0, 1, "it is in the dead-letter queue now"},
		{"not sent at first", &fakeQueue{maxReceives: 10, failSend: 2}, 1, 0, 0, 3, "nor send it to the dead-letter queue; it comes back later"},
		{"never sent", &fakeQueue{maxReceives: 5, failSend: 99}, 0, 1, 0, 5, "nor send it"},
		{"sent, and the answer lost", &fakeQueue{maxReceives: 10, loseSend: 1}, 2, 0, 0, 2, "nor send it"},
		{"sent, and not deleted", &fakeQueue{maxReceives: 10, failDelete: 1}, 2, 0, 0, 2, "will be in the dead-letter queue twice"},
		{"not allowed to send", &fakeQueue{maxReceives: 3, deny: "SendMessage"}, 0, 1, 0, 3, "without the reason, as the collector may not send it"},
		{"not allowed to ask where", &fakeQueue{maxReceives: 3, deny: "GetQueueAttributes"}, 0, 1, 0, 3, "without the reason, as the collector may not send it"},
		{"no redrive policy", &fakeQueue{}, 0, 0, 1, 1, "give the queue a redrive policy, or name one with --dead-letter-queue"},
		{"not allowed to ask, and none to take it", &fakeQueue{deny: "GetQueueAttributes"}, 0, 0, 1, manyReceives + 5, "nor send it"},
		{"a policy that is none", &fakeQueue{maxReceives: 3, policy: "{"}, 0, 1, 0, 3, "cannot read its redrive policy"},
		{"a policy that names no queue", &fakeQueue{maxReceives: 3, policy: `{"deadLetterTargetArn":"arn:aws:s3:::b"}`}, 0, 1, 0, 3, "which is no queue"},
		{"a policy that names the queue itself", &fakeQueue{maxReceives: 3, policy: `{"deadLetterTargetArn":"arn:aws:sqs:eu-central-1:111122223333:findings"}`},
			0, 1, 0, 3, "SQS gives"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c.api.put("bad")
				taker := &fakeTaker{takes: onlyGood}
				stats, log := run(t, c.api, taker, 10*time.Minute)
				if len(c.api.letters) != c.letters || len(c.api.dead) != c.dead || len(c.api.live) != c.left {
					t.Errorf("%d letters, %d redriven, %d left", len(c.api.letters), len(c.api.dead), len(c.api.live))
				}
				if n := taker.times("bad"); n > c.takes {
					t.Errorf("it was taken %d times, want %d at most", n, c.takes)
				}
				if stats.Taken != 0 || stats.Malformed != int64(taker.times("bad")) {
					t.Errorf("stats %+v", stats)
				}
				if !strings.Contains(log, c.says) {
					t.Errorf("the log does not say %q: %s", c.says, log)
				}
			})
		})
	}
}

// TestAQueueWithoutDeadLetterQueueIsKnownAtTheStart, before anything is lost
// sight of.
func TestAQueueWithoutDeadLetterQueueIsKnownAtTheStart(t *testing.T) {
	for says, api := range map[string]*fakeQueue{
		"goes to the dead-letter queue\" queue=" + fakeURL + " letters=" + fakeLetters:           {maxReceives: 3},
		"no dead-letter queue is known for what cannot be read; give the queue a redrive policy": {},
		"not authorized": {deny: "GetQueueAttributes"},
	} {
		synctest.Test(t, func(t *testing.T) {
			if _, log := run(t, api, &fakeTaker{}, time.Second); !strings.Contains(log, says) {
				t.Errorf("the log does not say %q: %s", says, log)
			}
		})
	}
}

// TestAFailingStoreBuriesNothing: a case that cannot be written now is no
// reason to put its finding aside.
func TestAFailingStoreBuriesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &fakeQueue{}
		api.put("good")
		run(t, api, &fakeTaker{takes: func(context.Context, string, int) error { return errDown }}, time.Hour)
		if len(api.letters) != 0 || len(api.live) != 1 {
			t.Errorf("letters %v, left %d", api.letters, len(api.live))
		}
	})
}

func TestAQueueIsNotItsOwnDeadLetterQueue(t *testing.T) {
	if _, err := New(&fakeQueue{}, Config{Queue: fakeURL, DeadLetters: fakeURL}, &fakeTaker{}, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("it was taken")
	}
}

func TestANamedDeadLetterQueueNeedsNoPolicy(t *testing.T) {
	api := &fakeQueue{deny: "GetQueueAttributes"}
	l := &letters{api: api, queue: fakeURL, named: fakeLetters}
	if id, err := l.send(t.Context(), types.Message{Body: aws.String("bad")}, "why"); err != nil || id != "new" || len(api.letters) != 1 {
		t.Errorf("%q, %v, %v", id, err, api.letters)
	}
}

// TestADeadLetterQueueMayBeReplaced while the collector runs.
func TestADeadLetterQueueMayBeReplaced(t *testing.T) {
	api := &fakeQueue{policy: `{"deadLetterTargetArn":"arn:aws:sqs:eu-central-1:111122223333:old"}`}
	l, m := &letters{api: api, queue: fakeURL}, types.Message{Body: aws.String("bad")}
	if _, err := l.send(t.Context(), m, "why"); err == nil {
		t.Fatal("a queue that is not there took it")
	}
	api.policy = `{"deadLetterTargetArn":"arn:aws:sqs:eu-central-1:111122223333:letters"}`
	if _, err := l.send(t.Context(), m, "why"); err != nil || len(api.letters) != 1 {
		t.Errorf("%v, %v", err, api.letters)
	}
}

// TestALetterFitsIntoAMessage: SQS counts attributes as it counts the body.
func TestALetterFitsIntoAMessage(t *testing.T) {
	message := func(size int) types.Message {
		body := strings.Repeat("b", size)
		return types.Message{Body: &body, MessageId: aws.String("19dd0b57-b21e-4ac1-bd88-01bbb068cb78"), Attributes: map[string]string{
			"ApproximateReceiveCount": "12", "SentTimestamp": strconv.FormatInt(1763631340370, 10)}}
	}
	for _, c := range []struct {
		size, least, most int // bytes of the reason
	}{
		{1, maxReason - 3, maxReason},
		{maxMessage - 300, 70, 200},
		{maxMessage - 100, 0, 0},
		{maxMessage, 0, 0},
	} {
		m := message(c.size)
		all, sum := about(m, strings.Repeat("é\n\x00\u202e", 4000)), c.size
		for name, a := range all {
			sum += len(name) + len(*a.DataType) + len(*a.StringValue)
		}
		reason := aws.ToString(all[ReasonAttribute].StringValue)
		if sum > maxMessage || len(reason) < c.least || len(reason) > c.most {
			t.Errorf("a body of %d bytes: %d in all, %d of a reason; want %d to %d", c.size, sum, len(reason), c.least, c.most)
		}
	}
}

func FuzzReadable(f *testing.F) {
	f.Add("plain", 100)
	f.Add("\x00\x1b[31m\u202e\ufffe é\xff", 7)
	f.Add("ééééé", 4)
	f.Fuzz(func(t *testing.T, text string, most int) {
		most = 8 + max(most, 0)%4096
		got := readable(text, most)
		if len(got) > most || !utf8.ValidString(got) {
			t.Errorf("%q has %d bytes, want %d at most", got, len(got), most)
		}
		if i := strings.IndexFunc(got, func(r rune) bool { return r < 0x20 || r == 0xfffe || r == 0xffff }); i >= 0 {
			t.Errorf("%q holds what SQS refuses", got)
		}
	})
}
