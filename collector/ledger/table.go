package ledger

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/quicklime-ir/quicklime/collector/store"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/seekable"
)

// addTable makes the seek table of an image that is being completed, records
// it as a part, stores it, and writes down that it is one of the object's.
// Each of these may have been done before: the table depends on nothing but
// the parts that the object will have, so it is the same again.
func (l *Ledger) addTable(ctx context.Context, key string, item Item, revision *int64) error {
	c, number := item.Closing, item.TableNumber()
	if number == 0 || c.Parts[len(c.Parts)-1].Number == number {
		return nil
	}
	granted, err := l.parts(ctx, item)
	if err != nil {
		return err
	}
	frames := framesOf(c.Parts, granted)
	if frames == nil {
		return nil
	}
	body, err := seekable.AppendTable(nil, frames)
	if err != nil {
		return err
	}
	part := evidence.Part{Number: number, Size: uint64(len(body)), SHA256: sha256.Sum256(body), Granted: l.Now().UTC()}
	if err := l.recordTable(ctx, item, part); err != nil {
		return err
	}
	stored, err := l.Bucket.PutPart(ctx, item.Key, item.UploadID, number, body)
	if err != nil {
		return err
	}
	c.Parts = append(c.Parts, evidence.Part{Number: number, Size: part.Size, SHA256: part.SHA256, ETag: stored.ETag})
	*revision, err = l.save(ctx, key, item, *revision)
	return err
}

// framesOf gives the frames of the stored parts in their order, nil where a
// part names none, as those of older agents do.
func framesOf(stored, granted []evidence.Part) []seekable.Frame {
	var out []seekable.Frame
	for _, s := range stored {
		i, ok := find(granted, s.Number)
		if !ok || len(granted[i].Frames) == 0 {
			return nil
		}
		out = append(out, granted[i].Frames...)
	}
	return out
}

// recordTable writes the table's part down, unless it is.
func (l *Ledger) recordTable(ctx context.Context, item Item, part evidence.Part) error {
	value, err := json.Marshal(part)
	if err != nil {
		return err
	}
	_, err = l.Store.Put(ctx, partKey(item, part.Number), value, 0)
	if !errors.Is(err, store.ErrConflict) {
		return err
	}
	before, _, err := l.Store.Get(ctx, partKey(item, part.Number))
	if err != nil {
		return err
	}
	var old evidence.Part
	if err := json.Unmarshal(before, &old); err != nil || old.SHA256 != part.SHA256 {
		return fmt.Errorf("cannot record seek table of %s: it was recorded with hash %v, now it has %v (%v)", item.ID(), old.SHA256, part.SHA256, err)
	}
	return nil
}
