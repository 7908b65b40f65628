package store

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// Memory gives an empty store that is gone with the process, for tests.
func Memory() Store { return &memory{entries: map[string]Entry{}} }

type memory struct {
	mu       sync.RWMutex
	entries  map[string]Entry
	revision int64 // of the last change
	closed   bool
}

// ready says why the store cannot be used. The lock is held.
func (m *memory) ready(ctx context.Context) error {
	if m.closed {
		return ErrClosed
	}
	return ctx.Err()
}

func (m *memory) Get(ctx context.Context, key string) ([]byte, int64, error) {
	if err := CheckKey(key); err != nil {
		return nil, 0, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if err := m.ready(ctx); err != nil {
		return nil, 0, fmt.Errorf("cannot get key %q: %w", key, err)
	}
	e, ok := m.entries[key]
	if !ok {
		return nil, 0, fmt.Errorf("cannot get key %q: %w", key, ErrNotFound)
	}
	return slices.Clone(e.Value), e.Revision, nil
}

func (m *memory) Put(ctx context.Context, key string, value []byte, revision int64) (int64, error) {
	if err := CheckPut(key, value, revision); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.ready(ctx); err != nil {
		return 0, fmt.Errorf("cannot put key %q: %w", key, err)
	}
	if is := m.entries[key].Revision; is != revision {
		return 0, Conflict("put", key, revision, is)
	}
	m.revision++
	m.entries[key] = Entry{Key: key, Value: slices.Clone(value), Revision: m.revision}
	return m.revision, nil
}

func (m *memory) Delete(ctx context.Context, key string, revision int64) error {
	if err := CheckDelete(key, revision); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.ready(ctx); err != nil {
		return fmt.Errorf("cannot delete key %q: %w", key, err)
	}
	if is := m.entries[key].Revision; is != revision {
		return Conflict("delete", key, revision, is)
	}
	m.revision++
	delete(m.entries, key)
	return nil
}

func (m *memory) List(ctx context.Context, prefix string) ([]Entry, error) {
	if err := CheckPrefix(prefix); err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if err := m.ready(ctx); err != nil {
		return nil, fmt.Errorf("cannot list keys under %q: %w", prefix, err)
	}
	var out []Entry
	for _, key := range slices.Sorted(maps.Keys(m.entries)) {
		if strings.HasPrefix(key, prefix) {
			e := m.entries[key]
			e.Value = slices.Clone(e.Value)
			out = append(out, e)
		}
	}
	return out, nil
}

func (m *memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}
