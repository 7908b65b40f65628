package emulator

import (
	"crypto/md5"
	"encoding/hex"
	"net/http"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"
)

// Bounds of SQS. Source: SQS developer guide, "Amazon SQS message quotas".
const (
	maxBody       = 1 << 20        // bytes of a message
	maxVisibility = 12 * time.Hour // since the receive
	maxWait       = 20 * time.Second
	maxBatch      = 10
)

// visibilityDefault is the queue's own visibility timeout.
const visibilityDefault = 30 * time.Second

type sqsService struct{ *Emulator }

func (sqsService) action(r *http.Request, _ []byte) string { return targetAction(r, "AmazonSQS") }

func (s sqsService) do(r *http.Request, action string, body []byte) (any, *Error) {
	switch action {
	case "ReceiveMessage":
		return s.receive(r, body)
	case "DeleteMessage":
		return s.delete(body)
	case "ChangeMessageVisibility":
		return s.changeVisibility(body)
	case "SendMessage":
		return s.send(body)
	case "GetQueueAttributes":
		return s.attributes(body)
	case "GetQueueUrl":
		return s.queueURL(body)
	}
	return nil, refuse("InvalidAction", "the action %.100q is not valid for this endpoint", action)
}

func (sqsService) throttled() *Error { return refuse("ThrottlingException", "rate exceeded") }

func (sqsService) unavailable() *Error {
	return refuseWith(http.StatusServiceUnavailable, "ServiceUnavailable", "the service is unavailable; please try again shortly")
}

func (sqsService) write(w http.ResponseWriter, _ string, answer any, err *Error) {
	if err != nil {
		w.Header().Set("X-Amzn-Query-Error", err.Code+";Sender")
	}
	writeJSON(w, "1.0", "com.amazonaws.sqs", answer, err)
}

type messageItem struct {
	Attributes             map[string]string `json:",omitempty"`
	Body                   string
	MD5OfBody              string
	MD5OfMessageAttributes string                      `json:",omitempty"`
	MessageAttributes      map[string]messageAttribute `json:",omitempty"`
	MessageId              string
	ReceiptHandle          string
}

func (s sqsService) receive(r *http.Request, body []byte) (any, *Error) {
	var in struct {
		QueueUrl                    string
		MaxNumberOfMessages         *int
		VisibilityTimeout           *int
		WaitTimeSeconds             *int
		MessageSystemAttributeNames []string
		AttributeNames              []string
		MessageAttributeNames       []string
	}
	if err := decode(body, &in); err != nil {
		return nil, err
	}
	q, err := s.queues.at(in.QueueUrl)
	if err != nil {
		return nil, err
	}
	most, err := within("MaxNumberOfMessages", in.MaxNumberOfMessages, 1, 1, maxBatch)
	if err != nil {
		return nil, err
	}
	visibility, err := within("VisibilityTimeout", in.VisibilityTimeout, int(visibilityDefault/time.Second), 0, int(maxVisibility/time.Second))
	if err != nil {
		return nil, err
	}
	wait, err := within("WaitTimeSeconds", in.WaitTimeSeconds, 0, 0, int(maxWait/time.Second))
	if err != nil {
		return nil, err
	}
	names := append(in.MessageSystemAttributeNames, in.AttributeNames...)
	for _, name := range names {
		if name != "All" && !slices.Contains(systemAttributes, name) {
			return nil, refuse("InvalidAttributeName", "unknown attribute %.100s", name)
		}
	}
	got := q.receive(r.Context(), most, time.Duration(visibility)*time.Second, time.Duration(wait)*time.Second)
	out := struct {
		Messages []messageItem `json:",omitempty"`
	}{}
	for _, m := range got {
		own := pickAttributes(m.attributes, in.MessageAttributeNames)
		out.Messages = append(out.Messages, messageItem{Attributes: m.pick(names, s.cfg.AccountID), Body: m.body, MD5OfBody: digest(m.body),
			MessageAttributes: own, MD5OfMessageAttributes: digestAttributes(own), MessageId: m.id, ReceiptHandle: q.handle(m.id, m.receives)})
	}
	return out, nil
}

func within(name string, value *int, unset, least, most int) (int, *Error) {
	switch {
	case value == nil:
		return unset, nil
	case *value < least || *value > most:
		return 0, refuse("InvalidParameterValue", "value %d for parameter %s is invalid: must be between %d and %d", *value, name, least, most)
	}
	return *value, nil
}

var systemAttributes = []string{"ApproximateReceiveCount", "ApproximateFirstReceiveTimestamp", "SentTimestamp", "SenderId"}

func (m *message) pick(names []string, sender string) map[string]string {
	out := map[string]string{}
	for _, name := range systemAttributes {
		if !slices.Contains(names, name) && !slices.Contains(names, "All") {
			continue
		}
		out[name] = map[string]string{
			"ApproximateReceiveCount":          strconv.Itoa(m.receives),
			"ApproximateFirstReceiveTimestamp": strconv.FormatInt(m.first.UnixMilli(), 10),
			"SentTimestamp":                    strconv.FormatInt(m.sent.UnixMilli(), 10),
			"SenderId":                         sender,
		}[name]
	}
	return out
}

