package store_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/quicklime-ir/quicklime/collector/store"
	"github.com/quicklime-ir/quicklime/collector/store/storetest"
)

func TestMemory(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Store { return store.Memory() })
}

// TestRepeat makes a change anew where another came first, and nowhere else.
func TestRepeat(t *testing.T) {
	other := errors.New("no space")
	conflict := fmt.Errorf("cannot put key: %w", store.ErrConflict)
	for name, tt := range map[string]struct {
		answers []error
		made    int
		want    error
	}{
		"it is made at once":      {[]error{nil}, 1, nil},
		"another comes first":     {[]error{conflict, conflict, nil}, 3, nil},
		"another always does":     {[]error{conflict, conflict, conflict, nil}, 3, store.ErrConflict},
		"it fails":                {[]error{other, nil}, 1, other},
		"it fails the next time":  {[]error{conflict, store.ErrLost, nil}, 2, store.ErrLost},
		"the store does not know": {[]error{store.ErrUnavailable, nil}, 1, store.ErrUnavailable},
	} {
		made := 0
		err := store.Repeat(3, func() error { made++; return tt.answers[made-1] })
		if made != tt.made || !errors.Is(err, tt.want) {
			t.Errorf("%s: made %d times, %v; want %d, %v", name, made, err, tt.made, tt.want)
		}
	}
}
