package export

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
	"github.com/quicklime-ir/quicklime/proto/seekable"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bucket is a place of one object, whose reads fail after some.
type bucket struct {
	body  []byte
	reads atomic.Int64
	fail  int64 // the read that fails, and those after it; 0 for none
}

var errGone = errors.New("connection reset")

func (b *bucket) Open(context.Context, string) (io.ReadCloser, error) {
	return nil, errors.New("an export reads by ranges")
}

func (b *bucket) OpenRange(_ context.Context, _ string, offset, length int64) (io.ReadCloser, error) {
	if n := b.reads.Add(1); b.fail > 0 && n >= b.fail {
		return nil, errGone
	}
	return io.NopCloser(io.NewSectionReader(bytes.NewReader(b.body), offset, length)), nil
}

// host is a machine's memory, and the image that was stored of it.
type host struct {
	ram   []byte // from address 0 on; holes are zero
	item  evidence.Item
	parts [][]byte
}

func (h host) bucket() *bucket { return &bucket{body: bytes.Join(h.parts, nil)} }

type fataler interface {
	Helper()
	Fatal(...any)
}

// imageOf stores the RAM of a host in parts: noise, and every third page of 4
// KiB zeros.
func imageOf(t fataler, c evidence.Compression, partRAM uint64, ram ...lime.Range) host {
	t.Helper()
	h := host{ram: make([]byte, ram[len(ram)-1].End+1), item: evidence.Item{Kind: evidence.Memory, Name: "memory", Format: evidence.LiME,
		Compression: c, Key: "cases/c1/i-1/memory/memory.lime.zst", Status: evidence.Whole, RAM: ram, PartRAMBytes: partRAM}}
	noise := rand.NewChaCha8([32]byte{1})
	for _, r := range ram {
		_, _ = noise.Read(h.ram[r.Start : r.End+1])
	}
	for page := 0; page*block < len(h.ram); page += 3 {
		clear(h.ram[page*block : min((page+1)*block, len(h.ram))])
	}
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer encoder.Close()
	for n, ranges := range lime.Plan(ram, partRAM) {
		var raw []byte
		for _, r := range ranges {
			raw = append(lime.AppendHeader(raw, r), h.ram[r.Start:r.End+1]...)
		}
		part := evidence.Part{Number: int32(n + 1), RawSize: uint64(len(raw)), Ranges: ranges}
		stored := raw
		if c == evidence.Zstd {
			stored = encoder.EncodeAll(raw, nil)
			part.Frames = []seekable.Frame{{Stored: uint32(len(stored)), Raw: uint32(len(raw))}}
		}
		part.Size, part.SHA256 = uint64(len(stored)), sha256.Sum256(stored)
		h.item.Parts, h.parts = append(h.item.Parts, part), append(h.parts, stored)
	}
	return h.without(t)
}

// without is the image with some parts never stored, and its seek table.
func (h host) without(t fataler, numbers ...int32) host {
	t.Helper()
	var frames []seekable.Frame
	data, _ := h.item.Split()
	parts := h.parts
	h.item.Parts, h.parts, h.item.Size = nil, nil, 0
	for i, p := range data {
		if slices.Contains(numbers, p.Number) {
			h.item.Status = evidence.Partial
			continue
		}
		frames = append(frames, p.Frames...)
		h.item.Parts, h.parts = append(h.item.Parts, p), append(h.parts, parts[i])
		h.item.Size += p.Size
	}
	if number := h.item.TableNumber(); number > 0 && len(frames) > 0 {
		body, err := seekable.AppendTable(nil, frames)
		if err != nil {
			t.Fatal(err)
		}
		h.item.Parts = append(h.item.Parts, evidence.Part{Number: number, Size: uint64(len(body)), SHA256: sha256.Sum256(body)})
		h.parts = append(h.parts, body)
		h.item.Size += uint64(len(body))
	}
	h.item.SHA256 = evidence.Composite(h.item.Parts)
	return h
}

