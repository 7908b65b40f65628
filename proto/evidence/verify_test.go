package evidence

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/quicklime-ir/quicklime/proto/lime"
	"github.com/quicklime-ir/quicklime/proto/seekable"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bucket is a place of objects in memory.
type bucket map[string][]byte

func (b bucket) Open(_ context.Context, key string) (io.ReadCloser, error) {
	body, ok := b[key]
	if !ok {
		return nil, fmt.Errorf("cannot open object %q: there is none", key)
	}
	return io.NopCloser(bytes.NewReader(body)), nil
}

func (b bucket) OpenRange(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if length < 1 || offset < 0 {
		return nil, fmt.Errorf("cannot open %d bytes from %d on", length, offset)
	}
	if _, err := b.Open(ctx, key); err != nil {
		return nil, err
	}
	return io.NopCloser(io.NewSectionReader(bytes.NewReader(b[key]), offset, length)), nil
}

// made is an item as an agent would have stored it, and its bytes.
type made struct {
	item  Item
	parts [][]byte
}

func (m made) body() []byte { return bytes.Join(m.parts, nil) }

// store makes the item that raw parts become.
func store(t testing.TB, name string, f Format, c Compression, raw ...[]byte) made {
	t.Helper()
	m := made{item: Item{Kind: Live, Name: name, Format: f, Compression: c, Status: Whole}}
	m.item.Key = "cases/c/i-1/live/" + m.item.FileName()
	for i, r := range raw {
		stored := r
		if c == Zstd {
			stored = squeeze(t, r)
		}
		m.parts = append(m.parts, stored)
		m.item.Size += uint64(len(stored))
		m.item.Parts = append(m.item.Parts, Part{Number: int32(i + 1), Size: uint64(len(stored)), RawSize: uint64(len(r)), SHA256: sha256.Sum256(stored)})
	}
	m.item.SHA256 = Composite(m.item.Parts)
	return m
}

// retable changes the seek table, as if the collector had stored it so.
func (m *made) retable(t testing.TB, change func([]seekable.Frame) []seekable.Frame) {
	t.Helper()
	frames, err := seekable.ReadTable(bytes.NewReader(m.body()), int64(len(m.body())))
	if err != nil {
		t.Fatal(err)
	}
	body, err := seekable.AppendTable(nil, change(frames))
	if err != nil {
		t.Fatal(err)
	}
	last := len(m.parts) - 1
	m.item.Size += uint64(len(body)) - m.item.Parts[last].Size
	m.parts[last] = body
	m.item.Parts[last].Size, m.item.Parts[last].SHA256 = uint64(len(body)), sha256.Sum256(body)
	m.item.SHA256 = Composite(m.item.Parts)
}

// squeeze makes a frame, and pads it with a skippable one.
func squeeze(t testing.TB, raw []byte) []byte {
	t.Helper()
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	return append(e.EncodeAll(raw, nil), 0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 0, 0, 0)
}

// without is the item with one part never stored.
func (m made) without(n int) made {
	m.item.Status, m.item.Error = Partial, "the instance was stopped"
	m.item.Size -= m.item.Parts[n-1].Size
	m.item.Parts = slices.Delete(slices.Clone(m.item.Parts), n-1, n)
	m.parts = slices.Delete(slices.Clone(m.parts), n-1, n)
	m.item.SHA256 = Composite(m.item.Parts)
	return m
}

// limeImage is an image of three parts of 8 KiB; the second range is split,
// and in zstd there is a seek table.
func limeImage(t testing.TB, c Compression) made {
	return imageOf(t, c, 0x2000, lime.Range{Start: 0x1000, End: 0x2fff}, lime.Range{Start: 0x100000, End: 0x102fff})
}

// imageOf is a whole image of the given RAM, each part full of its number.
func imageOf(t testing.TB, c Compression, partRAM uint64, ram ...lime.Range) made {
	t.Helper()
	plan := lime.Plan(ram, partRAM)
	var raw [][]byte
	for i, part := range plan {
		var b []byte
		for _, r := range part {
			b = append(lime.AppendHeader(b, r), bytes.Repeat([]byte{byte(i + 1)}, int(r.Len()))...)
		}
		raw = append(raw, b)
	}
	m := store(t, "memory", LiME, c, raw...)
	m.item.Kind, m.item.RAM, m.item.PartRAMBytes = Memory, ram, partRAM
	for i, part := range plan {
		m.item.Parts[i].Ranges = part
	}
	return m.tabled(t)
}

