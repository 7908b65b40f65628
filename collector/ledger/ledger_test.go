package ledger

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quicklime-ir/quicklime/collector/locker"
	"github.com/quicklime-ir/quicklime/collector/store"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

const (
	caseID   = "20261123-abc"
	instance = "i-0123456789abcdef0"
)

// pail is a bucket in memory: what was stored by whom is the test's to say.
// As S3, it knows an upload no more once it has ended.
type pail struct {
	uploads   int
	ended     map[string]bool                // uploads
	stored    map[string][]locker.StoredPart // by upload
	completed map[string][]evidence.Part     // by key
	aborted   []string
	tables    [][]byte // bodies of PutPart
	fail      error    // of the next call
}

func (p *pail) failing() error {
	err := p.fail
	p.fail = nil
	return err
}

func (p *pail) Begin(context.Context, string) (string, error) {
	p.uploads++
	return fmt.Sprint("upload-", p.uploads), p.failing()
}

func (p *pail) Grant(_ context.Context, key, uploadID string, number int32, _ uint64, d evidence.Digest) (locker.Grant, error) {
	return locker.Grant{URL: fmt.Sprintf("https://s3/%s?%s&%d&%v", key, uploadID, number, d)}, p.failing()
}

func (p *pail) Stored(_ context.Context, _, uploadID string) ([]locker.StoredPart, error) {
	if p.ended[uploadID] {
		return nil, locker.ErrNoUpload
	}
	return p.stored[uploadID], p.failing()
}

func (p *pail) Complete(_ context.Context, key, uploadID string, parts []evidence.Part) (locker.Object, error) {
	if err := p.failing(); err != nil {
		return locker.Object{}, err
	}
	if before, ok := p.completed[key]; ok && evidence.Composite(before) != evidence.Composite(parts) {
		return locker.Object{}, locker.ErrExists
	}
	if _, ok := p.completed[key]; !ok && p.ended[uploadID] {
		return locker.Object{}, locker.ErrNoUpload
	}
	p.completed[key], p.ended[uploadID] = slices.Clone(parts), true
	return locker.Object{Key: key, VersionID: "v1"}, nil
}

func (p *pail) PutPart(_ context.Context, _, uploadID string, number int32, body []byte) (locker.StoredPart, error) {
	if err := p.failing(); err != nil {
		return locker.StoredPart{}, err
	}
	if p.ended[uploadID] {
		return locker.StoredPart{}, locker.ErrNoUpload
	}
	part := locker.StoredPart{Number: number, Size: uint64(len(body)), Digest: sha256.Sum256(body), ETag: "etag"}
	p.stored[uploadID] = append(slices.DeleteFunc(p.stored[uploadID], func(s locker.StoredPart) bool { return s.Number == number }), part)
	p.tables = append(p.tables, body)
	return part, nil
}

func (p *pail) Abort(_ context.Context, _, uploadID string) error {
	p.aborted, p.ended[uploadID] = append(p.aborted, uploadID), true
	return p.failing()
}

// put stores a part, as an agent does with its grant.
func (p *pail) put(upload string, part evidence.Part) {
	p.stored[upload] = append(p.stored[upload], locker.StoredPart{Number: part.Number, Size: part.Size, Digest: part.SHA256, ETag: "etag"})
}

func newPail() *pail {
	return &pail{ended: map[string]bool{}, stored: map[string][]locker.StoredPart{}, completed: map[string][]evidence.Part{}}
}

func newLedger() (*Ledger, *pail) {
	p := newPail()
	return &Ledger{Store: store.Memory(), Bucket: p, Log: slog.New(slog.DiscardHandler), Now: time.Now}, p
}

// image is an item of two parts of 8 MiB.
func image() evidence.Item {
	return evidence.Item{Kind: evidence.Memory, Name: "memory", Format: evidence.LiME, Compression: evidence.Zstd, Source: "kcore",
		RAM: []lime.Range{{Start: 0, End: 16<<20 - 1}}, PartRAMBytes: 8 << 20}
}

func imagePart(number int32, content string) evidence.Part {
	start := uint64(number-1) * (8 << 20)
	return evidence.Part{Number: number, Size: evidence.MinPartBytes, SHA256: sha256.Sum256([]byte(content)), RawSize: 8 << 20,
		Ranges: []lime.Range{{Start: start, End: start + 8<<20 - 1}}}
}

