// Package storetest holds what every store must do, as one suite that is run
// on each of them.
//
// A store is replaced by another one behind the same interface, and what the
// collector relies on must not change with it.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/quicklime-ir/quicklime/collector/store"
)

// Run tests the stores that fresh makes, each of them empty.
func Run(t *testing.T, fresh func(t *testing.T) store.Store) {
	tests := map[string]func(t *testing.T, s store.Store){
		"what is put can be got":                       putGet,
		"a key is made once":                           makeOnce,
		"only who saw the last value may change it":    compareAndSwap,
		"a deleted key is gone, and may be made again": deleted,
		"a revision is never used twice":               revisions,
		"a list is ascending and has its prefix only":  list,
		"a value is the caller's own copy":             copies,
		"of many writers one wins each round":          race,
		"bad keys are refused":                         badKeys,
		"an ended context stops the work":              ended,
		"a closed store refuses":                       closed,
		"many changes are made, or none":               commit,
		"bad commits are refused":                      badCommits,
		"who has lost a key changes nothing":           fenced,
		"a key is claimed once, until it is given up":  claimed,
		"a watch tells all, and then each change":      watched,
		"any sequence of calls agrees with a map":      model,
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := fresh(t)
			t.Cleanup(func() { check(t, s.Close()) })
			test(t, s)
		})
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func want(t testing.TB, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("error is %v, want %v", err, kind)
	}
}

func put(t testing.TB, s store.Store, key, value string, revision int64) int64 {
	t.Helper()
	next, err := s.Put(context.Background(), key, []byte(value), revision)
	check(t, err)
	return next
}

func putGet(t *testing.T, s store.Store) {
	for _, value := range []string{"", "x", "line\nline\n", "\x00\xff", strings.Repeat("long ", 1<<18)} {
		key := fmt.Sprintf("case/%d", len(value))
		revision := put(t, s, key, value, 0)
		got, at, err := s.Get(t.Context(), key)
		check(t, err)
		if string(got) != value || at != revision || revision < 1 {
			t.Errorf("got %.20q at %d, want %.20q at %d", got, at, value, revision)
		}
	}
	_, _, err := s.Get(t.Context(), "case")
	want(t, err, store.ErrNotFound)
}

func makeOnce(t *testing.T, s store.Store) {
	put(t, s, "a", "first", 0)
	_, err := s.Put(t.Context(), "a", []byte("second"), 0)
	want(t, err, store.ErrConflict)
	_, err = s.Put(t.Context(), "b", []byte("x"), 1)
	want(t, err, store.ErrConflict) // it does not exist, at no revision
	_, _, err = s.Get(t.Context(), "b")
	want(t, err, store.ErrNotFound)
}

func compareAndSwap(t *testing.T, s store.Store) {
	first := put(t, s, "a", "1", 0)
	second := put(t, s, "a", "2", first)
	if second <= first {
		t.Errorf("revision %d follows %d", second, first)
	}
	_, err := s.Put(t.Context(), "a", []byte("late"), first)
	want(t, err, store.ErrConflict)
	want(t, s.Delete(t.Context(), "a", first), store.ErrConflict)
	got, at, err := s.Get(t.Context(), "a")
	check(t, err)
	if string(got) != "2" || at != second {
		t.Errorf("after refused changes it is %q at %d", got, at)
	}
}

func deleted(t *testing.T, s store.Store) {
	first := put(t, s, "a", "1", 0)
	put(t, s, "a/b", "below", 0)
	check(t, s.Delete(t.Context(), "a", first))
	want(t, s.Delete(t.Context(), "a", first), store.ErrConflict)
	_, _, err := s.Get(t.Context(), "a")
	want(t, err, store.ErrNotFound)
	again := put(t, s, "a", "1", 0)
	_, err = s.Put(t.Context(), "a", []byte("by someone from before"), first)
	want(t, err, store.ErrConflict)
	if _, at, err := s.Get(t.Context(), "a/b"); err != nil || again <= at {
		t.Errorf("the key below: %d, %v", at, err)
	}
}

func revisions(t *testing.T, s store.Store) {
	var last int64
	for i := range 20 {
		key := fmt.Sprintf("k%d", i%3)
		_, at, err := s.Get(t.Context(), key)
		if err != nil {
			at = 0
		}
		next := put(t, s, key, "x", at)
		if next <= last {
			t.Fatalf("revision %d follows %d", next, last)
		}
		if last = next; i%4 == 0 {
			check(t, s.Delete(t.Context(), key, next))
		}
	}
}

