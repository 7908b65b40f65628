package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/quicklime-ir/quicklime/collector/locker"
	"github.com/quicklime-ir/quicklime/collector/store"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/seekable"
)

// framed is an image's part with the frames that its bytes consist of.
func framed(number int32, content string) evidence.Part {
	p := imagePart(number, content)
	first := seekable.Frame{Stored: 1000 * uint32(number), Raw: 1 << 20}
	p.Frames = []seekable.Frame{first, {Stored: uint32(p.Size) - first.Stored, Raw: uint32(p.RawSize) - first.Raw}}
	return p
}

// begun is an image of which some parts are stored.
func begun(t *testing.T, l *Ledger, p *pail, numbers ...int32) (id string) {
	t.Helper()
	o := open(t, l, image())
	for _, n := range numbers {
		grant(t, l, o.ID, framed(n, "x"))
		p.put("upload-1", framed(n, "x"))
	}
	return o.ID
}

// TestTheSeekTable is the object's last part, of a whole image and of what
// there is of one.
func TestTheSeekTable(t *testing.T) {
	for _, numbers := range [][]int32{{1, 2}, {1}, {2}} {
		t.Run(fmt.Sprint(numbers), func(t *testing.T) {
			l, p := newLedger()
			id := begun(t, l, p, numbers...)
			item, err := l.Close(t.Context(), caseID, id, 2, "")
			if whole := len(numbers) == 2; err != nil || (item.Status == evidence.Whole) != whole {
				t.Fatalf("item %+v, error %v", item, err)
			}
			want, size := []seekable.Frame(nil), int64(0)
			for _, n := range numbers {
				want = append(want, framed(n, "x").Frames...)
				size += int64(framed(n, "x").Size)
			}
			data, table := item.Split()
			if len(data) != len(numbers) || table == nil || table.Number != 3 || table.RawSize != 0 || table.Ranges != nil || table.Granted.IsZero() {
				t.Fatalf("parts %+v", item.Parts)
			}
			object := atEnd(size, p.tables[0])
			frames, err := seekable.ReadTable(object, size+int64(len(p.tables[0])))
			if err != nil || !slices.Equal(frames, want) || int64(item.Size) != size+int64(len(p.tables[0])) {
				t.Errorf("table %v, %v; want %v in an object of %d bytes", frames, err, want, item.Size)
			}
			done := p.completed[item.Key]
			if len(done) != len(numbers)+1 || evidence.Composite(done) != item.SHA256 || evidence.Composite(item.Parts) != item.SHA256 {
				t.Errorf("completed with %+v, item %+v", done, item)
			}
			for _, part := range item.Parts {
				if part.Frames != nil {
					t.Errorf("part %d leaves the ledger with %d frames", part.Number, len(part.Frames))
				}
			}
		})
	}
}

// atEnd reads as an object of size bytes, all zero, and a table after them.
func atEnd(size int64, table []byte) readerAt {
	return func(p []byte, at int64) (int, error) {
		clear(p)
		if at >= size {
			return bytes.NewReader(table).ReadAt(p, at-size)
		}
		return len(p), nil
	}
}

type readerAt func(p []byte, at int64) (int, error)

func (f readerAt) ReadAt(p []byte, at int64) (int, error) { return f(p, at) }

func TestAnImageWithoutFramesHasNoTable(t *testing.T) {
	plain := image()
	plain.Compression = evidence.None
	for _, item := range []evidence.Item{image(), plain} {
		l, p := newLedger()
		o := open(t, l, item)
		part := imagePart(1, "x")
		if item.Compression == evidence.None {
			part = framed(1, "x")
		}
		grant(t, l, o.ID, part)
		p.put("upload-1", part)
		closed, err := l.Close(t.Context(), caseID, o.ID, 2, "enough")
		if err != nil || len(p.completed[closed.Key]) != 1 || len(p.tables) != 0 {
			t.Errorf("%s: item %+v, error %v, %d tables", item.Compression, closed, err, len(p.tables))
		}
	}
}