// tabled is an image in zstd with the seek table of the parts that it has,
// each of them one frame.
func (m made) tabled(t testing.TB) made {
	t.Helper()
	if m.item.TableNumber() == 0 {
		return m
	}
	data, table := m.item.Split()
	if table != nil {
		m.item.Size -= table.Size
		m.parts = m.parts[:len(data)]
	}
	var frames []seekable.Frame
	for _, p := range data {
		frames = append(frames, seekable.Frame{Stored: uint32(p.Size), Raw: uint32(p.RawSize)})
	}
	body, err := seekable.AppendTable(nil, frames)
	if err != nil {
		t.Fatal(err)
	}
	m.parts = append(slices.Clone(m.parts), body)
	m.item.Parts = append(slices.Clone(data), Part{Number: m.item.TableNumber(), Size: uint64(len(body)), SHA256: sha256.Sum256(body)})
	m.item.Size += uint64(len(body))
	m.item.SHA256 = Composite(m.item.Parts)
	return m
}

func table(t testing.TB, c Compression) made {
	return store(t, "processes", JSONL, c, []byte("{\"pid\":1}\n{\"pid\":2}\n{\"pi"), []byte("d\":3}\n"), []byte("{\"pid\":4}\n"))
}

func archive(t testing.TB, c Compression) made {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := range 3 {
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("file%d", i), Mode: 0o600, Size: 1000}); err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write(bytes.Repeat([]byte{byte('a' + i)}, 1000))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	all := b.Bytes()
	return store(t, "files", Tar, c, all[:700], all[700:2500], all[2500:])
}