func list(t *testing.T, s store.Store) {
	keys := []string{"case/2", "case/10", "case/1", "case", "cases/1", "case/1/a", "case/1-a", "part/x/00002", "part/x/00001"}
	for _, k := range keys {
		put(t, s, k, "value of "+k, 0)
	}
	for prefix, wanted := range map[string][]string{
		"":            {"case", "case/1", "case/1-a", "case/1/a", "case/10", "case/2", "cases/1", "part/x/00001", "part/x/00002"},
		"case":        {"case", "case/1", "case/1-a", "case/1/a", "case/10", "case/2", "cases/1"},
		"case/":       {"case/1", "case/1-a", "case/1/a", "case/10", "case/2"},
		"case/1":      {"case/1", "case/1-a", "case/1/a", "case/10"},
		"case/1/":     {"case/1/a"},
		"part/x/":     {"part/x/00001", "part/x/00002"},
		"nothing/":    nil,
		"case/1/a/b/": nil,
	} {
		entries, err := s.List(t.Context(), prefix)
		check(t, err)
		var got []string
		for _, e := range entries {
			got = append(got, e.Key)
			if string(e.Value) != "value of "+e.Key || e.Revision < 1 {
				t.Errorf("list of %q: %s has %q at %d", prefix, e.Key, e.Value, e.Revision)
			}
		}
		if !slices.Equal(got, wanted) {
			t.Errorf("list of %q is %q, want %q", prefix, got, wanted)
		}
	}
}

func copies(t *testing.T, s store.Store) {
	mine := []byte("mine")
	_, err := s.Put(t.Context(), "a", mine, 0)
	check(t, err)
	mine[0] = 'X'
	got, _, err := s.Get(t.Context(), "a")
	check(t, err)
	got[0] = 'Y'
	entries, err := s.List(t.Context(), "a")
	check(t, err)
	entries[0].Value[0] = 'Z'
	if again, _, err := s.Get(t.Context(), "a"); err != nil || string(again) != "mine" {
		t.Errorf("it is %q now (%v)", again, err)
	}
}

