// Package store keeps the collector's state: small values under keys, changed
// by compare-and-swap, and seen alike by every node of the collector.
//
// A case must survive the collector, and no two writers may each believe
// that theirs was the last word. So a write is durable when it returns, and
// it is refused where a value is no longer the one that its writer saw. The
// rules are those of etcd: revisions only grow, over the whole store, so that
// a revision never means two things.
//
// Who may do a thing is a key too. A node claims it, and it is gone when the
// node is; what the node writes meanwhile is bound to it by While, so that a
// node that was thought dead, and wakes, changes nothing any more.
package store

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Limits of keys and values.
const (
	maxKey     = 1024     // bytes
	maxSegment = 200      // bytes
	maxValue   = 64 << 20 // bytes
	maxChanges = 64       // in one Commit
)

// Errors that callers branch on.
var (
	// ErrNotFound says that there is no such key.
	ErrNotFound = errors.New("key not found")
	// ErrConflict says that a key is not at the revision that its writer
	// saw. Nothing was changed.
	ErrConflict = errors.New("key was changed by another writer")
	// ErrLost says that a key that the writer's context wants, by While, is
	// not there any more. Nothing was changed, and nothing will be.
	ErrLost = errors.New("no longer the owner")
	// ErrUnavailable says that the store cannot be read or written now, and
	// may be later: it has no majority, no room, or a disk that is too slow.
	ErrUnavailable = errors.New("the store is not available")
	// ErrClosed says that the store was closed.
	ErrClosed = errors.New("the store is closed")
)

// Store is the collector's state. Keys are segments of letters, digits and
// "._:-", separated by slashes, 1024 bytes at most; values have 64 MiB at
// most. It may be used by many goroutines.
//
// When a change returns without an error, it is durable. After any other error
// than ErrConflict and ErrLost the outcome is unknown, and Get tells.
type Store interface {
	// Get gives the value of a key and its revision, or ErrNotFound.
	Get(ctx context.Context, key string) (value []byte, revision int64, err error)
	// Put sets the value of a key that is at the given revision, 0 meaning
	// that there is no such key yet, or gives ErrConflict.
	Put(ctx context.Context, key string, value []byte, revision int64) (newRevision int64, err error)
	// Delete removes a key that is at the given revision, or gives
	// ErrConflict, also where there is no such key.
	Delete(ctx context.Context, key string, revision int64) error
	// Commit makes all of some changes, 64 at most, or gives ErrConflict and
	// makes none. The revision is that of every key that it sets.
	Commit(ctx context.Context, changes ...Change) (revision int64, err error)
	// Claim makes a key that is there as long as this node is: it goes when
	// the store is closed, and about 10 s after the node was last heard of.
	// Where the key is another's, it gives ErrConflict; where it is this node's
	// already, it gives that claim again, since its answer may have been lost.
	// So it does not keep apart who work for one node.
	Claim(ctx context.Context, key string, value []byte) (Claim, error)
	// List gives every entry whose key begins with prefix, ascending by
	// key's bytes, all as they were at one moment.
	List(ctx context.Context, prefix string) ([]Entry, error)
	// Watch tells of the keys that begin with prefix until ctx ends, or the
	// store cannot go on: first all of them, then each change in its order. A
	// key that is gone has revision 0. After a gap it tells all again.
	Watch(ctx context.Context, prefix string, see func(all bool, entries []Entry)) error
	// Close gives up the store, and what was claimed by it. What it holds
	// else stays.
	Close() error
}

// Entry is a key as List and Watch give it.
type Entry struct {
	Key      string
	Value    []byte
	Revision int64
}

// Claim is a key that is this node's.
type Claim struct {
	Key      string
	Revision int64
	Lost     <-chan struct{} // closed when it is this node's no more
}

// Change is one of the things that a Commit does. Make it by Set, Remove or
// Same.
type Change struct {
	Key      string
	Value    []byte
	Revision int64 // at which the key must be; 0: there must be none
	Verb     Verb
}

// Verb says what a change does.
type Verb string

// The verbs.
const (
	Putting  Verb = "put"
	Deleting Verb = "delete"
	Checking Verb = "check"
)

// Set sets a key that is at a revision, 0 meaning that there is none yet.
func Set(key string, value []byte, revision int64) Change {
	return Change{Key: key, Value: value, Revision: revision, Verb: Putting}
}

// Remove removes a key that is at a revision.
func Remove(key string, revision int64) Change {
	return Change{Key: key, Revision: revision, Verb: Deleting}
}

// Same wants a key to be at a revision, and leaves it.
func Same(key string, revision int64) Change {
	return Change{Key: key, Revision: revision, Verb: Checking}
}

