package throttle

import (
	"context"
	"errors"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// in runs a test by a clock of its own, on a host of 4 processors.
func in(t *testing.T, l Limits, f func(t *testing.T, throttle *Throttle)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		throttle := New(l)
		throttle.processors = 4
		f(t, throttle)
	})
}

// took measures by the test's clock.
func took(f func()) time.Duration {
	began := time.Now()
	f()
	return time.Since(began)
}

func near(got, want time.Duration) bool {
	return got >= want-10*time.Millisecond && got <= want+10*time.Millisecond
}

func TestAWorkersRestKeepsTheShareOfAll(t *testing.T) {
	tests := []struct {
		name    string
		percent int
		workers int
		spent   time.Duration
		want    time.Duration
	}{
		{"no limit", 0, 4, time.Second, 0},
		{"all of it", 100, 8, time.Second, 0},
		{"a quarter, by as many workers as processors", 25, 4, time.Second, 3 * time.Second},
		{"a quarter, by one worker: that is its whole processor", 25, 1, time.Second, 0},
		{"a quarter, by two workers", 25, 2, time.Second, time.Second},
		{"a half, by twice the processors", 50, 8, time.Second, 3 * time.Second},
		{"so little that it would look stalled", 1, 8, time.Minute, longestGap},
		{"nothing was done", 25, 4, 0, 0},
		{"a clock that went back", 25, 4, -time.Second, 0},
		{"nobody works", 25, 0, time.Second, 0},
		{"more than there is", 1000, 4, time.Second, 0},
		{"less than nothing", -1, 4, time.Second, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in(t, Limits{CPUPercent: tt.percent}, func(t *testing.T, throttle *Throttle) {
				got := took(func() {
					if err := throttle.Work(t.Context(), tt.spent, tt.workers); err != nil {
						t.Error(err)
					}
				})
				if !near(got, tt.want) {
					t.Errorf("rested %v, want %v", got, tt.want)
				}
			})
		})
	}
}

func TestBytesKeepTheirRate(t *testing.T) {
	tests := []struct {
		name      string
		perSecond uint64
		senders   int
		chunk     int
		chunks    int
		want      time.Duration // after the burst, which is free
	}{
		{"no limit", 0, 4, 1 << 20, 100, 0},
		{"one sender", 1 << 20, 1, 64 << 10, 160, 10 * time.Second},
		{"four senders share it", 1 << 20, 4, 64 << 10, 40, 10 * time.Second},
		{"a piece far larger than the burst", 1 << 20, 1, 10 << 20, 1, 10 * time.Second},
		{"a limit far smaller than a piece", 1 << 10, 1, 64 << 10, 1, 64 * time.Second},
		{"a limit beyond any network", math.MaxUint64, 4, 1 << 20, 100, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in(t, Limits{BytesPerSecond: tt.perSecond}, func(t *testing.T, throttle *Throttle) {
				var group sync.WaitGroup
				got := took(func() {
					for range tt.senders {
						group.Go(func() {
							for range tt.chunks {
								if err := throttle.Send(t.Context(), tt.chunk); err != nil {
									t.Error(err)
								}
							}
						})
					}
					group.Wait()
				})
				var burst time.Duration
				if tt.want > 0 {
					burst = time.Duration(float64(throttle.bucket.Burst()) / float64(tt.perSecond) * float64(time.Second))
				}
				if !near(got, tt.want-burst) {
					t.Errorf("took %v, want %v less the burst's %v", got, tt.want, burst)
				}
			})
		})
	}
}

