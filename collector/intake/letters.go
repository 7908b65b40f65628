package intake

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/arn"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"
)

// The attributes by which a dead letter tells where it comes from. Its body
// is the message's, to the byte.
const (
	ReasonAttribute   = "quicklime.reason"     // String: why it could not be read, cut to 2048 bytes
	MessageAttribute  = "quicklime.message-id" // String: SQS's id of the message that it was
	ReceivesAttribute = "quicklime.receives"   // Number: how often that was received
	SentAttribute     = "quicklime.sent"       // String: when that was sent, RFC 3339 in UTC
)

// Bounds of a dead letter. Source: SQS developer guide, "Amazon SQS message
// quotas": attributes count as the body does.
const (
	maxMessage = 1 << 20 // bytes
	maxReason  = 2048    // bytes
	leastRoom  = 64      // bytes of a reason; where there is less room, none is given
)

// errNoLetters says that no dead-letter queue is named, and the queue's own
// attributes name none.
var errNoLetters = errors.New("it has no redrive policy, and no dead-letter queue is named")

// letters sends dead letters of one queue.
type letters struct {
	api   SQS
	queue string // whose messages they were
	named string // the dead-letter queue; empty: the redrive policy's

	mu      sync.Mutex
	learned string // under mu; the policy's, as long as it takes letters
}

// send puts a message into the dead-letter queue with the reason, and gives
// the new message's id. On nil SQS has it. After an error it may have it all
// the same.
func (l *letters) send(ctx context.Context, m types.Message, reason string) (id string, err error) {
	url, err := l.find(ctx)
	if err != nil {
		return "", err
	}
	out, err := l.api.SendMessage(ctx, &sqs.SendMessageInput{QueueUrl: &url, MessageBody: m.Body, MessageAttributes: about(m, reason)})
	if err != nil {
		l.learn("") // it may be another one by now
		return "", fmt.Errorf("cannot send to the dead-letter queue %s: %w", url, err)
	}
	return aws.ToString(out.MessageId), nil
}

// find gives the dead-letter queue that was named, or the one of the queue's
// redrive policy, which is asked for once.
func (l *letters) find(ctx context.Context) (string, error) {
	l.mu.Lock()
	url := cmp.Or(l.named, l.learned)
	l.mu.Unlock()
	if url != "" {
		return url, nil
	}
	url, err := l.ask(ctx)
	if err != nil {
		return "", fmt.Errorf("cannot learn the dead-letter queue of %s: %w", l.queue, err)
	}
	l.learn(url)
	return url, nil
}

func (l *letters) learn(url string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.learned = url
}

func (l *letters) ask(ctx context.Context) (string, error) {
	about, err := l.api.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: &l.queue,
		AttributeNames: []types.QueueAttributeName{types.QueueAttributeNameRedrivePolicy}})
	if err != nil {
		return "", err
	}
	text := about.Attributes[string(types.QueueAttributeNameRedrivePolicy)]
	if text == "" {
		return "", errNoLetters
	}
	var policy struct {
		Target string `json:"deadLetterTargetArn"`
	}
	if err := json.Unmarshal([]byte(text), &policy); err != nil {
		return "", fmt.Errorf("cannot read its redrive policy %.200q: %w", text, err)
	}
	target, err := arn.Parse(policy.Target)
	if err != nil || target.Service != "sqs" {
		return "", fmt.Errorf("its redrive policy names %.200q, which is no queue", policy.Target)
	}
	out, err := l.api.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: &target.Resource, QueueOwnerAWSAccountId: &target.AccountID})
	if err != nil {
		return "", err
	}
	url := aws.ToString(out.QueueUrl)
	if url == "" || url == l.queue {
		return "", fmt.Errorf("SQS gives %q for it", url)
	}
	return url, nil
}

// about makes the attributes of a dead letter. Next to a body that fills the
// message there is no room for any; then the log alone has the reason.
func about(m types.Message, reason string) map[string]types.MessageAttributeValue {
	out := map[string]types.MessageAttributeValue{
		ReceivesAttribute: {DataType: aws.String("Number"), StringValue: aws.String(strconv.Itoa(receives(m)))},
	}
	if id := readable(aws.ToString(m.MessageId), maxReason); id != "" {
		out[MessageAttribute] = types.MessageAttributeValue{DataType: aws.String("String"), StringValue: &id}
	}
	if at := sent(m); !at.IsZero() {
		out[SentAttribute] = types.MessageAttributeValue{DataType: aws.String("String"), StringValue: aws.String(at.Format(time.RFC3339Nano))}
	}
	room := maxMessage - len(aws.ToString(m.Body)) - len(ReasonAttribute) - len("String")
	for name, a := range out {
		room -= len(name) + len(*a.DataType) + len(*a.StringValue)
	}
	if room < leastRoom {
		return nil
	}
	if text := readable(reason, min(room, maxReason)); text != "" {
		out[ReasonAttribute] = types.MessageAttributeValue{DataType: aws.String("String"), StringValue: &text}
	}
	return out
}

// readable cuts a text to so many bytes, and replaces what SQS takes in no
// message, and what hides or reorders text. Source: SQS API reference,
// SendMessage, the characters of MessageBody.
func readable(text string, most int) string {
	text = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case unicode.In(r, unicode.Cc, unicode.Cf, unicode.Co) || r == 0xfffe || r == 0xffff:
			return utf8.RuneError
		}
		return r
	}, strings.ToValidUTF8(text, string(utf8.RuneError)))
	const mark = "…"
	if len(text) <= most {
		return text
	}
	end := most - len(mark)
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:max(end, 0)] + mark
}

// denied reports whether the collector is not allowed to make a call.
func denied(err error) bool {
	var api smithy.APIError
	return errors.As(err, &api) && strings.HasPrefix(api.ErrorCode(), "AccessDenied")
}
