package intake

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"
)

// Times of a message that is being taken. Source: SQS API reference,
// ChangeMessageVisibility: at most 12 hours from the receive.
const (
	// hidden is how long a received message stays invisible, and is kept so by
	// each beat; so long a finding waits whose node has died.
	hidden    = 30 * time.Second
	beatEvery = hidden / 4       // so that three beats in a row must fail before it shows
	beatLimit = hidden / 6       // of one beat
	takeLimit = 15 * time.Minute // for one Take
	longest   = 12 * time.Hour
)

const _ = uint64(longest - takeLimit - hidden) // does not compile where a Take could outlast SQS

// errShown says that a message was taken for so long without a beat that
// another collector may have it by now.
var errShown = errors.New("the message could not be kept invisible, and may be in other hands")

// keep keeps a message invisible until ctx ends. Where it cannot, it calls
// lose before the message shows again.
func (q *Queue) keep(ctx context.Context, m types.Message, lose context.CancelCauseFunc, log *slog.Logger) {
	ticker := time.NewTicker(beatEvery)
	defer ticker.Stop()
	until := time.Now().Add(hidden)
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		from := time.Now()
		err := q.beat(ctx, m)
		switch {
		case err == nil:
			until = from.Add(hidden)
		case ctx.Err() != nil:
			return
		case gone(err) || !time.Now().Add(beatEvery).Before(until):
			lose(fmt.Errorf("%w: %w", errShown, err))
			return
		default:
			log.Warn("cannot keep the message invisible; trying again", "cause", err, "left", time.Until(until))
		}
	}
}

func (q *Queue) beat(ctx context.Context, m types.Message) error {
	ctx, cancel := context.WithTimeout(ctx, beatLimit)
	defer cancel()
	_, err := q.api.ChangeMessageVisibility(ctx, &sqs.ChangeMessageVisibilityInput{
		QueueUrl: &q.url, ReceiptHandle: m.ReceiptHandle, VisibilityTimeout: int32(hidden / time.Second),
	})
	return err
}

// gone reports whether SQS says that the message is no longer in our hands.
// Of one that was deleted it says InvalidParameterValue.
func gone(err error) bool {
	var api smithy.APIError
	return errors.As(err, new(*types.MessageNotInflight)) || errors.As(err, new(*types.ReceiptHandleIsInvalid)) ||
		errors.As(err, &api) && api.ErrorCode() == "InvalidParameterValue"
}