func verify(t testing.TB, body []byte, item Item) (Report, ItemReport) {
	t.Helper()
	r, err := Verify(t.Context(), bucket{item.Key: body}, Manifest{Items: []Item{item}}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return r, r.Items[0]
}

func TestWhatIsWholeIsProven(t *testing.T) {
	for _, c := range []Compression{None, Zstd} {
		for _, m := range []made{limeImage(t, c), table(t, c), archive(t, c), store(t, "empty", JSONL, Zstd, nil)} {
			t.Run(m.item.FileName(), func(t *testing.T) {
				all, r := verify(t, m.body(), m.item)
				if !all.OK || !r.OK() {
					t.Fatalf("not proven: %+v", r.Checks)
				}
				sum := sha256.Sum256(m.body())
				want := hex.EncodeToString(sum[:])
				if m.item.Format == LiME {
					want = "" // its parts are read side by side
				}
				if r.SHA256 != want || r.Composite != m.item.SHA256 || r.Size != m.item.Size {
					t.Errorf("hashes or size are not the object's: %+v", r)
				}
				if m.item.Format == LiME && !slices.Equal(r.Ranges, m.item.RAM) {
					t.Errorf("ranges = %v, want %v", r.Ranges, m.item.RAM)
				}
			})
		}
	}
}

// Each kind of damage, and the check and the words that tell of it.
func TestWhatIsDamagedIsNamed(t *testing.T) {
	rehash := func(m *made) { // as if the agent itself had stored the damage
		m.item.Size = 0
		for i, p := range m.parts {
			m.item.Parts[i].Size, m.item.Parts[i].SHA256 = uint64(len(p)), sha256.Sum256(p)
			m.item.Size += uint64(len(p))
		}
		m.item.SHA256 = Composite(m.item.Parts)
		*m = m.tabled(t)
	}
	for _, c := range []struct {
		name   string
		m      made
		damage func(m *made) []byte
		check  string
		detail string
	}{
		{"a byte is flipped", limeImage(t, None), func(m *made) []byte {
			b := m.body()
			b[m.item.Parts[0].Size+100] ^= 1
			return b
		}, "part 2", "its SHA-256 is"},
		{"a byte is flipped in a frame", table(t, Zstd), func(m *made) []byte {
			b := m.body()
			b[12] ^= 1
			return b
		}, "part 1", "its SHA-256 is"},
		{"the object is cut inside a part", limeImage(t, Zstd), func(m *made) []byte {
			return m.body()[:m.item.Parts[0].Size+5]
		}, "part 2", fmt.Sprintf("is cut after 5 of its %d bytes", limeImage(t, Zstd).item.Parts[1].Size)},
		{"the object is cut between parts", limeImage(t, None), func(m *made) []byte {
			return m.body()[:m.item.Parts[0].Size]
		}, "part 2", "is cut after 0 of its"},
		{"the object is empty", table(t, None), func(*made) []byte { return nil }, "part 1", "after 0 of its"},
		{"there is a byte too many", limeImage(t, None), func(m *made) []byte { return append(m.body(), 0) }, "end", "bytes after part 3"},
		{"two parts are swapped", table(t, None), func(m *made) []byte {
			m.parts[1], m.parts[2] = []byte("{\"a\":7}\n{}\n"), []byte("{\"b\":8}\n{}\n")
			for i := range m.parts {
				m.item.Parts[i].RawSize = uint64(len(m.parts[i]))
			}
			rehash(m)
			return bytes.Join([][]byte{m.parts[0], m.parts[2], m.parts[1]}, nil)
		}, "part 2", "these are the bytes of part 3"},
		{"the object is missing", limeImage(t, None), func(m *made) []byte {
			m.item.Key = "cases/elsewhere"
			return nil
		}, "object", `"cases/elsewhere"`},
		{"the memory is not what the manifest says", limeImage(t, Zstd), func(m *made) []byte {
			m.item.RAM = []lime.Range{{Start: 0x4000, End: 0x5fff}, m.item.RAM[1]}
			m.item.Parts[0].Ranges = m.item.RAM[:1]
			return m.body()
		}, "lime", "part 1: it does not cover the memory that it should: 1 ranges lack, first 00004000-00005fff; 1 are too many, first 00001000-00002fff"},
		{"the image has more memory than the host", limeImage(t, None), func(m *made) []byte {
			m.item.RAM[1].End -= 0x800
			m.item.Parts[2].Ranges[0].End -= 0x800
			return m.body()
		}, "lime", "1 are too many, first 00102800-00102fff"},
		{"two parts are in each other's place", imageOf(t, Zstd, 0x1000, lime.Range{Start: 0, End: 0x1fff}), func(m *made) []byte {
			m.parts[0], m.parts[1] = m.parts[1], m.parts[0]
			rehash(m)
			return m.body()
		}, "lime", "part 1: it does not cover"},
		{"a part is said to hold another's memory", limeImage(t, None), func(m *made) []byte {
			m.item.Parts[1].Ranges = m.item.Parts[0].Ranges
			return m.body()
		}, "truth map", "part 2 does not hold the memory that is planned"},
		{"a part is none of the plan", limeImage(t, None), func(m *made) []byte {
			m.item.PartRAMBytes = 0x4000
			return m.body()
		}, "truth map", "part 3 does not hold"},
		{"a gap is not in its part's memory", limeImage(t, Zstd), func(m *made) []byte {
			m.item.Parts[0].Gaps = []Gap{{Range: lime.Range{Start: 0x2000, End: 0x3fff}, Reason: Offline}}
			return m.body()
		}, "truth map", "gap 00003000-00003fff lies outside"},
		{"a stored part says that it was not stored", limeImage(t, Zstd), func(m *made) []byte {
			m.item.Parts[0].Gaps = []Gap{{Range: lime.Range{Start: 0x2000, End: 0x2fff}, Reason: NotStored}}
			return m.body()
		}, "truth map", "is none of a stored part"},
		{"an image without a plan", limeImage(t, None), func(m *made) []byte {
			m.item.PartRAMBytes = 0
			return m.body()
		}, "truth map", "0 parts of 0 bytes"},
		{"an image in endless parts", limeImage(t, None), func(m *made) []byte {
			m.item.RAM, m.item.PartRAMBytes = []lime.Range{{Start: 1, End: math.MaxUint64}}, 1
			return m.body()
		}, "truth map", "want ascending ranges in 1 to 10000"},
		{"RAM that goes back", limeImage(t, None), func(m *made) []byte {
			slices.Reverse(m.item.RAM)
			return m.body()
		}, "truth map", "want ascending ranges"},
		{"the parts are larger than an object", limeImage(t, None), func(m *made) []byte {
			m.item.Parts[0].Size = math.MaxUint64
			return m.body()
		}, "object", "beyond what an object can have"},
		{"the seek table is said to hold memory", limeImage(t, Zstd), func(m *made) []byte {
			m.item.Parts[3].RawSize = 9
			return m.body()
		}, "truth map", "part 4, the seek table, is said to hold memory"},
		{"the seek table is another's", limeImage(t, Zstd), func(m *made) []byte {
			m.parts[1] = append(m.parts[1], m.parts[1][len(m.parts[1])-11:]...) // more padding
			m.item.Parts[1].Size, m.item.Parts[1].SHA256 = uint64(len(m.parts[1])), sha256.Sum256(m.parts[1])
			m.item.Size += 11
			m.item.SHA256 = Composite(m.item.Parts)
			return m.body()
		}, "seek table", "the object"},
		{"the seek table is none", limeImage(t, Zstd), func(m *made) []byte {
			last := &m.item.Parts[3]
			m.parts[3] = bytes.Repeat([]byte("x"), int(last.Size))
			last.SHA256 = sha256.Sum256(m.parts[3])
			m.item.SHA256 = Composite(m.item.Parts)
			return m.body()
		}, "seek table", "not a zstd seek table"},
		{"the seek table's frames are not the parts'", limeImage(t, Zstd), func(m *made) []byte {
			m.retable(t, func(f []seekable.Frame) []seekable.Frame { f[0].Stored--; f[1].Stored++; return f })
			return m.body()
		}, "seek table", "part 1 has"},
		{"the seek table says other raw bytes", limeImage(t, Zstd), func(m *made) []byte {
			m.retable(t, func(f []seekable.Frame) []seekable.Frame { f[2].Raw++; return f })
			return m.body()
		}, "seek table", "part 3 has"},
		{"the seek table has frames that are no part's", limeImage(t, Zstd), func(m *made) []byte {
			m.retable(t, func(f []seekable.Frame) []seekable.Frame { return append(f, seekable.Frame{}) })
			return m.body()
		}, "seek table", "1 frames that are no part's"},
		{"a frame does not open by itself", limeImage(t, Zstd), func(m *made) []byte {
			m.retable(t, func(f []seekable.Frame) []seekable.Frame {
				return slices.Replace(f, 1, 2, seekable.Frame{Stored: 9, Raw: 0x1000}, seekable.Frame{Stored: f[1].Stored - 9, Raw: f[1].Raw - 0x1000})
			})
			return m.body()
		}, "lime", "part 2: after 0 records, last none: "},
		{"a frame has other bytes than the seek table says", limeImage(t, Zstd), func(m *made) []byte {
			m.retable(t, func(f []seekable.Frame) []seekable.Frame { // the padding by itself
				return slices.Replace(f, 1, 2, seekable.Frame{Stored: f[1].Stored - 11, Raw: f[1].Raw - 1}, seekable.Frame{Stored: 11, Raw: 1})
			})
			return m.body()
		}, "lime", "frame 1 has"},
		{"a record is cut", limeImage(t, None), func(m *made) []byte {
			m.parts[2] = m.parts[2][:1000]
			m.item.Parts[2].RawSize = 1000
			rehash(m)
			return m.body()
		}, "lime", "unexpected EOF"},
		{"a record is no record", limeImage(t, Zstd), func(m *made) []byte {
			m.parts[1] = squeeze(t, bytes.Repeat([]byte("x"), 0x1000+32))
			rehash(m)
			return m.body()
		}, "lime", "part 2: after 0 records, last none: not a LiME v1 image"},
		{"the composite hash is another's", table(t, None), func(m *made) []byte {
			m.item.SHA256 = "AAAA-3"
			return m.body()
		}, "composite", `"AAAA-3"`},
		{"it is not zstd", table(t, Zstd), func(m *made) []byte {
			m.parts[1] = []byte("this is no frame")
			rehash(m)
			return m.body()
		}, "jsonl", "magic number mismatch"},
		{"a frame is cut", table(t, Zstd), func(m *made) []byte {
			m.parts[2] = m.parts[2][:8]
			rehash(m)
			return m.body()
		}, "jsonl", "EOF"},
		{"a line is no object", table(t, None), func(m *made) []byte {
			m.parts[2] = []byte("[1,2,34]\n\n")
			rehash(m)
			return m.body()
		}, "jsonl", "line 4 is no JSON object"},
		{"a line is cut in an item that is called whole", table(t, None), func(m *made) []byte {
			m.parts[2] = []byte("{\"pid\":44")
			m.item.Parts[2].RawSize = 9
			rehash(m)
			return m.body()
		}, "jsonl", "line 4 is no JSON object"},
		{"a line is too long", store(t, "long", JSONL, Zstd, append(bytes.Repeat([]byte(" "), maxLine), "{}\n"...)), func(m *made) []byte {
			return m.body()
		}, "jsonl", "token too long"},
		{"a tar header is damaged", archive(t, None), func(m *made) []byte {
			m.parts[1][900] ^= 0xff
			rehash(m)
			return m.body()
		}, "tar", "invalid tar header"},
		{"a tar is cut inside a file", archive(t, Zstd), func(m *made) []byte {
			m.parts, m.item.Parts = m.parts[:2], m.item.Parts[:2]
			rehash(m)
			return m.body()
		}, "tar", "unexpected EOF"},
		{"a tar is cut between two files", archive(t, None), func(m *made) []byte {
			*m = store(t, "files", Tar, None, m.body()[:2*(512+1024)])
			return m.body()
		}, "tar", "after entry 2: the archive is cut"},
		{"a tar has one of its two last blocks", archive(t, None), func(m *made) []byte {
			*m = store(t, "files", Tar, Zstd, m.body()[:3*(512+1024)+512])
			return m.body()
		}, "tar", "after entry 3: the archive is cut"},
		{"a tar has no bytes at all", store(t, "files", Tar, Zstd, nil), func(m *made) []byte {
			return m.body()
		}, "tar", "after entry 0: the archive is cut"},
		{"there is something behind the tar's end", archive(t, None), func(m *made) []byte {
			m.parts[2] = append(m.parts[2], 'x')
			m.item.Parts[2].RawSize++
			rehash(m)
			return m.body()
		}, "tar", "bytes after the archive's end"},
		{"it decompresses to more than was read", table(t, Zstd), func(m *made) []byte {
			m.parts[2] = squeeze(t, bytes.Repeat([]byte("{}\n"), 10<<20))
			rehash(m)
			return m.body()
		}, "jsonl", "more than the 40 bytes"},
		{"it decompresses to less than was read", table(t, Zstd), func(m *made) []byte {
			m.item.Parts[2].RawSize++
			return m.body()
		}, "jsonl", "the stream has 40 bytes, its parts say 41"},
		{"the item's size is another", table(t, None), func(m *made) []byte {
			m.item.Size = math.MaxUint64
			return m.body()
		}, "manifest", "its parts have 40 bytes"},
		{"a part is there twice", table(t, None), func(m *made) []byte {
			m.item.Parts[1].Number = 1
			return m.body()
		}, "manifest", "part 1 comes after part 1"},
		{"a whole item lacks a part", table(t, None), func(m *made) []byte {
			*m = m.without(2)
			m.item.Status = Whole
			return m.body()
		}, "manifest", "called whole, but has 2 parts up to number 3"},
		{"a whole item has nothing, not even a frame", table(t, Zstd), func(m *made) []byte {
			m.item.Parts, m.item.Size = nil, 0
			return nil
		}, "manifest", "called whole, but has 0 parts"},
		{"the item is open", table(t, None), func(m *made) []byte {
			m.item.Status = Open
			return m.body()
		}, "manifest", "still being taken"},
		{"the format is none of ours", table(t, None), func(m *made) []byte {
			m.item.Format = "exe"
			return m.body()
		}, "exe", `format "exe" is unknown`},
	} {
		t.Run(c.name, func(t *testing.T) {
			body := c.damage(&c.m)
			key := c.m.item.Key
			objects := bucket{key: body}
			if strings.Contains(key, "elsewhere") {
				objects = bucket{}
			}
			r, err := Verify(t.Context(), objects, Manifest{Items: []Item{c.m.item}}, Options{})
			if err != nil {
				t.Fatal(err)
			}
			if r.OK {
				t.Error("the report is OK")
			}
			found := slices.ContainsFunc(r.Items[0].Checks, func(k Check) bool {
				return !k.OK && k.Name == c.check && strings.Contains(k.Detail, c.detail)
			})
			if !found {
				t.Errorf("no check %q that says %q in %+v", c.check, c.detail, r.Items[0].Checks)
			}
			var text strings.Builder
			if err := r.WriteText(&text); err != nil || !strings.Contains(text.String(), key) || !strings.Contains(text.String(), c.check) {
				t.Errorf("the text (%v) does not name %s and %s:\n%s", err, key, c.check, &text)
			}
		})
	}
}

func TestWhatIsPartialIsVerifiedAsWhatItIs(t *testing.T) {
	cut := func(m made) made { return m.without(3) }
	for _, c := range []struct {
		name   string
		m      made
		detail string
	}{
		{"an image without its middle", limeImage(t, Zstd).without(2).tabled(t), "2 records walked to the end"},
		{"an image without its start", limeImage(t, None).without(1), "2 records"},
		{"a table without its end", cut(table(t, Zstd)), "3 lines"},
		{"a table without its middle", table(t, None).without(2), "2 lines, and one that is cut; read up to part 1"},
		{"a table without its start", table(t, Zstd).without(1), "part 1 is not stored"},
		{"an archive without its end", cut(archive(t, Zstd)), "the last one cut"},
		{"an archive cut between two files", store(t, "files", Tar, Zstd, archive(t, None).body()[:512+1024], []byte("lost")).without(2), "1 entries, and no end"},
		{"an archive without its middle", archive(t, None).without(2), "read up to part 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			all, r := verify(t, c.m.body(), c.m.item)
			last := r.Checks[len(r.Checks)-1]
			if !all.OK || r.Status != Partial || !strings.Contains(last.Detail, c.detail) {
				t.Fatalf("report = %+v", r)
			}
			if !slices.Equal(r.Missing, c.m.item.Missing()) || (c.m.item.Format == LiME) != (len(r.Missing) > 0) {
				t.Errorf("missing = %v", r.Missing)
			}
			var want uint64
			for _, m := range r.Missing {
				want += m.Len()
			}
			if r.GapBytes != want || r.Gaps != len(r.Missing) {
				t.Errorf("%d gaps of %d bytes, want %d", r.Gaps, r.GapBytes, want)
			}
			body := c.m.body()
			body[len(body)-1] ^= 1
			if all, _ := verify(t, body, c.m.item); all.OK {
				t.Error("a flipped byte in the last part that is stored passes")
			}
		})
	}
}

