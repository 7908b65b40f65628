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
	answerLimit    = 10 * time.Second // for one delete or change of visibility, also while stopping
	readyEvery     = time.Second      // between two looks whether messages can be taken
	batch          = 10               // messages of one receive, the most SQS gives
	workers        = 32               // messages in hand at once, of finding.MaxSize bytes at most
	manyReceives   = 20               // of a malformed message that cannot be sent on, before it is taken that no redrive policy exists
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
	SendMessage(context.Context, *sqs.SendMessageInput, ...func(*sqs.Options)) (*sqs.SendMessageOutput, error)
	GetQueueAttributes(context.Context, *sqs.GetQueueAttributesInput, ...func(*sqs.Options)) (*sqs.GetQueueAttributesOutput, error)
	GetQueueUrl(context.Context, *sqs.GetQueueUrlInput, ...func(*sqs.Options)) (*sqs.GetQueueUrlOutput, error)
}

// Taker turns one event into a case, or joins it to an open one. On nil the
// case is durable and the event may be forgotten. An error that wraps
// finding.ErrMalformed sends the event to the dead-letter queue; any other
// brings it back later. Take is called from several goroutines, may see the
// same event again, and must return soon after ctx is done, which is after 15
// minutes at the latest.
type Taker interface {
	Take(ctx context.Context, raw []byte) error
}

// Stats says what a Queue does, and counts what it has done since it was made.
type Stats struct {
	InHand int           // messages that are being taken now, 32 at most
	Oldest time.Duration // how long ago the oldest of them was sent, by SQS's clock and ours; 0: none
	Waited time.Duration // how old the message was that was received last, when it was; 0: none was, or SQS did not say

	Polled    time.Time // when SQS last answered a receive; zero before the first
	Received  int64     // messages
	Taken     int64     // messages whose case is durable
	Malformed int64     // messages that cannot be read; one that comes back counts again
	Buried    int64     // of these, messages that are in the dead-letter queue with the reason
	Failed    int64     // messages to come back later
}

// Config names the queues, by their URLs.
type Config struct {
	Queue       string
	DeadLetters string // for what cannot be read; empty: the one of the queue's redrive policy
	// Ready says why no message can be taken now; then none is received, and it
	// is asked again each second. So messages are there for other nodes, and use
	// up none of the receives that the redrive policy allows. nil: they always can.
	Ready func(context.Context) error
}

// Queue moves events from one SQS queue to a Taker. Make it with New.
type Queue struct {
	api     SQS
	url     string
	ready   func(context.Context) error
	letters *letters
	taker   Taker
	log     *slog.Logger

	mu    sync.Mutex
	stats Stats                // under mu; InHand and Oldest are hand's
	hand  map[string]time.Time // under mu; when each message in hand was sent, by its receipt handle
}

// New makes a Queue.
func New(api SQS, cfg Config, taker Taker, log *slog.Logger) (*Queue, error) {
	if cfg.Queue == cfg.DeadLetters {
		return nil, fmt.Errorf("cannot take %s as its own dead-letter queue: what cannot be read would go round for ever", cfg.Queue)
	}
	if cfg.Ready == nil {
		cfg.Ready = func(context.Context) error { return nil }
	}
	return &Queue{api: api, url: cfg.Queue, ready: cfg.Ready, letters: &letters{api: api, queue: cfg.Queue, named: cfg.DeadLetters},
		hand: map[string]time.Time{}, taker: taker, log: log.With("queue", cfg.Queue)}, nil
}

// Stats says what was done so far.
func (q *Queue) Stats() Stats {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := q.stats
	out.InHand = len(q.hand)
	for _, at := range q.hand {
		out.Oldest = max(out.Oldest, time.Since(at))
	}
	return out
}

// hold notes that a message is in hand until done is called.
func (q *Queue) hold(m types.Message) (done func()) {
	at, now, handle := sent(m), time.Now(), aws.ToString(m.ReceiptHandle)
	if at.IsZero() || at.After(now) {
		at = now
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stats.Waited = now.Sub(at)
	q.hand[handle] = at
	return func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		delete(q.hand, handle)
	}
}

