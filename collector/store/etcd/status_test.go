package etcd

import (
	"errors"
	"testing"

	"github.com/quicklime-ir/quicklime/collector/store"
)

func TestStatus(t *testing.T) {
	s := begin(t, t.TempDir())
	at, err := s.Put(t.Context(), "case/1", make([]byte, 1<<20), 0)
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got.Revision != at || !got.HasLeader || !got.Leads || got.Full || got.Differs {
		t.Errorf("%+v, want revision %d and a leader without an alarm", got, at)
	}
	if got.Used <= 0 || got.Bytes < got.Used || got.Quota != quota {
		t.Errorf("%+v, want what is used within its file, and the quota %d", got, int64(quota))
	}
	s.Close()
	if _, err := s.Status(t.Context()); !errors.Is(err, store.ErrClosed) {
		t.Errorf("status of a closed store: %v", err)
	}
}
