package intake

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/quicklime-ir/quicklime/collector/finding"
)

// Times and bounds of the queue.
const (
	longPoll       = 20 * time.Second // the longest that SQS waits for a message
	receiveLimit   = longPoll + 15*time.Second
	takeLimit      = 50 * time.Second // for one Take; shorter than hidden, so that no message is taken twice at once
	hidden         = 60 * time.Second // how long a received message stays invisible
	answerLimit    = 10 * time.Second // for one delete or change of visibility, also while stopping
	batch          = 10               // messages of one receive, the most SQS gives
	workers        = 10               // messages in hand at once
	manyReceives   = 20               // of a malformed message, before it is taken that no redrive policy exists
	retryBase      = 10 * time.Second // about the visibility after the first failed Take
	retryCeiling   = 15 * time.Minute
	receiveBase    = time.Second
	receiveCeiling = time.Minute
)

// SQS is the part of the SQS client that a Queue uses.
type SQS interface {
	ReceiveMessage(context.Context, *sqs.ReceiveMessageInput, ...func(*sqs.Options)) (*sqs.ReceiveMessageOutput, error)
	DeleteMessage(context.Context, *sqs.DeleteMessageInput, ...func(*sqs.Options)) (*sqs.DeleteMessageOutput, error)
	ChangeMessageVisibility(context.Context, *sqs.ChangeMessageVisibilityInput, ...func(*sqs.Options)) (*sqs.ChangeMessageVisibilityOutput, error)
}

// Taker turns one event into a case, or joins it to an open one. On nil the
// case is durable and the event may be forgotten. An error that wraps
// finding.ErrMalformed sends the event to the dead-letter queue; any other
// brings it back later. Take is called from several goroutines, may see the
// same event again, and must return soon after ctx is done, which is after 50 s
// at the latest.
type Taker interface {
	Take(ctx context.Context, raw []byte) error
}

// Stats counts what a Queue has done since it was made.
type Stats struct {
	Polled    time.Time // when SQS last answered a receive; zero before the first
	Received  int64     // messages
	Taken     int64     // messages whose case is durable
	Malformed int64     // messages sent on to the dead-letter queue
	Failed    int64     // messages to come back later

	Oldest time.Duration // age of the oldest message of the last answer; 0: it had none
}

// Queue moves events from one SQS queue to a Taker. Make it with New.
type Queue struct {
	api   SQS
	url   string
	taker Taker
	log   *slog.Logger

	mu    sync.Mutex
	stats Stats // under mu
}

// New makes a Queue. url is the queue's URL.
func New(api SQS, url string, taker Taker, log *slog.Logger) *Queue {
	return &Queue{api: api, url: url, taker: taker, log: log.With("queue", url)}
}

// Stats says what was done so far.
func (q *Queue) Stats() Stats {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.stats
}

// Run takes messages until ctx is done and every Take has returned; then it
// returns nil. A failing queue is logged and asked again after one second to
// one minute, with full jitter; nothing but ctx ends the loop.
func (q *Queue) Run(ctx context.Context) error {
	var hands sync.WaitGroup
	defer hands.Wait()
	slots := make(chan struct{}, workers)
	for failures := 0; ; {
		free, ok := await(ctx, slots)
		if !ok {
			return nil
		}
		messages, err := q.receive(ctx, free)
		if err != nil {
			release(slots, free)
			wait := jitter(receiveBase, receiveCeiling, failures)
			failures++
			if ctx.Err() == nil {
				q.log.Error("cannot receive messages; asking again", "error", err, "wait", wait, "failures", failures)
			}
			sleep(ctx, wait)
			continue
		}
		failures = 0
		release(slots, free-len(messages))
		for _, m := range messages {
			hands.Go(func() {
				defer release(slots, 1)
				q.handle(ctx, m)
			})
		}
	}
}

// await takes one slot, waiting for it, and every other that is free.
func await(ctx context.Context, slots chan struct{}) (taken int, ok bool) {
	if ctx.Err() != nil {
		return 0, false
	}
	select {
	case slots <- struct{}{}:
	case <-ctx.Done():
		return 0, false
	}
	for taken = 1; taken < batch; taken++ {
		select {
		case slots <- struct{}{}:
		default:
			return taken, true
		}
	}
	return taken, true
}