// open and grant fail the test where the ledger refuses.
func open(t *testing.T, l *Ledger, item evidence.Item) Opened {
	t.Helper()
	o, err := l.Open(t.Context(), caseID, instance, item)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func grant(t *testing.T, l *Ledger, id string, p evidence.Part) {
	t.Helper()
	g, stored, err := l.Grant(t.Context(), caseID, id, p)
	if err != nil || stored || g.URL == "" {
		t.Fatalf("grant %+v, stored %v, error %v", g, stored, err)
	}
}

func TestAWholeImage(t *testing.T) {
	l, p := newLedger()
	o := open(t, l, image())
	for n := range int32(2) {
		part := imagePart(2-n, "x") // parts may come in any order
		grant(t, l, o.ID, part)
		p.put("upload-1", part)
	}
	slices.Reverse(p.stored["upload-1"])
	item, err := l.Close(t.Context(), caseID, o.ID, 2, "")
	if err != nil || item.Status != evidence.Whole || item.VersionID != "v1" || item.Size != 2*evidence.MinPartBytes {
		t.Fatalf("item %+v, error %v", item, err)
	}
	if item.Key != "cases/"+caseID+"/"+instance+"/memory/memory.lime.zst" {
		t.Errorf("key %q", item.Key)
	}
	again, err := l.Close(t.Context(), caseID, o.ID, 2, "")
	if err != nil || again.Status != evidence.Whole || len(again.Parts) != 2 {
		t.Errorf("closing twice gave %+v, %v", again, err)
	}
	if o := open(t, l, image()); !o.Closed {
		t.Error("a closed item was opened anew")
	}
	items, err := l.Items(t.Context(), caseID)
	if err != nil || len(items) != 1 || len(items[0].Parts) != 2 {
		t.Errorf("items %+v, error %v", items, err)
	}
}

func TestASecondHashForAPartIsRefused(t *testing.T) {
	l, p := newLedger()
	o := open(t, l, image())
	first := imagePart(1, "as captured")
	grant(t, l, o.ID, first)
	if _, _, err := l.Grant(t.Context(), caseID, o.ID, imagePart(1, "as the attacker wants it")); !errors.Is(err, ErrRefused) {
		t.Errorf("error %v, want a refusal", err)
	}
	grant(t, l, o.ID, first) // an expired grant is given again
	p.put("upload-1", first)
	if g, stored, err := l.Grant(t.Context(), caseID, o.ID, first); err != nil || !stored || g.URL != "" {
		t.Errorf("a stored part was granted again: %+v, %v, %v", g, stored, err)
	}
}

func TestPartsThatAreRefused(t *testing.T) {
	tests := []struct {
		name   string
		change func(*evidence.Part)
	}{
		{"number 0", func(p *evidence.Part) { p.Number = 0 }},
		{"number 10,001", func(p *evidence.Part) { p.Number = 10_001 }},
		{"no bytes", func(p *evidence.Part) { p.Size = 0 }},
		{"more bytes than its RAM could give", func(p *evidence.Part) { p.Size = 64 << 20 }},
		{"memory outside the item's", func(p *evidence.Part) { p.Ranges = []lime.Range{{Start: 1 << 40, End: 1<<40 + 4095}} }},
		{"more memory than a part holds", func(p *evidence.Part) { p.Ranges = []lime.Range{{Start: 0, End: 16<<20 - 1}} }},
		{"no memory at all", func(p *evidence.Part) { p.Ranges = nil }},
		{"the memory of another part", func(p *evidence.Part) { p.Ranges = imagePart(2, "x").Ranges }},
		{"less memory than is planned for it", func(p *evidence.Part) { p.Ranges[0].End -= 4096 }},
		{"a number beyond the last", func(p *evidence.Part) { p.Number = 4 }},
		{"the seek table's number", func(p *evidence.Part) { *p = evidence.Part{Number: 3, Size: 33, SHA256: p.SHA256} }},
		{"fewer bytes than S3 takes", func(p *evidence.Part) { p.Size = evidence.MinPartBytes - 1 }},
		{"fewer bytes than S3 takes before the seek table", func(p *evidence.Part) {
			*p = framed(2, "x")
			p.Size--
		}},
		{"a gap that was not stored", func(p *evidence.Part) {
			p.Gaps = []evidence.Gap{{Range: lime.Range{Start: 0, End: 9}, Reason: evidence.NotStored}}
		}},
		{"a gap outside its memory", func(p *evidence.Part) { p.Gaps = []evidence.Gap{{Range: lime.Range{Start: 9 << 20, End: 10 << 20}}} }},
	}
	l, _ := newLedger()
	o := open(t, l, image())
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			part := imagePart(1, "x")
			tt.change(&part)
			if _, _, err := l.Grant(t.Context(), caseID, o.ID, part); !errors.Is(err, ErrRefused) {
				t.Errorf("error %v, want a refusal", err)
			}
		})
	}
}