// want is what a format must give: written out without any of the code that
// is tested. Parts in zeroed are there, and are zeros.
func (h host) want(f Format, zeroed ...int32) []byte {
	data, _ := h.item.Split()
	var out []byte
	ram := make([]byte, len(h.ram)) // as it was stored
	for _, p := range data {
		for _, r := range p.Ranges {
			if !slices.Contains(zeroed, p.Number) {
				copy(ram[r.Start:r.End+1], h.ram[r.Start:])
			}
			if f == LiME {
				out = append(lime.AppendHeader(out, r), ram[r.Start:r.End+1]...)
			}
		}
	}
	switch f {
	case Zst:
		return bytes.Join(h.parts, nil)
	case Padded:
		return ram
	case Raw:
		for _, r := range h.item.RAM {
			out = append(out, ram[r.Start:r.End+1]...)
		}
	}
	return out
}

// three is an image of three parts and a bit, over two ranges.
func three(t fataler, c evidence.Compression) host {
	return imageOf(t, c, 0x10000, lime.Range{Start: 0x1000, End: 0x17fff}, lime.Range{Start: 0x40000, End: 0x5abcd})
}

var formats = []Format{LiME, Raw, Padded, Zst}

func TestEachFormat(t *testing.T) {
	for _, h := range []host{three(t, evidence.None), three(t, evidence.Zstd), three(t, evidence.Zstd).without(t, 1), three(t, evidence.None).without(t, 2, 4)} {
		for _, f := range formats {
			if f == Zst && h.item.Compression == evidence.None {
				continue
			}
			t.Run(fmt.Sprintf("%s/%s/%d parts", f, h.item.Compression, len(h.parts)), func(t *testing.T) {
				var out bytes.Buffer
				var last Progress
				r, err := ToStream(t.Context(), h.bucket(), h.item, &out, Options{Format: f, Parallel: 2, Progress: func(p Progress) { last = p }})
				if err != nil || !bytes.Equal(out.Bytes(), h.want(f)) || r.Bytes != uint64(out.Len()) {
					t.Errorf("%d bytes to a pipe, want %d; %v", out.Len(), len(h.want(f)), err)
				}
				if (r.Lacks() == "") != (h.item.Status == evidence.Whole) || last.Done != last.Total || last.Total == 0 {
					t.Errorf("lacks %q, progress %+v", r.Lacks(), last)
				}
				name := filepath.Join(t.TempDir(), "image")
				if _, err := ToFile(t.Context(), h.bucket(), h.item, name, Options{Format: f}); err != nil {
					t.Fatal(err)
				}
				if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, h.want(f)) {
					t.Errorf("%d bytes in a file, want %d; %v", len(got), len(h.want(f)), err)
				}
				if left, err := os.ReadDir(filepath.Dir(name)); err != nil || len(left) != 1 {
					t.Errorf("files %v, %v; want the image alone", left, err)
				}
			})
		}
	}
}

// TestAnyImage: any RAM, part size, lost parts, compression, format, number of
// workers and place where the export was cut off gives the same bytes.
func TestAnyImage(t *testing.T) {
	dir := t.TempDir()
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		var ram []lime.Range
		next := uint64(0)
		for range rapid.IntRange(1, 5).Draw(rt, "ranges") {
			start := next + rapid.Uint64Range(0, 20_000).Draw(rt, "hole")
			end := start + rapid.Uint64Range(0, 30_000).Draw(rt, "more")
			ram, next = append(ram, lime.Range{Start: start, End: end}), end+1
		}
		c := rapid.SampledFrom([]evidence.Compression{evidence.None, evidence.Zstd}).Draw(rt, "compression")
		h := imageOf(rt, c, rapid.Uint64Range(2000, 40_000).Draw(rt, "part"), ram...)
		var lost []int32
		for n := range int32(len(h.parts) - 1) {
			if rapid.IntRange(0, 4).Draw(rt, "lost") == 0 {
				lost = append(lost, n+1)
			}
		}
		h = h.without(rt, lost...)
		f := rapid.SampledFrom(formats).Draw(rt, "format")
		if data, _ := h.item.Split(); len(data) == 0 || f == Zst && c == evidence.None {
			rt.Skip()
		}
		o := Options{Format: f, Parallel: rapid.IntRange(1, 4).Draw(rt, "parallel")}
		var out bytes.Buffer
		if _, err := ToStream(t.Context(), h.bucket(), h.item, &out, o); err != nil || !bytes.Equal(out.Bytes(), h.want(f)) {
			rt.Fatalf("stream of %d bytes, want %d; %v", out.Len(), len(h.want(f)), err)
		}
		n++
		name := filepath.Join(dir, fmt.Sprint(n))
		cut := h.bucket()
		cut.fail = rapid.Int64Range(1, int64(len(h.parts))+1).Draw(rt, "cut")
		if _, err := toFile(t.Context(), cut, h.item, name, o, rapid.Uint64Range(1, 50_000).Draw(rt, "checkpoint")); err != nil {
			if !errors.Is(err, errGone) {
				rt.Fatal(err)
			}
			if _, err := ToFile(t.Context(), h.bucket(), h.item, name, o); err != nil {
				rt.Fatal(err)
			}
		}
		if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, h.want(f)) {
			rt.Fatalf("file of %d bytes, want %d; %v", len(got), len(h.want(f)), err)
		}
	})
}

