package acquire

import (
	"context"
	"errors"

	"github.com/quicklime-ir/quicklime/agent/pack"
	"github.com/quicklime-ir/quicklime/agent/upload"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// Ledger is the collector's record of what may be stored; a session has it.
// Its calls wait for a collector that is away, as long as ctx lets them.
type Ledger interface {
	OpenItem(ctx context.Context, order string, item evidence.Item) (id string, stored []evidence.Part, closed bool, err error)
	GrantPart(ctx context.Context, order, item string, p pack.Part) (upload.Grant, error)
	CloseItem(ctx context.Context, order, item string, parts int32, reason string) error
}

// Bucket is the place of an order's items in the evidence bucket.
type Bucket struct {
	Ledger Ledger
	Order  string
	Upload upload.Options
}

// Open implements Place.
func (b Bucket) Open(ctx context.Context, item evidence.Item) (Slot, error) {
	id, stored, closed, err := b.Ledger.OpenItem(ctx, b.Order, item)
	if err != nil {
		return nil, err
	}
	s := &bucketSlot{bucket: b, id: id, closed: closed, stored: map[int32]bool{}}
	for _, p := range stored {
		s.stored[p.Number] = true
	}
	s.Uploader = upload.New(s, b.Upload)
	return s, nil
}

// bucketSlot is one item in the bucket. Its Put is the uploader's.
type bucketSlot struct {
	*upload.Uploader
	bucket Bucket
	id     string
	closed bool
	stored map[int32]bool // since before; never changed
}

func (s *bucketSlot) Closed() bool { return s.closed }

func (s *bucketSlot) Has(number int32) bool { return s.stored[number] }

// Grant implements upload.Granter.
func (s *bucketSlot) Grant(ctx context.Context, p pack.Part) (upload.Grant, error) {
	return s.bucket.Ledger.GrantPart(ctx, s.bucket.Order, s.id, p)
}

// Close leaves the item open where only this agent is ending: the collector
// waits for its successor, which goes on where it stopped.
func (s *bucketSlot) Close(ctx context.Context, parts int32, why error) error {
	if errors.Is(why, context.Canceled) {
		return nil
	}
	reason := ""
	if why != nil {
		reason = why.Error()
	}
	return s.bucket.Ledger.CloseItem(ctx, s.bucket.Order, s.id, parts, reason)
}