// digest is what the SDK holds a body against.
func digest(body string) string {
	sum := md5.Sum([]byte(body))
	return hex.EncodeToString(sum[:])
}

func (s sqsService) delete(body []byte) (any, *Error) {
	var in struct{ QueueUrl, ReceiptHandle string }
	if err := decode(body, &in); err != nil {
		return nil, err
	}
	q, err := s.queues.at(in.QueueUrl)
	if err != nil {
		return nil, err
	}
	return struct{}{}, q.delete(in.ReceiptHandle)
}

func (s sqsService) changeVisibility(body []byte) (any, *Error) {
	var in struct {
		QueueUrl, ReceiptHandle string
		VisibilityTimeout       *int
	}
	if err := decode(body, &in); err != nil {
		return nil, err
	}
	q, err := s.queues.at(in.QueueUrl)
	if err != nil {
		return nil, err
	}
	if in.VisibilityTimeout == nil {
		return nil, refuse("MissingParameter", "the request must contain the parameter VisibilityTimeout")
	}
	seconds, err := within("VisibilityTimeout", in.VisibilityTimeout, 0, 0, int(maxVisibility/time.Second))
	if err != nil {
		return nil, err
	}
	return struct{}{}, q.hide(in.ReceiptHandle, time.Duration(seconds)*time.Second)
}

func (s sqsService) send(body []byte) (any, *Error) {
	var in struct {
		QueueUrl, MessageBody string
		DelaySeconds          *int
		MessageAttributes     map[string]messageAttribute
	}
	if err := decode(body, &in); err != nil {
		return nil, err
	}
	q, err := s.queues.at(in.QueueUrl)
	if err != nil {
		return nil, err
	}
	delay, err := within("DelaySeconds", in.DelaySeconds, 0, 0, 900)
	if err != nil {
		return nil, err
	}
	if err := checkMessage(in.MessageBody, in.MessageAttributes); err != nil {
		return nil, err
	}
	id, err := q.put(in.MessageBody, in.MessageAttributes, time.Duration(delay)*time.Second)
	if err != nil {
		return nil, err
	}
	return struct {
		MD5OfMessageBody, MessageId string
		MD5OfMessageAttributes      string `json:",omitempty"`
	}{digest(in.MessageBody), id, digestAttributes(in.MessageAttributes)}, nil
}

// checkMessage holds a message against SQS's limits. Source: SQS API
// reference, SendMessage.
func checkMessage(body string, attributes map[string]messageAttribute) *Error {
	if body == "" {
		return refuse("MissingParameter", "the request must contain the parameter MessageBody")
	}
	if err := checkText(body); err != nil {
		return err
	}
	size, err := checkAttributes(attributes)
	if err != nil {
		return err
	}
	if len(body)+size > maxBody {
		return refuse("InvalidParameterValue", "one or more parameters are invalid: message, with its attributes, must be shorter than %d bytes", maxBody)
	}
	return nil
}

// checkText refuses what neither a body nor an attribute may hold.
func checkText(text string) *Error {
	if !utf8.ValidString(text) {
		return refuse("InvalidMessageContents", "the message is not UTF-8")
	}
	for _, r := range text {
		if r < 0x20 && r != '\t' && r != '\n' && r != '\r' || r == 0xfffe || r == 0xffff {
			return refuse("InvalidMessageContents", "invalid characters found: %U", r)
		}
	}
	return nil
}

func (s sqsService) attributes(body []byte) (any, *Error) {
	var in struct {
		QueueUrl       string
		AttributeNames []string
	}
	if err := decode(body, &in); err != nil {
		return nil, err
	}
	q, err := s.queues.at(in.QueueUrl)
	if err != nil {
		return nil, err
	}
	if len(in.AttributeNames) == 0 {
		return struct{}{}, nil
	}
	all, out := q.attributes(&s.cfg, s.queues.dead), map[string]string{}
	for _, name := range in.AttributeNames {
		if name == "All" {
			out = all
			break
		}
		value, ok := all[name]
		if !ok && name != "RedrivePolicy" {
			return nil, refuse("InvalidAttributeName", "unknown attribute %.100s", name)
		}
		if ok {
			out[name] = value
		}
	}
	return struct {
		Attributes map[string]string `json:",omitempty"`
	}{out}, nil
}

// queueURL finds a queue by its name. The account, where the call names one,
// is its owner.
func (s sqsService) queueURL(body []byte) (any, *Error) {
	var in struct{ QueueName, QueueOwnerAWSAccountId string }
	if err := decode(body, &in); err != nil {
		return nil, err
	}
	if !queueName.MatchString(in.QueueName) {
		return nil, refuse("InvalidParameterValue", "can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length: %.100q", in.QueueName)
	}
	if owner := in.QueueOwnerAWSAccountId; owner != "" && owner != s.cfg.AccountID {
		return nil, refuse("QueueDoesNotExist", "the specified queue does not exist: %s of account %.20q", in.QueueName, owner)
	}
	for _, q := range []*queue{s.queues.main, s.queues.dead} {
		if q.name() == in.QueueName {
			return struct{ QueueUrl string }{q.url}, nil
		}
	}
	return nil, refuse("QueueDoesNotExist", "the specified queue does not exist: %s", in.QueueName)
}