// Fence is a key that must be at a revision.
type Fence struct {
	Key      string
	Revision int64
}

type fencesKey struct{}

// While gives a context by which a store changes nothing once a key is not at
// a revision: each change gives ErrLost then. Reading is free.
func While(ctx context.Context, key string, revision int64) context.Context {
	before := Fences(ctx)
	return context.WithValue(ctx, fencesKey{}, append(before[:len(before):len(before)], Fence{key, revision}))
}

// Fences gives what a context's changes depend on.
func Fences(ctx context.Context) []Fence {
	fences, _ := ctx.Value(fencesKey{}).([]Fence)
	return fences
}

// Repeat makes a change anew as long as it gives ErrConflict, because another
// came first, so many times in all. The change reads what it changes each
// time.
func Repeat(times int, change func() error) error {
	for try := 1; ; try++ {
		if err := change(); !errors.Is(err, ErrConflict) || try == times {
			return err
		}
	}
}

// Drop removes a key that is at a revision, unless another came first: then
// there is nothing left to do.
func Drop(ctx context.Context, s Store, key string, revision int64) error {
	if err := s.Delete(ctx, key, revision); !errors.Is(err, ErrConflict) {
		return err
	}
	return nil
}

var segment = regexp.MustCompile(`^[A-Za-z0-9._:-]+$`)

// CheckKey refuses what is no key.
func CheckKey(key string) error {
	if key == "" || len(key) > maxKey {
		return fmt.Errorf("cannot use key %.80q: it has %d bytes, want 1 to %d", key, len(key), maxKey)
	}
	for s := range strings.SplitSeq(key, "/") {
		if !segment.MatchString(s) || s == "." || s == ".." || len(s) > maxSegment {
			return fmt.Errorf("cannot use key %.80q: segment %.80q, want 1 to %d letters, digits and \"._:-\", and neither \".\" nor \"..\"", key, s, maxSegment)
		}
	}
	return nil
}

// CheckPrefix refuses what no key can begin with. The last segment may be
// cut short.
func CheckPrefix(prefix string) error {
	dir, rest := "", prefix
	if i := strings.LastIndexByte(prefix, '/'); i >= 0 {
		dir, rest = prefix[:i], prefix[i+1:]
		if err := CheckKey(dir); err != nil {
			return err
		}
	}
	if rest != "" && !segment.MatchString(rest) {
		return fmt.Errorf("cannot list keys under %.80q: no key begins with it", prefix)
	}
	return nil
}

// CheckChanges refuses what no Commit can do.
func CheckChanges(changes []Change) error {
	if len(changes) == 0 || len(changes) > maxChanges {
		return fmt.Errorf("cannot commit %d changes: want 1 to %d", len(changes), maxChanges)
	}
	seen := map[string]bool{}
	for _, c := range changes {
		switch {
		case len(c.Value) > maxValue:
			return fmt.Errorf("cannot %s key %q: its value has %d bytes, want %d at most", c.Verb, c.Key, len(c.Value), maxValue)
		case c.Revision < 0, c.Revision == 0 && c.Verb == Deleting:
			return fmt.Errorf("cannot %s key %q: %d is no revision", c.Verb, c.Key, c.Revision)
		case seen[c.Key]:
			return fmt.Errorf("cannot %s key %q: the same commit has another change of it", c.Verb, c.Key)
		case c.Verb != Putting && c.Verb != Deleting && c.Verb != Checking:
			return fmt.Errorf("cannot %q key %q: no such verb", c.Verb, c.Key)
		}
		seen[c.Key] = true
		if err := CheckKey(c.Key); err != nil {
			return err
		}
	}
	return nil
}

// Refused says why a Commit with these changes, and a context with these
// fences, makes none of them; at gives the revision of each key, 0 where there
// is none. It is nil where nothing is in the way.
func Refused(changes []Change, fences []Fence, at func(key string) int64) error {
	for _, f := range fences {
		if is := at(f.Key); is != f.Revision {
			return fmt.Errorf("cannot %s key %q: %s was at revision %d and %s: %w", changes[0].Verb, changes[0].Key, f.Key, f.Revision, now(is), ErrLost)
		}
	}
	for _, c := range changes {
		if is := at(c.Key); is != c.Revision {
			return fmt.Errorf("cannot %s key %q that was at revision %d: it %s: %w", c.Verb, c.Key, c.Revision, now(is), ErrConflict)
		}
	}
	return nil
}

func now(revision int64) string {
	if revision == 0 {
		return "is gone"
	}
	return fmt.Sprintf("is at %d", revision)
}
