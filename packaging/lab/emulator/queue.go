package emulator

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// maxMessages bounds a queue.
const maxMessages = 100_000

type queues struct{ main, dead *queue }

func newQueues(url string, cfg Config) *queues {
	dead := newQueue(url + "-dead-letters")
	main := newQueue(url)
	main.dead, main.most = dead, cfg.MaxReceives
	return &queues{main: main, dead: dead}
}

func (q *queues) at(url string) (*queue, *Error) {
	switch url {
	case q.main.url:
		return q.main, nil
	case q.dead.url:
		return q.dead, nil
	case "":
		return nil, refuse("MissingParameter", "the request must contain the parameter QueueUrl")
	}
	return nil, refuse("QueueDoesNotExist", "the specified queue does not exist: %.200q", url)
}

// queue is a standard queue: at least once, in no promised order.
type queue struct {
	url  string
	dead *queue // where messages go that were received most times; nil: nowhere
	most int
	made time.Time
	key  []byte // of receipt handles

	mu       sync.Mutex
	messages []*message    // under mu
	changed  chan struct{} // under mu; closed when a message comes or is shown
}

type message struct {
	id, body    string
	attributes  map[string]messageAttribute // never changed
	sent, first time.Time
	shown       time.Time // invisible until then
	taken       time.Time // received last
	receives    int
	delayed     bool // never received, but sent with a delay
}

func newQueue(url string) *queue {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails, says crypto/rand
	return &queue{url: url, made: time.Now(), key: key, changed: make(chan struct{})}
}

func (q *queue) put(body string, attributes map[string]messageAttribute, delay time.Duration) (id string, err *Error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.messages) >= maxMessages {
		return "", refuse("OverLimit", "the queue holds %d messages", maxMessages)
	}
	now := time.Now()
	m := &message{id: newUUID(), body: body, attributes: attributes, sent: now, shown: now.Add(delay), delayed: delay > 0}
	q.messages = append(q.messages, m)
	q.wake()
	return m.id, nil
}

// wake tells those who wait; the caller holds the lock.
func (q *queue) wake() {
	close(q.changed)
	q.changed = make(chan struct{})
}

