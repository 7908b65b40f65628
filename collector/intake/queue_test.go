package intake

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"
	"go.uber.org/goleak"

	"github.com/quicklime-ir/quicklime/collector/finding"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errDown = errors.New("503 service unavailable")

// fakeQueue is an SQS queue with visibility, receive counts and redrive.
type fakeQueue struct {
	mu          sync.Mutex
	live        []*fakeMessage
	dead        []string // bodies of what redrive moved
	letters     []letter // what was sent
	maxReceives int      // 0: no redrive policy
	deletes     int

	failReceive, failDelete, failHide int // how many of the next calls fail
	failSend                          int
	loseDelete, loseSend              int    // how many of the next calls happen and still answer with an error
	deny                              string // the action that the collector may not call
	policy                            string // overrides the redrive policy
	receives, hides                   []time.Time
}

type fakeMessage struct {
	body    string
	sent    time.Time
	seen    int
	visible time.Time
}

// letter is a message that was sent to the dead-letter queue.
type letter struct {
	body string
	own  map[string]types.MessageAttributeValue
}

const fakeURL, fakeLetters = "https://sqs.example/111122223333/findings", "https://sqs.example/111122223333/letters"

func (q *fakeQueue) GetQueueAttributes(_ context.Context, in *sqs.GetQueueAttributesInput, _ ...func(*sqs.Options)) (*sqs.GetQueueAttributesOutput, error) {
	if q.deny == "GetQueueAttributes" {
		return nil, &smithy.GenericAPIError{Code: "AccessDeniedException", Message: "not authorized"}
	}
	out := &sqs.GetQueueAttributesOutput{}
	if policy := q.policy; policy != "" || q.maxReceives > 0 {
		policy = cmp.Or(policy, `{"deadLetterTargetArn":"arn:aws:sqs:eu-central-1:111122223333:letters","maxReceiveCount":"3"}`)
		out.Attributes = map[string]string{string(in.AttributeNames[0]): policy}
	}
	return out, nil
}

func (q *fakeQueue) GetQueueUrl(_ context.Context, in *sqs.GetQueueUrlInput, _ ...func(*sqs.Options)) (*sqs.GetQueueUrlOutput, error) {
	return &sqs.GetQueueUrlOutput{QueueUrl: aws.String("https://sqs.example/" + *in.QueueOwnerAWSAccountId + "/" + *in.QueueName)}, nil
}

func (q *fakeQueue) SendMessage(_ context.Context, in *sqs.SendMessageInput, _ ...func(*sqs.Options)) (*sqs.SendMessageOutput, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.deny == "SendMessage":
		return nil, &smithy.GenericAPIError{Code: "AccessDenied", Message: "not authorized"}
	case *in.QueueUrl != fakeLetters:
		return nil, fmt.Errorf("no such queue: %s", *in.QueueUrl)
	case q.failSend > 0:
		q.failSend--
		return nil, errDown
	}
	q.letters = append(q.letters, letter{*in.MessageBody, in.MessageAttributes})
	if q.loseSend > 0 {
		q.loseSend--
		return nil, errDown
	}
	return &sqs.SendMessageOutput{MessageId: aws.String("new")}, nil
}

func (q *fakeQueue) put(bodies ...string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, b := range bodies {
		q.live = append(q.live, &fakeMessage{body: b, sent: time.Now()})
	}
}

