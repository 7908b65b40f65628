package ledger

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/quicklime-ir/quicklime/collector/locker"
	"github.com/quicklime-ir/quicklime/collector/store"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// shared is a pail that several nodes use at once.
type shared struct {
	mu   sync.Mutex
	pail *pail // owned by mu
}

func (s *shared) do() (p *pail, done func()) {
	s.mu.Lock()
	return s.pail, s.mu.Unlock
}

func (s *shared) Begin(ctx context.Context, key string) (string, error) {
	p, done := s.do()
	defer done()
	return p.Begin(ctx, key)
}

func (s *shared) Grant(ctx context.Context, key, upload string, number int32, size uint64, d evidence.Digest) (locker.Grant, error) {
	p, done := s.do()
	defer done()
	return p.Grant(ctx, key, upload, number, size, d)
}

func (s *shared) PutPart(ctx context.Context, key, upload string, number int32, body []byte) (locker.StoredPart, error) {
	p, done := s.do()
	defer done()
	return p.PutPart(ctx, key, upload, number, body)
}

func (s *shared) Stored(ctx context.Context, key, upload string) ([]locker.StoredPart, error) {
	p, done := s.do()
	defer done()
	return p.Stored(ctx, key, upload)
}

func (s *shared) Complete(ctx context.Context, key, upload string, parts []evidence.Part) (locker.Object, error) {
	p, done := s.do()
	defer done()
	return p.Complete(ctx, key, upload, parts)
}

func (s *shared) Abort(ctx context.Context, key, upload string) error {
	p, done := s.do()
	defer done()
	return p.Abort(ctx, key, upload)
}

// two gives the ledgers of two nodes of one collector.
func two() (*Ledger, *Ledger, *shared) {
	state := store.Memory()
	p := &shared{pail: newPail()}
	node := func(s store.Store) *Ledger {
		return &Ledger{Store: s, Bucket: p, Log: slog.New(slog.DiscardHandler), Now: time.Now}
	}
	return node(state), node(state.Another()), p
}

// TestWhatIsGrantedIsInTheRecordOrRefused, however an agent's grants on one
// node meet the item's end on another.
func TestWhatIsGrantedIsInTheRecordOrRefused(t *testing.T) {
	for range 50 {
		one, other, _ := two()
		o, err := one.Open(t.Context(), caseID, instance, image())
		if err != nil {
			t.Fatal(err)
		}
		var both sync.WaitGroup
		var granted error
		both.Go(func() { _, _, granted = other.Grant(t.Context(), caseID, o.ID, imagePart(1, "x")) })
		both.Go(func() {
			if _, err := one.Close(t.Context(), caseID, o.ID, 0, "the capture ended"); err != nil {
				t.Error(err)
			}
		})
		both.Wait()
		if granted != nil && !errors.Is(granted, ErrRefused) {
			t.Fatalf("a grant beside the end: %v", granted)
		}
		if _, _, err := other.Grant(t.Context(), caseID, o.ID, imagePart(2, "y")); !errors.Is(err, ErrRefused) {
			t.Fatalf("a grant after the end: %v", err)
		}
		parts, err := one.Store.List(t.Context(), "part/")
		if err != nil || len(parts) != 0 { // nothing was stored, so that nothing is kept
			t.Fatalf("%d parts are on record of an item that has none (%v)", len(parts), err)
		}
	}
}

// TestANodeOpensWhatAnotherCloses: its end is what was stored, not what is left
// when the other has begun it anew.
func TestANodeOpensWhatAnotherCloses(t *testing.T) {
	table := evidence.Item{Kind: evidence.Volatile, Name: "processes", Format: evidence.JSONL, Compression: evidence.Zstd}
	for _, begin := range []evidence.Item{image(), table} {
		for range 50 {
			one, other, p := two()
			o, err := one.Open(t.Context(), caseID, instance, begin)
			if err != nil {
				t.Fatal(err)
			}
			part := imagePart(1, "x")
			if begin.Kind != evidence.Memory {
				part.Ranges, part.RawSize = nil, 0
			}
			if _, _, err := one.Grant(t.Context(), caseID, o.ID, part); err != nil {
				t.Fatal(err)
			}
			p.pail.put("upload-1", part)
			var both sync.WaitGroup
			var item evidence.Item
			var again Opened
			var closing, opening error
			both.Go(func() { item, closing = one.Close(t.Context(), caseID, o.ID, 0, "the capture ended") })
			both.Go(func() { again, opening = other.Open(t.Context(), caseID, instance, begin) })
			both.Wait()
			if closing != nil || opening != nil && !errors.Is(opening, store.ErrConflict) {
				t.Fatalf("closing: %v; opening: %v", closing, opening)
			}
			if kept := len(p.pail.completed); kept != len(item.Parts) || again.Closed && kept == 0 {
				t.Fatalf("%d objects, found %+v, item %+v", kept, again, item)
			}
		}
	}
}

// TestBothNodesCloseAnItem: it ends once, and the same for both.
func TestBothNodesCloseAnItem(t *testing.T) {
	for range 50 {
		one, other, p := two()
		o, err := one.Open(t.Context(), caseID, instance, image())
		if err != nil {
			t.Fatal(err)
		}
		part := imagePart(1, "x")
		if _, _, err := one.Grant(t.Context(), caseID, o.ID, part); err != nil {
			t.Fatal(err)
		}
		p.pail.put("upload-1", part)
		var both sync.WaitGroup
		var items [2]evidence.Item
		for n, l := range []*Ledger{one, other} {
			both.Go(func() {
				var err error
				if items[n], err = l.Close(t.Context(), caseID, o.ID, 0, "the capture ended"); err != nil {
					t.Error(err)
				}
			})
		}
		both.Wait()
		if items[0].Status != evidence.Partial || items[0].Size != items[1].Size || len(items[0].Parts) != 1 || len(items[1].Parts) != 1 {
			t.Fatalf("it ended as %+v and %+v", items[0], items[1])
		}
	}
}

// TestAnOrderThatHasEndedRecordsNothing: what the fence of a context says
// holds for grants.
func TestAnOrderThatHasEndedRecordsNothing(t *testing.T) {
	l, _ := newLedger()
	at, err := l.Store.Put(t.Context(), "capture/c1/memory", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx := store.While(t.Context(), "capture/c1/memory", at)
	o, err := l.Open(ctx, caseID, instance, image())
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Store.Delete(t.Context(), "capture/c1/memory", at); err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.Grant(ctx, caseID, o.ID, imagePart(1, "x")); !errors.Is(err, store.ErrLost) {
		t.Errorf("a grant: %v", err)
	}
	if _, err := l.Close(ctx, caseID, o.ID, 0, "why"); !errors.Is(err, store.ErrLost) {
		t.Errorf("an end: %v", err)
	}
}
