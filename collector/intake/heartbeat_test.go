package intake

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestALongTakeKeepsItsMessage: a store that stalls for minutes is waited
// for, and nobody else is given the message meanwhile.
func TestALongTakeKeepsItsMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &fakeQueue{maxReceives: 2}
		api.put("slow")
		start := time.Now()
		taker := &fakeTaker{takes: func(ctx context.Context, _ string, _ int) error {
			sleep(ctx, 10*time.Minute)
			return ctx.Err()
		}}
		stats, _ := run(t, api, taker, time.Hour)
		if taker.times("slow") != 1 || api.deletes != 1 || stats.Taken != 1 {
			t.Errorf("taken %d times, deleted %d times; stats %+v", taker.times("slow"), api.deletes, stats)
		}
		if n := len(api.hides); n < 79 || n > 80 || api.hides[n-1].Sub(start) > 10*time.Minute {
			t.Errorf("%d beats, the last at %v; want one each 7.5 s, and none after the end", n, api.hides[n-1].Sub(start))
		}
	})
}

// TestAMessageThatCannotBeKeptIsLetGo before it shows again, so that it is
// never taken twice at once.
func TestAMessageThatCannotBeKeptIsLetGo(t *testing.T) {
	for _, c := range []struct {
		name     string
		fails    int           // beats
		least    time.Duration // of the first take
		most     time.Duration
		failures int64
	}{
		{"two beats fail", 2, 5 * time.Minute, 5 * time.Minute, 0},
		{"three beats fail", 3, 3 * beatEvery, hidden - time.Second, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				api := &fakeQueue{failHide: c.fails}
				api.put("slow")
				var first time.Duration
				taker := &fakeTaker{takes: func(ctx context.Context, _ string, nth int) error {
					start := time.Now()
					sleep(ctx, 5*time.Minute)
					if nth == 1 {
						first = time.Since(start)
					}
					return ctx.Err()
				}}
				stats, log := run(t, api, taker, 20*time.Minute)
				if taker.peak != 1 || stats.Failed != c.failures || stats.Taken != 1 {
					t.Errorf("%d at once; stats %+v", taker.peak, stats)
				}
				if first < c.least || first > c.most {
					t.Errorf("the first take was let go after %v, want %v to %v", first, c.least, c.most)
				}
				if c.failures > 0 && !strings.Contains(log, "may be in other hands: 503 service unavailable") {
					t.Errorf("the log does not say why: %s", log)
				}
			})
		})
	}
}

// TestAMessageInOtherHandsIsLetGoAtOnce: SQS itself says that it is not ours.
func TestAMessageInOtherHandsIsLetGoAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &fakeQueue{}
		api.put("slow")
		taker := &fakeTaker{takes: func(ctx context.Context, _ string, nth int) error {
			if nth > 1 {
				return nil
			}
			api.mu.Lock()
			api.live[0].visible = time.Now() // as where another has been given it
			api.live[0].seen = 5
			api.mu.Unlock()
			start := time.Now()
			<-ctx.Done()
			if d := time.Since(start); d > beatEvery || !errors.Is(context.Cause(ctx), errShown) {
				t.Errorf("let go after %v: %v", d, context.Cause(ctx))
			}
			return ctx.Err()
		}}
		run(t, api, taker, 5*time.Minute)
	})
}

func TestTheAgeOfWhatIsInHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &fakeQueue{}
		api.put("old")
		time.Sleep(time.Hour) // as nobody took it
		api.put("new")
		taker := &fakeTaker{takes: func(ctx context.Context, _ string, _ int) error { sleep(ctx, time.Minute); return ctx.Err() }}
		q, err := New(api, Config{Queue: fakeURL}, taker, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if s := q.Stats(); s != (Stats{}) {
			t.Errorf("before the start: %+v", s)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- q.Run(ctx) }()
		time.Sleep(30 * time.Second)
		if s := q.Stats(); s.InHand != 2 || s.Oldest != time.Hour+30*time.Second {
			t.Errorf("in hand: %+v", s)
		}
		time.Sleep(time.Minute)
		api.put("newest")
		time.Sleep(10 * time.Second)
		if s := q.Stats(); s.InHand != 1 || s.Oldest > 10*time.Second || s.Waited > time.Second {
			t.Errorf("the newest: %+v", s)
		}
		cancel()
		if err := <-done; err != nil || q.Stats().InHand != 0 {
			t.Errorf("%v, %+v", err, q.Stats())
		}
	})
}