// TestAnExportGoesOn after each part, and reads none of those before again.
func TestAnExportGoesOn(t *testing.T) {
	for _, f := range formats {
		h := three(t, evidence.Zstd)
		parts := int64(len(h.parts)) - 1
		if f == Zst {
			parts++
		}
		for written := range parts + 1 {
			t.Run(fmt.Sprintf("%s/%d", f, written), func(t *testing.T) {
				name := filepath.Join(t.TempDir(), "image")
				cut := h.bucket()
				cut.fail = written + 1
				o := Options{Format: f, Parallel: 1}
				if _, err := ToFile(t.Context(), cut, h.item, name, o); (err == nil) != (written == parts) {
					t.Fatalf("cut off at read %d: %v", cut.fail, err)
				}
				if written == parts {
					return
				}
				if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("an export that was cut off has its name: %v", err)
				}
				// What was written since the last word of it is written again.
				part, err := os.OpenFile(name+".part", os.O_WRONLY|os.O_APPEND, 0)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := part.WriteString("half a piece"); err != nil || part.Close() != nil {
					t.Fatal(err)
				}
				rest := h.bucket()
				r, err := ToFile(t.Context(), rest, h.item, name, o)
				if err != nil {
					t.Fatal(err)
				}
				got, err := os.ReadFile(name)
				if err != nil || !bytes.Equal(got, h.want(f)) || r.Resumed != int(written) || rest.reads.Load() != parts-written {
					t.Errorf("%d bytes, want %d; went on after %d parts with %d reads; %v", len(got), len(h.want(f)), r.Resumed, rest.reads.Load(), err)
				}
			})
		}
	}
}

