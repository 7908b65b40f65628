package ledger

import (
	"context"
	"errors"
	"fmt"

	"github.com/quicklime-ir/quicklime/collector/locker"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// Forsake forgets the open items of a case whose uploads S3 has no more, and
// gives them. That happens where an old state was restored: the uploads were
// completed, or given up, after it. What the ledger does not know of such an
// item it can never know, so that it could never be closed.
func (l *Ledger) Forsake(ctx context.Context, caseID string) ([]evidence.Item, error) {
	items, err := l.list(ctx, caseID)
	if err != nil {
		return nil, err
	}
	var gone []evidence.Item
	for _, item := range items {
		if item.Status != evidence.Open || item.Closing != nil { // its end is written down
			continue
		}
		_, err := l.Bucket.Stored(ctx, item.Key, item.UploadID)
		if err == nil {
			continue
		}
		if errors.Is(err, locker.ErrNoUpload) {
			err = l.forget(ctx, item)
		}
		if err != nil {
			return gone, fmt.Errorf("cannot look after item %s of case %s: %w", item.ID(), caseID, err)
		}
		gone = append(gone, item.Item)
	}
	return gone, nil
}

func (l *Ledger) forget(ctx context.Context, item Item) error {
	key := itemKey(item.Case, item.ID())
	defer l.locks.Lock(key)()
	if err := l.dropUnstored(ctx, item, nil); err != nil {
		return err
	}
	return l.drop(ctx, key)
}
