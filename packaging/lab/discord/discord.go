// Package discord is a receiver of webhooks that takes and refuses messages
// as Discord does, and keeps those that it took.
package discord

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
	"unicode/utf8"
)

// maxBody bounds a message, in bytes.
const maxBody = 1 << 20

const path = "/api/webhooks/1234567890/lab-token"

// Message is a message as it came.
type Message struct {
	Received time.Time `json:"received"`
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
}

// Field is a line of an embed.
type Field struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Inline bool   `json:"inline"`
}

// Receiver takes messages.
type Receiver struct {
	listener net.Listener
	server   *http.Server
	served   chan struct{}

	mu       sync.Mutex
	messages []Message // owned by mu
	limited  int       // answers of 429 still to be given; owned by mu
}

// Start listens on loopback.
func Start() (*Receiver, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("cannot listen for webhooks: %w", err)
	}
	r := &Receiver{listener: listener, served: make(chan struct{})}
	r.server = &http.Server{Handler: r, ReadTimeout: 10 * time.Second}
	go func() { // ends with Close
		defer close(r.served)
		_ = r.server.Serve(listener) // always ErrServerClosed
	}()
	return r, nil
}

// URL is the webhook's, token and all.
func (r *Receiver) URL() string { return "http://" + r.listener.Addr().String() + path }

// Messages gives what was taken so far.
func (r *Receiver) Messages() []Message {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.messages)
}

// Limit makes the next n messages be answered with 429.
func (r *Receiver) Limit(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.limited = n
}

// Close stops listening.
func (r *Receiver) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err := r.server.Shutdown(ctx)
	<-r.served
	return err
}

// ServeHTTP implements http.Handler.
func (r *Receiver) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	if q.URL.Path != path {
		answer(w, http.StatusUnauthorized, map[string]any{"message": "Invalid Webhook Token", "code": 50027})
		return
	}
	if q.Method != http.MethodPost {
		answer(w, http.StatusMethodNotAllowed, map[string]any{"message": "405: Method Not Allowed", "code": 0})
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.limited > 0 {
		r.limited--
		w.Header().Set("Retry-After", "1")
		answer(w, http.StatusTooManyRequests, map[string]any{"message": "You are being rate limited.", "retry_after": 0.2, "global": false})
		return
	}
	message, err := read(q.Body)
	if err != nil {
		answer(w, http.StatusBadRequest, map[string]any{"message": err.Error(), "code": 50035})
		return
	}
	r.messages = append(r.messages, message)
	if q.URL.Query().Get("wait") != "true" {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	answer(w, http.StatusOK, map[string]any{"id": fmt.Sprint(len(r.messages)), "embeds": message.Embeds, "content": message.Content})
}

func answer(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // the sender has gone
}

// read takes a message that is within Discord's limits.
func read(body io.Reader) (Message, error) {
	raw, err := io.ReadAll(io.LimitReader(body, maxBody+1))
	if err != nil || len(raw) > maxBody {
		return Message{}, errors.New("request entity too large")
	}
	m := Message{Received: time.Now()}
	if err := json.Unmarshal(raw, &m); err != nil {
		return m, fmt.Errorf("invalid JSON: %w", err)
	}
	if m.Content == "" && len(m.Embeds) == 0 {
		return m, errors.New("cannot send an empty message")
	}
	total := 0
	check := func(what, text string, most int) {
		n := utf8.RuneCountInString(text)
		total += n
		if n > most {
			err = errors.Join(err, fmt.Errorf("%s has %d characters, must be %d or fewer", what, n, most))
		}
	}
	check("content", m.Content, 2000)
	total = 0 // the sum is of embeds alone
	if len(m.Embeds) > 10 {
		err = errors.Join(err, errors.New("embeds must be 10 or fewer"))
	}
	for _, e := range m.Embeds {
		check("title", e.Title, 256)
		check("description", e.Description, 4096)
		if len(e.Fields) > 25 {
			err = errors.Join(err, errors.New("fields must be 25 or fewer"))
		}
		for _, f := range e.Fields {
			check("field name", f.Name, 256)
			check("field value", f.Value, 1024)
			if f.Name == "" || f.Value == "" {
				err = errors.Join(err, errors.New("a field's name and value are required"))
			}
		}
	}
	if total > 6000 {
		err = errors.Join(err, errors.New("embeds exceed 6000 characters"))
	}
	return m, err
}