func TestNothingStoredIsReportedAndNotOpened(t *testing.T) {
	item := Item{Kind: Memory, Format: LiME, Compression: Zstd, Key: "k", Status: Partial, Error: "no agent", RAM: []lime.Range{{Start: 0, End: 0xfff}}, PartRAMBytes: 0x1000}
	r, err := Verify(t.Context(), nil, Manifest{Items: []Item{item}}, Options{})
	if err != nil || !r.OK || r.Items[0].SHA256 != "" || r.Items[0].GapBytes != 0x1000 {
		t.Fatalf("report = %+v, %v", r, err)
	}
	var text strings.Builder
	if err := r.WriteText(&text); err != nil || !strings.Contains(text.String(), "no agent") || !strings.Contains(text.String(), "nothing of it was read") {
		t.Errorf("text = %s", &text)
	}
}

// A table of nothing, uncompressed, has no byte that could be stored.
func TestAnEmptyTableIsWholeWithoutAPart(t *testing.T) {
	item := Item{Kind: Volatile, Name: "sessions", Format: JSONL, Compression: None, Key: "k", Status: Whole}
	if r, err := Verify(t.Context(), nil, Manifest{Items: []Item{item}}, Options{}); err != nil || !r.OK {
		t.Errorf("report = %+v, %v", r, err)
	}
	for _, change := range []func(*Item){
		func(i *Item) { i.Size = 1 },
		func(i *Item) { i.Format = Tar }, // an archive of nothing has an end
		func(i *Item) { i.Format, i.RAM = LiME, []lime.Range{{Start: 0, End: 0xfff}} },
	} {
		item := item
		change(&item)
		if r, err := Verify(t.Context(), nil, Manifest{Items: []Item{item}}, Options{}); err != nil || r.OK {
			t.Errorf("whole without a part: %+v, %v", item, err)
		}
	}
}

