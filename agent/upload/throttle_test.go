package upload

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quicklime-ir/quicklime/agent/pack"
	"github.com/quicklime-ir/quicklime/agent/throttle"
)

// piped is a listener whose connections are pipes, so that a test's clock
// governs them.
type piped chan net.Conn

func (p piped) Accept() (net.Conn, error) {
	c, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (p piped) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func (p piped) Close() error { return nil }

// put tries once to store a part with a server behind a pipe, by the clock
// of the test's bubble.
func put(t *testing.T, ctx context.Context, part pack.Part, stall time.Duration, h *throttle.Throttle, serve http.HandlerFunc) (verdict, time.Duration, error) {
	t.Helper()
	listener := make(piped, 8)
	var served sync.WaitGroup
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		defer served.Done()
		serve(w, r)
	})}
	served.Go(func() { _ = server.Serve(listener) })
	client := newClient(1, nil)
	client.transport.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil }
	client.transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		listener <- theirs
		return ours, nil
	}
	began := time.Now()
	verdict, err := client.put(ctx, Grant{URL: "http://s3/key"}, part, stall, h)
	took := time.Since(began)
	client.transport.CloseIdleConnections()
	close(listener)
	_ = server.Close()
	served.Wait()
	return verdict, took, err
}

func takesAll(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }

// TestAThrottledTryIsNoStall: a wait for the throttle may be far longer than
// a network may stand still.
func TestAThrottledTryIsNoStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := throttle.New(throttle.Limits{BytesPerSecond: 1 << 10})
		verdict, took, err := put(t, t.Context(), testPart(256<<10), time.Second, h, takesAll)
		if verdict != stored || took < 240*time.Second || took > 256*time.Second {
			t.Errorf("put = %v, %v after %v; 256 KiB at 1 KiB/s take 256 s, less a burst", verdict, err, took)
		}
	})
}

// TestAThrottledTryCanStall: the throttle does not hide that the network
// stands still.
func TestAThrottledTryCanStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := throttle.New(throttle.Limits{BytesPerSecond: 128 << 10})
		verdict, took, err := put(t, t.Context(), testPart(1<<20), 5*time.Second, h, func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.CopyN(io.Discard, r.Body, 256<<10)
			time.Sleep(time.Minute)
			panic(http.ErrAbortHandler)
		})
		if verdict != again || !errors.Is(err, errStalled) || took > 10*time.Second {
			t.Errorf("put = %v, %v after %v", verdict, err, took)
		}
	})
}

// TestAThrottledTryEndsAtOnce with its context, and the buffer is free.
func TestAThrottledTryEndsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reason := errors.New("cancelled by an operator")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(5*time.Second, func() { cancel(reason) })
		part := testPart(256 << 10)
		verdict, took, err := put(t, ctx, part, time.Minute, throttle.New(throttle.Limits{BytesPerSecond: 1}), takesAll)
		for i := range part.Bytes {
			part.Bytes[i] = 0xff // the race detector watches
		}
		if verdict != again || !errors.Is(err, reason) || took != 5*time.Second {
			t.Errorf("put = %v, %v after %v", verdict, err, took)
		}
	})
}

// TestALoanEndsWhileItWaits: the end does not wait for the throttle.
func TestALoanEndsWhileItWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &loan{bytes: []byte("evidence"), held: func() {}, moved: func() { t.Error("a watchdog is set after the end") },
			turn: func(int) error { time.Sleep(time.Hour); return nil }}
		read := make(chan error)
		go func() { _, err := l.body().Read(make([]byte, 8)); read <- err }()
		synctest.Wait()
		began := time.Now()
		l.end()
		if took := time.Since(began); took != 0 {
			t.Errorf("the end took %v", took)
		}
		if err := <-read; !errors.Is(err, errReturned) {
			t.Errorf("Read = %v", err)
		}
	})
}

func TestTheUplinkInAWord(t *testing.T) {
	for want, states := range map[Uplink][]State{
		Idle:    {{}},
		Flowing: {{Sending: 3}},
		Failing: {{Failing: 1}, {Failing: 1, Sending: 7}},
		Waiting: {{Waiting: 1}, {Waiting: 1, Failing: 1, Sending: 7}},
	} {
		for _, s := range states {
			if got := s.Uplink(); got != want {
				t.Errorf("%+v is %s, want %s", s, got, want)
			}
		}
	}
}

// TestStateIsWhatIsDoneNow follows a part through a try that fails and one
// that stores it.
func TestStateIsWhatIsDoneNow(t *testing.T) {
	var u *Uploader
	is := func(want State, then fault) fault {
		return func(s *s3, w http.ResponseWriter, r *http.Request) {
			if got := u.State(); got != want {
				t.Errorf("State = %+v, want %+v", got, want)
			}
			then(s, w, r)
		}
	}
	server := newS3(t, is(State{Sending: 1}, answers(503, "SlowDown")), is(State{Sending: 1, Failing: 1}, answers(503, "SlowDown")),
		is(State{Sending: 1, Failing: 1}, (*s3).store))
	u = New(&grants{url: server.URL}, Options{Client: testClient(t, server)})
	if err := u.Put(t.Context(), testPart(1<<20)); err != nil {
		t.Fatal(err)
	}
	if got := u.State(); got != (State{}) {
		t.Errorf("State = %+v when nothing is done", got)
	}
}

// slowGrants is a collector that does not answer for a while, and then
// refuses.
type slowGrants time.Duration

func (d slowGrants) Grant(context.Context, pack.Part) (Grant, error) {
	time.Sleep(time.Duration(d))
	return Grant{}, ErrRefused
}

func TestACollectorThatDoesNotAnswerIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := New(slowGrants(time.Minute), Options{})
		put := make(chan error)
		go func() { put <- u.Put(t.Context(), testPart(8)) }()
		time.Sleep(grantPatience / 2)
		if got := u.State(); got != (State{}) {
			t.Errorf("State = %+v after %v: that is no wait yet", got, grantPatience/2)
		}
		time.Sleep(grantPatience)
		if got := u.State(); got != (State{Waiting: 1}) {
			t.Errorf("State = %+v, want one that waits", got)
		}
		<-put
		if got := u.State(); got != (State{}) {
			t.Errorf("State = %+v at the end", got)
		}
	})
}