func TestItemsThatAreRefused(t *testing.T) {
	tests := []struct {
		name string
		item evidence.Item
	}{
		{"a name that climbs", evidence.Item{Kind: evidence.Live, Name: "../manifest", Format: evidence.Tar}},
		{"a name that is empty", evidence.Item{Kind: evidence.Live, Format: evidence.Tar}},
		{"memory without ranges", evidence.Item{Kind: evidence.Memory, Name: "memory", Format: evidence.LiME}},
		{"memory that is no image", evidence.Item{Kind: evidence.Memory, Name: "memory", Format: evidence.Tar, RAM: image().RAM, PartRAMBytes: 1 << 20}},
		{"memory in more parts than there can be", evidence.Item{Kind: evidence.Memory, Name: "memory", Format: evidence.LiME, RAM: image().RAM, PartRAMBytes: 1}},
		{"all memory there could be", evidence.Item{Kind: evidence.Memory, Name: "memory", Format: evidence.LiME, RAM: []lime.Range{{End: math.MaxUint64}}, PartRAMBytes: 1 << 60}},
		{"an image of nothing", evidence.Item{Kind: evidence.Live, Name: "x", Format: evidence.LiME}},
		{"a table with ranges", evidence.Item{Kind: evidence.Live, Name: "x", Format: evidence.JSONL, RAM: image().RAM, PartRAMBytes: 1}},
	}
	l, _ := newLedger()
	for _, tt := range tests {
		if _, err := l.Open(t.Context(), caseID, instance, tt.item); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: error %v, want a refusal", tt.name, err)
		}
	}
	for _, id := range []string{"", "memory", "memory.never_opened", "../../case/x", "memory.memory/00001"} {
		if _, _, err := l.Grant(t.Context(), caseID, id, imagePart(1, "x")); !errors.Is(err, ErrRefused) {
			t.Errorf("grant for item %q: error %v, want a refusal", id, err)
		}
		if _, err := l.Close(t.Context(), caseID, id, 1, ""); !errors.Is(err, ErrRefused) {
			t.Errorf("closing item %q: error %v, want a refusal", id, err)
		}
	}
}

func TestACaseHasRoomForSoManyItems(t *testing.T) {
	l, _ := newLedger()
	for n := range maxItems {
		open(t, l, evidence.Item{Kind: evidence.Live, Name: fmt.Sprint("t", n), Format: evidence.JSONL})
	}
	if _, err := l.Open(t.Context(), caseID, instance, evidence.Item{Kind: evidence.Live, Name: "more", Format: evidence.JSONL}); !errors.Is(err, ErrRefused) {
		t.Errorf("error %v, want a refusal", err)
	}
}

// TestAnInterruptedImageGoesOn: of two granted parts one was stored when the
// agent died. Its successor reads the other anew, with other bytes.
func TestAnInterruptedImageGoesOn(t *testing.T) {
	l, p := newLedger()
	o := open(t, l, image())
	one := imagePart(1, "before")
	grant(t, l, o.ID, one)
	p.put("upload-1", one)
	grant(t, l, o.ID, imagePart(2, "before, never stored"))

	o = open(t, l, image())
	if len(o.Stored) != 1 || o.Stored[0].Number != 1 || o.Closed {
		t.Fatalf("found %+v, want part 1 stored", o)
	}
	two := imagePart(2, "after")
	grant(t, l, o.ID, two)
	p.put("upload-1", two)
	if item, err := l.Close(t.Context(), caseID, o.ID, 2, ""); err != nil || item.Status != evidence.Whole || p.uploads != 1 {
		t.Errorf("item %+v, error %v, %d uploads", item, err, p.uploads)
	}
}

func TestAnImageWithAnotherPlanDoesNotReplaceTheFirst(t *testing.T) {
	l, _ := newLedger()
	open(t, l, image())
	other := image()
	other.PartRAMBytes = 16 << 20
	if _, err := l.Open(t.Context(), caseID, instance, other); !errors.Is(err, ErrRefused) {
		t.Errorf("error %v, want a refusal", err)
	}
}

