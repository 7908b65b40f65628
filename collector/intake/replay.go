package intake

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/quicklime-ir/quicklime/collector/finding"
)

// Times of a replay.
const (
	replayPoll = 2 * time.Second  // long enough that SQS asks all of its servers
	replayHide = 10 * time.Minute // what is left shows again at the replay's end, or after this
)

// MaxReplay bounds how many messages one replay takes.
const MaxReplay = 10_000

// Hand hands an event to the collector, and gives the ids of its cases once
// they are durable.
type Hand func(ctx context.Context, raw []byte) (cases []string, err error)

// Replayed is what became of one event.
type Replayed struct {
	Name  string   // SQS's id of the message, or where in the file it stands
	Cases []string // that it opened or joined
	Err   error    // why it was left where it is; nil: it was taken
}

// String says it in a line.
func (r Replayed) String() string {
	if r.Err != nil {
		return r.Name + " left: " + readable(r.Err.Error(), maxReason)
	}
	return r.Name + " taken: " + strings.Join(r.Cases, " ")
}

// Replay hands the messages of a queue to the collector, most at the most, and
// deletes those that were taken. Each is told of by say. What was left is shown
// again when Replay returns. Its error says why it ended early.
func Replay(ctx context.Context, api SQS, url string, most int, hand Hand, say func(Replayed)) (err error) {
	r := &replay{api: api, url: url, hand: hand, say: say, left: map[string]string{}}
	defer func() { err = errors.Join(err, r.show(context.WithoutCancel(ctx))) }()
	for most > 0 {
		n, err := r.batch(ctx, min(most, batch))
		if err != nil || n == 0 {
			return err
		}
		most -= n
	}
	return nil
}

type replay struct {
	api  SQS
	url  string
	hand Hand
	say  func(Replayed)
	left map[string]string // receipt handles of what was left, by the messages' ids
}

// batch replays some messages, and counts them; 0: the queue shows no more.
func (r *replay) batch(ctx context.Context, most int) (int, error) {
	limited, cancel := context.WithTimeout(ctx, receiveLimit)
	defer cancel()
	out, err := r.api.ReceiveMessage(limited, &sqs.ReceiveMessageInput{QueueUrl: &r.url, MaxNumberOfMessages: int32(most),
		WaitTimeSeconds: int32(replayPoll / time.Second), VisibilityTimeout: int32(replayHide / time.Second)})
	if err != nil {
		return 0, fmt.Errorf("cannot receive from %s: %w", r.url, err)
	}
	var fresh []types.Message
	for _, m := range out.Messages {
		id := aws.ToString(m.MessageId)
		if _, again := r.left[id]; !again { // else it is told of; this replay has taken longer than it was hidden
			fresh = append(fresh, m)
		}
		r.left[id] = aws.ToString(m.ReceiptHandle) // until it is deleted
	}
	for _, m := range fresh {
		r.say(r.one(ctx, aws.ToString(m.MessageId), aws.ToString(m.Body)))
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
	}
	return len(out.Messages), nil
}

func (r *replay) one(ctx context.Context, id, body string) Replayed {
	did := Replayed{Name: id}
	if did.Cases, did.Err = r.hand(ctx, []byte(body)); did.Err != nil {
		return did
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerLimit)
	defer cancel()
	handle := r.left[id]
	if _, err := r.api.DeleteMessage(ctx, &sqs.DeleteMessageInput{QueueUrl: &r.url, ReceiptHandle: &handle}); err != nil {
		did.Err = fmt.Errorf("taken by %s, but it cannot be deleted; where it is replayed, it joins them: %w", strings.Join(did.Cases, " "), err)
		return did
	}
	delete(r.left, id)
	return did
}

// show makes what was left visible again.
func (r *replay) show(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*answerLimit)
	defer cancel()
	for id, handle := range r.left {
		if _, err := r.api.ChangeMessageVisibility(ctx, &sqs.ChangeMessageVisibilityInput{QueueUrl: &r.url, ReceiptHandle: &handle, VisibilityTimeout: 0}); err != nil && !gone(err) {
			return fmt.Errorf("cannot show message %s again before %v are over: %w", id, replayHide, err)
		}
	}
	return nil
}

// ReplayFile hands in the events of a file: an event a line, or, where its
// first line is not whole by itself, one event. Each is told of by say. The
// error says why the file was not read to its end.
func ReplayFile(ctx context.Context, file io.Reader, hand Hand, say func(Replayed)) error {
	in := bufio.NewReaderSize(file, 64<<10)
	for n, first := 1, true; ; n++ {
		text, err := line(in)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		last := err != nil
		if text = bytes.TrimSpace(text); len(text) > 0 {
			did := Replayed{Name: fmt.Sprintf("line %d", n)}
			if first && !json.Valid(text) {
				rest, err := io.ReadAll(io.LimitReader(in, finding.MaxSize))
				if err != nil {
					return err
				}
				did.Name, text, last = "event", slices.Concat(text, []byte("\n"), rest), true
			}
			first = false
			did.Cases, did.Err = hand(ctx, text)
			say(did)
		}
		if last || ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// line reads a line without its end. Of one that is longer than any event the
// first bytes are given, too many to be taken for an event.
func line(in *bufio.Reader) ([]byte, error) {
	var out []byte
	for {
		piece, err := in.ReadSlice('\n')
		if room := finding.MaxSize + 2 - len(out); len(piece) > room {
			piece = piece[:room]
		}
		out = append(out, piece...)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return bytes.TrimSuffix(out, []byte("\n")), err
		}
	}
}
