// Package ledger records which bytes may be stored as evidence, before they
// can be.
//
// For each item it keeps the upload and, for each part, the one hash that
// was granted; so a part that was changed on the way, or on the instance
// after the fact, cannot become evidence. It survives the collector, and an
// agent that was interrupted finds its item as it left it.
package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/quicklime-ir/quicklime/collector/locker"
	"github.com/quicklime-ir/quicklime/collector/store"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

// Bounds of what one case may store.
const (
	maxItems = 256
	// maxGaps is how many gaps an image has at most in all its parts, that a
	// manifest may hold it; each part has leastGaps in any case.
	maxGaps   = 256 << 10
	leastGaps = 16
)

// tries is how often a change is made anew that another node was in the way
// of.
const tries = 5

// ErrRefused is the kind of every request that will never be granted.
var ErrRefused = errors.New("refused")

// Bucket is where the bytes go; package locker has it. Completing an upload
// twice gives the same object.
type Bucket interface {
	Begin(ctx context.Context, key string) (uploadID string, err error)
	Grant(ctx context.Context, key, uploadID string, number int32, size uint64, digest evidence.Digest) (locker.Grant, error)
	PutPart(ctx context.Context, key, uploadID string, number int32, body []byte) (locker.StoredPart, error)
	Stored(ctx context.Context, key, uploadID string) ([]locker.StoredPart, error)
	Complete(ctx context.Context, key, uploadID string, parts []evidence.Part) (locker.Object, error)
	Abort(ctx context.Context, key, uploadID string) error
}

// Ledger is the record of all items.
type Ledger struct {
	Store  store.Store
	Bucket Bucket
	Log    *slog.Logger
	Now    func() time.Time

	locks store.Locks // by the item's key: one change at a time
	done  counters
}

// Item is an item of a case, and the upload that fills it.
type Item struct {
	evidence.Item
	Case     string   `json:"case"`
	UploadID string   `json:"uploadId"`
	Closing  *closing `json:"closing,omitempty"`
}

// closing is how an item will end. It is written down before S3 is told, as
// afterwards S3 no longer knows the parts.
type closing struct {
	Status evidence.Status `json:"status"`
	Error  string          `json:"error,omitempty"`
	// Parts are the object's, with their ETags: numbers, sizes and hashes
	// only, 10,000 at most. The seek table is one of them once it is stored.
	Parts []evidence.Part `json:"parts"`
}

// ID names the item inside its case.
func (i Item) ID() string { return itemID(i.Item) }

func itemID(i evidence.Item) string { return string(i.Kind) + "." + i.Name }

// Opened is an item as an agent finds it.
type Opened struct {
	ID     string
	Stored []evidence.Part // need not be sent again
	Closed bool
}

// Open begins an item, or finds it again. A memory image that was begun with
// the same plan goes on where it stopped, unless S3 has nothing of it any more;
// any other item begins anew, as its bytes cannot be read a second time.
func (l *Ledger) Open(ctx context.Context, caseID, instance string, item evidence.Item) (Opened, error) {
	if !evidence.ValidName(item.Name) {
		return Opened{}, fmt.Errorf("%w: item name %.60q, want lower-case letters, digits and underscores, 40 at most", ErrRefused, item.Name)
	}
	if err := checkPlan(item); err != nil {
		return Opened{}, err
	}
	key := itemKey(caseID, itemID(item))
	defer l.locks.Lock(key)()
	old, revision, err := l.load(ctx, key)
	switch {
	case errors.Is(err, store.ErrNotFound):
		if err := l.room(ctx, caseID); err != nil {
			return Opened{}, err
		}
	case err != nil:
		return Opened{}, err
	case old.Status != evidence.Open:
		return Opened{ID: old.ID(), Closed: true}, nil
	case old.Closing != nil:
		_, err := l.complete(ctx, key, old, revision)
		return Opened{ID: old.ID(), Closed: true}, err
	case samePlan(old.Item, item):
		opened, err := l.resume(ctx, old)
		if !errors.Is(err, locker.ErrNoUpload) {
			return opened, err
		}
		l.Log.Warn("the upload of an open item is gone, it begins anew", "case", caseID, "item", old.ID(), "error", err)
	case item.Kind == evidence.Memory:
		return Opened{}, fmt.Errorf("%w: item %s was begun from source %s with another plan of %d bytes a part; it will be kept as it is", ErrRefused, old.ID(), old.Source, old.PartRAMBytes)
	}
	item.Status = evidence.Open
	item.Key = locker.Key(caseID, instance, item)
	fresh := Item{Item: item, Case: caseID}
	if fresh.UploadID, err = l.Bucket.Begin(ctx, item.Key); err != nil {
		return Opened{}, err
	}
	if _, err = l.save(ctx, key, fresh, revision); err != nil {
		// Only where the store refused is the upload nobody's. After any other
		// error the item may be there all the same, and name it.
		if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrLost) {
			err = errors.Join(err, l.Bucket.Abort(ctx, item.Key, fresh.UploadID))
		}
		return Opened{}, err
	}
	if old.UploadID != "" { // only now, as until then another node could have closed it
		err = l.discard(ctx, old)
	}
	return Opened{ID: fresh.ID()}, err
}

