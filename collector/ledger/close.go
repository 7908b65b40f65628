package ledger

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"

	"github.com/quicklime-ir/quicklime/collector/locker"
	"github.com/quicklime-ir/quicklime/collector/store"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// Close completes an item from its stored parts. It is whole where reason is
// empty and all of its parts are there; else it is partial and says why.
// Closing twice gives what the first time gave.
func (l *Ledger) Close(ctx context.Context, caseID, id string, parts int32, reason string) (evidence.Item, error) {
	if err := checkID(id); err != nil {
		return evidence.Item{}, err
	}
	key := itemKey(caseID, id)
	defer l.locks.Lock(key)()
	var item evidence.Item
	err := store.Repeat(tries, func() (err error) { // another node may close it too: then see what came of it
		item, err = l.close(ctx, key, id, parts, reason)
		return err
	})
	return item, err
}

func (l *Ledger) close(ctx context.Context, key, id string, parts int32, reason string) (evidence.Item, error) {
	item, revision, err := l.load(ctx, key)
	if err != nil {
		return evidence.Item{}, refuseUnknown(err, id)
	}
	if item.Status != evidence.Open {
		item.Parts, err = l.kept(ctx, item)
		return item.Item, err
	}
	if item.Closing == nil {
		if item.Closing, err = l.end(ctx, item, parts, reason); err != nil {
			return evidence.Item{}, err
		}
		if revision, err = l.save(ctx, key, item, revision); err != nil {
			return evidence.Item{}, err
		}
	}
	return l.complete(ctx, key, item, revision)
}

// end decides how an item ends, from what S3 holds now.
func (l *Ledger) end(ctx context.Context, item Item, parts int32, reason string) (*closing, error) {
	stored, err := l.stored(ctx, item)
	if errors.Is(err, locker.ErrNoUpload) {
		return &closing{Status: evidence.Partial, Error: "nothing of it is kept: S3 has its upload no more"}, nil
	}
	if err != nil {
		return nil, err
	}
	item.Parts = stored
	if reason == "" {
		reason = lost(item.Item, parts)
	}
	c := &closing{Status: evidence.Whole, Error: reason}
	for _, p := range stored {
		c.Parts = append(c.Parts, evidence.Part{Number: p.Number, Size: p.Size, SHA256: p.SHA256, ETag: p.ETag})
	}
	if reason != "" {
		c.Status = evidence.Partial
	}
	return c, nil
}

// complete carries out how an item ends. Each of its acts may have been done
// before.
func (l *Ledger) complete(ctx context.Context, key string, item Item, revision int64) (evidence.Item, error) {
	c := item.Closing
	if len(c.Parts) == 0 {
		if err := l.Bucket.Abort(ctx, item.Key, item.UploadID); err != nil {
			return evidence.Item{}, err
		}
	} else {
		if err := l.addTable(ctx, key, item, &revision); err != nil {
			return evidence.Item{}, err
		}
		object, err := l.Bucket.Complete(ctx, item.Key, item.UploadID, c.Parts)
		if errors.Is(err, locker.ErrExists) {
			return l.yield(ctx, key, item, revision, err)
		}
		if err != nil {
			return evidence.Item{}, err
		}
		item.VersionID, item.SHA256 = object.VersionID, evidence.Composite(c.Parts)
	}
	if err := l.dropUnstored(ctx, item, c.Parts); err != nil {
		return evidence.Item{}, err
	}
	item.Status, item.Error, item.Closing, item.Size = c.Status, c.Error, nil, 0
	for _, p := range c.Parts {
		item.Size += p.Size
	}
	if _, err := l.save(ctx, key, item, revision); err != nil {
		return evidence.Item{}, err
	}
	l.done.stored.Add(int64(item.Size))
	l.Log.Info("item closed", "case", item.Case, "item", item.ID(), "status", item.Status, "parts", len(c.Parts), "bytes", item.Size, "reason", item.Error)
	var err error
	item.Parts, err = l.kept(ctx, item)
	return item.Item, err
}

// yield ends an item in whose place is another object, which stays. After an
// old state was restored there may be one that the ledger does not know.
func (l *Ledger) yield(ctx context.Context, key string, item Item, revision int64, why error) (evidence.Item, error) {
	item.Closing = &closing{Status: evidence.Partial, Error: "nothing of it is kept: " + why.Error()}
	revision, err := l.save(ctx, key, item, revision)
	if err != nil {
		return evidence.Item{}, err
	}
	return l.complete(ctx, key, item, revision)
}

// lost says which parts are not there, "" when all are.
func lost(item evidence.Item, parts int32) string {
	if missing := item.Missing(); len(missing) > 0 {
		return fmt.Sprintf("memory %v is in no stored part, and %d more ranges", missing[0], len(missing)-1)
	}
	for n := int32(1); n <= parts; n++ {
		if int(n) > len(item.Parts) || item.Parts[n-1].Number != n {
			return fmt.Sprintf("part %d of %d is not stored", n, parts)
		}
	}
	if len(item.Parts) != int(parts) {
		return fmt.Sprintf("%d parts are stored, want %d", len(item.Parts), parts)
	}
	return ""
}