func TestWhatIsThereIsNotWrittenOver(t *testing.T) {
	h := three(t, evidence.Zstd)
	put := func(t *testing.T, name, text string) {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name  string
		begin func(t *testing.T, name string)
		want  string
	}{
		{"a file", func(t *testing.T, name string) { put(t, name, "mine") }, "it is there already"},
		{"a link to nothing", func(t *testing.T, name string) {
			if err := os.Symlink("nowhere", name); err != nil {
				t.Fatal(err)
			}
		}, "it is there already"},
		{"a part that nobody told of", func(t *testing.T, name string) { put(t, name+".part", "mine") }, "cannot go on with"},
		{"a part that is a link", func(t *testing.T, name string) {
			put(t, name+".elsewhere", "mine")
			if err := os.Symlink(name+".elsewhere", name+".part"); err != nil {
				t.Fatal(err)
			}
		}, "too many levels of symbolic links"},
		{"a part of another format", func(t *testing.T, name string) {
			cut := h.bucket()
			cut.fail = 3
			if _, err := ToFile(t.Context(), cut, h.item, name, Options{Format: LiME, Parallel: 1}); !errors.Is(err, errGone) {
				t.Fatal(err)
			}
		}, "is of another export, of cases/c1/i-1/memory/memory.lime.zst with format lime"},
		{"a part that is shorter than was told", func(t *testing.T, name string) {
			put(t, name+".part", "mine")
			text, err := json.Marshal(state{Key: h.item.Key, SHA256: h.item.SHA256, Format: Raw, place: place{Parts: 1, Offset: 0x10000}})
			if err != nil {
				t.Fatal(err)
			}
			put(t, name+".part.json", string(text))
		}, "has 4 bytes and"},
		{"a part whose word is damaged", func(t *testing.T, name string) {
			put(t, name+".part", "mine")
			put(t, name+".part.json", "{")
		}, "remove both"},
		{"a part that another export writes", func(t *testing.T, name string) {
			f, err := os.OpenFile(name+".part", os.O_CREATE|os.O_RDWR, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
				t.Fatal(err)
			}
		}, "another export writes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "image")
			tt.begin(t, name)
			if _, err := ToFile(t.Context(), h.bucket(), h.item, name, Options{Format: Raw}); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			for _, mine := range []string{name, name + ".part", name + ".elsewhere"} {
				if text, err := os.ReadFile(mine); err == nil && len(text) == 4 && string(text) != "mine" {
					t.Errorf("%s was written over: %q", mine, text)
				}
			}
		})
	}
}

// TestTwoWantTheName: whoever is there first keeps it.
func TestTwoWantTheName(t *testing.T) {
	h := three(t, evidence.Zstd)
	name := filepath.Join(t.TempDir(), "image")
	quick := func(p Progress) {
		if p.Done == p.Total {
			if err := os.WriteFile(name, []byte("mine"), 0o600); err != nil {
				t.Error(err)
			}
		}
	}
	if _, err := ToFile(t.Context(), h.bucket(), h.item, name, Options{Format: LiME, Progress: quick}); !errors.Is(err, os.ErrExist) {
		t.Errorf("error %v", err)
	}
	if text, err := os.ReadFile(name); err != nil || string(text) != "mine" {
		t.Errorf("%d bytes, %v", len(text), err)
	}
}

// TestHolesAreHoles: zeros take no room in a file.
func TestHolesAreHoles(t *testing.T) {
	h := imageOf(t, evidence.Zstd, 4<<20, lime.Range{Start: 0, End: 0xffff}, lime.Range{Start: 32 << 20, End: 32<<20 + 0xffff})
	name := filepath.Join(t.TempDir(), "image")
	if _, err := ToFile(t.Context(), h.bucket(), h.item, name, Options{Format: Padded}); err != nil {
		t.Fatal(err)
	}
	var info syscall.Stat_t
	if err := syscall.Stat(name, &info); err != nil || info.Size != 32<<20+0x10000 || info.Blocks*512 > 1<<20 {
		t.Errorf("%d bytes in %d blocks of 512, %v; want holes", info.Size, info.Blocks, err)
	}
}

