package backup

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quicklime-ir/quicklime/collector/locker"
	"github.com/quicklime-ir/quicklime/collector/store"
)

// world is what the test changes while backups run.
var world sync.Mutex

func change(f func()) {
	world.Lock()
	defer world.Unlock()
	f()
}

// state is a store that gives snapshots, of a node that leads or does not.
type state struct {
	store.Store
	leads  bool
	failed error
}

func (s *state) Leads() (leads bool) {
	change(func() { leads = s.leads })
	return leads
}

func (s *state) Snapshot(context.Context) (r io.ReadCloser, err error) {
	change(func() { r, err = io.NopCloser(strings.NewReader("snapshot")), s.failed })
	return r, err
}

// bucket keeps the keys of what is put, unless it is out of reach.
type bucket struct {
	keys  []string
	tries int
	away  error
}

func (b *bucket) PutStream(_ context.Context, key string, r io.Reader) (locker.Object, error) {
	world.Lock()
	defer world.Unlock()
	b.tries++
	content, err := io.ReadAll(r)
	if err != nil || b.away != nil {
		return locker.Object{}, errors.Join(err, b.away)
	}
	b.keys = append(b.keys, key)
	return locker.Object{Key: key, Size: uint64(len(content))}, nil
}

// backup makes one that runs until the test ends.
func backup(t *testing.T, s *state, b *bucket, node string, every time.Duration) *Backup {
	t.Helper()
	one := New(Config{State: s, Bucket: b, Node: node, Every: every, Log: slog.New(slog.DiscardHandler), Now: time.Now})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- one.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	return one
}

// TestOneOfAllTakesThem: one snapshot each hour, by the node that leads, also
// when another one leads from some time on.
func TestOneOfAllTakesThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := store.Memory()
		a, b, bucket := &state{Store: shared, leads: true}, &state{Store: shared}, &bucket{}
		first := backup(t, a, bucket, "a", time.Hour)
		second := backup(t, b, bucket, "b", time.Hour)
		time.Sleep(2*time.Hour + time.Minute)
		synctest.Wait()
		change(func() { a.leads, b.leads = false, true })
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(bucket.keys) != 4 || !strings.HasPrefix(bucket.keys[2], "state/a/") || !strings.HasPrefix(bucket.keys[3], "state/b/") {
			t.Errorf("stored are %v", bucket.keys)
		}
		for _, one := range []*Backup{first, second} {
			taken := one.Last()
			if at, ok := locker.StateTaken(taken.Key); !ok || taken.Key != bucket.keys[3] || taken.Size != 8 || taken.Time.Sub(at) >= time.Second {
				t.Errorf("the last is %+v", taken)
			}
			if err := one.Health(); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestAFailureIsToldAndPasses: tries become rare, Health says what is the
// matter once it matters, and one good snapshot makes all well.
func TestAFailureIsToldAndPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, b := &state{Store: store.Memory(), leads: true}, &bucket{away: errors.New("the bucket is away")}
		one := backup(t, s, b, "a", time.Hour)
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if err := one.Health(); err != nil {
			t.Errorf("after two hours: %v", err)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if err := one.Health(); !errors.Is(err, b.away) || !strings.Contains(err.Error(), "there is no snapshot") {
			t.Errorf("after four hours: %v", err)
		}
		change(func() {
			if b.tries < 10 || b.tries > 25 {
				t.Errorf("%d tries in four hours", b.tries)
			}
		})
		change(func() { b.away = nil })
		time.Sleep(mostPause)
		synctest.Wait()
		if err := one.Health(); err != nil || len(b.keys) != 1 {
			t.Errorf("once it is back: %v, %v", b.keys, err)
		}
		change(func() { s.failed = errors.New("the disk fails") })
		time.Sleep(4 * time.Hour)
		synctest.Wait()
		if err := one.Health(); !errors.Is(err, s.failed) || !strings.Contains(err.Error(), "is 4h") {
			t.Errorf("the state cannot be read: %v", err)
		}
	})
}

func TestNever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bucket{}
		one := backup(t, &state{Store: store.Memory(), leads: true}, b, "a", 0)
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if err := one.Health(); err != nil || b.tries > 0 {
			t.Errorf("%d tries, %v", b.tries, err)
		}
	})
}

// TestAClockThatWentBack: what is said to be taken in the future counts for
// nothing.
func TestAClockThatWentBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, b := &state{Store: store.Memory(), leads: true}, &bucket{}
		if _, err := s.Put(t.Context(), last, []byte(`{"key":"state/a/20991231T235959Z.db","time":"2099-12-31T23:59:59Z"}`), 0); err != nil {
			t.Fatal(err)
		}
		backup(t, s, b, "a", time.Hour)
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(b.keys) != 1 {
			t.Errorf("stored are %v", b.keys)
		}
	})
}
