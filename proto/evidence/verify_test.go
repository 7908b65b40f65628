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
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"

	"github.com/quicklime-ir/quicklime/proto/lime"
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

// image is a LiME image of three parts; the second range is split.
func image(t testing.TB, c Compression) made {
	ranges := []lime.Range{{Start: 0x1000, End: 0x2fff}, {Start: 0x100000, End: 0x100fff}, {Start: 0x101000, End: 0x102fff}}
	var raw [][]byte
	for i, r := range ranges {
		raw = append(raw, append(lime.AppendHeader(nil, r), bytes.Repeat([]byte{byte(i + 1)}, int(r.Len()))...))
	}
	m := store(t, "memory", LiME, c, raw...)
	m.item.Kind = Memory
	m.item.RAM = []lime.Range{{Start: 0x1000, End: 0x2fff}, {Start: 0x100000, End: 0x102fff}}
	for i, r := range ranges {
		m.item.Parts[i].Ranges = []lime.Range{r}
	}
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
		for _, m := range []made{image(t, c), table(t, c), archive(t, c), store(t, "empty", JSONL, Zstd, nil)} {
			t.Run(m.item.FileName(), func(t *testing.T) {
				all, r := verify(t, m.body(), m.item)
				if !all.OK || !r.OK() {
					t.Fatalf("not proven: %+v", r.Checks)
				}
				sum := sha256.Sum256(m.body())
				if r.SHA256 != hex.EncodeToString(sum[:]) || r.Composite != m.item.SHA256 || r.Size != m.item.Size {
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
	}
	for _, c := range []struct {
		name   string
		m      made
		damage func(m *made) []byte
		check  string
		detail string
	}{
		{"a byte is flipped", image(t, None), func(m *made) []byte {
			b := m.body()
			b[m.item.Parts[0].Size+100] ^= 1
			return b
		}, "part 2", "its SHA-256 is"},
		{"a byte is flipped in a frame", table(t, Zstd), func(m *made) []byte {
			b := m.body()
			b[12] ^= 1
			return b
		}, "part 1", "its SHA-256 is"},
		{"the object is cut inside a part", image(t, Zstd), func(m *made) []byte {
			return m.body()[:m.item.Parts[0].Size+5]
		}, "part 2", fmt.Sprintf("is cut after 5 of its %d bytes, and 1 more", image(t, Zstd).item.Parts[1].Size)},
		{"the object is cut between parts", image(t, None), func(m *made) []byte {
			return m.body()[:m.item.Parts[0].Size]
		}, "part 2", "is cut after 0 of its"},
		{"the object is empty", table(t, None), func(*made) []byte { return nil }, "part 1", "after 0 of its"},
		{"there is a byte too many", image(t, None), func(m *made) []byte { return append(m.body(), 0) }, "end", "bytes after part 3"},
		{"two parts are swapped", table(t, None), func(m *made) []byte {
			m.parts[1], m.parts[2] = []byte("{\"a\":7}\n{}\n"), []byte("{\"b\":8}\n{}\n")
			for i := range m.parts {
				m.item.Parts[i].RawSize = uint64(len(m.parts[i]))
			}
			rehash(m)
			return bytes.Join([][]byte{m.parts[0], m.parts[2], m.parts[1]}, nil)
		}, "part 2", "these are the bytes of part 3"},
		{"the object is missing", image(t, None), func(m *made) []byte {
			m.item.Key = "cases/elsewhere"
			return nil
		}, "object", `"cases/elsewhere"`},
		{"the memory is not what the manifest says", image(t, Zstd), func(m *made) []byte {
			m.item.RAM[0].End += 0x1000
			m.item.Parts[0].Ranges[0].End += 0x1000
			return m.body()
		}, "lime", "1 ranges lack, first 00003000-00003fff"},
		{"the image has more memory than the host", image(t, None), func(m *made) []byte {
			m.item.RAM[1].End -= 0x1000
			m.item.Parts[2].Ranges[0].End -= 0x1000
			return m.body()
		}, "lime", "1 are too many, first 00102000-00102fff"},
		{"a record is cut", image(t, None), func(m *made) []byte {
			m.parts[2] = m.parts[2][:1000]
			m.item.Parts[2].RawSize = 1000
			rehash(m)
			return m.body()
		}, "lime", "unexpected EOF"},
		{"a record is no record", image(t, Zstd), func(m *made) []byte {
			m.parts[1] = squeeze(t, bytes.Repeat([]byte("x"), 0x1000+32))
			rehash(m)
			return m.body()
		}, "lime", "after 1 records, last 00001000-00002fff: not a LiME v1 image"},
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
		{"an image without its middle", image(t, Zstd).without(2), "2 records walked to the end"},
		{"an image without its start", image(t, None).without(1), "2 records"},
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
	item := Item{Kind: Memory, Format: LiME, Compression: Zstd, Key: "k", Status: Partial, Error: "no agent", RAM: []lime.Range{{Start: 0, End: 0xfff}}}
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

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestAReadThatFailsIsNoProof(t *testing.T) {
	for _, m := range []made{table(t, None), table(t, None).without(3), archive(t, None).without(3), image(t, Zstd)} {
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
	m := image(t, None)
	endless := readerFunc(func(p []byte) (int, error) { cancel(reason); return len(p), nil })
	m.item.Parts[2].Size = math.MaxUint64
	open := openFunc(func() io.ReadCloser { return io.NopCloser(endless) })
	if _, err := Verify(ctx, open, Manifest{Items: []Item{m.item}}, Options{}); !errors.Is(err, reason) {
		t.Errorf("error = %v", err)
	}
}

type openFunc func() io.ReadCloser

func (f openFunc) Open(context.Context, string) (io.ReadCloser, error) { return f(), nil }

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

// Whatever the bytes and the sizes of parts are: no panic, and OK only where
// the bytes have the parts' hashes.
func FuzzVerify(f *testing.F) {
	for _, c := range []Compression{None, Zstd} {
		for i, m := range []made{image(f, c), table(f, c), archive(f, c)} {
			f.Add(m.body(), m.item.Parts[0].Size, m.item.Parts[0].RawSize, uint8(i), c == Zstd, false)
		}
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
