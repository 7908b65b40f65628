package store_test

import (
	"sync"
	"testing"

	"github.com/quicklime-ir/quicklime/collector/store"
)

func TestLocks(t *testing.T) {
	var locks store.Locks
	defer locks.Lock("another")() // keeps nobody waiting
	var all sync.WaitGroup
	n := 0
	for range 50 {
		all.Go(func() {
			defer locks.Lock("one")()
			n++
		})
	}
	all.Wait()
	if unlock, ok := locks.TryLock("one"); !ok {
		t.Error("a free name is not to be had")
	} else {
		unlock()
	}
	if _, ok := locks.TryLock("another"); ok {
		t.Error("a name was taken twice")
	}
	if n != 50 {
		t.Errorf("%d of 50 changes were made", n)
	}
}
