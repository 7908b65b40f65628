// Package discord is a receiver of webhooks that takes and refuses messages
// as Discord does, and keeps those that it took, so that what an operator
// would have read can be looked at.
package discord

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"mime"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Bounds of what is kept.
const (
	maxBody     = 1 << 20 // bytes of a message
	maxMessages = 1000
)

const (
	hook  = "/api/webhooks/1234567890/"
	token = "lab-token"
)

// Message is a message as it came.
type Message struct {
	Received time.Time `json:"-"`
	Content  string    `json:"content"`
	Embeds   []Embed   `json:"embeds"`
}

// Embed is the part of a message that carries titles and fields. Source:
// Discord developer documentation, "Embed Object".
type Embed struct {
	Title       string  `json:"title"`
	Description string  `json:"description"`
	URL         string  `json:"url"`
	Color       int     `json:"color"`
	Fields      []Field `json:"fields"`
	Author      Author  `json:"author"`
	Footer      Footer  `json:"footer"`
}

// Field is a line of an embed.
type Field struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Inline bool   `json:"inline"`
}

// Author is the line above an embed.
type Author struct {
	Name string `json:"name"`
}

// Footer is the line below an embed.
type Footer struct {
	Text string `json:"text"`
}

// Fault is an answer that the next messages get instead of being taken.
type Fault struct {
	Status     int           // 429, or any other
	RetryAfter time.Duration // said with 429
	Times      int           // messages; at least one
}

// Receiver takes messages.
type Receiver struct {
	listener net.Listener
	scheme   string
	server   *http.Server
	served   chan struct{}

	mu       sync.Mutex
	messages []Message // owned by mu
	faults   []Fault   // owned by mu
}

// Start listens at an address of this host, 127.0.0.1 for one. With a
// certificate for it the webhook is https, as Discord's own.
func Start(host string, cert *tls.Certificate) (*Receiver, error) {
	listener, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return nil, fmt.Errorf("cannot listen for webhooks: %w", err)
	}
	r := &Receiver{listener: listener, scheme: "http", served: make(chan struct{})}
	if cert != nil {
		r.listener, r.scheme = tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{*cert}, MinVersion: tls.VersionTLS12}), "https"
	}
	r.server = &http.Server{Handler: r, ReadTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	go func() { // ends with Close
		defer close(r.served)
		_ = r.server.Serve(r.listener) // always ErrServerClosed
	}()
	return r, nil
}

// URL is the webhook's, token and all.
func (r *Receiver) URL() string { return r.scheme + "://" + r.listener.Addr().String() + hook + token }

// Messages gives what was taken so far, in the order of arrival.
func (r *Receiver) Messages() []Message {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.messages)
}

// Inject adds a fault. Faults strike in the order in which they were added.
func (r *Receiver) Inject(f Fault) {
	f.Times = max(1, f.Times)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = append(r.faults, f)
}

// Limit makes the next n messages be answered with 429, and to wait 0.2 s.
func (r *Receiver) Limit(n int) {
	r.Inject(Fault{Status: http.StatusTooManyRequests, RetryAfter: 200 * time.Millisecond, Times: n})
}

// Calm takes all faults back.
func (r *Receiver) Calm() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = nil
}

// Close stops listening, and cuts what does not end within five seconds.
func (r *Receiver) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err := r.server.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, r.server.Close())
	}
	<-r.served
	return err
}

// ServeHTTP implements http.Handler. Source: Discord developer
// documentation, "Execute Webhook" and "Rate Limits".
func (r *Receiver) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	given, ok := strings.CutPrefix(q.URL.Path, hook)
	switch {
	case !ok:
		answer(w, http.StatusNotFound, refusal{Message: "Unknown Webhook", Code: codeUnknownWebhook})
		return
	case given != token:
		answer(w, http.StatusUnauthorized, refusal{Message: "Invalid Webhook Token", Code: codeToken})
		return
	case q.Method != http.MethodPost:
		answer(w, http.StatusMethodNotAllowed, refusal{Message: "405: Method Not Allowed"})
		return
	}
	if f, ok := r.strike(); ok {
		f.answer(w)
		return
	}
	message, refused := read(q)
	if refused != nil {
		answer(w, http.StatusBadRequest, refused)
		return
	}
	id, err := r.keep(message)
	switch {
	case err != nil:
		answer(w, http.StatusInsufficientStorage, refusal{Message: err.Error()})
	case q.URL.Query().Get("wait") != "true":
		w.WriteHeader(http.StatusNoContent)
	default:
		answer(w, http.StatusOK, struct {
			ID string `json:"id"`
			Message
		}{strconv.Itoa(id), message})
	}
}

// strike takes the fault that a message gets.
func (r *Receiver) strike() (Fault, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.faults) == 0 {
		return Fault{}, false
	}
	f := r.faults[0]
	if r.faults[0].Times--; r.faults[0].Times == 0 {
		r.faults = r.faults[1:]
	}
	return f, true
}

// answer says a fault. Of 429 the header is in whole seconds, the body in
// parts of them.
func (f Fault) answer(w http.ResponseWriter) {
	if f.Status != http.StatusTooManyRequests {
		answer(w, f.Status, refusal{Message: fmt.Sprintf("%d: %s", f.Status, http.StatusText(f.Status))})
		return
	}
	w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(f.RetryAfter.Seconds()))))
	answer(w, f.Status, map[string]any{"message": "You are being rate limited.", "retry_after": f.RetryAfter.Seconds(), "global": false})
}

// keep gives the message's number, from 1.
func (r *Receiver) keep(m Message) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.messages) == maxMessages {
		return 0, fmt.Errorf("cannot keep more than %d messages", maxMessages)
	}
	m.Received = time.Now()
	r.messages = append(r.messages, m)
	return len(r.messages), nil
}

func answer(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // the sender has gone
}

// read takes a message that is within Discord's limits.
func read(q *http.Request) (Message, *refusal) {
	if kind, _, err := mime.ParseMediaType(q.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return Message{}, &refusal{Message: `Expected "Content-Type" header to be one of {'application/json'}.`, Code: codeForm}
	}
	raw, err := io.ReadAll(io.LimitReader(q.Body, maxBody+1))
	if err != nil || len(raw) > maxBody {
		return Message{}, &refusal{Message: "Request entity too large"}
	}
	return parse(raw)
}

func parse(raw []byte) (Message, *refusal) {
	var m Message
	if err := json.Unmarshal(raw, &m); err != nil {
		return Message{}, &refusal{Message: "The request body contains invalid JSON.", Code: codeJSON}
	}
	if refused := inspect(m); refused != nil {
		return Message{}, refused
	}
	return m, nil
}