func (q *fakeQueue) ReceiveMessage(ctx context.Context, in *sqs.ReceiveMessageInput, _ ...func(*sqs.Options)) (*sqs.ReceiveMessageOutput, error) {
	q.mu.Lock()
	q.receives = append(q.receives, time.Now())
	if q.failReceive > 0 {
		q.failReceive--
		q.mu.Unlock()
		return nil, errDown
	}
	q.mu.Unlock()
	for until := time.Now().Add(time.Duration(in.WaitTimeSeconds) * time.Second); ; {
		if out := q.pick(in); len(out) > 0 || !time.Now().Before(until) {
			return &sqs.ReceiveMessageOutput{Messages: out}, nil
		}
		if sleep(ctx, 100*time.Millisecond); ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}

func (q *fakeQueue) pick(in *sqs.ReceiveMessageInput) (out []types.Message) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, m := range slices.Clone(q.live) {
		if len(out) == int(in.MaxNumberOfMessages) || m.visible.After(time.Now()) {
			continue
		}
		if q.maxReceives > 0 && m.seen == q.maxReceives {
			q.drop(m.body)
			q.dead = append(q.dead, m.body)
			continue
		}
		m.seen++
		m.visible = time.Now().Add(time.Duration(in.VisibilityTimeout) * time.Second)
		out = append(out, types.Message{MessageId: aws.String("m-" + m.body), Body: &m.body, ReceiptHandle: &m.body,
			Attributes: map[string]string{"ApproximateReceiveCount": strconv.Itoa(m.seen), "SentTimestamp": strconv.FormatInt(m.sent.UnixMilli(), 10)}})
	}
	return out
}

func (q *fakeQueue) drop(body string) {
	q.live = slices.DeleteFunc(q.live, func(m *fakeMessage) bool { return m.body == body })
}

func (q *fakeQueue) DeleteMessage(ctx context.Context, in *sqs.DeleteMessageInput, _ ...func(*sqs.Options)) (*sqs.DeleteMessageOutput, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if q.failDelete > 0 {
		q.failDelete--
		return nil, errDown
	}
	q.drop(*in.ReceiptHandle)
	q.deletes++
	if q.loseDelete > 0 {
		q.loseDelete--
		return nil, errDown
	}
	return &sqs.DeleteMessageOutput{}, nil
}

func (q *fakeQueue) ChangeMessageVisibility(ctx context.Context, in *sqs.ChangeMessageVisibilityInput, _ ...func(*sqs.Options)) (*sqs.ChangeMessageVisibilityOutput, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if q.failHide > 0 {
		q.failHide--
		return nil, errDown
	}
	at := slices.IndexFunc(q.live, func(m *fakeMessage) bool { return m.body == *in.ReceiptHandle })
	if at < 0 || !q.live[at].visible.After(time.Now()) {
		return nil, &types.MessageNotInflight{}
	}
	q.hides = append(q.hides, time.Now())
	q.live[at].visible = time.Now().Add(time.Duration(in.VisibilityTimeout) * time.Second)
	return &sqs.ChangeMessageVisibilityOutput{}, nil
}

// fakeTaker remembers what it was given; take may refuse.
type fakeTaker struct {
	mu    sync.Mutex
	got   []string
	busy  int
	peak  int
	takes func(ctx context.Context, body string, nth int) error
}

func (f *fakeTaker) Take(ctx context.Context, raw []byte) error {
	f.mu.Lock()
	body := string(raw)
	f.got = append(f.got, body)
	nth := 0
	for _, b := range f.got {
		if b == body {
			nth++
		}
	}
	f.busy++
	f.peak = max(f.peak, f.busy)
	f.mu.Unlock()
	defer func() { f.mu.Lock(); f.busy--; f.mu.Unlock() }()
	if f.takes == nil {
		return nil
	}
	return f.takes(ctx, body, nth)
}

func (f *fakeTaker) times(body string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, b := range f.got {
		if b == body {
			n++
		}
	}
	return n
}

