package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// begin runs a monitor in the test's bubble, and gives what it logs; synctest
// owns the clock, so a sleep of the test is exact.
func begin(t *testing.T, checks ...Check) (*Monitor, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	m := New(slog.New(slog.NewJSONHandler(&log, nil)), checks...)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return m, &log
}

// pass lets time pass, and all that is due in it be done.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestNotReadyBeforeTheFirstAnswers(t *testing.T) {
	m := New(slog.New(slog.DiscardHandler), Check{Name: "store"})
	if r := m.Ready(); r.OK || len(r.Failing) != 1 || r.Failing[0].Check != "store" || !strings.Contains(r.Failing[0].Error, "not checked yet") {
		t.Errorf("ready: %+v", r)
	}
	if r := m.Healthy(); !r.OK {
		t.Errorf("a collector that begins needs nobody: %+v", r)
	}
	m = New(slog.New(slog.DiscardHandler), Check{Name: "store", Before: "it waits for the others"})
	if r := m.Ready(); len(r.Failing) != 1 || r.Failing[0].Error != "it waits for the others" {
		t.Errorf("ready: %+v", r)
	}
}

func TestACheckThatFailsAndRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var away atomic.Bool
		m, log := begin(t, Check{Name: "bucket", Every: time.Second, Run: func(context.Context) error {
			if away.Load() {
				return errors.New("cannot reach bucket b: 403: allow s3:ListBucket")
			}
			return nil
		}})
		pass(time.Millisecond)
		if r := m.Ready(); !r.OK {
			t.Fatalf("ready: %+v", r)
		}
		away.Store(true)
		next := m.started.Add(time.Second)
		pass(30 * time.Second)
		r := m.Ready()
		if r.OK || len(r.Failing) != 1 || r.Failing[0] != (Failing{Check: "bucket", Error: "cannot reach bucket b: 403: allow s3:ListBucket", Since: next.UTC()}) {
			t.Errorf("ready: %+v, want since %v", r, next)
		}
		if r := m.Healthy(); !r.OK {
			t.Errorf("what may come back needs no restart: %+v", r)
		}
		away.Store(false)
		pass(time.Second)
		if r := m.Ready(); !r.OK {
			t.Errorf("it did not recover: %+v", r)
		}
		if n := strings.Count(log.String(), "\n"); n != 2 {
			t.Errorf("%d lines, want one for red and one for green:\n%s", n, log)
		}
		for _, want := range []string{`"check":"bucket"`, "the collector is not ready", "allow s3:ListBucket", "check holds again"} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("the log does not say %q:\n%s", want, log)
			}
		}
	})
}

// TestACheckThatFlaps: each change is a line, each repetition none, and the
// time is that of the last change.
func TestACheckThatFlaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		runs := 0
		m, log := begin(t, Check{Name: "queue", Every: time.Second, Run: func(context.Context) error {
			runs++
			if runs/3%2 == 0 {
				return fmt.Errorf("run %d", runs)
			}
			return nil
		}})
		pass(11*time.Second + time.Millisecond) // runs 1 2 | 3 4 5 | 6 7 8 | 9 10 11 | 12
		if red, green := strings.Count(log.String(), "not ready"), strings.Count(log.String(), "holds again"); red != 3 || green != 2 {
			t.Errorf("%d times red and %d times green in %d runs, want 3 and 2:\n%s", red, green, runs, log)
		}
		r := m.Ready()
		if r.OK || time.Since(r.Failing[0].Since) != time.Millisecond || r.Failing[0].Error != "run 12" {
			t.Errorf("ready: %+v", r)
		}
	})
}

