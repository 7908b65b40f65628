// Package store keeps the collector's state: small values under keys, each
// changed by compare-and-swap.
//
// A case must survive the collector, and no two writers may each believe
// that theirs was the last word. So a write is durable when it returns, and
// it is refused where the value is no longer the one that its writer saw.
// The rules are those of etcd for a single key: revisions only grow, over
// the whole store, so that a revision never means two things.
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
	maxSegment = 200      // bytes; leaves room in a file name's 255
	maxValue   = 64 << 20 // bytes
)

// Errors that callers branch on.
var (
	// ErrNotFound says that there is no such key.
	ErrNotFound = errors.New("key not found")
	// ErrConflict says that a key is not at the revision that its writer
	// saw. Nothing was changed.
	ErrConflict = errors.New("key was changed by another writer")
	// ErrClosed says that the store was given up.
	ErrClosed = errors.New("the store is closed")
)

// Store is the collector's state. Keys are segments of letters, digits and
// "._:-", separated by slashes, 1024 bytes at most; values have 64 MiB at
// most. It may be used by many goroutines.
type Store interface {
	// Get gives the value of a key and its revision, or ErrNotFound.
	Get(ctx context.Context, key string) (value []byte, revision int64, err error)
	// Put sets the value of a key that is at the given revision, 0 meaning
	// that there is no such key yet, or gives ErrConflict. When it returns
	// the new revision, the value is durable. After any other error than
	// ErrConflict the outcome is unknown, and Get tells.
	Put(ctx context.Context, key string, value []byte, revision int64) (newRevision int64, err error)
	// Delete removes a key that is at the given revision, or gives
	// ErrConflict, also where there is no such key. Durable as Put is.
	Delete(ctx context.Context, key string, revision int64) error
	// List gives every entry whose key begins with prefix, ascending by
	// key's bytes.
	List(ctx context.Context, prefix string) ([]Entry, error)
	// Close gives up the store. What it holds stays.
	Close() error
}

// Entry is a key as List gives it.
type Entry struct {
	Key      string
	Value    []byte
	Revision int64
}

var segment = regexp.MustCompile(`^[A-Za-z0-9._:-]+$`)

// CheckKey refuses what is no key.
func CheckKey(key string) error {
	if key == "" || len(key) > maxKey {
		return fmt.Errorf("cannot use key %.80q: it has %d bytes, want 1 to %d", key, len(key), maxKey)
	}
	for _, s := range strings.Split(key, "/") {
		if !segment.MatchString(s) || s == "." || s == ".." || len(s) > maxSegment {
			return fmt.Errorf("cannot use key %.80q: segment %.80q, want 1 to %d letters, digits and \"._:-\", and neither \".\" nor \"..\"", key, s, maxSegment)
		}
	}
	return nil
}

// CheckPrefix refuses what no key can begin with. The last segment may be
// cut short.
func CheckPrefix(prefix string) error {
	dir, rest := splitPrefix(prefix)
	if dir != "" {
		if err := CheckKey(dir); err != nil {
			return err
		}
	}
	if rest != "" && !segment.MatchString(rest) {
		return fmt.Errorf("cannot list keys under %.80q: no key begins with it", prefix)
	}
	return nil
}

// splitPrefix gives the whole segments of a prefix, and the cut one.
func splitPrefix(prefix string) (dir, rest string) {
	i := strings.LastIndexByte(prefix, '/')
	if i < 0 {
		return "", prefix
	}
	if i == 0 {
		return "/", prefix[1:] // no key begins with a slash: let CheckKey say so
	}
	return prefix[:i], prefix[i+1:]
}

// CheckPut refuses what cannot be stored.
func CheckPut(key string, value []byte, revision int64) error {
	if len(value) > maxValue {
		return fmt.Errorf("cannot put key %q: its value has %d bytes, want %d at most", key, len(value), maxValue)
	}
	if revision < 0 {
		return fmt.Errorf("cannot put key %q: %d is no revision", key, revision)
	}
	return CheckKey(key)
}

// CheckDelete refuses what cannot be deleted.
func CheckDelete(key string, revision int64) error {
	if revision <= 0 {
		return fmt.Errorf("cannot delete key %q: %d is no revision of a key that exists", key, revision)
	}
	return CheckKey(key)
}

// Conflict is the error of who lost, and to what: saw is the revision that
// the writer saw, is the one that the key is at, 0 where there is none.
func Conflict(verb, key string, saw, is int64) error {
	if is == 0 {
		return fmt.Errorf("cannot %s key %q that was at revision %d: it is gone: %w", verb, key, saw, ErrConflict)
	}
	return fmt.Errorf("cannot %s key %q that was at revision %d: it is at %d: %w", verb, key, saw, is, ErrConflict)
}
