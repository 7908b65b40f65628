package intake

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/time/rate"

	"github.com/quicklime-ir/quicklime/collector/finding"
)

// WebhookPath is where events are posted to.
const WebhookPath = "/findings"

// Bounds of the webhook. EventBridge gives up on a request after 5 s, and
// sends 300 a second where the API destination says nothing else.
const (
	webhookTake    = 4 * time.Second // for one Take, so that EventBridge hears of its end
	webhookHeader  = 5 * time.Second // for the handshake, and for the headers
	webhookRead    = 8 * time.Second // for a whole request
	webhookWrite   = 15 * time.Second
	webhookIdle    = 60 * time.Second
	webhookStop    = 5 * time.Second // for requests in hand, while stopping
	webhookHeaders = 16 << 10        // bytes
	webhookConns   = 512
	webhookHands   = 32  // events in hand at once, of finding.MaxSize bytes at most
	webhookRate    = 300 // events a second, of those who may send them
	sourceRate     = 100 // requests a second of one address
)

// Seconds of Retry-After, which EventBridge heeds.
const (
	afterLimit   = "1"
	afterFailure = "5"
)

// WebhookStats counts what a Webhook has done since it was made.
type WebhookStats struct {
	Taken     int64 // events whose case is durable
	Malformed int64 // events that cannot be read
	Failed    int64 // events that EventBridge sends again
	Refused   int64 // requests without one of the secrets
	Limited   int64 // requests that came too fast
}

// Webhook takes events that an EventBridge API destination posts. What it
// answers decides what EventBridge does: it sends an event again after 429 and
// 5xx, for 24 hours, and after every other answer never. So 2xx is given only
// once the case is durable, and a store that fails is 503. The rest, an event
// that is malformed (400) or too large (413), or a wrong secret (401), goes to
// the dead-letter queue of the rule's target; give it one.
//
// Source: EventBridge user guide, "API destinations as targets", error codes.
type Webhook struct {
	secrets Secrets
	taker   Taker
	log     *slog.Logger

	all     *rate.Limiter
	sources sources
	hands   chan struct{}
	warned  rate.Sometimes // about requests without a secret

	mu    sync.Mutex
	stats WebhookStats // under mu
}

// NewWebhook makes a Webhook for those who know one of the secrets.
func NewWebhook(secrets Secrets, taker Taker, log *slog.Logger) *Webhook {
	return &Webhook{secrets: secrets, taker: taker, log: log, all: rate.NewLimiter(webhookRate, webhookRate),
		hands: make(chan struct{}, webhookHands), warned: rate.Sometimes{Interval: 10 * time.Second}}
}

// Stats says what was done so far.
func (w *Webhook) Stats() WebhookStats {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stats
}

// Serve answers until ctx is done, and then until the requests in hand are,
// for 5 s. It closes the listener.
func (w *Webhook) Serve(ctx context.Context, listener net.Listener, config *tls.Config) error {
	var http1 http.Protocols
	http1.SetHTTP1(true)
	server := &http.Server{Handler: w, TLSConfig: config, Protocols: &http1, MaxHeaderBytes: webhookHeaders,
		ReadHeaderTimeout: webhookHeader, ReadTimeout: webhookRead, WriteTimeout: webhookWrite, IdleTimeout: webhookIdle,
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
		ErrorLog:    slog.NewLogLogger(w.log.Handler(), slog.LevelDebug)}
	ctx, cancel := context.WithCancel(ctx)
	var stopping sync.WaitGroup
	stopping.Go(func() {
		<-ctx.Done()
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), webhookStop)
		defer cancel()
		if server.Shutdown(limited) != nil {
			_ = server.Close() // what is left is cut, and comes again
		}
	})
	err := server.ServeTLS(netutil.LimitListener(listener, webhookConns), "", "")
	stopped := context.Cause(ctx)
	cancel()
	stopping.Wait()
	if stopped != nil {
		return stopped
	}
	return fmt.Errorf("cannot serve the webhook: %w", err)
}

// ServeHTTP takes one event.
func (w *Webhook) ServeHTTP(out http.ResponseWriter, r *http.Request) {
	switch {
	case !w.sources.of(r.RemoteAddr).Allow():
		w.limited(out)
	case r.URL.Path != WebhookPath:
		http.Error(out, "events are posted to "+WebhookPath, http.StatusNotFound)
	case r.Method != http.MethodPost:
		out.Header().Set("Allow", http.MethodPost)
		http.Error(out, "events are posted", http.StatusMethodNotAllowed)
	case !w.secrets.allow(r):
		w.refuse(out, r)
	case !w.all.Allow():
		w.limited(out)
	default:
		select {
		case w.hands <- struct{}{}:
			defer func() { <-w.hands }()
			w.take(out, r)
		default:
			w.limited(out)
		}
	}
}

// take reads the event, and answers once it is known what became of it.
func (w *Webhook) take(out http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(http.MaxBytesReader(out, r.Body, finding.MaxSize))
	if err != nil {
		code := http.StatusBadRequest
		if errors.As(err, new(*http.MaxBytesError)) {
			code = http.StatusRequestEntityTooLarge
		}
		w.log.Warn("cannot read an event from the webhook", "source", r.RemoteAddr, "error", err)
		w.count(func(s *WebhookStats) { s.Malformed++ })
		http.Error(out, fmt.Sprintf("cannot read the event: want %d bytes at most, within %v", finding.MaxSize, webhookRead), code)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), webhookTake)
	defer cancel()
	switch err = w.taker.Take(ctx, raw); {
	case err == nil:
		w.count(func(s *WebhookStats) { s.Taken++ })
		out.WriteHeader(http.StatusNoContent)
	case errors.Is(err, finding.ErrMalformed):
		w.count(func(s *WebhookStats) { s.Malformed++ })
		w.log.Error("cannot read event from the webhook; EventBridge leaves it to the dead-letter queue of its target", "source", r.RemoteAddr, "error", err)
		http.Error(out, readable(err.Error(), maxReason), http.StatusBadRequest)
	default:
		w.count(func(s *WebhookStats) { s.Failed++ })
		w.log.Error("cannot take event from the webhook; EventBridge sends it again", "source", r.RemoteAddr, "error", err)
		out.Header().Set("Retry-After", afterFailure)
		http.Error(out, "the event cannot be made a case now; send it again", http.StatusServiceUnavailable)
	}
}

func (w *Webhook) limited(out http.ResponseWriter) {
	w.count(func(s *WebhookStats) { s.Limited++ })
	out.Header().Set("Retry-After", afterLimit)
	http.Error(out, "too many requests; send it again", http.StatusTooManyRequests)
}

func (w *Webhook) refuse(out http.ResponseWriter, r *http.Request) {
	w.count(func(s *WebhookStats) { s.Refused++ })
	w.warned.Do(func() {
		w.log.Warn("requests to the webhook without its secret are refused", "source", r.RemoteAddr, "refused", w.Stats().Refused)
	})
	http.Error(out, "the secret is missing, or not the webhook's", http.StatusUnauthorized)
}

func (w *Webhook) count(change func(*WebhookStats)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(&w.stats)
}