// checkPlan wants of memory, and of nothing else, that it says which memory
// each part will hold. One part is left for the seek table.
func checkPlan(item evidence.Item) error {
	planned := item.Format == evidence.LiME && len(item.RAM) > 0 && item.PartRAMBytes > 0
	bare := item.Format != evidence.LiME && len(item.RAM) == 0 && item.PartRAMBytes == 0
	if memory := item.Kind == evidence.Memory; memory && !planned || !memory && !bare {
		return fmt.Errorf("%w: item %s needs RAM ranges and a part size if it is memory, and none if not", ErrRefused, itemID(item))
	}
	if parts := lime.Parts(item.RAM, item.PartRAMBytes); parts >= evidence.MaxParts || parts == 0 && len(item.RAM) > 0 {
		return fmt.Errorf("%w: item %s would have %d parts, want 1 to %d", ErrRefused, itemID(item), parts, evidence.MaxParts-1)
	}
	return nil
}

// samePlan reports whether a memory image can go on. What the agent can tell
// of its pages may be another matter this time.
func samePlan(a, b evidence.Item) bool {
	return a.Kind == evidence.Memory && b.Kind == evidence.Memory && a.Source == b.Source && a.Format == b.Format &&
		a.Compression == b.Compression && a.PartRAMBytes == b.PartRAMBytes && slices.Equal(a.RAM, b.RAM)
}

// resume keeps what S3 holds and forgets the grants of what it does not, as
// the bytes of those parts will be others when they are read again.
func (l *Ledger) resume(ctx context.Context, item Item) (Opened, error) {
	stored, err := l.stored(ctx, item)
	if err != nil {
		return Opened{}, err
	}
	if err := l.dropUnstored(ctx, item, stored); err != nil {
		return Opened{}, err
	}
	return Opened{ID: item.ID(), Stored: stored}, nil
}

// discard gives an upload up, with its grants.
func (l *Ledger) discard(ctx context.Context, item Item) error {
	if err := l.dropUnstored(ctx, item, nil); err != nil {
		return err
	}
	if err := l.Bucket.Abort(ctx, item.Key, item.UploadID); err != nil && !errors.Is(err, locker.ErrNoUpload) {
		return err
	}
	return nil
}

// Grant records a part and gives the request that can store exactly its
// bytes. Where they are stored already, the request is empty and stored is
// true. A part costs one write of the store.
func (l *Ledger) Grant(ctx context.Context, caseID, id string, part evidence.Part) (grant locker.Grant, stored bool, err error) {
	if err := checkID(id); err != nil {
		return grant, false, err
	}
	item, again, err := l.record(ctx, itemKey(caseID, id), id, part)
	if err != nil {
		return grant, false, err
	}
	if again {
		if stored, err = l.repeat(ctx, item, part); stored || err != nil {
			return grant, stored, err
		}
	}
	if grant, err = l.Bucket.Grant(ctx, item.Key, item.UploadID, part.Number, part.Size, part.SHA256); err == nil {
		l.done.granted(part.Size)
	}
	return grant, false, err
}

// record writes a part down, unless its number was granted before. The item
// stays open meanwhile, on every node: a part that is granted too late would
// be in the record, and not in the object.
func (l *Ledger) record(ctx context.Context, key, id string, part evidence.Part) (item Item, again bool, err error) {
	defer l.locks.Lock(key)()
	for try := 1; ; try++ {
		var revision int64
		if item, revision, err = l.load(ctx, key); err != nil {
			return item, false, refuseUnknown(err, id)
		}
		if item.Status != evidence.Open || item.Closing != nil {
			return item, false, fmt.Errorf("%w: item %s is closed", ErrRefused, id)
		}
		if err := check(item.Item, part); err != nil {
			return item, false, err
		}
		value, err := json.Marshal(l.granted(item, part))
		if err != nil {
			return item, false, err
		}
		_, err = l.Store.Commit(ctx, store.Same(key, revision), store.Set(partKey(item, part.Number), value, 0))
		if !errors.Is(err, store.ErrConflict) {
			return item, false, err
		}
		_, _, known := l.Store.Get(ctx, partKey(item, part.Number))
		if known == nil {
			return item, true, nil
		}
		if try == tries {
			return item, false, err // the item changes faster than we look
		}
	}
}