// TestAPartThatFails is named, and stops the export unless it is to keep
// going.
func TestAPartThatFails(t *testing.T) {
	restored := func(h host, n int, stored []byte) host { // as if an agent had stored it
		h.parts, h.item.Parts = slices.Clone(h.parts), slices.Clone(h.item.Parts)
		p := &h.item.Parts[n-1]
		h.item.Size += uint64(len(stored)) - p.Size
		h.parts[n-1], p.Size, p.SHA256 = stored, uint64(len(stored)), sha256.Sum256(stored)
		h.item.SHA256 = evidence.Composite(h.item.Parts)
		return h
	}
	plain, packed := three(t, evidence.None), three(t, evidence.Zstd)
	record := func(start, end uint64) []byte {
		return append(lime.AppendHeader(nil, lime.Range{Start: start, End: end}), make([]byte, end-start+1)...)
	}
	tests := []struct {
		name   string
		host   host
		damage func([]byte) []byte
		want   string
		kind   error
	}{
		{"a byte is another", plain, func(b []byte) []byte { b[0x10000+5000] ^= 1; return b }, "cannot export part 2: evidence does not hold: its SHA-256 is", ErrFault},
		{"the object is cut", packed, func(b []byte) []byte { return b[:len(packed.parts[0])+9] }, "cannot export part 2: evidence does not hold: the object is cut after 9", ErrFault},
		{"a part is no zstd", restored(packed, 2, []byte("this is no frame, and yet has its hash")), nil, "part 2: evidence does not hold", ErrFault},
		{"a record holds memory of another part", restored(plain, 2, record(0x1000, 0x10fff)), nil, "record 00001000-00010fff holds other memory", ErrFault},
		{"a record is longer than the part's memory", restored(plain, 2, record(0x11000, 0x18fff)), nil, "holds other memory", ErrFault},
		{"a record is missing", restored(plain, 2, record(0x11000, 0x17fff)), nil, "it ends before 00040000-00048fff", ErrFault},
		{"a record is cut", restored(plain, 2, record(0x11000, 0x17fff)[:999]), nil, "unexpected EOF", ErrFault},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := tt.host.bucket()
			if tt.damage != nil {
				b.body = tt.damage(b.body)
			}
			for _, f := range []Format{LiME, Raw, Padded} {
				var out bytes.Buffer
				_, err := ToStream(t.Context(), b, tt.host.item, &out, Options{Format: f, Parallel: 2})
				if err == nil || !strings.Contains(err.Error(), tt.want) || !errors.Is(err, tt.kind) {
					t.Errorf("%s: error %v, want %q", f, err, tt.want)
				}
				if !bytes.HasPrefix(tt.host.want(f), out.Bytes()) {
					t.Errorf("%s: bytes of the part that fails are written", f)
				}
				out.Reset()
				r, err := ToStream(t.Context(), b, tt.host.item, &out, Options{Format: f, KeepGoing: true})
				first := r.Faulty[0]
				if err != nil || first.Part != 2 || !strings.Contains(r.Lacks(), "part 2") {
					t.Fatalf("%s: %+v, error %v", f, r, err)
				}
				if want := tt.host.want(f); out.Len() != len(want) {
					t.Errorf("%s: %d bytes, want %d", f, out.Len(), len(want))
				} else if strings.Contains(tt.name, "byte") && !bytes.Equal(out.Bytes(), tt.host.want(f, 2)) {
					t.Errorf("%s: a part that fails is not zeros", f)
				}
				if f == LiME {
					if got, err := lime.Walk(&out); err != nil || !slices.Equal(lime.Merge(got), tt.host.item.RAM) {
						t.Errorf("the image has %v, %v", got, err)
					}
				}
			}
		})
	}
}

