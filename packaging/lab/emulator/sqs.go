package emulator

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"time"
)

// queue is a standard queue with a dead-letter queue behind it. The
// emulator's mutex guards it.
type queue struct {
	cfg      Config
	messages []*message
	dead     []*message
	arrived  chan struct{} // closed and made anew when a message comes
}

type message struct {
	id, body string
	sent     time.Time
	visible  time.Time // not before
	received int
	receipt  string // of the last receive
}

const (
	defaultVisibility = 30 * time.Second
	maxMessage        = 1 << 20 // bytes; Source: Amazon SQS Developer Guide, "Message quotas"
)

func newQueue(cfg Config) *queue { return &queue{cfg: cfg, arrived: make(chan struct{})} }

func (q *queue) send(body string) *message {
	m := &message{id: uuid(), body: body, sent: time.Now()}
	q.messages = append(q.messages, m)
	close(q.arrived)
	q.arrived = make(chan struct{})
	return m
}

// SendRaw puts a message into the queue past the rule, as whoever may send
// to it could.
func (e *Emulator) SendRaw(body string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.queue.send(body)
}

// receive takes up to so many visible messages. One that was received too
// often goes to the dead-letter queue instead.
func (q *queue) receive(most int, visibility time.Duration) []*message {
	var out, left []*message
	now := time.Now()
	for _, m := range q.messages {
		switch {
		case len(out) >= most || m.visible.After(now):
		case m.received >= q.cfg.MaxReceives:
			q.dead = append(q.dead, m)
			continue
		default:
			m.received++
			m.visible, m.receipt = now.Add(visibility), uuid()
			out = append(out, m)
		}
		left = append(left, m)
	}
	q.messages = left
	return out
}

// serveSQS speaks SQS's JSON protocol.
func (c *call) serveSQS() {
	var bad *fault
	var result any
	switch c.action {
	case "ReceiveMessage":
		result, bad = c.receiveMessage()
	case "DeleteMessage", "ChangeMessageVisibility":
		result, bad = c.changeMessage()
	case "SendMessage":
		result, bad = c.sendMessage()
	default:
		bad = refusal("InvalidAction", "The action %s is not valid for this endpoint.", c.action)
	}
	if bad != nil {
		c.fail(http.StatusBadRequest, bad.code, bad.message)
		return
	}
	c.answerJSON(result)
}

// decode reads a JSON request; a member that is not known is an error.
func (c *call) decode(into any) *fault {
	d := json.NewDecoder(bytes.NewReader(c.body))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return refusal("SerializationException", "%v", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return refusal("SerializationException", "more than one document")
	}
	return nil
}

func (c *call) checkQueue(url string) *fault {
	if url != c.QueueURL() {
		return refusal("com.amazonaws.sqs#QueueDoesNotExist", "The specified queue does not exist.")
	}
	return nil
}

func (c *call) receiveMessage() (any, *fault) {
	var in struct {
		QueueURL                    string `json:"QueueUrl"`
		MaxNumberOfMessages         *int
		VisibilityTimeout           *int
		WaitTimeSeconds             int
		MessageSystemAttributeNames []string
	}
	if bad := c.decode(&in); bad != nil {
		return nil, bad
	}
	if bad := c.checkQueue(in.QueueURL); bad != nil {
		return nil, bad
	}
	most, visibility := 1, defaultVisibility
	if in.MaxNumberOfMessages != nil {
		most = *in.MaxNumberOfMessages
	}
	if in.VisibilityTimeout != nil {
		visibility = time.Duration(*in.VisibilityTimeout) * time.Second
	}
	if most < 1 || most > 10 || in.WaitTimeSeconds < 0 || in.WaitTimeSeconds > 20 || visibility < 0 || visibility > 12*time.Hour {
		return nil, refusal("InvalidParameterValue", "A value is out of its range")
	}
	deadline := time.Now().Add(time.Duration(in.WaitTimeSeconds) * time.Second)
	for {
		c.mu.Lock()
		got, arrived := c.queue.receive(most, visibility), c.queue.arrived
		var out []map[string]any
		for _, m := range got {
			sum := md5.Sum([]byte(m.body))
			out = append(out, map[string]any{"MessageId": m.id, "ReceiptHandle": m.receipt, "Body": m.body, "MD5OfBody": hex.EncodeToString(sum[:]),
				"Attributes": map[string]string{"ApproximateReceiveCount": strconv.Itoa(m.received), "SentTimestamp": strconv.FormatInt(m.sent.UnixMilli(), 10)}})
		}
		c.mu.Unlock()
		left := time.Until(deadline)
		if len(out) > 0 || left <= 0 {
			return map[string]any{"Messages": out}, nil
		}
		select {
		case <-arrived:
		case <-time.After(min(left, 100*time.Millisecond)): // a hidden message may be visible again
		case <-c.request.Context().Done():
			return map[string]any{}, nil
		}
	}
}

func (c *call) changeMessage() (any, *fault) {
	var in struct {
		QueueURL          string `json:"QueueUrl"`
		ReceiptHandle     string
		VisibilityTimeout *int
	}
	if bad := c.decode(&in); bad != nil {
		return nil, bad
	}
	if bad := c.checkQueue(in.QueueURL); bad != nil {
		return nil, bad
	}
	if (in.VisibilityTimeout != nil) != (c.action == "ChangeMessageVisibility") {
		return nil, refusal("MissingParameter", "VisibilityTimeout belongs to ChangeMessageVisibility")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, m := range c.queue.messages {
		if m.receipt == "" || m.receipt != in.ReceiptHandle {
			continue
		}
		if c.action == "DeleteMessage" {
			c.queue.messages = append(c.queue.messages[:i:i], c.queue.messages[i+1:]...)
			return map[string]any{}, nil
		}
		if *in.VisibilityTimeout < 0 || *in.VisibilityTimeout > 43200 {
			return nil, refusal("InvalidParameterValue", "VisibilityTimeout is out of its range")
		}
		m.visible = time.Now().Add(time.Duration(*in.VisibilityTimeout) * time.Second)
		return map[string]any{}, nil
	}
	return nil, refusal("ReceiptHandleIsInvalid", "The input receipt handle is invalid.")
}

func (c *call) sendMessage() (any, *fault) {
	var in struct {
		QueueURL    string `json:"QueueUrl"`
		MessageBody string
	}
	if bad := c.decode(&in); bad != nil {
		return nil, bad
	}
	if bad := c.checkQueue(in.QueueURL); bad != nil {
		return nil, bad
	}
	if in.MessageBody == "" || len(in.MessageBody) > maxMessage {
		return nil, refusal("InvalidParameterValue", "The message has no body, or more than 1 MiB")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.queue.send(in.MessageBody)
	sum := md5.Sum([]byte(m.body))
	return map[string]any{"MessageId": m.id, "MD5OfMessageBody": hex.EncodeToString(sum[:])}, nil
}