// TestARepeatWithOtherFrames is harmless: the first ones stay.
func TestARepeatWithOtherFrames(t *testing.T) {
	l, p := newLedger()
	id := begun(t, l, p, 1)
	other := framed(1, "x")
	other.Frames = []seekable.Frame{{Stored: uint32(other.Size), Raw: uint32(other.RawSize)}}
	if _, stored, err := l.Grant(t.Context(), caseID, id, other); err != nil || !stored {
		t.Fatalf("stored %v, error %v", stored, err)
	}
	if item, err := l.Close(t.Context(), caseID, id, 2, "enough"); err != nil || len(p.tables[0]) != seekable.Size(2) {
		t.Errorf("item %+v, error %v, tables %v", item, err, p.tables)
	}
}

var errDied = errors.New("the collector was killed")

// grim kills the collector at its nth act: before it or, late, after it.
type grim struct {
	store.Store
	*pail
	left int
	late bool
}

func (g *grim) act(do func() error) error {
	if g.left--; g.left > 0 || g.left == 0 && g.late {
		if err := do(); err != nil {
			return err
		}
	}
	if g.left <= 0 {
		return errDied
	}
	return nil
}

func (g *grim) Put(ctx context.Context, key string, value []byte, revision int64) (next int64, err error) {
	err = g.act(func() (e error) { next, e = g.Store.Put(ctx, key, value, revision); return })
	return next, err
}

func (g *grim) Delete(ctx context.Context, key string, revision int64) error {
	return g.act(func() error { return g.Store.Delete(ctx, key, revision) })
}

func (g *grim) PutPart(ctx context.Context, key, id string, number int32, body []byte) (part locker.StoredPart, err error) {
	err = g.act(func() (e error) { part, e = g.pail.PutPart(ctx, key, id, number, body); return })
	return part, err
}

func (g *grim) Complete(ctx context.Context, key, id string, parts []evidence.Part) (object locker.Object, err error) {
	err = g.act(func() (e error) {
		object, e = g.pail.Complete(ctx, key, id, parts)
		delete(g.stored, id) // S3 forgets an upload that is complete
		return
	})
	return object, err
}

// TestACollectorThatDiesAtAnyPoint of completing an image: its successor goes
// on, and the object and the record are what they would have been.
func TestACollectorThatDiesAtAnyPoint(t *testing.T) {
	for _, late := range []bool{false, true} {
		for n := 1; ; n++ {
			l, p := newLedger()
			id := begun(t, l, p, 1)
			grant(t, l, id, framed(2, "granted, never stored"))
			disk := l.Store
			g := &grim{Store: disk, pail: p, left: n, late: late}
			l.Store, l.Bucket = g, g
			_, err := l.Close(t.Context(), caseID, id, 2, "")
			if err == nil && n > 5 {
				break // there is no nth act
			}
			if !errors.Is(err, errDied) {
				t.Fatalf("act %d: error %v", n, err)
			}
			again := &Ledger{Store: disk, Bucket: p, Log: l.Log, Now: l.Now}
			if o := open(t, again, image()); n > 1 && !o.Closed && !late {
				t.Errorf("act %d: the item is open again after its end was written down", n)
			}
			item, err := again.Close(t.Context(), caseID, id, 2, "")
			if err != nil || item.Status != evidence.Partial || len(item.Parts) != 2 || item.Parts[1].Number != 3 {
				t.Fatalf("act %d, late %v: item %+v, error %v", n, late, item, err)
			}
			if done := p.completed[item.Key]; evidence.Composite(done) != item.SHA256 || done[1].ETag == "" || item.Size != done[0].Size+done[1].Size {
				t.Errorf("act %d, late %v: completed with %+v, recorded %+v", n, late, done, item)
			}
			for _, table := range p.tables {
				if !bytes.Equal(table, p.tables[0]) {
					t.Errorf("act %d, late %v: two tables", n, late)
				}
			}
		}
	}
}

// BenchmarkGrant is what a grant costs, beside the store's own work.
func BenchmarkGrant(b *testing.B) {
	l, _ := newLedger()
	item := image()
	item.RAM[0].End = 9000*(8<<20) - 1
	o, err := l.Open(b.Context(), caseID, instance, item)
	if err != nil {
		b.Fatal(err)
	}
	for n := int32(0); b.Loop(); n++ {
		if _, _, err := l.Grant(b.Context(), caseID, o.ID, framed(n%9000+1, "x")); err != nil {
			b.Fatal(err)
		}
	}
}