// TestAnInterruptedTableBeginsAnew, as its bytes are others the second time.
func TestAnInterruptedTableBeginsAnew(t *testing.T) {
	l, p := newLedger()
	table := evidence.Item{Kind: evidence.Volatile, Name: "processes", Format: evidence.JSONL, Compression: evidence.Zstd}
	o := open(t, l, table)
	grant(t, l, o.ID, evidence.Part{Number: 1, Size: 10, SHA256: sha256.Sum256([]byte("first"))})
	o = open(t, l, table)
	grant(t, l, o.ID, evidence.Part{Number: 1, Size: 11, SHA256: sha256.Sum256([]byte("second"))})
	if p.uploads != 2 || !slices.Equal(p.aborted, []string{"upload-1"}) {
		t.Errorf("%d uploads, aborted %v; want a second one, and the first given up", p.uploads, p.aborted)
	}
}

// TestTheStoreDoesNotSayWhetherAnItemWasBegun, as its answer was lost. Where it
// was begun, its upload must be there.
func TestTheStoreDoesNotSayWhetherAnItemWasBegun(t *testing.T) {
	for _, begun := range []bool{true, false} {
		l, p := newLedger()
		state := l.Store
		l.Store = &grim{Store: state, left: 1, late: begun}
		if _, err := l.Open(t.Context(), caseID, instance, image()); !errors.Is(err, errDied) {
			t.Fatal(err)
		}
		l.Store = state
		o := open(t, l, image())
		upload := fmt.Sprint("upload-", p.uploads)
		for n := int32(1); n <= 2; n++ {
			grant(t, l, o.ID, imagePart(n, "x"))
			p.put(upload, imagePart(n, "x"))
		}
		if item, err := l.Close(t.Context(), caseID, o.ID, 2, ""); err != nil || item.Status != evidence.Whole {
			t.Errorf("begun %t: item %+v, error %v", begun, item, err)
		}
	}
}

// TestAnUploadThatSomebodyAborted: an image begins anew, also with other bytes,
// and what is over ends without it.
func TestAnUploadThatSomebodyAborted(t *testing.T) {
	l, p := newLedger()
	o := open(t, l, image())
	grant(t, l, o.ID, imagePart(1, "before"))
	p.put("upload-1", imagePart(1, "before"))
	p.ended["upload-1"] = true
	if o = open(t, l, image()); len(o.Stored) > 0 || o.Closed {
		t.Errorf("found %+v, want nothing", o)
	}
	grant(t, l, o.ID, imagePart(1, "after"))
	p.put("upload-2", imagePart(1, "after"))
	p.ended["upload-2"] = true
	for range 2 {
		item, err := l.Close(t.Context(), caseID, o.ID, 0, "the capture is over")
		if err != nil || item.Status != evidence.Partial || item.Size != 0 || len(item.Parts) > 0 || !strings.Contains(item.Error, "its upload no more") {
			t.Errorf("item %+v, error %v", item, err)
		}
	}
}

func TestWhatIsNotWholeSaysWhy(t *testing.T) {
	tests := []struct {
		name   string
		stored []int32
		parts  int32
		reason string
		size   uint64
		want   string
	}{
		{"the agent says so", []int32{1}, 2, "lost the memory source", evidence.MinPartBytes, "lost the memory source"},
		{"the agent says it is whole, and a part is not there", []int32{1}, 2, "", evidence.MinPartBytes, "is in no stored part"},
		{"the agent leaves a part out of the count", []int32{1, 2}, 1, "", 2 * evidence.MinPartBytes, "2 parts are stored, want 1"},
		{"nothing was stored", nil, 2, "", 0, "is in no stored part"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, p := newLedger()
			o := open(t, l, image())
			for _, n := range tt.stored {
				grant(t, l, o.ID, imagePart(n, "x"))
				p.put("upload-1", imagePart(n, "x"))
			}
			item, err := l.Close(t.Context(), caseID, o.ID, tt.parts, tt.reason)
			if err != nil || item.Status != evidence.Partial || item.Size != tt.size || !strings.Contains(item.Error, tt.want) {
				t.Errorf("item %+v, error %v; want partial of %d bytes with %q", item, err, tt.size, tt.want)
			}
			if kept := len(p.completed); (kept == 0) != (len(tt.stored) == 0) {
				t.Errorf("%d objects completed", kept)
			}
		})
	}
}