func race(t *testing.T, s store.Store) {
	const writers, rounds = 8, 10
	at := put(t, s, "a", "start", 0)
	for range rounds {
		var wins atomic.Int64
		var all sync.WaitGroup
		for w := range writers {
			all.Go(func() {
				_, err := s.Put(t.Context(), "a", fmt.Append(nil, w), at)
				if err == nil {
					wins.Add(1)
				} else if !errors.Is(err, store.ErrConflict) {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if wins.Load() != 1 {
			t.Fatalf("%d writers won", wins.Load())
		}
		_, next, err := s.Get(t.Context(), "a")
		check(t, err)
		at = next
	}
}

func badKeys(t *testing.T, s store.Store) {
	for _, key := range []string{"", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/.", "a b", "a\\b", "a=", "=new", "é", "a\x00b", "a\n",
		strings.Repeat("x", 201), strings.Repeat("abc/", 300) + "x"} {
		if _, err := s.Put(t.Context(), key, nil, 0); err == nil || errors.Is(err, store.ErrConflict) {
			t.Errorf("put of %.40q: %v", key, err)
		}
		if _, _, err := s.Get(t.Context(), key); err == nil || errors.Is(err, store.ErrNotFound) {
			t.Errorf("get of %.40q: %v", key, err)
		}
		if err := s.Delete(t.Context(), key, 1); err == nil || errors.Is(err, store.ErrConflict) {
			t.Errorf("delete of %.40q: %v", key, err)
		}
	}
	for _, prefix := range []string{"/", "/a", "../", "a//", "a b", "./", "a=", "é/"} {
		if _, err := s.List(t.Context(), prefix); err == nil {
			t.Errorf("list of %q is allowed", prefix)
		}
	}
	if _, err := s.Put(t.Context(), "a", nil, -1); err == nil {
		t.Error("put at revision -1 is allowed")
	}
	if err := s.Delete(t.Context(), "a", 0); err == nil {
		t.Error("delete at revision 0 is allowed")
	}
}

func ended(t *testing.T, s store.Store) {
	at := put(t, s, "a", "1", 0)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Put(ctx, "a", []byte("2"), at)
	want(t, err, context.Canceled)
	_, _, err = s.Get(ctx, "a")
	want(t, err, context.Canceled)
	_, err = s.List(ctx, "")
	want(t, err, context.Canceled)
	want(t, s.Delete(ctx, "a", at), context.Canceled)
	if got, now, err := s.Get(t.Context(), "a"); err != nil || string(got) != "1" || now != at {
		t.Errorf("it is %q at %d (%v)", got, now, err)
	}
}

func closed(t *testing.T, s store.Store) {
	at := put(t, s, "a", "1", 0)
	check(t, s.Close())
	check(t, s.Close())
	_, err := s.Put(t.Context(), "a", nil, at)
	_, _, err2 := s.Get(t.Context(), "a")
	_, err3 := s.List(t.Context(), "")
	if err == nil || err2 == nil || err3 == nil || s.Delete(t.Context(), "a", at) == nil {
		t.Error("a closed store is used")
	}
}

func commit(t *testing.T, s store.Store) {
	a := put(t, s, "a", "1", 0)
	b := put(t, s, "b", "1", 0)
	at, err := s.Commit(t.Context(), store.Set("a", []byte("2"), a), store.Remove("b", b), store.Set("c", []byte("2"), 0))
	check(t, err)
	entries, err := s.List(t.Context(), "")
	check(t, err)
	if len(entries) != 2 || entries[0].Revision != at || entries[1].Revision != at || string(entries[1].Value) != "2" {
		t.Errorf("after a commit at %d there are %v", at, entries)
	}
	for name, changes := range map[string][]store.Change{
		"one is late":          {store.Set("c", []byte("3"), at), store.Set("a", []byte("3"), a)},
		"one is there already": {store.Set("c", []byte("3"), at), store.Set("a", []byte("3"), 0)},
		"one is gone":          {store.Set("c", []byte("3"), at), store.Remove("b", b)},
		"one is not the same":  {store.Set("c", []byte("3"), at), store.Same("a", a)},
	} {
		if _, err := s.Commit(t.Context(), changes...); !errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrLost) {
			t.Errorf("%s: %v, want a conflict", name, err)
		}
	}
	if got, now, err := s.Get(t.Context(), "c"); err != nil || now != at || string(got) != "2" {
		t.Errorf("refused commits left %q at %d (%v)", got, now, err)
	}
	after, err := s.Commit(t.Context(), store.Same("a", at), store.Set("c", []byte("3"), at))
	check(t, err)
	if _, now, err := s.Get(t.Context(), "a"); err != nil || now != at || after <= at {
		t.Errorf("a key that was only looked at is at %d, want %d (%v)", now, at, err)
	}
}

func badCommits(t *testing.T, s store.Store) {
	var many []store.Change
	for i := range 65 {
		many = append(many, store.Set(fmt.Sprintf("k%d", i), nil, 0))
	}
	for name, changes := range map[string][]store.Change{
		"nothing":       nil,
		"too many":      many,
		"a key twice":   {store.Set("a", nil, 0), store.Same("a", 0)},
		"a bad key":     {store.Set("a", nil, 0), store.Set("b//", nil, 0)},
		"no verb":       {{Key: "a"}},
		"remove from 0": {store.Remove("a", 0)},
	} {
		if _, err := s.Commit(t.Context(), changes...); err == nil || errors.Is(err, store.ErrConflict) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := s.Commit(t.Context(), many[:64]...)
	check(t, err)
}

func fenced(t *testing.T, s store.Store) {
	owner := put(t, s, "own/1", "node", 0)
	order := put(t, s, "order/1", "x", 0)
	mine := store.While(store.While(t.Context(), "own/1", owner), "order/1", order)
	at, err := s.Put(mine, "case/1", []byte("1"), 0)
	check(t, err)
	_, err = s.Put(mine, "case/1", []byte("2"), 0)
	want(t, err, store.ErrConflict)
	_, err = s.Put(mine, "own/1", []byte("again"), owner)
	check(t, err)
	_, err = s.Put(mine, "case/1", []byte("2"), at)
	want(t, err, store.ErrLost)
	want(t, s.Delete(mine, "case/1", at), store.ErrLost)
	if got, _, err := s.Get(mine, "case/1"); err != nil || string(got) != "1" {
		t.Errorf("reading %q (%v)", got, err)
	}
	_, err = s.Put(t.Context(), "case/1", []byte("2"), at)
	check(t, err)
}

func claimed(t *testing.T, s store.Store) {
	claim, err := s.Claim(t.Context(), "own/1", []byte("me"))
	check(t, err)
	if got, at, err := s.Get(t.Context(), "own/1"); err != nil || string(got) != "me" || at != claim.Revision || claim.Key != "own/1" {
		t.Errorf("claimed %+v, there is %q at %d (%v)", claim, got, at, err)
	}
	if again, err := s.Claim(t.Context(), "own/1", []byte("me")); err != nil || again.Key != claim.Key || again.Revision != claim.Revision {
		t.Errorf("claimed again: %+v, %v", again, err)
	}
	put(t, s, "own/2", "no claim", 0)
	_, err = s.Claim(t.Context(), "own/2", []byte("me"))
	want(t, err, store.ErrConflict)
	select {
	case <-claim.Lost:
		t.Error("it is lost at once")
	default:
	}
	mine := store.While(t.Context(), claim.Key, claim.Revision)
	put(t, s, "case/1", "x", 0)
	check(t, s.Delete(mine, claim.Key, claim.Revision))
	_, err = s.Put(mine, "case/2", nil, 0)
	want(t, err, store.ErrLost)
	again, err := s.Claim(t.Context(), "own/1", []byte("me"))
	check(t, err)
	_, err = s.Put(mine, "case/2", nil, 0) // another claim is not the first
	want(t, err, store.ErrLost)
	check(t, s.Close())
	select {
	case <-again.Lost:
	case <-time.After(10 * time.Second):
		t.Error("a closed store keeps what it has claimed")
	}
}

func watched(t *testing.T, s store.Store) {
	gone := put(t, s, "case/1", "1", 0)
	put(t, s, "cases", "another", 0)
	ctx, cancel := context.WithCancel(t.Context())
	news := make(chan []store.Entry)
	ended := make(chan error)
	go func() {
		first := true
		ended <- s.Watch(ctx, "case/", func(all bool, entries []store.Entry) {
			if all != first {
				t.Errorf("all is %v", all)
			}
			first = false
			select {
			case news <- entries:
			case <-ctx.Done():
			}
		})
	}()
	if got := <-news; len(got) != 1 || got[0].Key != "case/1" || got[0].Revision != gone {
		t.Errorf("at first there is %v", got)
	}
	put(t, s, "cases/1", "another", 0)
	at := put(t, s, "case/2", "2", 0)
	check(t, s.Delete(t.Context(), "case/1", gone))
	var got []store.Entry
	for len(got) < 2 {
		got = append(got, <-news...)
	}
	if got[0].Key != "case/2" || got[0].Revision != at || string(got[0].Value) != "2" || got[1].Key != "case/1" || got[1].Revision != 0 {
		t.Errorf("then %v", got)
	}
	cancel()
	want(t, <-ended, context.Canceled)
	if err := s.Watch(t.Context(), "a//", nil); err == nil {
		t.Error("watch of a bad prefix")
	}
	check(t, s.Close())
	if err := s.Watch(t.Context(), "", func(bool, []store.Entry) {}); err == nil {
		t.Error("a closed store is watched")
	}
}

// model holds random calls against a map.
func model(t *testing.T, s store.Store) {
	var round int
	rapid.Check(t, func(r *rapid.T) {
		round++
		top := fmt.Sprintf("round%d", round)
		known := map[string]store.Entry{}
		key := rapid.Custom(func(r *rapid.T) string {
			return top + "/" + rapid.SampledFrom([]string{"a", "a/b", "a/c", "b"}).Draw(r, "key")
		})
		for range rapid.IntRange(1, 12).Draw(r, "calls") {
			k := key.Draw(r, "key")
			at := known[k].Revision + int64(rapid.SampledFrom([]int{0, 0, 0, 1}).Draw(r, "stale"))
			right := at == known[k].Revision
			if rapid.IntRange(0, 3).Draw(r, "call") == 0 && at > 0 {
				err := s.Delete(t.Context(), k, at)
				if right != (err == nil) {
					r.Fatalf("delete of %s at %d, known %d: %v", k, at, known[k].Revision, err)
				}
				if right {
					delete(known, k)
				}
				continue
			}
			value := rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(r, "value")
			next, err := s.Put(t.Context(), k, value, at)
			if right != (err == nil) {
				r.Fatalf("put of %s at %d, known %d: %v", k, at, known[k].Revision, err)
			}
			if right {
				known[k] = store.Entry{Key: k, Value: value, Revision: next}
			}
		}
		entries, err := s.List(t.Context(), top+"/")
		if err != nil || len(entries) != len(known) {
			r.Fatalf("listed %d, want %d (%v)", len(entries), len(known), err)
		}
		for _, e := range entries {
			if k := known[e.Key]; k.Revision != e.Revision || !bytes.Equal(k.Value, e.Value) {
				r.Fatalf("listed %v, want %v", e, k)
			}
		}
	})
}
