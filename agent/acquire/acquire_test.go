package acquire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"

	"github.com/quicklime-ir/quicklime/agent/artifact"
	"github.com/quicklime-ir/quicklime/agent/memory"
	"github.com/quicklime-ir/quicklime/agent/pack"
	"github.com/quicklime-ir/quicklime/agent/upload"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shelf is a place in memory, which outlives an acquirer as a bucket does.
type shelf struct {
	mu    sync.Mutex
	items map[string]*box // owned by mu
	fail  map[string]error
	after int   // parts until broken says so; owned by mu
	err   error // of every Put after that
}

// box is one item of the shelf.
type box struct {
	shelf  *shelf
	item   evidence.Item
	parts  map[int32][]byte // owned by shelf.mu
	closed bool
	why    error
	total  int32
	puts   int
}

func newShelf() *shelf {
	return &shelf{items: map[string]*box{}, fail: map[string]error{}, after: 1 << 30}
}

func (s *shelf) Open(_ context.Context, item evidence.Item) (Slot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.fail[item.Name]; err != nil {
		return nil, err
	}
	if s.items[item.Name] == nil {
		s.items[item.Name] = &box{shelf: s, item: item, parts: map[int32][]byte{}}
	}
	return s.items[item.Name], nil
}

func (b *box) Closed() bool { return b.closed && b.why == nil }

func (b *box) Has(n int32) bool {
	b.shelf.mu.Lock()
	defer b.shelf.mu.Unlock()
	return b.parts[n] != nil
}

func (b *box) Put(_ context.Context, p pack.Part) error {
	b.shelf.mu.Lock()
	defer b.shelf.mu.Unlock()
	if b.shelf.after--; b.shelf.after < 0 {
		return b.shelf.err
	}
	b.puts++
	b.parts[p.Number] = slices.Clone(p.Bytes)
	return nil
}

func (b *box) Close(_ context.Context, parts int32, why error) error {
	b.shelf.mu.Lock()
	defer b.shelf.mu.Unlock()
	b.closed, b.why, b.total = true, why, parts
	return nil
}

