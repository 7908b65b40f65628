package acquire

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/klauspost/compress/zstd"
	"pgregory.net/rapid"

	"github.com/quicklime-ir/quicklime/agent/arena"
	"github.com/quicklime-ir/quicklime/agent/memory"
	"github.com/quicklime-ir/quicklime/agent/memory/memorytest"
	"github.com/quicklime-ir/quicklime/agent/pack"
	"github.com/quicklime-ir/quicklime/agent/throttle"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
	"github.com/quicklime-ir/quicklime/proto/seekable"
)

// ram is a host's memory as a test wants it: its bytes are memorytest's.
type ram struct {
	ranges []lime.Range
	serial bool         // as LiME's stream is
	first  []int        // indexes of parts that go first
	bad    []lime.Range // cannot be read: zeros, and gaps
	dies   uint64       // reading this address ends the reader; 0: none does
	open   atomic.Int32 // readers
}

func (r *ram) Name() string         { return "ram" }
func (r *ram) Ranges() []lime.Range { return r.ranges }
func (r *ram) PageFlags() string    { return "read" }
func (r *ram) Close() error         { return nil }

func (r *ram) Readers() int {
	if r.serial {
		return 1
	}
	return 0
}

func (r *ram) Order(_ context.Context, parts [][]lime.Range) []int {
	order := slices.Clone(r.first)
	for i := range parts {
		if !slices.Contains(order, i) {
			order = append(order, i)
		}
	}
	return order
}

func (r *ram) Open() (memory.Reader, error) {
	r.open.Add(1)
	return &ramReader{ram: r}, nil
}

type ramReader struct {
	*ram
	next uint64
}

func (r *ramReader) Close() error { r.open.Add(-1); return nil }

var errDied = errors.New("the stream broke")

func (r *ramReader) ReadPhys(ctx context.Context, addr uint64, n int) ([]byte, []evidence.Gap, error) {
	asked := lime.Range{Start: addr, End: addr + uint64(n) - 1}
	if r.dies != 0 && asked.Start <= r.dies && r.dies <= asked.End {
		return nil, nil, errDied
	}
	if r.serial && addr < r.next || n > memory.MaxRead || len(lime.Subtract([]lime.Range{asked}, r.ranges)) > 0 {
		return nil, nil, errors.New("a read that this source does not allow")
	}
	r.next = addr + uint64(n)
	b := memorytest.Bytes(addr, n)
	var gaps []evidence.Gap
	for _, bad := range r.bad {
		if part := (lime.Range{Start: max(bad.Start, asked.Start), End: min(bad.End, asked.End)}); part.Start <= part.End {
			clear(b[part.Start-addr : part.End-addr+1])
			gaps = append(gaps, evidence.Gap{Range: part, Reason: evidence.ReadError, Errno: "EFAULT"})
		}
	}
	return b, gaps, ctx.Err()
}

// want is what the image must have in a range.
func (r *ram) want(rng lime.Range) []byte {
	b := memorytest.Bytes(rng.Start, int(rng.Len()))
	for _, bad := range r.bad {
		if start, end := max(bad.Start, rng.Start), min(bad.End, rng.End); start <= end {
			clear(b[start-rng.Start : end-rng.Start+1])
		}
	}
	return b
}

// bin is a slot that keeps parts in memory, and fails when it is told to.
type bin struct {
	mu    sync.Mutex
	parts map[int32]pack.Part // owned by mu
	order []int32             // as they came; owned by mu
	puts  int                 // owned by mu
	fail  int                 // at this Put and all after it; 0: never
}

var errFull = errors.New("the bucket is gone")

func (b *bin) Closed() bool                              { return false }
func (b *bin) Close(context.Context, int32, error) error { return nil }

func (b *bin) Has(n int32) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.parts[n]
	return ok
}

func (b *bin) Put(_ context.Context, p pack.Part) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.puts++; b.fail > 0 && b.puts >= b.fail {
		return errFull
	}
	p.Bytes = bytes.Clone(p.Bytes)
	b.parts[p.Number] = p
	b.order = append(b.order, p.Number)
	return nil
}

