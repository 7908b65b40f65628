// Package upload stores parts in S3, each by a request that the collector
// has signed for exactly its bytes.
//
// It holds no credentials and cannot choose where a part goes. What the
// network does to it, it bears: it tries again from the part's buffer, with
// a fresh grant, until the part is stored or the order's time is over.
package upload

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/quicklime-ir/quicklime/agent/pack"
	"github.com/quicklime-ir/quicklime/agent/throttle"
)

// ErrRefused is the kind of every error that trying again will not mend.
var ErrRefused = errors.New("refused")

// Bounds of an upload.
const (
	firstBackoff = 200 * time.Millisecond
	lastBackoff  = 30 * time.Second
	defaultStall = 30 * time.Second
	// An answer that says no is one to a grant that is not honoured, or to bytes
	// that changed on the way. So many in a row, over so long a time, are a
	// refusal: before, it may be a policy that somebody is about to mend.
	maxDenied       = 5
	defaultPatience = 2 * time.Minute
)

// Grant is a request that can store one part.
type Grant struct {
	URL     string            // a secret while it lives
	Headers map[string]string // to be sent exactly as they stand
	Stored  bool              // these bytes are stored already; the rest is empty
}

// Granter gives grants. Its errors that are final are ErrRefused; it waits
// out all others.
type Granter interface {
	Grant(ctx context.Context, p pack.Part) (Grant, error)
}

// Options say how to upload. The zero value is ready.
type Options struct {
	Client *Client       // nil makes one
	Stall  time.Duration // a try that moves no byte for so long is given up; 0 is 30 s
	Log    *slog.Logger  // nil discards

	// Patience is how long S3 may say no to a part, time and again, before it
	// is refused; 0 is 2 minutes.
	Patience time.Duration

	// Throttle says when bytes may be sent; nil limits nothing. Waiting for
	// it is no stall.
	Throttle *throttle.Throttle
}

// Stats is what an Uploader has done so far.
type Stats struct {
	Parts   uint64 // stored, those that were stored already included
	Bytes   uint64 // of those parts
	Retries uint64 // tries that did not store their part, the last of a refused one excepted
}

// Uploader stores parts. It may be used from several goroutines.
type Uploader struct {
	granter Granter
	options Options

	parts, bytes, retries     atomic.Uint64
	sending, waiting, failing atomic.Int64 // see State
}

// New returns an Uploader that asks a Granter.
func New(g Granter, o Options) *Uploader {
	if o.Client == nil {
		o.Client = NewClient(1, nil)
	}
	if o.Stall == 0 {
		o.Stall = defaultStall
	}
	if o.Patience == 0 {
		o.Patience = defaultPatience
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Uploader{granter: g, options: o}
}

// Stats tells what was done so far. It may be called at any time.
func (u *Uploader) Stats() Stats {
	return Stats{Parts: u.parts.Load(), Bytes: u.bytes.Load(), Retries: u.retries.Load()}
}

// done counts a part that is stored.
func (u *Uploader) done(p pack.Part) {
	u.parts.Add(1)
	u.bytes.Add(uint64(len(p.Bytes)))
}

// Put stores a part. On return without an error S3 has acknowledged it, by
// its hash. It gives up when ctx ends, or when it is refused. On return, with
// an error or without, nothing reads the part's bytes any more.
func (u *Uploader) Put(ctx context.Context, p pack.Part) error {
	wait, denied, failed := firstBackoff, 0, int64(0)
	var since time.Time // of the first denial in a row
	defer func() { u.failing.Add(-failed) }()
	for {
		grant, err := u.grant(ctx, p)
		if err != nil {
			return fmt.Errorf("cannot get grant for part %d: %w", p.Number, err)
		}
		if grant.Stored {
			u.done(p)
			return nil
		}
		if err := check(grant); err != nil {
			return fmt.Errorf("cannot store part %d: %w", p.Number, err)
		}
		verdict, err := u.try(ctx, grant, p)
		switch verdict {
		case stored:
			u.done(p)
			return nil
		case final:
			return fmt.Errorf("cannot store part %d: %w: %w", p.Number, ErrRefused, err)
		case no:
			if denied++; denied == 1 {
				since = time.Now()
			}
			if over := time.Since(since); denied >= maxDenied && over >= u.options.Patience {
				return fmt.Errorf("cannot store part %d: %w: %d times in a row over %v, last: %w", p.Number, ErrRefused, denied, over.Round(time.Second), err)
			}
		case again:
			denied = 0
		}
		if ctx.Err() != nil {
			return fmt.Errorf("cannot store part %d: %w (last: %w)", p.Number, context.Cause(ctx), err)
		}
		u.retries.Add(1)
		u.failing.Add(1 - failed)
		failed = 1
		u.options.Log.Warn("part not stored yet, will try again", "part", p.Number, "bytes", len(p.Bytes), "error", err)
		select {
		case <-ctx.Done():
			return fmt.Errorf("cannot store part %d: %w (last: %w)", p.Number, context.Cause(ctx), err)
		case <-time.After(rand.N(wait)): // full jitter: many agents do not come back at once
		}
		wait = min(2*wait, lastBackoff)
	}
}

func (u *Uploader) grant(ctx context.Context, p pack.Part) (g Grant, err error) {
	duringLong(&u.waiting, grantPatience, func() { g, err = u.granter.Grant(ctx, p) })
	return g, err
}

func (u *Uploader) try(ctx context.Context, g Grant, p pack.Part) (v verdict, err error) {
	during(&u.sending, func() { v, err = u.options.Client.put(ctx, g, p, u.options.Stall, u.options.Throttle) })
	return v, err
}

// check refuses a grant that would send evidence in the clear.
func check(g Grant) error {
	u, err := url.Parse(g.URL)
	if err != nil || u.Host == "" {
		return fmt.Errorf("%w: the grant has no usable URL", ErrRefused)
	}
	if u.Scheme != "https" {
		return fmt.Errorf("%w: the grant's URL is %.20q, want \"https\"; the collector's S3 endpoint must be TLS", ErrRefused, u.Scheme)
	}
	return nil
}