// bytes joins the parts, as S3 does, and decompresses them.
func (b *box) bytes(t testing.TB) []byte {
	t.Helper()
	var joined []byte
	for n := int32(1); n <= b.total; n++ {
		joined = append(joined, b.parts[n]...)
	}
	if b.item.Compression == evidence.None {
		return joined
	}
	d, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	out, err := d.DecodeAll(joined, nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// host is an acquirer whose memory is an image of two ranges, 33 MiB: three parts, of which the first has most of what does not compress.
func host(t *testing.T) (*Acquirer, map[uint64][]byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "memory.lime")
	ranges := []lime.Range{{Start: 0x1000, End: 0x9fbff}, {Start: 0x100000, End: 0x21fffff}}
	content := map[uint64][]byte{}
	var image []byte
	random := rand.NewChaCha8([32]byte{7})
	for _, r := range ranges {
		b := make([]byte, r.Len())
		random.Read(b[:len(b)/4])
		content[r.Start] = b
		image = append(lime.AppendHeader(image, r), b...)
	}
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "var/log"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "var/log/syslog"), []byte("line\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	return &Acquirer{Memory: memory.Options{File: path}, Host: &artifact.Host{Root: root, Log: log}, Log: log}, content
}

func memoryOrder(c evidence.Compression) Order {
	return Order{Kind: evidence.Memory, MemorySource: "file", Compression: c}
}

func silent(Progress) {}

// same holds an image against the memory that it must have.
func same(t *testing.T, image []byte, content map[uint64][]byte) {
	t.Helper()
	r := lime.NewReader(bytes.NewReader(image))
	got := map[uint64][]byte{}
	var start, end uint64
	for {
		rng, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if rng.Start != end+1 {
			start = rng.Start
		}
		end = rng.End
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got[start] = append(got[start], b...)
	}
	if len(got) != len(content) {
		t.Errorf("%d ranges, want %d", len(got), len(content))
	}
	for start, want := range content {
		if !bytes.Equal(got[start], want) {
			t.Errorf("the memory from %x has other bytes", start)
		}
	}
}

func TestTheImageIsTheMemory(t *testing.T) {
	for _, c := range []evidence.Compression{evidence.Zstd, evidence.None} {
		t.Run(string(c), func(t *testing.T) {
			a, content := host(t)
			s := newShelf()
			var last Progress
			r := a.Run(t.Context(), memoryOrder(c), s, func(p Progress) { last = p })
			if r.Err != nil || r.Status != evidence.Whole || r.Source != "file" {
				t.Fatalf("result %+v", r)
			}
			b := s.items["memory"]
			same(t, b.bytes(t), content)
			if last.Read != last.Total || last.Parts != uint32(len(b.parts)) || last.Total != 0x9ec00+0x2100000 {
				t.Errorf("progress ended at %+v", last)
			}
			for n := int32(1); n < b.total; n++ {
				if len(b.parts[n]) < evidence.MinPartBytes {
					t.Errorf("part %d has %d bytes, S3 wants %d", n, len(b.parts[n]), evidence.MinPartBytes)
				}
			}
		})
	}
}

// TestAnInterruptedImageGoesOn loses its place after two parts; the next run
// stores the others, and no part twice.
func TestAnInterruptedImageGoesOn(t *testing.T) {
	a, content := host(t)
	s := newShelf()
	s.after, s.err = 2, errors.New("the network is gone")
	r := a.Run(t.Context(), memoryOrder(evidence.Zstd), s, silent)
	if r.Status != evidence.Partial || !errors.Is(r.Err, s.err) {
		t.Fatalf("result %+v", r)
	}
	if b := s.items["memory"]; !b.closed || b.why == nil || len(b.parts) != 2 {
		t.Fatalf("closed %v (%v) with %d parts", b.closed, b.why, len(b.parts))
	}
	s.after = 1 << 30
	if r := a.Run(t.Context(), memoryOrder(evidence.Zstd), s, silent); r.Err != nil || r.Status != evidence.Whole {
		t.Fatalf("second result %+v", r)
	}
	b := s.items["memory"]
	same(t, b.bytes(t), content)
	if b.puts != int(b.total) {
		t.Errorf("%d parts were stored %d times", b.total, b.puts)
	}
}

func TestACancelledImageSaysWhy(t *testing.T) {
	a, _ := host(t)
	s := newShelf()
	ctx, cancel := context.WithCancelCause(t.Context())
	r := a.Run(ctx, memoryOrder(evidence.Zstd), s, func(p Progress) {
		if p.Read > 4<<20 {
			cancel(errors.New("cancelled by the collector: too slow"))
		}
	})
	if r.Status != evidence.Partial || r.Err == nil || !strings.Contains(r.Err.Error(), "too slow") {
		t.Errorf("result %+v", r)
	}
	if b := s.items["memory"]; !b.closed || b.why == nil {
		t.Error("the item was not closed as partial")
	}
}

func TestArtifacts(t *testing.T) {
	a, _ := host(t)
	s := newShelf()
	s.fail["routes"] = errors.New("refused: no room")
	r := a.Run(t.Context(), Order{Kind: evidence.Volatile, Compression: evidence.Zstd}, s, silent)
	if r.Status != evidence.Partial || !strings.Contains(r.Err.Error(), "routes") {
		t.Errorf("result %+v; want partial, as routes could not be stored", r)
	}
	for _, table := range a.Host.Volatile() {
		if b := s.items[table.Name]; table.Name != "routes" && (b == nil || !b.closed || b.why != nil) {
			t.Errorf("table %s is not stored", table.Name)
		}
	}
	if b := s.items[collection]; b == nil || !bytes.Contains(b.bytes(t), []byte(`"source":"summary"`)) {
		t.Error("the record of the collection is not stored")
	}

	s = newShelf()
	if r := a.Run(t.Context(), Order{Kind: evidence.Live, Compression: evidence.Zstd}, s, silent); r.Err != nil {
		t.Fatalf("live: %+v", r)
	}
	if b := s.items["files"].bytes(t); !bytes.Contains(b, []byte("[root]/var/log/syslog")) {
		t.Error("the log is not in the tar")
	}
	if b := s.items["bodyfile"].bytes(t); !bytes.Contains(b, []byte("0|/var/log/syslog|")) {
		t.Error("the log is not in the bodyfile")
	}
}

func TestSymbols(t *testing.T) {
	a, _ := host(t)
	s := newShelf()
	if r := a.Run(t.Context(), Order{Kind: evidence.Symbols, Compression: evidence.Auto}, s, silent); r.Err != nil || r.Status != evidence.Whole {
		t.Fatalf("result %+v", r)
	}
	if b := s.items["symbols"]; b == nil || !b.closed || b.why != nil || !bytes.Contains(b.bytes(t), []byte("bundle.json")) {
		t.Error("the bundle is not stored")
	}

	s = newShelf()
	s.fail["symbols"] = errors.New("refused: no room")
	if r := a.Run(t.Context(), Order{Kind: evidence.Symbols, Compression: evidence.None}, s, silent); r.Status != "" || r.Err == nil {
		t.Errorf("result %+v; want that nothing was stored", r)
	}
}

func TestAFolder(t *testing.T) {
	a, content := host(t)
	dir := t.TempDir()
	f := &Folder{Dir: dir}
	if r := a.Run(t.Context(), memoryOrder(evidence.None), f, silent); r.Err != nil {
		t.Fatal(r.Err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(filepath.Join(dir, "memory", "memory.lime"))
	if err != nil {
		t.Fatal(err)
	}
	same(t, image, content)
	if list, err := os.ReadFile(filepath.Join(dir, "items.json")); err != nil || !bytes.Contains(list, []byte(`"status": "whole"`)) {
		t.Errorf("items.json: %s, %v", list, err)
	}
	if r := a.Run(t.Context(), memoryOrder(evidence.None), &Folder{Dir: dir}, silent); r.Err == nil || !strings.Contains(r.Err.Error(), "exists") {
		t.Errorf("a second run into the same folder: %+v", r)
	}
}

func TestAStreamTakesOneItem(t *testing.T) {
	a, content := host(t)
	var out bytes.Buffer
	s := &Stream{Out: &out}
	if r := a.Run(t.Context(), memoryOrder(evidence.None), s, silent); r.Err != nil {
		t.Fatal(r.Err)
	}
	same(t, out.Bytes(), content)
	if r := a.Run(t.Context(), memoryOrder(evidence.None), s, silent); r.Err == nil {
		t.Error("a second item was taken")
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestABrokenPipeEndsTheStream(t *testing.T) {
	a, _ := host(t)
	if r := a.Run(t.Context(), memoryOrder(evidence.None), &Stream{Out: brokenPipe{}}, silent); !errors.Is(r.Err, io.ErrClosedPipe) {
		t.Errorf("result %+v", r)
	}
}

// book is a ledger that remembers how an item was closed.
type book struct {
	closed bool
	reason string
}

func (b *book) OpenItem(context.Context, string, evidence.Item) (string, []evidence.Part, bool, error) {
	return "memory.memory", []evidence.Part{{Number: 2}}, false, nil
}

func (b *book) GrantPart(context.Context, string, string, pack.Part) (upload.Grant, error) {
	return upload.Grant{Stored: true}, nil
}

func (b *book) CloseItem(_ context.Context, _, _ string, _ int32, reason string) error {
	b.closed, b.reason = true, reason
	return nil
}

// TestWhoClosesAnItemInTheBucket: an order that failed closes it, an agent
// that only ends leaves it to its successor.
func TestWhoClosesAnItemInTheBucket(t *testing.T) {
	tests := []struct {
		name   string
		why    error
		closed bool
		reason string
	}{
		{"all of it was read", nil, true, ""},
		{"the collector cancelled it", errors.New("cancelled by the collector: too slow"), true, "cancelled by the collector: too slow"},
		{"the agent is told to end", fmt.Errorf("cannot store part 3: %w", context.Canceled), false, ""},
	}
	for _, tt := range tests {
		b := &book{}
		s, err := Bucket{Ledger: b, Order: "c/memory"}.Open(t.Context(), evidence.Item{})
		if err != nil || !s.Has(2) || s.Has(1) || s.Closed() {
			t.Fatalf("%s: slot %+v, %v", tt.name, s, err)
		}
		if err := s.Put(t.Context(), pack.Part{Number: 1}); err != nil {
			t.Errorf("%s: a part that is stored already: %v", tt.name, err)
		}
		if err := s.Close(t.Context(), 3, tt.why); err != nil || b.closed != tt.closed || b.reason != tt.reason {
			t.Errorf("%s: closed %v with reason %q, %v", tt.name, b.closed, b.reason, err)
		}
	}
}

// slowShelf is a place that takes its time, as a bucket does.
type slowShelf struct {
	*shelf
	trip time.Duration // of each call
	put  func(name string)
}

func (s *slowShelf) Open(ctx context.Context, item evidence.Item) (Slot, error) {
	time.Sleep(s.trip)
	slot, err := s.shelf.Open(ctx, item)
	return slowBox{slot, s, item.Name}, err
}

type slowBox struct {
	Slot
	shelf *slowShelf
	name  string
}

func (b slowBox) Put(ctx context.Context, p pack.Part) error {
	time.Sleep(b.shelf.trip)
	if b.shelf.put != nil {
		b.shelf.put(b.name)
	}
	return b.Slot.Put(ctx, p)
}

func (b slowBox) Close(ctx context.Context, parts int32, why error) error {
	time.Sleep(b.shelf.trip)
	return b.Slot.Close(ctx, parts, why)
}

// TestTheNextIsReadWhileTheLastIsStored: items are read one at a time and in
// their order, whichever of them are stored already, and also where one fails.
func TestTheNextIsReadWhileTheLastIsStored(t *testing.T) {
	var mu sync.Mutex
	var read []string // owned by mu
	reading := 0      // owned by mu
	third := make(chan struct{})
	shelf := &slowShelf{shelf: newShelf(), put: func(name string) {
		if name == "a" {
			<-third // c is read before a is stored
		}
	}}
	shelf.fail["f"] = errors.New("the collector refuses it")
	shelf.items["e"] = &box{shelf: shelf.shelf, parts: map[int32][]byte{}, closed: true} // by an earlier run
	var all []stream
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		all = append(all, stream{name, evidence.JSONL, 1, func(w io.Writer) error {
			mu.Lock()
			reading++
			if reading > 1 {
				t.Errorf("%s is read beside another", name)
			}
			mu.Unlock()
			_, err := fmt.Fprintf(w, "%s\n", name)
			mu.Lock()
			defer mu.Unlock()
			reading--
			read = append(read, name)
			switch name {
			case "c":
				close(third)
			case "d":
				err = errors.New("it cannot be read")
			}
			return err
		}})
	}
	a := &Acquirer{Log: slog.New(slog.DiscardHandler)}
	stored, errs := a.streams(t.Context(), Order{Kind: evidence.Live, Compression: evidence.Zstd}, shelf, &meter{report: silent}, all)
	if got := strings.Join(read, ""); got != "abcdgh" {
		t.Errorf("read in the order %s", got)
	}
	if stored != 6 || len(errs) != 2 || !strings.Contains(errs[0].Error(), "take d: it cannot be read") || !strings.Contains(errs[1].Error(), "take f: the collector refuses it") {
		t.Errorf("%d stored, %v", stored, errs)
	}
}

// BenchmarkVolatile takes this host's volatile tables to a place that is a
// round trip of 30 ms away, three of them for each item.
func BenchmarkVolatile(b *testing.B) {
	a := &Acquirer{Log: slog.New(slog.DiscardHandler), Host: &artifact.Host{}}
	for b.Loop() {
		shelf := &slowShelf{shelf: newShelf(), trip: 30 * time.Millisecond}
		if r := a.Run(b.Context(), Order{Kind: evidence.Volatile, Compression: evidence.Zstd}, shelf, silent); r.Err != nil {
			b.Fatal(r.Err)
		}
	}
}