// TestAFaultIsRemembered by an export that was cut off after it.
func TestAFaultIsRemembered(t *testing.T) {
	h := three(t, evidence.None)
	h.parts[0] = bytes.Clone(h.parts[0])
	h.parts[0][99] ^= 1
	name := filepath.Join(t.TempDir(), "image")
	stop, cancel := context.WithCancelCause(t.Context())
	o := Options{Format: Raw, Parallel: 1, KeepGoing: true}
	o.Progress = func(p Progress) {
		if p.Done >= 0x20000 {
			cancel(errGone)
		}
	}
	if _, err := ToFile(stop, h.bucket(), h.item, name, o); !errors.Is(err, errGone) {
		t.Fatal(err)
	}
	r, err := ToFile(t.Context(), h.bucket(), h.item, name, Options{Format: Raw})
	if err != nil || r.Resumed == 0 || len(r.Faulty) != 1 || r.Faulty[0].Part != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, h.want(Raw, 1)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// TestAPartThatIsTooLargeToHold is hashed first, and then read again.
func TestAPartThatIsTooLargeToHold(t *testing.T) {
	h := imageOf(t, evidence.None, 40<<20, lime.Range{Start: 0, End: 41<<20 - 1})
	b := h.bucket()
	sum := sha256.New()
	if _, err := ToStream(t.Context(), b, h.item, sum, Options{Format: LiME, Parallel: 1}); err != nil {
		t.Fatal(err)
	}
	if want := sha256.Sum256(h.want(LiME)); !bytes.Equal(sum.Sum(nil), want[:]) || b.reads.Load() != 3 {
		t.Errorf("other bytes, or %d reads, want 3", b.reads.Load())
	}
	fickle := &fickle{bucket: h.bucket()}
	_, err := ToStream(t.Context(), fickle, h.item, io.Discard, Options{Format: LiME, Parallel: 1, KeepGoing: true})
	if !errors.Is(err, errChanged) || !strings.Contains(err.Error(), "part 1") {
		t.Errorf("a part that changed between the two reads: %v", err)
	}
}

// fickle gives other bytes from the second read on.
type fickle struct{ *bucket }

func (f *fickle) OpenRange(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if f.reads.Load() == 1 {
		f.body = bytes.Clone(f.body)
		f.body[30<<20] ^= 1
	}
	return f.bucket.OpenRange(ctx, key, offset, length)
}

// TestAReadThatFailsOnce is done again.
func TestAReadThatFailsOnce(t *testing.T) {
	h := three(t, evidence.Zstd)
	f := &flaky{bucket: h.bucket()}
	var out bytes.Buffer
	if _, err := ToStream(t.Context(), f, h.item, &out, Options{Format: LiME}); err != nil || !bytes.Equal(out.Bytes(), h.want(LiME)) {
		t.Errorf("%d bytes, %v", out.Len(), err)
	}
}

// flaky breaks every second read in its middle.
type flaky struct{ *bucket }

func (f *flaky) OpenRange(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	r, err := f.bucket.OpenRange(ctx, key, offset, length)
	if f.reads.Load()%2 == 1 {
		return io.NopCloser(io.MultiReader(io.LimitReader(r, length/2), broken{})), err
	}
	return r, err
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errGone }

// TestAReaderThatGoes ends the export, and all that it started.
func TestAReaderThatGoes(t *testing.T) {
	h := three(t, evidence.Zstd)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = io.CopyN(io.Discard, r, 70_000)
		r.Close()
	}()
	if _, err := ToStream(t.Context(), h.bucket(), h.item, w, Options{Format: LiME}); !errors.Is(err, ErrReader) {
		t.Errorf("error %v", err)
	}
	w.Close()
}

// TestAPipe takes what a slow reader takes, to the last byte.
func TestAPipe(t *testing.T) {
	h := three(t, evidence.Zstd)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan []byte, 1)
	go func() {
		all, _ := io.ReadAll(r)
		got <- all
	}()
	_, err = ToStream(t.Context(), h.bucket(), h.item, w, Options{Format: Padded, Parallel: 3})
	w.Close()
	if all := <-got; err != nil || !bytes.Equal(all, h.want(Padded)) {
		t.Errorf("%d bytes, %v", len(all), err)
	}
}

