package store

import "sync"

// Locks serialises the changes of one process to the same thing, so that a
// compare-and-swap seldom has to be repeated. The zero Locks is ready; it
// keeps one small lock for each name ever used.
type Locks struct{ byName sync.Map }

// Lock waits for a name to be free and takes it; the caller calls unlock.
func (l *Locks) Lock(name string) (unlock func()) {
	mu, _ := l.byName.LoadOrStore(name, new(sync.Mutex))
	mu.(*sync.Mutex).Lock()
	return mu.(*sync.Mutex).Unlock
}

// TryLock takes a name if it is free.
func (l *Locks) TryLock(name string) (unlock func(), ok bool) {
	mu, _ := l.byName.LoadOrStore(name, new(sync.Mutex))
	return mu.(*sync.Mutex).Unlock, mu.(*sync.Mutex).TryLock()
}