// sorted gives the stored parts by number.
func (b *bin) sorted() []pack.Part {
	var out []pack.Part
	for _, p := range b.parts {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b pack.Part) int { return cmp.Compare(a.Number, b.Number) })
	return out
}

// jobOf is the capture of a memory into a bin, in parts of partRAM bytes.
func jobOf(r *ram, b *bin, partRAM uint64, encoders, buffers int, c evidence.Compression) *imageJob {
	use := budget{partRAM: partRAM, encoders: encoders, buffers: buffers}
	use.buffer = use.room(r.ranges)
	parts := lime.Plan(r.ranges, partRAM)
	m := &meter{report: silent}
	order := Order{Compression: c}
	return &imageJob{source: r, parts: parts, order: sequence(context.Background(), r, b, parts), slot: b, meter: m,
		compression: order.stored(), auto: c == evidence.Auto, use: use, arena: new(arena.Arena)}
}

// errorf is what rapid's and testing's T have in common.
type errorf interface {
	Helper()
	Fatalf(string, ...any)
}

// holds checks that the stored parts are the memory: each a LiME image of its
// own planned ranges, whatever its compression, with the gaps that it names.
func holds(t errorf, r *ram, b *bin, partRAM uint64, c evidence.Compression) {
	t.Helper()
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	if err != nil {
		t.Fatalf("%v", err)
	}
	defer decoder.Close()
	plan := lime.Plan(r.ranges, partRAM)
	for _, p := range b.sorted() {
		raw := p.Bytes
		if c != evidence.None {
			if len(p.Bytes) < evidence.MinPartBytes {
				t.Fatalf("part %d has %d bytes; the seek table follows, so S3 wants %d", p.Number, len(p.Bytes), evidence.MinPartBytes)
			}
			if raw, err = decoder.DecodeAll(p.Bytes, nil); err != nil {
				t.Fatalf("part %d: %v", p.Number, err)
			}
		}
		ranges := plan[p.Number-1]
		if !slices.Equal(p.Ranges, ranges) || uint64(len(raw)) != lime.Size(ranges) || p.RawSize != uint64(len(raw)) {
			t.Fatalf("part %d holds %v in %d bytes (it says %d), planned are %v", p.Number, p.Ranges, len(raw), p.RawSize, ranges)
		}
		image := lime.NewReader(bytes.NewReader(raw))
		for _, want := range ranges {
			got, err := image.Next()
			body, errBody := io.ReadAll(image)
			if err = errors.Join(err, errBody); err != nil || got != want || !bytes.Equal(body, r.want(want)) {
				t.Fatalf("part %d has other bytes in %v (%v), %v", p.Number, want, got, err)
			}
		}
		var gaps []lime.Range
		for _, g := range p.Gaps {
			gaps = append(gaps, g.Range)
		}
		if want := lime.Subtract(ranges, lime.Subtract(ranges, r.bad)); !slices.Equal(lime.Merge(gaps), want) {
			t.Fatalf("part %d names the gaps %v, want %v", p.Number, lime.Merge(gaps), want)
		}
	}
}