// brokenBucket fails in the middle of an object.
type brokenBucket struct{ bucket }

func (b brokenBucket) Open(ctx context.Context, key string) (io.ReadCloser, error) {
	fail := readerFunc(func([]byte) (int, error) { return 0, errors.New("connection reset") })
	return io.NopCloser(io.MultiReader(bytes.NewReader(b.bucket[key][:20]), fail)), nil
}

func (b brokenBucket) OpenRange(_ context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	fail := readerFunc(func([]byte) (int, error) { return 0, errors.New("connection reset") })
	return io.NopCloser(io.MultiReader(bytes.NewReader(b.bucket[key][offset:min(offset+length, offset+20)]), fail)), nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestAReadThatFailsIsNoProof(t *testing.T) {
	for _, m := range []made{table(t, None), table(t, None).without(3), archive(t, None).without(3), limeImage(t, Zstd)} {
		r, err := Verify(t.Context(), brokenBucket{bucket{m.item.Key: m.body()}}, Manifest{Items: []Item{m.item}}, Options{})
		if err != nil || r.OK || !strings.Contains(fmt.Sprint(r.Items[0].Checks), "connection reset") {
			t.Errorf("report = %+v, %v", r, err)
		}
		last := r.Items[0].Checks[len(r.Items[0].Checks)-1]
		if last.OK {
			t.Errorf("the format passes though the object could not be read: %+v", last)
		}
	}
}

func TestManyItemsKeepTheirOrder(t *testing.T) {
	objects, m := bucket{}, Manifest{}
	for i := range 50 {
		it := table(t, Zstd)
		it.item.Key = fmt.Sprintf("k%02d", i)
		objects[it.item.Key] = it.body()
		m.Items = append(m.Items, it.item)
	}
	objects["k07"] = objects["k07"][1:]
	r, err := Verify(t.Context(), objects, m, Options{Parallel: 3})
	if err != nil || r.OK {
		t.Fatalf("OK = %v, %v", r.OK, err)
	}
	for i, item := range r.Items {
		if item.Key != fmt.Sprintf("k%02d", i) || item.OK() != (i != 7) {
			t.Errorf("item %d: %+v", i, item)
		}
	}
}

func TestVerifyEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("the analyst has seen enough")
	m := limeImage(t, None)
	endless := readerFunc(func(p []byte) (int, error) { cancel(reason); return len(p), nil })
	m.item.Parts[2].Size = 1 << 60
	open := openFunc(func() io.ReadCloser { return io.NopCloser(endless) })
	if _, err := Verify(ctx, open, Manifest{Items: []Item{m.item}}, Options{}); !errors.Is(err, reason) {
		t.Errorf("error = %v", err)
	}
}