// receive waits up to wait for a first message, and gives up to most.
func (q *queue) receive(ctx context.Context, most int, hide, wait time.Duration) []message {
	end := time.Now().Add(wait)
	for {
		got, next, changed := q.take(most, hide)
		if now := time.Now(); len(got) > 0 || !now.Before(end) {
			return got
		}
		if next.IsZero() || next.After(end) {
			next = end
		}
		timer := time.NewTimer(time.Until(next))
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// take gives what can be seen now, when the next message will be, and what is
// closed when that changes. Messages received too often go to the dead-letter
// queue in place of being given.
func (q *queue) take(most int, hide time.Duration) (got []message, next time.Time, changed <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	var dead []*message
	for _, m := range q.messages {
		switch {
		case m.shown.After(now):
			if next.IsZero() || m.shown.Before(next) {
				next = m.shown
			}
		case q.dead != nil && m.receives >= q.most:
			dead = append(dead, m)
		case len(got) < most:
			if m.receives++; m.receives == 1 {
				m.first = now
			}
			m.shown, m.taken, m.delayed = now.Add(hide), now, false
			got = append(got, *m)
		}
	}
	q.bury(dead)
	return got, next, q.changed
}

func (q *queue) bury(dead []*message) {
	if len(dead) == 0 {
		return
	}
	q.messages = slices.DeleteFunc(q.messages, func(m *message) bool { return slices.Contains(dead, m) })
	q.dead.mu.Lock()
	defer q.dead.mu.Unlock()
	for _, m := range dead {
		m.receives, m.shown = 0, time.Now()
	}
	q.dead.messages = append(q.dead.messages, dead...)
	q.dead.wake()
}

// handle names one receive of a message. It carries its own proof, so that the
// queue need not remember those it gave.
func (q *queue) handle(id string, receives int) string {
	text := id + " " + strconv.Itoa(receives)
	mac := hmac.New(sha256.New, q.key)
	mac.Write([]byte(text))
	return base64.StdEncoding.EncodeToString(append([]byte(text+" "), fmt.Appendf(nil, "%x", mac.Sum(nil))...))
}

// received finds the message of a receipt handle; nil: it is deleted, or was
// received again since.
func (q *queue) received(handle string) (*message, *Error) {
	raw, err := base64.StdEncoding.DecodeString(handle)
	fields := strings.Fields(string(raw))
	if err != nil || len(fields) != 3 {
		return nil, refuse("ReceiptHandleIsInvalid", "the input receipt handle is not a valid receipt handle")
	}
	receives, err := strconv.Atoi(fields[1])
	if err != nil || !hmac.Equal([]byte(q.handle(fields[0], receives)), []byte(handle)) {
		return nil, refuse("ReceiptHandleIsInvalid", "the input receipt handle is not a valid receipt handle of this queue")
	}
	return find(q.messages, func(m *message) bool { return m.id == fields[0] && m.receives == receives }), nil
}

// delete removes a message. An old handle deletes nothing, and succeeds.
func (q *queue) delete(handle string) *Error {
	q.mu.Lock()
	defer q.mu.Unlock()
	m, err := q.received(handle)
	if err != nil || m == nil {
		return err
	}
	q.messages = slices.DeleteFunc(q.messages, func(o *message) bool { return o == m })
	return nil
}

// hide keeps a message invisible for d from now.
func (q *queue) hide(handle string, d time.Duration) *Error {
	q.mu.Lock()
	defer q.mu.Unlock()
	m, err := q.received(handle)
	if err != nil {
		return err
	}
	now := time.Now()
	if m == nil || !m.shown.After(now) {
		return refuse("MessageNotInflight", "the specified message isn't in flight")
	}
	if now.Add(d).After(m.taken.Add(maxVisibility)) {
		return refuse("InvalidParameterValue", "total VisibilityTimeout for the message is beyond the limit [%d seconds]", int(maxVisibility/time.Second))
	}
	m.shown = now.Add(d)
	q.wake()
	return nil
}

func (q *queue) count() (visible, inFlight, delayed int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	for _, m := range q.messages {
		switch {
		case !m.shown.After(now):
			visible++
		case m.delayed:
			delayed++
		default:
			inFlight++
		}
	}
	return visible, inFlight, delayed
}

func (q *queue) bodies() []string {
	q.mu.Lock()
	defer q.mu.Unlock()
	var out []string
	for _, m := range q.messages {
		out = append(out, m.body)
	}
	return out
}

func (q *queue) name() string { return q.url[strings.LastIndexByte(q.url, '/')+1:] }

func (q *queue) arn(cfg *Config) string {
	return "arn:aws:sqs:" + cfg.Region + ":" + cfg.AccountID + ":" + q.name()
}

func (q *queue) attributes(cfg *Config, dead *queue) map[string]string {
	visible, inFlight, delayed := q.count()
	out := map[string]string{
		"QueueArn":                              q.arn(cfg),
		"ApproximateNumberOfMessages":           strconv.Itoa(visible),
		"ApproximateNumberOfMessagesNotVisible": strconv.Itoa(inFlight),
		"ApproximateNumberOfMessagesDelayed":    strconv.Itoa(delayed),
		"VisibilityTimeout":                     strconv.Itoa(int(visibilityDefault / time.Second)),
		"MaximumMessageSize":                    strconv.Itoa(maxBody),
		"DelaySeconds":                          "0",
		"ReceiveMessageWaitTimeSeconds":         "0",
		"CreatedTimestamp":                      strconv.FormatInt(q.made.Unix(), 10),
	}
	if q.dead != nil {
		out["RedrivePolicy"] = fmt.Sprintf(`{"deadLetterTargetArn":%q,"maxReceiveCount":%d}`, dead.arn(cfg), q.most)
	}
	return out
}