// TestBytesThatWereNotGrantedAreLeftOut: S3 holds a part with another hash
// than the granted one. It must not become evidence.
func TestBytesThatWereNotGrantedAreLeftOut(t *testing.T) {
	l, p := newLedger()
	o := open(t, l, image())
	for n := int32(1); n <= 2; n++ {
		grant(t, l, o.ID, imagePart(n, "granted"))
	}
	p.put("upload-1", imagePart(1, "granted"))
	p.put("upload-1", imagePart(2, "swapped"))
	item, err := l.Close(t.Context(), caseID, o.ID, 2, "")
	if err != nil || item.Status != evidence.Partial || len(p.completed[item.Key]) != 1 {
		t.Errorf("item %+v, error %v", item, err)
	}
}

// TestACollectorThatDiesAfterCompleting: S3 has the object and has forgotten
// the upload, and the ledger has not written it down.
func TestACollectorThatDiesAfterCompleting(t *testing.T) {
	l, p := newLedger()
	o := open(t, l, image())
	for n := int32(1); n <= 2; n++ {
		grant(t, l, o.ID, imagePart(n, "x"))
		p.put("upload-1", imagePart(n, "x"))
	}
	disk := l.Store
	l.Store = &fullDisk{Store: disk, left: 1} // room for what will be done, none for that it was
	if _, err := l.Close(t.Context(), caseID, o.ID, 2, ""); !errors.Is(err, errFull) {
		t.Fatalf("error %v", err)
	}
	l.Store = disk
	delete(p.stored, "upload-1")
	if item, err := l.Close(t.Context(), caseID, o.ID, 2, ""); err != nil || item.Status != evidence.Whole || len(item.Parts) != 2 {
		t.Errorf("item %+v, error %v", item, err)
	}
}

var errFull = errors.New("no space left on device")

// fullDisk has room for so many writes.
type fullDisk struct {
	store.Store
	left int
}

func (d *fullDisk) Put(ctx context.Context, key string, value []byte, revision int64) (int64, error) {
	if d.left--; d.left < 0 {
		return 0, errFull
	}
	return d.Store.Put(ctx, key, value, revision)
}

func TestCloseAllKeepsWhatThereIs(t *testing.T) {
	l, p := newLedger()
	o := open(t, l, image())
	grant(t, l, o.ID, imagePart(1, "x"))
	p.put("upload-1", imagePart(1, "x"))
	open(t, l, evidence.Item{Kind: evidence.Live, Name: "files", Format: evidence.Tar})
	if err := l.CloseAll(t.Context(), caseID, evidence.Memory, "the agent was lost"); err != nil {
		t.Fatal(err)
	}
	items, err := l.Items(t.Context(), caseID)
	if err != nil || len(items) != 2 {
		t.Fatalf("items %+v, %v", items, err)
	}
	live, memory := items[0], items[1]
	if live.Status != evidence.Open || memory.Status != evidence.Partial || memory.Error != "the agent was lost" || len(memory.Gaps()) != 1 {
		t.Errorf("live %+v\nmemory %+v", live, memory)
	}
}

// TestAFaultOfTheBucketLosesNothing: whatever call fails, the same request
// again brings the item to its end.
func TestAFaultOfTheBucketLosesNothing(t *testing.T) {
	down := errors.New("503 SlowDown")
	l, p := newLedger()
	p.fail = down
	if _, err := l.Open(t.Context(), caseID, instance, image()); !errors.Is(err, down) {
		t.Fatalf("Open: %v", err)
	}
	o := open(t, l, image())
	part := imagePart(1, "x")
	p.fail = down
	if _, _, err := l.Grant(t.Context(), caseID, o.ID, part); !errors.Is(err, down) {
		t.Fatalf("Grant: %v", err)
	}
	grant(t, l, o.ID, part)
	grant(t, l, o.ID, imagePart(2, "x"))
	upload := fmt.Sprint("upload-", p.uploads)
	p.put(upload, part)
	p.put(upload, imagePart(2, "x"))
	p.fail = down
	if _, err := l.Close(t.Context(), caseID, o.ID, 2, ""); !errors.Is(err, down) {
		t.Fatalf("Close: %v", err)
	}
	if item, err := l.Close(t.Context(), caseID, o.ID, 2, ""); err != nil || item.Status != evidence.Whole {
		t.Errorf("item %+v, error %v", item, err)
	}
}