// Run takes messages until ctx is done and every Take has returned; then it
// returns nil. A failing queue is logged and asked again after one second to
// one minute, with full jitter; nothing but ctx ends the loop.
func (q *Queue) Run(ctx context.Context) error {
	var hands sync.WaitGroup
	defer hands.Wait()
	slots := make(chan struct{}, workers)
	q.lookForLetters(ctx)
	for failures := 0; ; {
		q.awaitReady(ctx)
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

// awaitReady returns once messages can be taken, or ctx is done.
func (q *Queue) awaitReady(ctx context.Context) {
	for waits := 0; ctx.Err() == nil; waits++ {
		limited, cancel := context.WithTimeout(ctx, answerLimit)
		err := q.ready(limited)
		cancel()
		switch {
		case err == nil && waits > 0:
			q.log.Info("messages are received again")
			return
		case err == nil:
			return
		case waits == 0 && ctx.Err() == nil:
			q.log.Error("no messages are received, as none could be taken; asking again each second", "error", err)
		}
		sleep(ctx, readyEvery)
	}
}

// lookForLetters says at the start where what cannot be read will go, so that
// a queue without redrive is known before it matters.
func (q *Queue) lookForLetters(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	switch url, err := q.letters.find(limited); {
	case err == nil:
		q.log.Info("what cannot be read goes to the dead-letter queue", "letters", url)
	case ctx.Err() == nil:
		q.log.Warn("no dead-letter queue is known for what cannot be read; give the queue a redrive policy, or name one with --dead-letter-queue", "cause", err)
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
	q.count(func(s *Stats) { s.Polled, s.Received = time.Now(), s.Received+int64(len(out.Messages)) })
	return out.Messages, nil
}

// handle takes one message and answers for it. The answer is given also while
// stopping, so that a case that was made is not made again by the next node.
func (q *Queue) handle(ctx context.Context, m types.Message) {
	log := q.log.With("message", aws.ToString(m.MessageId))
	receives := receives(m)
	defer q.hold(m)()
	err := q.take(ctx, m, log)
	answer := context.WithoutCancel(ctx)
	switch {
	case err == nil:
		q.count(func(s *Stats) { s.Taken++ })
		q.delete(answer, m, "it comes back and joins its case", log)
	case errors.Is(err, finding.ErrMalformed):
		q.count(func(s *Stats) { s.Malformed++ })
		q.bury(answer, m, err, log)
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

// bury sends a message that cannot be read to the dead-letter queue, with the
// reason, and deletes it only once SQS has it there. Where it cannot be sent,
// the queue's redrive policy moves it in the end, without the reason.
func (q *Queue) bury(ctx context.Context, m types.Message, reason error, log *slog.Logger) {
	log = log.With("error", reason, "receives", receives(m))
	limited, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	id, err := q.letters.send(limited, m, reason.Error())
	switch {
	case err == nil:
		q.count(func(s *Stats) { s.Buried++ })
		log.Error("cannot read message; it is in the dead-letter queue now, with the reason", "letter", id)
		q.delete(ctx, m, "it comes back, and will be in the dead-letter queue twice", log)
	case errors.Is(err, errNoLetters):
		log.Error("cannot read message, and no dead-letter queue takes it; give the queue a redrive policy, or name one with --dead-letter-queue")
		q.hide(ctx, m, retryCeiling, log)
	case denied(err) && receives(m) < manyReceives:
		log.Error("cannot read message; leaving it to the dead-letter queue without the reason, as the collector may not send it there", "denied", err)
		q.hide(ctx, m, 0, log)
	default:
		wait := comeback(receives(m))
		log.Error("cannot read message, nor send it to the dead-letter queue; it comes back later", "cause", err, "wait", wait)
		q.hide(ctx, m, wait, log)
	}
}

// take has the message taken, and keeps it invisible meanwhile.
func (q *Queue) take(ctx context.Context, m types.Message, log *slog.Logger) error {
	ctx, lose := context.WithCancelCause(ctx)
	defer lose(nil)
	ctx, cancel := context.WithTimeout(ctx, takeLimit)
	var heart sync.WaitGroup
	heart.Go(func() { q.keep(ctx, m, lose, log) })
	err := q.taker.Take(ctx, []byte(aws.ToString(m.Body)))
	lost := context.Cause(ctx)
	cancel()
	heart.Wait() // so that no beat comes after the answer
	if err != nil && errors.Is(lost, errShown) {
		return fmt.Errorf("%w: %w", lost, err)
	}
	return err
}

// delete removes a message that is safe elsewhere; otherwise says what comes
// of it where that fails.
func (q *Queue) delete(ctx context.Context, m types.Message, otherwise string, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	if _, err := q.api.DeleteMessage(ctx, &sqs.DeleteMessageInput{QueueUrl: &q.url, ReceiptHandle: m.ReceiptHandle}); err != nil {
		log.Warn("cannot delete message; "+otherwise, "cause", err)
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
		log.Warn("cannot change the message's visibility; it comes back within half a minute", "cause", err)
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

// sent says when the message was first put into a queue; zero where SQS does
// not say it.
func sent(m types.Message) time.Time {
	ms, err := strconv.ParseInt(m.Attributes[string(types.MessageSystemAttributeNameSentTimestamp)], 10, 64)
	if err != nil || ms <= 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