type openFunc func() io.ReadCloser

func (f openFunc) Open(context.Context, string) (io.ReadCloser, error) { return f(), nil }

func (f openFunc) OpenRange(context.Context, string, int64, int64) (io.ReadCloser, error) {
	return f(), nil
}

// What the report prints came from outside, and cannot look like a line of
// its own or steer a terminal.
func TestTextIsSafe(t *testing.T) {
	evil := "a\nok \x1b[2J\u202e"
	r := Report{Items: []ItemReport{{Key: evil, Kind: Kind(evil), Status: Status(evil), Error: evil, Checks: []Check{{Name: evil, Detail: evil + strings.Repeat("x", 1<<20)}}}}}
	var text strings.Builder
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	for _, c := range text.String() {
		if c != '\n' && (c < ' ' || c > '~') {
			t.Errorf("text has %q", c)
		}
	}
	if n := strings.Count(text.String(), "\n"); n > 5 || text.Len() > 20_000 {
		t.Errorf("text of %d lines, %d bytes", n, text.Len())
	}
	if err := r.WriteText(failingWriter{}); err == nil {
		t.Error("a writer's error is lost")
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errors.New("disk full") }

// TestTheTruthMapIsTold: gaps by reason, and what the kernel said of pages.
func TestTheTruthMapIsTold(t *testing.T) {
	m := limeImage(t, Zstd)
	m.item.PageFlags = "read"
	m.item.Parts[0].Gaps = []Gap{
		{Range: lime.Range{Start: 0x1000, End: 0x1fff}, Reason: Offline},
		{Range: lime.Range{Start: 0x2000, End: 0x20ff}, Reason: ReadError, Errno: "EIO"},
	}
	m.item.Parts[1].Gaps = []Gap{{Range: lime.Range{Start: 0x100000, End: 0x101fff}, Reason: Offline}}
	m = m.without(3).tabled(t)
	all, r := verify(t, m.body(), m.item)
	want := []GapReason{{NotStored, 1, 0x1000}, {Offline, 2, 0x3000}, {ReadError, 1, 0x100}}
	if !all.OK || r.Gaps != 4 || r.GapBytes != 0x4100 || !slices.Equal(r.Reasons, want) {
		t.Fatalf("report %+v", r)
	}
	var text strings.Builder
	if err := all.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"4 gaps, 16640 bytes", "offline: 2 gaps, 12288 bytes", "page flags: read", "2 frames, each of which opens by itself", "missing memory 00102000-00102fff"} {
		if !strings.Contains(text.String(), line) {
			t.Errorf("%q is not in\n%s", line, &text)
		}
	}
}