// TestAnyMemoryComesBack: any set of ranges, any part size, unreadable pages,
// any number of encoders and buffers, and a place that fails at any part, as
// often as it likes: in the end the image is the memory, and no part that was
// stored is stored again.
func TestAnyMemoryComesBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := &ram{serial: rapid.Bool().Draw(t, "serial")}
		next := uint64(0x1000)
		for range rapid.IntRange(1, 5).Draw(t, "ranges") {
			n := rapid.Uint64Range(1, 1<<20).Draw(t, "bytes")
			r.ranges = append(r.ranges, lime.Range{Start: next, End: next + n - 1})
			if at := rapid.Uint64Range(0, 2*n).Draw(t, "bad"); at < n {
				r.bad = append(r.bad, lime.Range{Start: next + at, End: min(next+at+4095, next+n-1)})
			}
			next += n + rapid.Uint64Range(1, 1<<20).Draw(t, "hole")
		}
		partRAM := rapid.Uint64Range(total(r.ranges)/9+1, 1<<20).Draw(t, "part")
		c := rapid.SampledFrom([]evidence.Compression{evidence.Zstd, evidence.Auto}).Draw(t, "compression")
		encoders := rapid.IntRange(1, 3).Draw(t, "encoders")
		buffers := rapid.IntRange(1, 5).Draw(t, "buffers")
		if plan := lime.Plan(r.ranges, partRAM); !r.serial {
			r.first = rapid.SliceOfNDistinct(rapid.IntRange(0, len(plan)-1), 0, len(plan), rapid.ID).Draw(t, "first")
		}
		b := &bin{parts: map[int32]pack.Part{}}
		for tries := 0; ; tries++ {
			b.fail = 0
			if tries < 3 {
				b.fail = b.puts + rapid.IntRange(1, 6).Draw(t, "fails after")
			}
			err := jobOf(r, b, partRAM, encoders, buffers, c).run(context.Background())
			if err == nil {
				break
			}
			if b.fail == 0 || !errors.Is(err, errFull) {
				t.Fatalf("%v", err)
			}
		}
		if planned := lime.Plan(r.ranges, partRAM); len(b.parts) != len(planned) || len(b.order) != len(planned) {
			t.Fatalf("%d parts were stored %d times, planned are %d", len(b.parts), len(b.order), len(planned))
		}
		holds(t, r, b, partRAM, c)
		if n := r.open.Load(); n != 0 {
			t.Fatalf("%d readers are still open", n)
		}
	})
}

// TestWithoutCompression: the object is the LiME image itself.
func TestWithoutCompression(t *testing.T) {
	r := &ram{ranges: []lime.Range{{Start: 0x1000, End: 0x9fbff}, {Start: 0x100000, End: 0xffffff}}}
	b := &bin{parts: map[int32]pack.Part{}}
	if err := jobOf(r, b, 6<<20, 2, 3, evidence.None).run(t.Context()); err != nil {
		t.Fatal(err)
	}
	holds(t, r, b, 6<<20, evidence.None)
	if last := b.sorted()[len(b.parts)-1]; len(last.Bytes) >= evidence.MinPartBytes {
		t.Errorf("the last part has %d bytes, want only what is left", len(last.Bytes))
	}
}

// TestTheMostVolatileGoesFirst: parts are sent in the source's order, and the
// image is in the order of addresses all the same.
func TestTheMostVolatileGoesFirst(t *testing.T) {
	r := &ram{ranges: []lime.Range{{Start: 0, End: 4<<20 - 1}}, first: []int{3, 1}}
	b := &bin{parts: map[int32]pack.Part{}}
	if err := jobOf(r, b, 1<<20, 1, 1, evidence.Zstd).run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := []int32{4, 2, 1, 3}; !slices.Equal(b.order, want) {
		t.Errorf("parts came as %v, want %v", b.order, want)
	}
	holds(t, r, b, 1<<20, evidence.Zstd)
}

// TestWhatWasReadIsKept: a source that breaks in its fifth part leaves the
// four before it.
func TestWhatWasReadIsKept(t *testing.T) {
	r := &ram{ranges: []lime.Range{{Start: 0, End: 8<<20 - 1}}, serial: true, dies: 4<<20 + 7}
	b := &bin{parts: map[int32]pack.Part{}}
	err := jobOf(r, b, 1<<20, 2, 4, evidence.Zstd).run(t.Context())
	if !errors.Is(err, errDied) || len(b.parts) != 4 {
		t.Errorf("%d parts are stored, %v; want 4, and %v", len(b.parts), err, errDied)
	}
	holds(t, r, b, 1<<20, evidence.Zstd)
}

// gate is a slot whose parts are on their way until it is opened.
type gate struct {
	*bin
	waiting chan struct{} // a token for each part on its way
	open    chan struct{}
}

func (g *gate) Put(ctx context.Context, p pack.Part) error {
	g.waiting <- struct{}{}
	<-g.open
	return g.bin.Put(ctx, p)
}

