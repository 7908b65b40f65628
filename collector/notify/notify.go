package notify

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
)

// Colours of a message, as 0xRRGGBB.
const (
	Red   = 0xD83A3A // a finding, or a step that failed
	Amber = 0xE0A020 // something is missing
	Green = 0x2E9E5B // done and whole
	Grey  = 0x808890 // for information; a sample
)

// Message is one notification. All text is plain: markdown, mentions and links
// in it are shown as they are written and do nothing. What is too long is cut
// with an ellipsis.
type Message struct {
	Title  string
	Body   string
	Fields []Field // at most 25 are shown
	Colour int     // 0xRRGGBB; 0 leaves it to the receiver
	URL    string  // opened by a click on the title; http or https, else left out
}

// Field is a name and a value under the body.
type Field struct {
	Name   string
	Value  string
	Inline bool // may share a line with its neighbours
}

// Notifier sends messages. On nil the receiver has accepted the message. After
// an error it may have been shown or not, and may be shown twice when a lost
// answer made it go out again.
type Notifier interface {
	Notify(ctx context.Context, m Message) error
}

// New returns the Notifier for a webhook's URL: a Discord, or for an empty URL a
// Log. Plain http is accepted for a loopback address only, because the URL is a
// secret. An error never repeats the URL.
func New(webhook string, log *slog.Logger) (Notifier, error) {
	if webhook == "" {
		return Log{Log: log}, nil
	}
	u, err := url.Parse(webhook)
	if err != nil || u.Host == "" || u.Scheme != "https" && !(u.Scheme == "http" && isLoopback(u.Hostname())) {
		return nil, fmt.Errorf("cannot use the webhook: its address is not an https URL; copy it from the channel's settings in Discord")
	}
	return &Discord{URL: webhook, Client: http.DefaultClient, Log: log}, nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Log is the Notifier where no webhook is configured: it sends nothing to
// anyone and says so in the log, with the message.
type Log struct{ Log *slog.Logger }

// Notify writes m to the log and returns nil.
func (l Log) Notify(ctx context.Context, m Message) error {
	attrs := []slog.Attr{slog.String("title", plain(m.Title, maxTitle)), slog.String("body", plain(m.Body, maxBody))}
	for _, f := range m.Fields[:min(len(m.Fields), maxFields)] {
		attrs = append(attrs, slog.String(plain(f.Name, maxName), plain(f.Value, maxValue)))
	}
	l.Log.LogAttrs(ctx, slog.LevelInfo, "no webhook is configured; this notification went nowhere but here", attrs...)
	return nil
}