func TestAnImageOfAnOlderAgentHasNoTable(t *testing.T) {
	m := limeImage(t, Zstd)
	_, table := m.item.Split()
	m.item.Size -= table.Size
	m.item.Parts, m.parts = m.item.Parts[:3], m.parts[:3]
	m.item.SHA256 = Composite(m.item.Parts)
	all, r := verify(t, m.body(), m.item)
	if !all.OK || !slices.Contains(r.Checks, Check{Name: "seek table", OK: true, Detail: "there is none"}) {
		t.Errorf("report %+v", r)
	}
}

// meeting lets nobody read a part until so many are being read.
type meeting struct {
	bucket
	want  int32
	here  atomic.Int32
	begin chan struct{}
}

func (m *meeting) OpenRange(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if m.here.Add(1) == m.want {
		close(m.begin)
	}
	select {
	case <-m.begin:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return m.bucket.OpenRange(ctx, key, offset, length)
}

// TestPartsOfOneImageAreReadSideBySide, as many at a time as is allowed.
func TestPartsOfOneImageAreReadSideBySide(t *testing.T) {
	img := imageOf(t, None, 0x1000, lime.Range{Start: 0, End: 0x9fff})
	m := &meeting{bucket: bucket{img.item.Key: img.body()}, want: 4, begin: make(chan struct{})}
	r, err := Verify(t.Context(), m, Manifest{Items: []Item{img.item}}, Options{Parallel: 4})
	if err != nil || !r.OK {
		t.Errorf("report %+v, %v", r, err)
	}
}

// TestAnyImage: any RAM, part size, lost parts and compression is proven, and
// no byte of it can be changed.
func TestAnyImage(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var ram []lime.Range
		next := uint64(0)
		for range rapid.IntRange(1, 5).Draw(rt, "ranges") {
			start := next + rapid.Uint64Range(0, 9).Draw(rt, "hole")
			end := start + rapid.Uint64Range(0, 500).Draw(rt, "more")
			ram, next = append(ram, lime.Range{Start: start, End: end}), end+1
		}
		c := rapid.SampledFrom([]Compression{None, Zstd}).Draw(rt, "compression")
		m := imageOf(t, c, rapid.Uint64Range(50, 700).Draw(rt, "part"), ram...)
		data, _ := m.item.Split()
		for n := len(data); n > 0 && len(data) > 1; n-- {
			if rapid.IntRange(0, 3).Draw(rt, "lost") == 0 {
				m = m.without(n)
				data, _ = m.item.Split()
			}
		}
		m = m.tabled(t)
		body := m.body()
		all, r := verify(t, body, m.item)
		if !all.OK || !slices.Equal(r.Ranges, lime.Subtract(ram, m.item.Missing())) {
			rt.Fatalf("report %+v", r)
		}
		body[rapid.IntRange(0, len(body)-1).Draw(rt, "byte")] ^= 1
		if all, r := verify(t, body, m.item); all.OK {
			rt.Fatalf("a changed byte is proven: %+v", r)
		}
	})
}

