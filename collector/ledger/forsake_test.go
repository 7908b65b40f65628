package ledger

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/quicklime-ir/quicklime/collector/locker"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// forgetful is a bucket that has some uploads no more.
type forgetful struct {
	*pail
	gone map[string]error // by upload
}

func (f forgetful) Stored(ctx context.Context, key, upload string) ([]locker.StoredPart, error) {
	if err := f.gone[upload]; err != nil {
		return nil, err
	}
	return f.pail.Stored(ctx, key, upload)
}

// TestForsake: an item whose upload is gone is forgotten, with its parts, and
// can be begun anew; every other one stays.
func TestForsake(t *testing.T) {
	l, p := newLedger()
	image := open(t, l, image()) // upload-1
	part := imagePart(1, "x")
	grant(t, l, image.ID, part)
	p.put("upload-1", part)
	whole := open(t, l, evidence.Item{Kind: evidence.Volatile, Name: "processes", Format: evidence.JSONL, Compression: evidence.Zstd}) // upload-2
	table := evidence.Part{Number: 1, Size: 10, SHA256: part.SHA256}
	grant(t, l, whole.ID, table)
	p.put("upload-2", table)
	if _, err := l.Close(t.Context(), caseID, whole.ID, 1, ""); err != nil {
		t.Fatal(err)
	}
	going := open(t, l, evidence.Item{Kind: evidence.Live, Name: "files", Format: evidence.Tar, Compression: evidence.Zstd}) // upload-3

	away := errors.New("503 SlowDown")
	l.Bucket = forgetful{p, map[string]error{"upload-1": away}}
	if _, err := l.Forsake(t.Context(), caseID); !errors.Is(err, away) {
		t.Errorf("while S3 does not answer: %v", err)
	}
	l.Bucket = forgetful{p, map[string]error{"upload-1": locker.ErrNoUpload, "upload-2": locker.ErrNoUpload}}
	gone, err := l.Forsake(t.Context(), caseID)
	if err != nil || len(gone) != 1 || itemID(gone[0]) != image.ID {
		t.Errorf("gone are %+v, %v", gone, err)
	}
	items, err := l.Items(t.Context(), caseID)
	if err != nil || len(items) != 2 || itemID(items[0]) != going.ID || itemID(items[1]) != whole.ID || items[1].Status != evidence.Whole {
		t.Errorf("left are %+v, %v", items, err)
	}
	if left, err := l.Store.List(t.Context(), "part/"+caseID+"/"+image.ID+"/"); err != nil || len(left) > 0 {
		t.Errorf("parts %v are left, %v", left, err)
	}
	if gone, err := l.Forsake(t.Context(), caseID); err != nil || len(gone) > 0 {
		t.Errorf("a second time: %v, %v", gone, err)
	}
}

// TestAnotherObjectInItsPlaceStays: the item ends without anything, and says
// why; the case is not held up by it.
func TestAnotherObjectInItsPlaceStays(t *testing.T) {
	l, p := newLedger()
	o := open(t, l, evidence.Item{Kind: evidence.Volatile, Name: "processes", Format: evidence.JSONL, Compression: evidence.Zstd})
	part := evidence.Part{Number: 1, Size: 10, SHA256: imagePart(1, "mine").SHA256}
	grant(t, l, o.ID, part)
	p.put("upload-1", part)
	key := locker.Key(caseID, instance, evidence.Item{Kind: evidence.Volatile, Name: "processes", Format: evidence.JSONL, Compression: evidence.Zstd})
	p.completed[key] = []evidence.Part{imagePart(1, "another's")}
	for range 2 {
		item, err := l.Close(t.Context(), caseID, o.ID, 1, "")
		if err != nil || item.Status != evidence.Partial || item.Size != 0 || len(item.Parts) > 0 || !strings.Contains(item.Error, locker.ErrExists.Error()) {
			t.Errorf("item %+v, %v", item, err)
		}
	}
	if len(p.aborted) != 1 || p.completed[key][0].SHA256 != imagePart(1, "another's").SHA256 {
		t.Errorf("aborted are %v, the object is %v", p.aborted, p.completed[key])
	}
	if err := l.CloseAll(t.Context(), caseID, evidence.Volatile, "the case ended"); err != nil {
		t.Error(err)
	}
}
