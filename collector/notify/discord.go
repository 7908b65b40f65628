package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// ErrRefused is the kind of errors that another try of the same does not mend.
var ErrRefused = errors.New("refused")

// Bounds of one Notify.
const (
	tries     = 5
	tryLimit  = 10 * time.Second // of one request
	waitBase  = time.Second      // full jitter, doubled with each try
	waitLimit = 30 * time.Second
	askedMost = 2 * time.Minute // what is waited because Discord asks for it, in all
	answerMax = 4 << 10         // bytes read of an answer
)

// Discord sends messages to a webhook. URL is a secret: whoever has it can post
// to the channel. It never appears in an error or a log line of this package.
type Discord struct {
	URL    string       // as Discord shows it
	Client *http.Client // its Transport is used; redirects are not followed
	Log    *slog.Logger

	sleep func(context.Context, time.Duration) error // nil: the real one
}

// String hides the URL.
func (d *Discord) String() string { return "discord webhook" }

// GoString hides the URL.
func (d *Discord) GoString() string { return "discord webhook" }

// LogValue hides the URL.
func (d *Discord) LogValue() slog.Value { return slog.StringValue("discord webhook") }

// Notify posts m and waits until Discord has it (wait=true). It tries five
// times at most: again after 5xx and broken connections with full jitter. A 429
// that says when to come again is no failed try: many cases at once have to
// queue. It is waited for as told, up to two minutes in all. Any other answer is
// ErrRefused.
func (d *Discord) Notify(ctx context.Context, m Message) error {
	body, err := render(m)
	if err != nil {
		return fmt.Errorf("cannot render notification: %w", err)
	}
	for failed, asked := 0, time.Duration(0); ; {
		again, wait, err := d.post(ctx, body)
		if err == nil {
			return nil
		}
		err = d.redact(err)
		if wait > 0 {
			if asked += wait; asked > askedMost {
				return fmt.Errorf("cannot notify Discord: %w; it asks to wait %v in all, more than %v; send fewer messages through this webhook", err, asked, askedMost)
			}
		} else {
			if failed++; !again || failed == tries {
				return fmt.Errorf("cannot notify Discord, try %d of %d: %w", failed, tries, err)
			}
			wait = rand.N(min(waitBase<<(failed-1), waitLimit)) + 1
		}
		d.Log.Warn("cannot notify Discord; trying again", "error", err, "failed", failed, "wait", wait)
		if stopped := d.pause(ctx, wait); stopped != nil {
			return fmt.Errorf("cannot notify Discord, stopped after %w: %w", err, stopped)
		}
	}
}

// post makes one try. again says that another may help, after wait where
// Discord has said so.
func (d *Discord) post(ctx context.Context, body []byte) (again bool, wait time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, tryLimit)
	defer cancel()
	req, err := d.request(ctx, body)
	if err != nil {
		return false, 0, err
	}
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	if d.Client != nil {
		client.Transport = d.Client.Transport
	}
	resp, err := client.Do(req)
	if err != nil {
		return true, 0, err
	}
	defer resp.Body.Close()
	said, _ := io.ReadAll(io.LimitReader(resp.Body, answerMax)) // an explanation at best
	switch code := resp.StatusCode; {
	case code >= 200 && code < 300:
		return false, 0, nil
	case code == http.StatusTooManyRequests:
		return true, retryAfter(resp.Header, said), errors.New("answer 429: too many messages")
	case code >= 500:
		return true, 0, fmt.Errorf("answer %d: %s", code, strconv.QuoteToASCII(plain(string(said), 200)))
	case code == http.StatusNotFound || code == http.StatusUnauthorized:
		return false, 0, fmt.Errorf("%w, answer %d: the webhook is gone or its address is wrong; make a new one in the channel's settings", ErrRefused, code)
	default:
		return false, 0, fmt.Errorf("%w, answer %d: %s", ErrRefused, code, strconv.QuoteToASCII(plain(string(said), 200)))
	}
}

func (d *Discord) request(ctx context.Context, body []byte) (*http.Request, error) {
	u, err := url.Parse(d.URL)
	if err != nil {
		return nil, err
	}
	query := u.Query()
	query.Set("wait", "true")
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "quicklime-collector")
	return req, nil
}

// retryAfter reads the header, in seconds, or else Discord's JSON; 0 is unsaid.
func retryAfter(h http.Header, body []byte) time.Duration {
	seconds, err := strconv.ParseFloat(h.Get("Retry-After"), 64)
	if err != nil {
		var said struct {
			RetryAfter float64 `json:"retry_after"`
		}
		if json.Unmarshal(body, &said) != nil {
			return 0
		}
		seconds = said.RetryAfter
	}
	if !(seconds > 0) {
		return 0
	}
	return time.Duration(min(seconds, 1e6) * float64(time.Second))
}

// redact takes the webhook's address out of err. net/http puts it into its
// url.Error; a proxy's answer may repeat the path.
func (d *Discord) redact(err error) error {
	for {
		var u *url.Error
		if !errors.As(err, &u) {
			break
		}
		err = u.Err
	}
	for _, secret := range d.secrets() {
		if strings.Contains(err.Error(), secret) {
			return errors.New("the reason is withheld, it repeats the webhook's address")
		}
	}
	return err
}

// secrets are the parts of the URL that must not be seen: the whole, and each
// longer stretch of its path and query.
func (d *Discord) secrets() []string {
	secrets := []string{d.URL}
	for _, part := range strings.FieldsFunc(d.URL, func(r rune) bool { return strings.ContainsRune("/?&=#", r) }) {
		if len(part) >= 16 && !strings.HasPrefix(d.URL, "https://"+part) && !strings.HasPrefix(d.URL, "http://"+part) {
			secrets = append(secrets, part)
		}
	}
	return secrets
}

func (d *Discord) pause(ctx context.Context, wait time.Duration) error {
	if d.sleep != nil {
		return d.sleep(ctx, wait)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