// Whatever the bytes and the sizes of parts are: no panic, and OK only where
// the bytes have the parts' hashes.
func FuzzVerify(f *testing.F) {
	for _, c := range []Compression{None, Zstd} {
		for i, m := range []made{limeImage(f, c), table(f, c), archive(f, c)} {
			f.Add(m.body(), m.item.Parts[0].Size, m.item.Parts[0].RawSize, uint8(i), c == Zstd, false)
		}
		one := imageOf(f, c, 0x1000, lime.Range{Start: 0x1000, End: 0x1fff})
		f.Add(one.body(), one.item.Parts[0].Size, one.item.Parts[0].RawSize, uint8(0), c == Zstd, false)
	}
	f.Fuzz(func(t *testing.T, body []byte, first, raw uint64, format uint8, squeezed, partial bool) {
		item := Item{Key: "k", Format: []Format{LiME, JSONL, Tar}[format%3], Compression: None, Status: Whole, Size: uint64(len(body))}
		if squeezed {
			item.Compression = Zstd
		}
		if partial {
			item.Status = Partial
		}
		cut := min(first, uint64(len(body)))
		item.Parts = []Part{
			{Number: 1, Size: first, RawSize: raw % (1 << 24), SHA256: sha256.Sum256(body[:cut])},
			{Number: 2, Size: uint64(len(body)) - cut, SHA256: sha256.Sum256(body[cut:])},
		}
		if item.Format == LiME { // one part of a page, and its seek table
			item.Kind, item.PartRAMBytes, item.RAM = Memory, 0x1000, []lime.Range{{Start: 0x1000, End: 0x1fff}}
			item.Parts[0].Ranges = item.RAM
		}
		item.SHA256 = Composite(item.Parts)
		all, r := verify(t, body, item)
		if all.OK && (first > uint64(len(body)) || r.Size != uint64(len(body)) || r.Composite != item.SHA256) {
			t.Errorf("proven, but %+v", r)
		}
		if err := all.WriteText(io.Discard); err != nil {
			t.Error(err)
		}
	})
}

// BenchmarkVerify tells the raw bytes of an image that are proven in a second.
func BenchmarkVerify(b *testing.B) {
	const partRAM = 4 << 20
	ram := lime.Range{Start: 0, End: 16*partRAM - 1}
	for _, c := range []Compression{None, Zstd} {
		m := imageOf(b, c, partRAM, ram)
		for i := range lime.Plan(m.item.RAM, partRAM) { // a third of it is noise
			raw := lime.AppendHeader(nil, m.item.Parts[i].Ranges[0])
			noise := rand.NewChaCha8([32]byte{byte(i)})
			page := make([]byte, 4096)
			for n := range partRAM / len(page) {
				clear(page)
				if n%3 == 0 {
					_, _ = noise.Read(page)
				}
				raw = append(raw, page...)
			}
			m.parts[i] = raw
			if c == Zstd {
				m.parts[i] = squeeze(b, raw)
			}
			m.item.Size += uint64(len(m.parts[i])) - m.item.Parts[i].Size
			m.item.Parts[i].Size, m.item.Parts[i].SHA256 = uint64(len(m.parts[i])), sha256.Sum256(m.parts[i])
		}
		m.item.SHA256 = Composite(m.item.Parts)
		m = m.tabled(b)
		objects, manifest := bucket{m.item.Key: m.body()}, Manifest{Items: []Item{m.item}}
		for _, parallel := range []int{1, 2} {
			b.Run(fmt.Sprintf("%s/parallel=%d", c, parallel), func(b *testing.B) {
				b.SetBytes(int64(ram.Len()))
				b.ReportAllocs()
				for b.Loop() {
					if r, err := Verify(b.Context(), objects, manifest, Options{Parallel: parallel}); err != nil || !r.OK {
						b.Fatalf("report %+v, %v", r, err)
					}
				}
			})
		}
	}
}