// TestACheckThatHangs is red after its limit, is not started again, and holds
// no other check up.
func TestACheckThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var hung, quick atomic.Int32
		m, _ := begin(t,
			Check{Name: "bucket", Every: time.Second, Limit: 2 * time.Second, Run: func(context.Context) error {
				if hung.Add(1) == 1 {
					<-release // whatever its context says
				}
				return nil
			}},
			Check{Name: "store", Every: time.Second, Run: func(context.Context) error { quick.Add(1); return nil }})
		pass(10*time.Second + time.Millisecond)
		if r := m.Ready(); r.OK || len(r.Failing) != 1 || r.Failing[0].Check != "bucket" || r.Failing[0].Error != "no answer for 2s" {
			t.Errorf("ready: %+v", r)
		}
		if hung.Load() != 1 || quick.Load() != 11 {
			t.Errorf("the hanging check began %d times, the other %d times, want 1 and 11", hung.Load(), quick.Load())
		}
		close(release)
		pass(time.Second)
		if r := m.Ready(); !r.OK {
			t.Errorf("it did not recover: %+v", r)
		}
	})
}

// TestALateErrorIsTold: a check that ends with its context says why.
func TestALateErrorIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, log := begin(t, Check{Name: "bucket", Run: func(ctx context.Context) error {
			<-ctx.Done()
			return fmt.Errorf("dial tcp 192.0.2.1:443: %w", ctx.Err())
		}})
		pass(defaultLimit)
		if r := m.Ready(); r.OK || !strings.HasPrefix(r.Failing[0].Error, "no answer for 5s: dial tcp 192.0.2.1:443") {
			t.Errorf("ready: %+v", r)
		}
		if n := strings.Count(log.String(), "\n"); n != 1 {
			t.Errorf("%d lines, want 1:\n%s", n, log)
		}
	})
}

// TestWhatIsFinalNeedsSomebody: only that makes the process itself unwell.
func TestWhatIsFinalNeedsSomebody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lost atomic.Bool
		m, log := begin(t, Check{Name: "store", Every: time.Second, Run: func(context.Context) error {
			if lost.Load() {
				return fmt.Errorf("cannot keep state: %w", Final{errors.New("the disk is full: make room on it and start the collector again")})
			}
			return errors.New("the store gives no answer")
		}})
		pass(time.Millisecond)
		if r := m.Healthy(); !r.OK {
			t.Errorf("healthy: %+v", r)
		}
		since := m.Ready().Failing[0].Since
		lost.Store(true)
		pass(time.Second)
		r := m.Healthy()
		if r.OK || len(r.Failing) != 1 || !r.Failing[0].Final || !r.Failing[0].Since.Equal(since) || !strings.Contains(r.Failing[0].Error, "make room") {
			t.Errorf("healthy: %+v, want final since %v", r, since)
		}
		if n := strings.Count(log.String(), "needs a restart or a person"); n != 1 {
			t.Errorf("said %d times, want once:\n%s", n, log)
		}
		if m.Holds()["store"] {
			t.Error("it does not hold")
		}
	})
}

func TestAPanicIsAFailedCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _ := begin(t, Check{Name: "odd", Run: func(context.Context) error { panic("nil map") }})
		pass(time.Millisecond)
		if r := m.Ready(); r.OK || !strings.Contains(r.Failing[0].Error, "nil map") {
			t.Errorf("ready: %+v", r)
		}
	})
}

func TestErrorsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _ := begin(t, Check{Name: "long", Run: func(context.Context) error { return errors.New(strings.Repeat("\xffä", 4096)) }})
		pass(time.Millisecond)
		if got := m.Ready().Failing[0].Error; len(got) > maxError+len("…") || strings.Contains(got, "\xff") {
			t.Errorf("%d bytes", len(got))
		}
	})
}

func TestStopping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _ := begin(t)
		if r := m.Ready(); !r.OK {
			t.Fatalf("ready: %+v", r)
		}
		m.Stopping()
		at := time.Now()
		pass(time.Second)
		m.Stopping()
		if r := m.Ready(); r.OK || !r.Failing[0].Since.Equal(at) || !strings.Contains(r.Failing[0].Error, "shutting down") {
			t.Errorf("ready: %+v", r)
		}
		if r := m.Healthy(); !r.OK {
			t.Errorf("healthy: %+v", r)
		}
	})
}