// TestAChangeReachesThoseWhoWait: each change is made after 1 s, while a
// worker rests for 30 s, and a sender waits for over an hour.
func TestAChangeReachesThoseWhoWait(t *testing.T) {
	const slow, spell = 1 << 10, 10 * time.Second
	tests := []struct {
		name       string
		change     func(*Throttle)
		work, send time.Duration
	}{
		{"the limits are lifted", func(h *Throttle) { h.Set(Limits{}) }, time.Second, time.Second},
		{"the CPU's share alone grows", func(h *Throttle) { h.Set(Limits{CPUPercent: 50, BytesPerSecond: slow}) }, 10 * time.Second, 4092 * time.Second},
		{"the bandwidth alone grows", func(h *Throttle) { h.Set(Limits{CPUPercent: 25, BytesPerSecond: 1 << 20}) }, 30 * time.Second, 4900 * time.Millisecond},
		{"a pause does not add to the rest, and holds no bytes back", func(h *Throttle) {
			h.Pause(true)
			time.Sleep(time.Minute)
			h.Pause(false)
		}, 61 * time.Second, 4092 * time.Second},
		{"the same again", func(h *Throttle) { h.Set(h.Limits()); h.Pause(false) }, 30 * time.Second, 4092 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in(t, Limits{CPUPercent: 25, BytesPerSecond: slow}, func(t *testing.T, throttle *Throttle) {
				var work, send time.Duration
				var group sync.WaitGroup
				group.Go(func() { work = took(func() { _ = throttle.Work(t.Context(), spell, 4) }) })
				group.Go(func() { send = took(func() { _ = throttle.Send(t.Context(), 4<<20) }) })
				time.Sleep(time.Second)
				tt.change(throttle)
				group.Wait()
				if !near(work, tt.work) || !near(send, tt.send) {
					t.Errorf("the worker waited %v, want %v; the sender %v, want %v", work, tt.work, send, tt.send)
				}
			})
		})
	}
}

func TestAPauseStopsWorkAndNotWhatIsBeingSent(t *testing.T) {
	in(t, Limits{}, func(t *testing.T, throttle *Throttle) {
		throttle.Pause(true)
		if !throttle.Paused() {
			t.Error("it is not paused")
		}
		if got := took(func() { _ = throttle.Send(t.Context(), 1<<30) }); got != 0 {
			t.Errorf("bytes waited %v", got)
		}
		time.AfterFunc(time.Hour, func() { throttle.Pause(false) })
		if got := took(func() { _ = throttle.Work(t.Context(), 0, 1) }); got != time.Hour {
			t.Errorf("work waited %v, want an hour", got)
		}
	})
}

func TestAWaitEndsWithItsContext(t *testing.T) {
	reason := errors.New("the order's time is over")
	waits := map[string]func(context.Context, *Throttle) error{
		"paused":    func(ctx context.Context, h *Throttle) error { h.Pause(true); return h.Work(ctx, 0, 1) },
		"at rest":   func(ctx context.Context, h *Throttle) error { return h.Work(ctx, time.Minute, 4) },
		"for bytes": func(ctx context.Context, h *Throttle) error { return h.Send(ctx, 1<<20) },
	}
	for name, f := range waits {
		t.Run(name, func(t *testing.T) {
			in(t, Limits{CPUPercent: 1, BytesPerSecond: 1}, func(t *testing.T, throttle *Throttle) {
				ctx, cancel := context.WithCancelCause(t.Context())
				time.AfterFunc(time.Second, func() { cancel(reason) })
				var err error
				if got := took(func() { err = f(ctx, throttle) }); got != time.Second || !errors.Is(err, reason) {
					t.Errorf("ended after %v with %v", got, err)
				}
				if err := f(ctx, throttle); !errors.Is(err, reason) {
					t.Errorf("with a context that has ended: %v", err)
				}
			})
		})
	}
}

func TestNoThrottleLimitsNothing(t *testing.T) {
	var none *Throttle
	none.Set(Limits{CPUPercent: 1, BytesPerSecond: 1})
	none.Pause(true)
	if none.Paused() || none.Limits() != (Limits{}) {
		t.Error("nothing was limited")
	}
	if err := errors.Join(none.Work(t.Context(), time.Hour, 8), none.Send(t.Context(), 1<<30)); err != nil {
		t.Error(err)
	}
	reason := errors.New("over")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(reason)
	if err := none.Work(ctx, 0, 1); !errors.Is(err, reason) {
		t.Error(err)
	}
	if err := none.Send(ctx, 1); !errors.Is(err, reason) {
		t.Error(err)
	}
}
