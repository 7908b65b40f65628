package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// MemoryStore is one node's face of a state that is gone with the process,
// for tests.
type MemoryStore struct {
	shared *shared

	// Owned by shared.mu.
	closed bool
	lost   chan struct{} // closed when what this node has claimed is gone
	claims map[string]int64
}

var _ Store = (*MemoryStore)(nil)

// shared is the state of all nodes.
type shared struct {
	mu       sync.Mutex
	entries  map[string]Entry
	revision int64         // of the last change
	history  []Entry       // every change since the beginning
	changed  chan struct{} // closed, and made anew, at each change
}

// Memory gives an empty state, and its first node.
func Memory() *MemoryStore {
	return (&MemoryStore{shared: &shared{entries: map[string]Entry{}, changed: make(chan struct{})}}).Another()
}

// Another gives one more node of the same state.
func (m *MemoryStore) Another() *MemoryStore {
	return &MemoryStore{shared: m.shared, lost: make(chan struct{}), claims: map[string]int64{}}
}

// Expire takes from the node what it has claimed, as if it had not been heard
// of for too long. It does not know until it asks.
func (m *MemoryStore) Expire() {
	m.shared.mu.Lock()
	defer m.shared.mu.Unlock()
	m.expire()
}

func (m *MemoryStore) expire() {
	for key, revision := range m.claims {
		if m.shared.at(key) == revision {
			m.shared.revision++
			m.shared.apply(Remove(key, revision))
		}
	}
	m.claims = map[string]int64{}
	close(m.lost)
	m.lost = make(chan struct{})
}

// ready says why the store cannot be used. The lock is held.
func (m *MemoryStore) ready(ctx context.Context) error {
	if m.closed {
		return ErrClosed
	}
	return ctx.Err()
}

// Get implements Store.
func (m *MemoryStore) Get(ctx context.Context, key string) ([]byte, int64, error) {
	if err := CheckKey(key); err != nil {
		return nil, 0, err
	}
	m.shared.mu.Lock()
	defer m.shared.mu.Unlock()
	if err := m.ready(ctx); err != nil {
		return nil, 0, fmt.Errorf("cannot get key %q: %w", key, err)
	}
	e, ok := m.shared.entries[key]
	if !ok {
		return nil, 0, fmt.Errorf("cannot get key %q: %w", key, ErrNotFound)
	}
	return slices.Clone(e.Value), e.Revision, nil
}

// Put implements Store.
func (m *MemoryStore) Put(ctx context.Context, key string, value []byte, revision int64) (int64, error) {
	return m.Commit(ctx, Set(key, value, revision))
}

// Delete implements Store.
func (m *MemoryStore) Delete(ctx context.Context, key string, revision int64) error {
	_, err := m.Commit(ctx, Remove(key, revision))
	return err
}

// Commit implements Store.
func (m *MemoryStore) Commit(ctx context.Context, changes ...Change) (int64, error) {
	if err := CheckChanges(changes); err != nil {
		return 0, err
	}
	m.shared.mu.Lock()
	defer m.shared.mu.Unlock()
	if err := m.ready(ctx); err != nil {
		return 0, fmt.Errorf("cannot %s key %q: %w", changes[0].Verb, changes[0].Key, err)
	}
	if err := Refused(changes, Fences(ctx), m.shared.at); err != nil {
		return 0, err
	}
	m.shared.revision++
	for _, c := range changes {
		m.shared.apply(c)
	}
	return m.shared.revision, nil
}

// Claim implements Store.
func (m *MemoryStore) Claim(ctx context.Context, key string, value []byte) (Claim, error) {
	revision, err := m.Put(ctx, key, value, 0)
	m.shared.mu.Lock()
	defer m.shared.mu.Unlock()
	if had := m.claims[key]; errors.Is(err, ErrConflict) && had != 0 && had == m.shared.at(key) {
		revision, err = had, nil
	}
	if err != nil {
		return Claim{}, err
	}
	m.claims[key] = revision
	return Claim{Key: key, Revision: revision, Lost: m.lost}, nil
}

// at gives the revision of a key; the lock is held.
func (s *shared) at(key string) int64 { return s.entries[key].Revision }

// apply makes a change; the lock is held.
func (s *shared) apply(c Change) {
	switch c.Verb {
	case Putting:
		s.entries[c.Key] = Entry{Key: c.Key, Value: slices.Clone(c.Value), Revision: s.revision}
		s.history = append(s.history, s.entries[c.Key])
	case Deleting:
		delete(s.entries, c.Key)
		s.history = append(s.history, Entry{Key: c.Key})
	case Checking:
		return
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

// List implements Store.
func (m *MemoryStore) List(ctx context.Context, prefix string) ([]Entry, error) {
	if err := CheckPrefix(prefix); err != nil {
		return nil, err
	}
	m.shared.mu.Lock()
	defer m.shared.mu.Unlock()
	if err := m.ready(ctx); err != nil {
		return nil, fmt.Errorf("cannot list keys under %q: %w", prefix, err)
	}
	return m.shared.list(prefix), nil
}

func (s *shared) list(prefix string) []Entry {
	var out []Entry
	for _, key := range slices.Sorted(maps.Keys(s.entries)) {
		if strings.HasPrefix(key, prefix) {
			e := s.entries[key]
			e.Value = slices.Clone(e.Value)
			out = append(out, e)
		}
	}
	return out
}

// Watch implements Store.
func (m *MemoryStore) Watch(ctx context.Context, prefix string, see func(all bool, entries []Entry)) error {
	if err := CheckPrefix(prefix); err != nil {
		return err
	}
	seen := -1 // of the history; -1: nothing yet
	for {
		m.shared.mu.Lock()
		if err := m.ready(ctx); err != nil {
			m.shared.mu.Unlock()
			return fmt.Errorf("cannot watch keys under %q: %w", prefix, err)
		}
		all, news := seen < 0, m.shared.list(prefix)
		if !all {
			news = m.shared.since(seen, prefix)
		}
		seen = len(m.shared.history)
		changed := m.shared.changed
		m.shared.mu.Unlock()
		if all || len(news) > 0 {
			see(all, news)
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// since gives the changes of the keys under a prefix from one on; the lock is
// held.
func (s *shared) since(from int, prefix string) []Entry {
	var out []Entry
	for _, e := range s.history[from:] {
		if strings.HasPrefix(e.Key, prefix) {
			e.Value = slices.Clone(e.Value)
			out = append(out, e)
		}
	}
	return out
}

// Close implements Store.
func (m *MemoryStore) Close() error {
	m.shared.mu.Lock()
	defer m.shared.mu.Unlock()
	if m.closed {
		return nil
	}
	m.expire()
	m.closed = true
	close(m.shared.changed)
	m.shared.changed = make(chan struct{})
	return nil
}
