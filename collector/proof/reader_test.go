package proof

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"testing"

	"github.com/quicklime-ir/quicklime/collector/custody"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// TestAReaderGivesWhatHolds: parts that are held, and one that is read twice.
// Of a part with another hash not a byte comes out.
func TestAReaderGivesWhatHolds(t *testing.T) {
	dir := t.TempDir()
	folder, err := OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	body := bytes.Repeat([]byte("0123456789abcdef"), (maxHeld+2<<20)/16)
	rewrite("object", string(body))(t, dir)
	item := evidence.Item{Key: "object", Compression: evidence.None, Status: evidence.Whole}
	first := body[:1<<20]
	for i, b := range [][]byte{first, body[1<<20:]} {
		item.Parts = append(item.Parts, evidence.Part{Number: int32(i + 1), Size: uint64(len(b)), RawSize: uint64(len(b)), SHA256: sha256.Sum256(b)})
	}
	get := func() ([]byte, error) {
		r, err := NewReader(t.Context(), folder, item)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		return got, errors.Join(err, r.Close())
	}
	if got, err := get(); err != nil || !bytes.Equal(got, body) {
		t.Errorf("%d bytes, %v; want %d", len(got), err, len(body))
	}
	item.Parts[1].SHA256[0] ^= 1
	if got, err := get(); !errors.Is(err, ErrNotProven) || !bytes.Equal(got, first) {
		t.Errorf("%d bytes, %v; want those of part 1 alone", len(got), err)
	}
}

// TestJournal: only the journal that the manifest saw is given.
func TestJournal(t *testing.T) {
	base := "cases/c1/" + victim + "/journal/"
	for name, damage := range map[string]func(*testing.T, string){
		"":                  func(*testing.T, string) {},
		"an entry less":     remove(base + "000003.json"),
		"an entry changed":  rewrite(base+"000002.json", "{}"),
		"the last, changed": rewrite(base+"000003.json", "{}"),
	} {
		dir, key := sealed(t)
		damage(t, dir)
		folder, err := OpenFolder(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer folder.Close()
		m, err := Load(t.Context(), folder, key.Public(), "c1")
		if err != nil {
			t.Fatal(err)
		}
		var entries []custody.Entry
		entries, err = Journal(t.Context(), folder, m)
		if name == "" && (err != nil || len(entries) != 3 || entries[2].Seq != 3) || name != "" && !errors.Is(err, ErrNotProven) {
			t.Errorf("%q: %d entries, %v", name, len(entries), err)
		}
	}
}