// granted is a part as it is recorded.
func (l *Ledger) granted(item Item, part evidence.Part) evidence.Part {
	if item.Kind == evidence.Memory {
		part.Gaps = evidence.FoldGaps(part.Gaps, max(leastGaps, maxGaps/int(lime.Parts(item.RAM, item.PartRAMBytes))))
	}
	part.Granted = l.Now().UTC()
	return part
}

// repeat allows a part that was granted before, if it is the same.
func (l *Ledger) repeat(ctx context.Context, item Item, part evidence.Part) (stored bool, err error) {
	value, _, err := l.Store.Get(ctx, partKey(item, part.Number))
	if err != nil {
		return false, err
	}
	var old evidence.Part
	if err := json.Unmarshal(value, &old); err != nil {
		return false, fmt.Errorf("cannot read part %d of %s: %w", part.Number, item.ID(), err)
	}
	if old.SHA256 != part.SHA256 || old.Size != part.Size {
		l.Log.Warn("second hash for a part refused", "case", item.Case, "item", item.ID(), "part", part.Number, "granted", old.SHA256, "asked", part.SHA256)
		return false, fmt.Errorf("%w: part %d of %s has hash %v since %v, and now another is asked for", ErrRefused, part.Number, item.ID(), old.SHA256, old.Granted)
	}
	have, err := l.Bucket.Stored(ctx, item.Key, item.UploadID)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(have, func(s locker.StoredPart) bool { return s.Number == part.Number && s.Digest == part.SHA256 }), nil
}

// check holds a part that an agent claims against its item.
func check(item evidence.Item, part evidence.Part) error {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("%w: part %d of %s %s", ErrRefused, part.Number, itemID(item), fmt.Sprintf(format, args...))
	}
	if part.Number < 1 || part.Number > evidence.MaxParts {
		return refuse("has no number from 1 to %d", evidence.MaxParts)
	}
	if part.Size == 0 || part.Size > evidence.MaxPartBytes {
		return refuse("has %d bytes, want 1 to %d", part.Size, int64(evidence.MaxPartBytes))
	}
	if item.Kind == evidence.Memory {
		return checkMemory(item, part, refuse)
	}
	if len(part.Ranges) > 0 || len(part.Gaps) > 0 || len(part.Frames) > 0 {
		return refuse("names physical memory, but the item is not memory")
	}
	return nil
}

// checkMemory wants of a part of an image that it holds the memory that is
// planned for its number. So the number of the seek table is nobody's.
func checkMemory(item evidence.Item, part evidence.Part, refuse func(string, ...any) error) error {
	parts := lime.Parts(item.RAM, item.PartRAMBytes)
	planned := lime.Planned(item.RAM, item.PartRAMBytes, uint64(part.Number))
	if planned == nil {
		return refuse("is none of the %d that hold its memory", parts)
	}
	if !slices.Equal(part.Ranges, planned) {
		return refuse("holds %d bytes of RAM in %d ranges, want %d in %d, from %v on", lime.Total(part.Ranges), len(part.Ranges), lime.Total(planned), len(planned), planned[0])
	}
	// Worst case: nothing compresses, and the part is padded to S3's minimum.
	ram := lime.Total(planned)
	if limit := ram + ram/16 + evidence.MinPartBytes + 1<<20; part.Size > limit {
		return refuse("has %d bytes for %d bytes of RAM, want %d at most", part.Size, ram, limit)
	}
	// S3 takes no part that is smaller, but the last. Where the seek table is
	// to follow, that is the table; an agent that names no frames has none.
	last := uint64(part.Number) == parts && len(part.Frames) == 0
	if part.Size < evidence.MinPartBytes && !last {
		return refuse("has %d bytes, want %d at least: fill it up", part.Size, evidence.MinPartBytes)
	}
	if err := evidence.CheckGaps(part); err != nil {
		return refuse("is not right: %v", err)
	}
	return nil
}

func (l *Ledger) room(ctx context.Context, caseID string) error {
	entries, err := l.Store.List(ctx, "item/"+caseID+"/")
	if err != nil {
		return err
	}
	if len(entries) >= maxItems {
		return fmt.Errorf("%w: case %s has %d items already, want %d at most", ErrRefused, caseID, len(entries), maxItems)
	}
	return nil
}