func TestWhatIsRefused(t *testing.T) {
	change := func(do func(*evidence.Item)) evidence.Item {
		h := three(t, evidence.None)
		do(&h.item)
		return h.item
	}
	for want, item := range map[string]evidence.Item{
		"it is no memory image":      change(func(i *evidence.Item) { i.Kind = evidence.Live }),
		"its manifest does not hold": change(func(i *evidence.Item) { i.Parts[0].Ranges = i.Parts[1].Ranges }),
		"nothing of it was stored":   change(func(i *evidence.Item) { i.Parts, i.Size, i.Status = nil, 0, evidence.Partial }),
		"is none that S3 could have": change(func(i *evidence.Item) { i.Parts[1].RawSize = math.MaxUint64 }),
		"is beyond what a file can have": change(func(i *evidence.Item) {
			i.RAM[1].End, i.PartRAMBytes, i.Parts = math.MaxUint64-1, 1<<62, nil
			i.Parts = append(i.Parts, evidence.Part{Number: 1, Size: 9, RawSize: 9, Ranges: lime.Planned(i.RAM, 1<<62, 1)})
			i.Size, i.Status = 9, evidence.Partial
		}),
		"it is stored without": change(func(*evidence.Item) {}),
	} {
		if _, err := ToStream(t.Context(), nil, item, nil, Options{Format: Zst}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	h := three(t, evidence.Zstd)
	for want, o := range map[string]Options{"is unknown": {Format: "elf"}, "no zeros": {Format: Zst, KeepGoing: true}} {
		if _, err := ToStream(t.Context(), nil, h.item, nil, o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

func TestMeter(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(0, 0)
	m := &Meter{out: &out, now: func() time.Time { return now }}
	const mib = 1 << 20
	m.Show(Progress{100 * mib, 700 * mib}) // what was there
	now = now.Add(time.Millisecond)
	m.Show(Progress{101 * mib, 700 * mib}) // too soon
	now = now.Add(2*time.Second - time.Millisecond)
	m.Show(Progress{300 * mib, 700 * mib})
	now = now.Add(4 * time.Second)
	m.Show(Progress{700 * mib, 700 * mib})
	m.End()
	want := "\r\x1b[K100.0 MiB of 700.0 MiB\r\x1b[K300.0 MiB of 700.0 MiB, 100.0 MiB/s, 4s left\r\x1b[K700.0 MiB of 700.0 MiB, 100.0 MiB/s, 0s left\n"
	if out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	none := NewMeter(f)
	none.Show(Progress{1, 2})
	none.End()
	if none != nil {
		t.Error("a file is taken for a terminal")
	}
}

// FuzzPart: whatever bytes have the part's hash, no byte of output lies
// outside the part's memory, and the output is as long as it must be.
func FuzzPart(f *testing.F) {
	for _, c := range []evidence.Compression{evidence.None, evidence.Zstd} {
		h := imageOf(f, c, 0x1000, lime.Range{Start: 0x800, End: 0xfff}, lime.Range{Start: 0x2000, End: 0x27ff})
		f.Add(h.parts[0], c == evidence.Zstd, h.item.Parts[0].RawSize)
	}
	f.Fuzz(func(t *testing.T, stored []byte, squeezed bool, raw uint64) {
		if len(stored) == 0 {
			return
		}
		h := imageOf(t, evidence.None, 0x1000, lime.Range{Start: 0x800, End: 0xfff}, lime.Range{Start: 0x2000, End: 0x27ff})
		if squeezed {
			h.item.Compression = evidence.Zstd
		}
		h.item.Parts = []evidence.Part{{Number: 1, Size: uint64(len(stored)), RawSize: raw % (1 << 20), SHA256: sha256.Sum256(stored), Ranges: h.item.RAM}}
		h.item.Size, h.item.Status = uint64(len(stored)), evidence.Partial
		for _, format := range []Format{LiME, Raw, Padded} {
			var out bytes.Buffer
			_, err := ToStream(t.Context(), &bucket{body: stored}, h.item, &out, Options{Format: format, KeepGoing: true, Parallel: 1})
			if err != nil {
				t.Fatal(err)
			}
			switch format {
			case LiME:
				if got, err := lime.Walk(&out); err != nil || !slices.Equal(lime.Merge(got), h.item.RAM) {
					t.Fatalf("image of %v, %v", got, err)
				}
			case Raw:
				if out.Len() != 0x1000 {
					t.Fatalf("%d bytes", out.Len())
				}
			case Padded:
				all := out.Bytes()
				if len(all) != 0x2800 || !isZero(all[:0x800]) || !isZero(all[0x1000:0x2000]) {
					t.Fatalf("%d bytes, or holes that are not zero", len(all))
				}
			}
		}
	})
}

// BenchmarkExport tells the bytes of RAM that are exported in a second.
func BenchmarkExport(b *testing.B) {
	h := imageOf(b, evidence.Zstd, 8<<20, lime.Range{Start: 0, End: 128<<20 - 1})
	objects := h.bucket()
	for _, parallel := range []int{1, 2} {
		b.Run(fmt.Sprintf("parallel=%d", parallel), func(b *testing.B) {
			b.SetBytes(128 << 20)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := ToStream(b.Context(), objects, h.item, io.Discard, Options{Format: LiME, Parallel: parallel}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