// CloseAll closes the items of a kind that are still open, as partial: the
// capture is over and no agent will.
func (l *Ledger) CloseAll(ctx context.Context, caseID string, kind evidence.Kind, reason string) error {
	items, err := l.list(ctx, caseID)
	if err != nil {
		return err
	}
	var errs []error
	for _, item := range items {
		if item.Kind == kind && item.Status == evidence.Open {
			_, err := l.Close(ctx, caseID, item.ID(), 0, reason)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Items gives every item of a case, by kind and name, with its parts.
func (l *Ledger) Items(ctx context.Context, caseID string) ([]evidence.Item, error) {
	items, err := l.list(ctx, caseID)
	if err != nil {
		return nil, err
	}
	var out []evidence.Item
	for _, item := range items {
		if item.Parts, err = l.kept(ctx, item); err != nil {
			return nil, err
		}
		out = append(out, item.Item)
	}
	return out, nil
}

func (l *Ledger) list(ctx context.Context, caseID string) ([]Item, error) {
	entries, err := l.Store.List(ctx, "item/"+caseID+"/")
	if err != nil {
		return nil, err
	}
	var out []Item
	for _, e := range entries {
		var item Item
		if err := json.Unmarshal(e.Value, &item); err != nil {
			return nil, fmt.Errorf("cannot read item %s: %w", e.Key, err)
		}
		out = append(out, item)
	}
	return out, nil
}

// stored gives the granted parts that S3 holds with the granted hash, or
// locker.ErrNoUpload.
func (l *Ledger) stored(ctx context.Context, item Item) ([]evidence.Part, error) {
	granted, err := l.parts(ctx, item)
	if err != nil {
		return nil, err
	}
	have, err := l.Bucket.Stored(ctx, item.Key, item.UploadID)
	if err != nil {
		return nil, err
	}
	var out []evidence.Part
	for _, s := range have {
		i, ok := find(granted, s.Number)
		if !ok || granted[i].SHA256 != s.Digest || granted[i].Size != s.Size {
			l.Log.Warn("stored part that was not granted is left out", "case", item.Case, "item", item.ID(), "part", s.Number)
			continue
		}
		granted[i].ETag = s.ETag
		out = append(out, granted[i])
	}
	return out, nil
}

// find gives the place of a number among parts, which ascend.
func find(parts []evidence.Part, number int32) (int, bool) {
	return slices.BinarySearchFunc(parts, number, func(p evidence.Part, n int32) int { return cmp.Compare(p.Number, n) })
}

// dropUnstored forgets the grants whose parts are not in S3, so that what is
// granted and what is stored are the same from now on.
func (l *Ledger) dropUnstored(ctx context.Context, item Item, stored []evidence.Part) error {
	granted, err := l.parts(ctx, item)
	if err != nil {
		return err
	}
	for _, p := range granted {
		if _, ok := find(stored, p.Number); ok {
			continue
		}
		if err := l.drop(ctx, partKey(item, p.Number)); err != nil {
			return err
		}
	}
	return nil
}

// parts gives the granted parts of an item, ascending. Once the item is
// closed they are its stored parts.
func (l *Ledger) parts(ctx context.Context, item Item) ([]evidence.Part, error) {
	entries, err := l.Store.List(ctx, partPrefix(item))
	if err != nil {
		return nil, err
	}
	var out []evidence.Part
	for _, e := range entries {
		var p evidence.Part
		if err := json.Unmarshal(e.Value, &p); err != nil {
			return nil, fmt.Errorf("cannot read part %s: %w", e.Key, err)
		}
		out = append(out, p)
	}
	return out, nil
}

// kept gives the parts of an item as the case keeps them, without frames.
func (l *Ledger) kept(ctx context.Context, item Item) ([]evidence.Part, error) {
	parts, err := l.parts(ctx, item)
	for i := range parts {
		parts[i].Frames = nil
	}
	return parts, err
}

func (l *Ledger) load(ctx context.Context, key string) (Item, int64, error) {
	value, revision, err := l.Store.Get(ctx, key)
	if err != nil {
		return Item{}, 0, err
	}
	var item Item
	if err := json.Unmarshal(value, &item); err != nil {
		return Item{}, 0, fmt.Errorf("cannot read item %s: %w", key, err)
	}
	return item, revision, nil
}

// save writes an item without its parts, which have keys of their own: a
// value stays small, however large the image is.
func (l *Ledger) save(ctx context.Context, key string, item Item, revision int64) (int64, error) {
	item.Parts = nil
	value, err := json.Marshal(item)
	if err != nil {
		return 0, err
	}
	return l.Store.Put(ctx, key, value, revision)
}

func (l *Ledger) drop(ctx context.Context, key string) error {
	_, revision, err := l.Store.Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return store.Drop(ctx, l.Store, key, revision) // a part is written once, so it is gone in any case
}

func refuseUnknown(err error, id string) error {
	if errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("%w: no item %.60q was opened", ErrRefused, id)
	}
	return err
}

var idShape = regexp.MustCompile(`^[a-z]{1,20}\.[a-z][a-z0-9_]{0,39}$`)

// checkID refuses what an agent gives as an item's id and Open never made.
func checkID(id string) error {
	if !idShape.MatchString(id) {
		return fmt.Errorf("%w: %.60q is no item's id", ErrRefused, id)
	}
	return nil
}

func itemKey(caseID, id string) string { return "item/" + caseID + "/" + id }

func partPrefix(i Item) string { return "part/" + i.Case + "/" + i.ID() + "/" }

func partKey(i Item, number int32) string { return fmt.Sprintf("%s%05d", partPrefix(i), number) }