// run lets a Queue work for the given time of the bubble's clock and returns
// what it logged.
func run(t *testing.T, api *fakeQueue, taker *fakeTaker, d time.Duration) (Stats, string) {
	t.Helper()
	var log bytes.Buffer
	q, err := New(api, Config{Queue: fakeURL}, taker, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	if err := q.Run(ctx); err != nil {
		t.Errorf("Run: %v", err)
	}
	return q.Stats(), log.String()
}

func malformed(string) error {
	return fmt.Errorf("%w: $.detail is missing; send the event", finding.ErrMalformed)
}

func TestTakenMessagesAreDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api, taker := &fakeQueue{}, &fakeTaker{}
		for i := range 25 {
			api.put(strconv.Itoa(i))
		}
		stats, _ := run(t, api, taker, time.Minute)
		if len(api.live) != 0 || api.deletes != 25 || len(taker.got) != 25 || stats.Taken != 25 || stats.Received != 25 {
			t.Errorf("left %d, deleted %d, taken %d, stats %+v", len(api.live), api.deletes, len(taker.got), stats)
		}
		if stats.Polled.IsZero() {
			t.Error("the last poll is not recorded")
		}
	})
}

// TestNothingIsReceivedThatCouldNotBeTaken: what waits is there for others, and
// is taken as soon as it can be.
func TestNothingIsReceivedThatCouldNotBeTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api, taker, start := &fakeQueue{}, &fakeTaker{}, time.Now()
		api.put("a")
		var log bytes.Buffer
		ready := func(context.Context) error {
			if time.Since(start) < time.Hour {
				return errors.New("no majority")
			}
			return nil
		}
		q, err := New(api, Config{Queue: fakeURL, Ready: ready}, taker, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = q.Run(ctx) })
		time.Sleep(time.Hour - readyEvery)
		if s := q.Stats(); s.Received != 0 || !s.Polled.IsZero() {
			t.Errorf("stats %+v", s)
		}
		time.Sleep(3 * readyEvery)
		if s := q.Stats(); s.Taken != 1 {
			t.Errorf("stats %+v", s)
		}
		cancel()
		running.Wait()
		if said := strings.Count(log.String(), "no majority"); said != 1 || !strings.Contains(log.String(), "received again") {
			t.Errorf("it says so %d times: %s", said, log.String())
		}
	})
}

func TestMessageStaysUntilItsCaseIsDurable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &fakeQueue{}
		api.put("slow")
		taker := &fakeTaker{takes: func(ctx context.Context, _ string, _ int) error {
			sleep(ctx, 30*time.Second)
			api.mu.Lock()
			defer api.mu.Unlock()
			if api.deletes != 0 || len(api.live) != 1 {
				t.Error("deleted before Take returned")
			}
			return nil
		}}
		run(t, api, taker, 2*time.Minute)
		if taker.times("slow") != 1 || api.deletes != 1 {
			t.Errorf("taken %d times, deleted %d times, want once each", taker.times("slow"), api.deletes)
		}
	})
}

func TestRefusedMessageComesBackLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &fakeQueue{maxReceives: 10}
		api.put("a")
		start := time.Now()
		var last time.Duration
		taker := &fakeTaker{takes: func(_ context.Context, _ string, nth int) error {
			last = time.Since(start)
			if nth < 5 {
				return errDown
			}
			return nil
		}}
		stats, _ := run(t, api, taker, 10*time.Minute)
		if stats.Failed != 4 || stats.Taken != 1 || len(api.live) != 0 || len(api.dead) != 0 {
			t.Errorf("stats %+v, left %d, dead %v", stats, len(api.live), api.dead)
		}
		if last < 60*time.Second || last > 170*time.Second {
			t.Errorf("the fifth take came after %v", last)
		}
	})
}

func TestHangingTakeIsGivenUpBeforeTheMessageShowsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &fakeQueue{}
		api.put("hangs")
		taker := &fakeTaker{takes: func(ctx context.Context, _ string, _ int) error { <-ctx.Done(); return ctx.Err() }}
		stats, _ := run(t, api, taker, 40*time.Minute)
		if taker.peak != 1 || stats.Failed < 2 {
			t.Errorf("%d at once, stats %+v", taker.peak, stats)
		}
	})
}

func TestHandsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &fakeQueue{}
		for i := range 100 {
			api.put(strconv.Itoa(i))
		}
		taker := &fakeTaker{takes: func(ctx context.Context, _ string, _ int) error { sleep(ctx, time.Second); return nil }}
		stats, _ := run(t, api, taker, time.Minute)
		if taker.peak != workers || stats.Taken != 100 {
			t.Errorf("%d at once, want %d; stats %+v", taker.peak, workers, stats)
		}
	})
}

func TestFailingReceiveBacksOffAndNeverEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api, taker := &fakeQueue{failReceive: 40}, &fakeTaker{}
		api.put("a")
		stats, log := run(t, api, taker, time.Hour)
		if stats.Taken != 1 {
			t.Errorf("stats %+v", stats)
		}
		for i := 1; i <= 40; i++ {
			if gap := api.receives[i].Sub(api.receives[i-1]); gap > receiveCeiling {
				t.Errorf("wait %d is %v", i, gap)
			}
		}
		if spent := api.receives[40].Sub(api.receives[0]); spent < 5*time.Minute {
			t.Errorf("40 failures in %v: that is no backoff", spent)
		}
		if !strings.Contains(log, "503 service unavailable") {
			t.Error("the log does not say why")
		}
	})
}

func TestFailingAnswersLoseNothing(t *testing.T) {
	for _, c := range []struct {
		name  string
		api   *fakeQueue
		takes func(context.Context, string, int) error
		want  int // takes
	}{
		{"delete fails: the message comes back and is taken again", &fakeQueue{failDelete: 1}, nil, 2},
		{"delete's answer is lost: the message is gone", &fakeQueue{loseDelete: 1}, nil, 1},
		{"hiding a refused message fails: it comes back by itself", &fakeQueue{failHide: 1},
			func(_ context.Context, _ string, nth int) error {
				if nth == 1 {
					return errDown
				}
				return nil
			}, 2},
		{"hiding a malformed message fails: it still reaches the dead-letter queue", &fakeQueue{failHide: 1, failSend: 9, maxReceives: 2},
			func(_ context.Context, body string, _ int) error { return malformed(body) }, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c.api.put("a")
				taker := &fakeTaker{takes: c.takes}
				run(t, c.api, taker, 5*time.Minute)
				if taker.times("a") != c.want || len(c.api.live) != 0 {
					t.Errorf("taken %d times, %d left; want %d, 0", taker.times("a"), len(c.api.live), c.want)
				}
			})
		})
	}
}

func TestStoppingGivesBackWhatWasNotTakenAndDeletesWhatWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &fakeQueue{}
		api.put("stubborn", "polite")
		taker := &fakeTaker{takes: func(ctx context.Context, body string, _ int) error {
			<-ctx.Done()
			if body == "polite" {
				return ctx.Err()
			}
			time.Sleep(time.Second) // past the stop, and then it is durable after all
			return nil
		}}
		run(t, api, taker, 5*time.Second)
		if len(api.live) != 1 || api.live[0].body != "polite" || api.live[0].visible.After(time.Now()) {
			t.Errorf("left %+v, want only the polite one, visible", api.live)
		}
	})
}

func TestOverfullAnswerIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		taker := &fakeTaker{}
		var log bytes.Buffer
		q, err := New(overfull{&fakeQueue{}}, Config{Queue: "q"}, taker, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := q.Run(ctx); err != nil || len(taker.got) != 0 || !strings.Contains(log.String(), "it gave 11 messages") {
			t.Errorf("Run: %v, taken %d, log %s", err, len(taker.got), log.String())
		}
	})
}

// overfull answers with more messages than were asked for.
type overfull struct{ *fakeQueue }

func (overfull) ReceiveMessage(context.Context, *sqs.ReceiveMessageInput, ...func(*sqs.Options)) (*sqs.ReceiveMessageOutput, error) {
	return &sqs.ReceiveMessageOutput{Messages: make([]types.Message, 11)}, nil
}