func release(slots chan struct{}, n int) {
	for range n {
		<-slots
	}
}

func (q *Queue) receive(ctx context.Context, most int) ([]types.Message, error) {
	ctx, cancel := context.WithTimeout(ctx, receiveLimit)
	defer cancel()
	out, err := q.api.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{
		QueueUrl:                    &q.url,
		MaxNumberOfMessages:         int32(most),
		WaitTimeSeconds:             int32(longPoll / time.Second),
		VisibilityTimeout:           int32(hidden / time.Second),
		MessageSystemAttributeNames: []types.MessageSystemAttributeName{types.MessageSystemAttributeNameApproximateReceiveCount, types.MessageSystemAttributeNameSentTimestamp},
	})
	if err != nil {
		return nil, fmt.Errorf("cannot receive from %s: %w", q.url, err)
	}
	if len(out.Messages) > most {
		return nil, fmt.Errorf("cannot receive from %s: it gave %d messages where %d were asked for", q.url, len(out.Messages), most)
	}
	now := time.Now()
	q.count(func(s *Stats) {
		s.Polled, s.Oldest, s.Received = now, oldest(out.Messages, now), s.Received+int64(len(out.Messages))
	})
	return out.Messages, nil
}

// handle takes one message and answers for it. The answer is given also while
// stopping, so that a case that was made is not made again by the next node.
func (q *Queue) handle(ctx context.Context, m types.Message) {
	log := q.log.With("message", aws.ToString(m.MessageId))
	receives := receives(m)
	err := q.take(ctx, []byte(aws.ToString(m.Body)))
	answer := context.WithoutCancel(ctx)
	switch {
	case err == nil:
		q.count(func(s *Stats) { s.Taken++ })
		q.delete(answer, m, log)
	case errors.Is(err, finding.ErrMalformed) && receives < manyReceives:
		q.count(func(s *Stats) { s.Malformed++ })
		log.Error("cannot read message; leaving it to the dead-letter queue", "error", err, "receives", receives)
		q.hide(answer, m, 0, log)
	case errors.Is(err, finding.ErrMalformed):
		q.count(func(s *Stats) { s.Malformed++ })
		log.Error("cannot read message, and no dead-letter queue takes it; give the queue a redrive policy",
			"error", err, "receives", receives)
		q.hide(answer, m, retryCeiling, log)
	case ctx.Err() != nil:
		log.Info("stopped before the message was taken; giving it back", "error", err)
		q.hide(answer, m, 0, log)
	default:
		q.count(func(s *Stats) { s.Failed++ })
		wait := comeback(receives)
		log.Error("cannot take message; it comes back later", "error", err, "wait", wait, "receives", receives)
		q.hide(answer, m, wait, log)
	}
}

func (q *Queue) take(ctx context.Context, raw []byte) error {
	ctx, cancel := context.WithTimeout(ctx, takeLimit)
	defer cancel()
	return q.taker.Take(ctx, raw)
}

// delete removes a taken message. Where it fails, the message comes back and
// joins its own case.
func (q *Queue) delete(ctx context.Context, m types.Message, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	if _, err := q.api.DeleteMessage(ctx, &sqs.DeleteMessageInput{QueueUrl: &q.url, ReceiptHandle: m.ReceiptHandle}); err != nil {
		log.Warn("cannot delete message; it comes back and joins its case", "error", err)
	}
}

// hide keeps the message invisible for d more. Where it fails, the message
// comes back when its first invisibility ends.
func (q *Queue) hide(ctx context.Context, m types.Message, d time.Duration, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	_, err := q.api.ChangeMessageVisibility(ctx, &sqs.ChangeMessageVisibilityInput{
		QueueUrl: &q.url, ReceiptHandle: m.ReceiptHandle, VisibilityTimeout: int32(d / time.Second),
	})
	if err != nil {
		log.Warn("cannot change the message's visibility; it comes back within a minute", "error", err)
	}
}

func (q *Queue) count(change func(*Stats)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	change(&q.stats)
}

// receives says how often SQS has handed the message out, this time included.
func receives(m types.Message) int {
	n, err := strconv.Atoi(m.Attributes[string(types.MessageSystemAttributeNameApproximateReceiveCount)])
	if err != nil || n < 1 {
		return 1
	}
	return n
}
