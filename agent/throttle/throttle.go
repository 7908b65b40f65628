// Package throttle holds what a capture may take from its host; it can be
// changed while the capture runs.
//
// The price of care is smear: the longer an image takes, the less its pages
// belong to one moment. So nothing is limited unless somebody asks for it.
package throttle

import (
	"context"
	"runtime"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Bounds of a throttle.
const (
	leastBurst = 4 << 10          // bytes that may be sent at once, however low the limit
	mostBurst  = 16 << 20         // and however high
	burstsIn   = 10               // a burst is a second's bytes over so many
	longestGap = 30 * time.Second // of rest after one spell of work: a throttled capture still moves
)

// Limits say what a capture may take. Zero is no limit.
type Limits struct {
	CPUPercent     int    // of all processors together, 1 to 100
	BytesPerSecond uint64 // sent to S3
}

// Throttle makes a capture keep its limits. It may be used from several
// goroutines. A nil one limits nothing and cannot be paused.
type Throttle struct {
	processors int

	mu      sync.Mutex
	limits  Limits        // owned by mu
	paused  bool          // owned by mu
	bucket  *rate.Limiter // of bytes to S3, nil without a limit; owned by mu, made anew for each limit
	changed chan struct{} // closed when any of these changes, and then made anew; owned by mu
}

// New returns a throttle that is not paused.
func New(l Limits) *Throttle {
	t := &Throttle{processors: runtime.NumCPU(), changed: make(chan struct{})}
	t.Set(l)
	return t
}

// Set changes the limits. Those who wait go on by the new ones.
func (t *Throttle) Set(l Limits) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if l == t.limits {
		return
	}
	if l.BytesPerSecond != t.limits.BytesPerSecond {
		t.bucket = bucketOf(l.BytesPerSecond)
	}
	t.limits = l
	t.tell()
}

// Limits gives the limits that hold now.
func (t *Throttle) Limits() Limits {
	if t == nil {
		return Limits{}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.limits
}

// Pause stops the work, or lets it go on.
func (t *Throttle) Pause(on bool) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.paused != on {
		t.paused = on
		t.tell()
	}
}

// Paused reports whether the work is stopped.
func (t *Throttle) Paused() bool {
	if t == nil {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.paused
}

// tell wakes all who wait; the caller holds mu.
func (t *Throttle) tell() {
	close(t.changed)
	t.changed = make(chan struct{})
}

// Work is called by each of so many workers after a spell of work that took
// spent, by the clock. It waits while the throttle is paused, and as long as
// the CPU share asks for, 30 seconds at most. With an error, which is ctx's
// cause, ctx has ended.
func (t *Throttle) Work(ctx context.Context, spent time.Duration, workers int) error {
	if t == nil {
		return context.Cause(ctx)
	}
	for began := time.Now(); ; {
		t.mu.Lock()
		paused, rest, changed := t.paused, t.rest(spent, workers)-time.Since(began), t.changed
		t.mu.Unlock()
		if !paused && rest <= 0 || ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if paused {
			rest = -1
		}
		wait(ctx, rest, changed)
	}
}

// rest is how long a worker does nothing after a spell, so that all of them
// together keep the CPU share; the caller holds mu.
func (t *Throttle) rest(spent time.Duration, workers int) time.Duration {
	percent := t.limits.CPUPercent
	if percent <= 0 || percent >= 100 || spent <= 0 {
		return 0
	}
	share := float64(percent) / 100 * float64(t.processors) / float64(max(workers, 1)) // of one processor, for one worker
	return time.Duration(min(float64(spent)*max(1/share-1, 0), float64(longestGap)))
}

// Send is called before n bytes go to S3, and waits until the limit allows
// them. It does not wait while the throttle is paused: what is being sent is
// sent. With an error, which is ctx's cause, ctx has ended.
func (t *Throttle) Send(ctx context.Context, n int) error {
	for t != nil && n > 0 && ctx.Err() == nil {
		t.mu.Lock()
		bucket, changed := t.bucket, t.changed
		t.mu.Unlock()
		if bucket == nil {
			break
		}
		some := min(n, bucket.Burst())
		if t.take(ctx, bucket, some, changed) {
			n -= some
		}
	}
	return context.Cause(ctx)
}

// take waits for the bytes' turn. It reports false where ctx has ended, or
// where the bucket is no longer the throttle's; what was taken from that one
// needs no giving back.
func (t *Throttle) take(ctx context.Context, bucket *rate.Limiter, n int, changed <-chan struct{}) bool {
	for turn := time.Now().Add(bucket.ReserveN(time.Now(), n).Delay()); ; {
		left := time.Until(turn)
		if left <= 0 {
			return true
		}
		wait(ctx, left, changed)
		t.mu.Lock()
		same := t.bucket == bucket
		changed = t.changed
		t.mu.Unlock()
		if !same || ctx.Err() != nil {
			return false
		}
	}
}

// wait ends with ctx, at a change, or after d; a negative d is for ever.
func wait(ctx context.Context, d time.Duration, changed <-chan struct{}) {
	var over <-chan time.Time
	if d >= 0 {
		over = time.After(d)
	}
	select {
	case <-ctx.Done():
	case <-changed:
	case <-over:
	}
}

// bucketOf gives a bucket that is filled with so many bytes each second.
func bucketOf(bytesPerSecond uint64) *rate.Limiter {
	if bytesPerSecond == 0 {
		return nil
	}
	burst := min(max(bytesPerSecond/burstsIn, leastBurst), mostBurst)
	return rate.NewLimiter(rate.Limit(bytesPerSecond), int(burst))
}