// TestAutoCompressesOnceTheUplinkIsFull: what is sent at once is stored as it
// is, what has to wait is compressed; and a full uplink stops the readers.
func TestAutoCompressesOnceTheUplinkIsFull(t *testing.T) {
	r := &ram{ranges: []lime.Range{{Start: 1 << 20, End: 61<<20 - 1}}} // no zero block first
	b := &bin{parts: map[int32]pack.Part{}}
	g := &gate{bin: b, waiting: make(chan struct{}, 100), open: make(chan struct{})}
	const partRAM = 10 << 20
	job := jobOf(r, b, partRAM, 1, 3, evidence.Auto)
	job.slot = g
	done := make(chan error, 1)
	go func() { done <- job.run(t.Context()) }()
	for range 3 { // all buffers are on their way
		<-g.waiting
	}
	if read := job.meter.read.Load(); read != 3*partRAM {
		t.Errorf("%d bytes were read with every buffer on its way, want %d", read, 3*partRAM)
	}
	close(g.open)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	size := func(n int32) int { return len(b.parts[n].Bytes) }
	if size(3) > size(1)*3/4 || size(3) > size(2)*3/4 {
		t.Errorf("the parts have %d, %d and %d bytes; want the third compressed, and only that", size(1), size(2), size(3))
	}
	holds(t, r, b, partRAM, evidence.Auto)
}

// TestAPausedCaptureReadsNothing until it may go on.
func TestAPausedCaptureReadsNothing(t *testing.T) {
	r := &ram{ranges: []lime.Range{{Start: 0, End: 6<<20 - 1}}}
	b := &bin{parts: map[int32]pack.Part{}}
	job := jobOf(r, b, 1<<20, 2, 3, evidence.Auto)
	job.throttle = throttle.New(throttle.Limits{})
	job.throttle.Pause(true)
	paused := make(chan struct{})
	var once sync.Once
	job.meter.report = func(p Progress) {
		if p.Read == 2<<20 { // each encoder has read a chunk, and waits
			once.Do(func() { close(paused) })
		}
	}
	done := make(chan error, 1)
	go func() { done <- job.run(t.Context()) }()
	<-paused
	if len(b.parts) != 0 {
		t.Errorf("%d parts were stored while it was paused", len(b.parts))
	}
	job.throttle.Pause(false)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	holds(t, r, b, 1<<20, evidence.Auto)
}

// TestAnImageByHandHasItsSeekTable: with it, and no more, any stretch can be
// read.
func TestAnImageByHandHasItsSeekTable(t *testing.T) {
	r := &ram{ranges: []lime.Range{{Start: 0x1000, End: 0x9fbff}, {Start: 0x100000, End: 0x20fffff}}}
	a := &Acquirer{Log: slog.New(slog.DiscardHandler), OpenMemory: func(context.Context, memory.Options) (memory.Source, []memory.Refusal, error) {
		return r, nil, nil
	}}
	var out bytes.Buffer
	if result := a.Run(t.Context(), Order{Kind: evidence.Memory, Compression: evidence.Auto}, &Stream{Out: &out}, silent); result.Err != nil {
		t.Fatal(result.Err)
	}
	object := out.Bytes()
	frames, err := seekable.ReadTable(bytes.NewReader(object), int64(len(object)))
	if err != nil {
		t.Fatal(err)
	}
	decoder, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer decoder.Close()
	whole, err := decoder.DecodeAll(object, nil)
	if err != nil {
		t.Fatal(err)
	}
	at, raw := 0, 0
	for i, f := range frames {
		one, err := decoder.DecodeAll(object[at:at+int(f.Stored)], nil)
		if err != nil || !bytes.Equal(one, whole[raw:raw+int(f.Raw)]) {
			t.Fatalf("frame %d alone gives other bytes, %v", i, err)
		}
		at, raw = at+int(f.Stored), raw+int(f.Raw)
	}
	if raw != len(whole) {
		t.Errorf("the table has %d raw bytes, the image %d", raw, len(whole))
	}
}
