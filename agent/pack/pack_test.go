package pack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/quicklime-ir/quicklime/agent/memory/memorytest"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memorySink keeps copies of parts, and fails at the one numbered failAt.
type memorySink struct {
	parts  []Part
	failAt int32
	calls  int
}

var errSink = errors.New("network is down")

func (s *memorySink) Put(_ context.Context, p Part) error {
	if s.calls++; p.Number == s.failAt {
		return errSink
	}
	p.Bytes = bytes.Clone(p.Bytes)
	s.parts = append(s.parts, p)
	return nil
}

// object is the parts as S3 would join them.
func (s *memorySink) object() []byte {
	var all []byte
	for _, p := range s.parts {
		all = append(all, p.Bytes...)
	}
	return all
}

// check holds each part against what S3 and the ledger demand of it.
func (s *memorySink) check(t interface{ Errorf(string, ...any) }) {
	for i, p := range s.parts {
		if p.Number != int32(i+1) || p.SHA256 != sha256.Sum256(p.Bytes) || len(p.Bytes) == 0 || p.Started.IsZero() || p.Ended.Before(p.Started) {
			t.Errorf("part %d of index %d: %d bytes, hash %v, %v to %v", p.Number, i, len(p.Bytes), p.SHA256, p.Started, p.Ended)
		}
		if runtime.GOOS == "linux" && (p.Monotonic <= 0 || i > 0 && p.Monotonic < s.parts[i-1].Monotonic) {
			t.Errorf("part %d began %v after the host's start", p.Number, p.Monotonic)
		}
		if i < len(s.parts)-1 && len(p.Bytes) < evidence.MinPartBytes {
			t.Errorf("part %d has %d bytes, S3 wants %d", p.Number, len(p.Bytes), evidence.MinPartBytes)
		}
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{7})
	_, _ = r.Read(b)
	return b
}

// memoryMix is like a host's memory: zeros, text, tables of pointers, noise.
func memoryMix(n int) []byte {
	var out []byte
	noise, text := random(1<<16), bytes.Repeat([]byte("GET /index.html HTTP/1.1\r\nHost: example\r\n"), 1<<10)
	for i := 0; len(out) < n; i++ {
		switch i % 8 {
		case 0, 1, 2:
			out = append(out, make([]byte, 1<<20)...)
		case 3, 4:
			out = append(out, text...)
		case 5, 6:
			for a := range uint64(1 << 13) {
				out = binary.LittleEndian.AppendUint64(out, 0xffff888000000000|a*2654435761%(1<<32)<<6)
			}
		case 7:
			out = append(out, noise...)
		}
	}
	return out[:n]
}

func unpack(t testing.TB, c evidence.Compression, object []byte) []byte {
	t.Helper()
	if c == evidence.None {
		return object
	}
	d, err := zstd.NewReader(bytes.NewReader(object), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(FrameBytes))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	raw, err := io.ReadAll(d)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func write(t testing.TB, sink Sink, o Options, raw []byte) *Writer {
	t.Helper()
	w, err := NewWriter(t.Context(), sink, o)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := w.Write(raw); n != len(raw) || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return w
}

func TestTheJoinedPartsAreTheStream(t *testing.T) {
	for _, c := range []evidence.Compression{evidence.None, evidence.Zstd} {
		for name, raw := range map[string][]byte{
			"one byte":           {1},
			"noise":              random(23<<20 + 12345),
			"zeros":              make([]byte, 70<<20),
			"memory":             memoryMix(30 << 20),
			"exactly one part":   random(8 << 20),
			"exactly two frames": make([]byte, 2*FrameBytes),
		} {
			t.Run(string(c)+"/"+name, func(t *testing.T) {
				sink := &memorySink{}
				w := write(t, sink, Options{Compression: c}, raw)
				sink.check(t)
				if got := unpack(t, c, sink.object()); !bytes.Equal(got, raw) {
					t.Errorf("%d bytes come back, want the same %d", len(got), len(raw))
				}
				var total uint64
				for _, p := range sink.parts {
					total += p.RawSize
				}
				if total != uint64(len(raw)) || int(w.Parts()) != len(sink.parts) {
					t.Errorf("raw sizes sum to %d of %d, %d parts of %d", total, len(raw), w.Parts(), len(sink.parts))
				}
			})
		}
	}
}

// What is decompressed years from now is not decompressed by this library.
func TestTheZstdToolReadsTheParts(t *testing.T) {
	tool, err := exec.LookPath("zstd")
	if err != nil {
		t.Skip("there is no zstd tool here")
	}
	sink := &memorySink{}
	b := mustBuilder(t, evidence.Zstd, 6<<20)
	var raw []byte
	for n := range int32(3) { // each much under S3's minimum, so padded
		chunk := memoryMix(int(n+1) << 20)
		b.Reset(n+1, b.buffer)
		mustWrite(t, b, chunk)
		raw = append(raw, chunk...)
		p, err := b.Finish(n == 2)
		if err != nil {
			t.Fatal(err)
		}
		_ = sink.Put(t.Context(), p)
	}
	cmd := exec.CommandContext(t.Context(), tool, "-dc")
	cmd.Stdin = bytes.NewReader(sink.object())
	got, err := cmd.Output()
	if err != nil || !bytes.Equal(got, raw) {
		t.Errorf("zstd -dc gives %d bytes, %v; want %d", len(got), err, len(raw))
	}
	cmd = exec.CommandContext(t.Context(), tool, "-dc") // and each part alone
	cmd.Stdin = bytes.NewReader(sink.parts[1].Bytes)
	if got, err := cmd.Output(); err != nil || !bytes.Equal(got, raw[1<<20:3<<20]) {
		t.Errorf("part 2 alone gives %d bytes, %v", len(got), err)
	}
}

func mustBuilder(t testing.TB, c evidence.Compression, partBytes int) *Builder {
	t.Helper()
	b, err := NewBuilder(c)
	if err != nil {
		t.Fatal(err)
	}
	b.buffer = make([]byte, 0, Capacity(partBytes, 4096))
	return b
}

func mustWrite(t testing.TB, b *Builder, p []byte) {
	t.Helper()
	if err := b.Write(p); err != nil {
		t.Fatal(err)
	}
}

func TestShortPartsAreFilledUp(t *testing.T) {
	for lack := range 20 {
		b := mustBuilder(t, evidence.Zstd, 6<<20)
		b.Reset(1, b.buffer)
		fill(t, b, evidence.MinPartBytes-lack)
		p, err := b.Finish(false)
		want := evidence.MinPartBytes
		if lack > 0 && lack < skippableHeader {
			want = evidence.MinPartBytes - lack + skippableHeader
		}
		if err != nil || len(p.Bytes) != want {
			t.Errorf("a part that lacks %d bytes ends with %d, %v; want %d", lack, len(p.Bytes), err, want)
		}
		if got := unpack(t, evidence.Zstd, p.Bytes); uint64(len(got)) != p.RawSize {
			t.Errorf("it decompresses to %d bytes, want %d", len(got), p.RawSize)
		}
	}
	b := mustBuilder(t, evidence.Zstd, 6<<20)
	b.Reset(1, b.buffer)
	mustWrite(t, b, []byte("little"))
	if p, err := b.Finish(false); err != nil || len(p.Bytes) != evidence.MinPartBytes || p.RawSize != 6 {
		t.Errorf("a small part ends with %d bytes, %v", len(p.Bytes), err)
	}
	b.Reset(2, b.buffer)
	mustWrite(t, b, []byte("little"))
	if p, err := b.Finish(true); err != nil || len(p.Bytes) > 100 || p.Number != 2 {
		t.Errorf("the last part ends with %d bytes, %v", len(p.Bytes), err)
	}
}

// fill writes noise until the part has exactly so many bytes.
func fill(t testing.TB, b *Builder, want int) {
	t.Helper()
	const least = 200 // bytes that a last frame can surely be cut to
	noise := random(FrameBytes)
	for want-b.Len() > FrameBytes+2*least {
		mustWrite(t, b, noise[:FrameBytes-2*least])
	}
	start, raw := b.Len(), b.raw
	for n := min(want-start, FrameBytes); n > 0 && b.Len() != want; n-- {
		b.buffer, b.raw = b.buffer[:start], raw
		mustWrite(t, b, noise[:n])
	}
	if b.Len() != want {
		t.Fatalf("cannot fill a part to %d bytes", want)
	}
}

func TestAShortPartWithoutCompressionIsRefused(t *testing.T) {
	b := mustBuilder(t, evidence.None, 6<<20)
	b.Reset(3, b.buffer)
	mustWrite(t, b, []byte("little"))
	if _, err := b.Finish(false); err == nil || !strings.Contains(err.Error(), "part 3") {
		t.Errorf("Finish = %v", err)
	}
	if p, err := b.Finish(true); err != nil || string(p.Bytes) != "little" {
		t.Errorf("as the last part: %q, %v", p.Bytes, err)
	}
}

// The worst that memory can be: noise in thousands of small ranges. The
// buffer has room, and is still the one that it was.
func TestTheWorstFits(t *testing.T) {
	for _, c := range []evidence.Compression{evidence.None, evidence.Zstd} {
		for _, partBytes := range []int{1 << 20, 8 << 20, 32 << 20} {
			for _, ranges := range []int{1, 7, 4096} {
				t.Run(fmt.Sprintf("%s/%dMiB/%d", c, partBytes>>20, ranges), func(t *testing.T) {
					b := mustBuilder(t, c, partBytes)
					b.Reset(1, b.buffer)
					buffer, raw, noise := cap(b.buffer), uint64(0), random(partBytes)
					for i := range ranges {
						from, to := i*partBytes/ranges, (i+1)*partBytes/ranges
						mustWrite(t, b, lime.AppendHeader(nil, lime.Range{Start: uint64(from), End: uint64(to - 1)}))
						mustWrite(t, b, noise[from:to])
						raw += lime.HeaderSize + uint64(to-from)
					}
					p, err := b.Finish(false)
					if c == evidence.None && partBytes < evidence.MinPartBytes {
						if err == nil {
							t.Error("a short part passes")
						}
						return
					}
					if err != nil || p.RawSize != raw || cap(b.buffer) != buffer {
						t.Errorf("%d raw bytes of %d, buffer of %d, was %d: %v", p.RawSize, raw, cap(b.buffer), buffer, err)
					}
				})
			}
		}
	}
}

func TestTooMuchIsAnErrorAndNotMoreMemory(t *testing.T) {
	b := mustBuilder(t, evidence.None, 6<<20)
	b.Reset(4, b.buffer)
	was := cap(b.buffer)
	err := b.Write(make([]byte, 20<<20))
	if !errors.Is(err, errFull) || !strings.Contains(err.Error(), "part 4") || cap(b.buffer) != was {
		t.Errorf("Write = %v, buffer of %d, was %d", err, cap(b.buffer), was)
	}
}

func TestOptionsThatMakeNoSense(t *testing.T) {
	for _, o := range []Options{{Compression: "lz4"}, {}, {Compression: evidence.Auto}, {Compression: evidence.Zstd, PartBytes: -1},
		{Compression: evidence.None, PartBytes: 6 << 30}, {Compression: evidence.Zstd, PartBytes: evidence.MinPartBytes - 1}} {
		if _, err := NewWriter(t.Context(), &memorySink{}, o); err == nil {
			t.Errorf("NewWriter takes %+v", o)
		}
	}
}

// Zeros shrink more than four-thousandfold, and cost no allocation.
func TestZerosAreCheap(t *testing.T) {
	b := mustBuilder(t, evidence.Zstd, 64<<20)
	b.Reset(1, b.buffer)
	mustWrite(t, b, make([]byte, 64<<20))
	if b.Len() > 64*256 {
		t.Errorf("64 MiB of zeros are %d bytes", b.Len())
	}
	zeros := make([]byte, FrameBytes)
	if allocs := testing.AllocsPerRun(10, func() {
		b.Reset(1, b.buffer)
		_ = b.Write(zeros)
	}); allocs > 0 {
		t.Errorf("%v allocations for a frame of zeros", allocs)
	}
	almost := make([]byte, FrameBytes)
	almost[FrameBytes-1] = 1
	b.Reset(2, b.buffer)
	mustWrite(t, b, almost)
	p, err := b.Finish(true)
	if err != nil || !bytes.Equal(unpack(t, evidence.Zstd, p.Bytes), almost) {
		t.Errorf("a page of zeros with a one at its end is lost, %v", err)
	}
}

// Frames that are stored as they are, are zstd all the same; zeros among them
// cost four bytes for each 128 KiB.
func TestWhatIsStoredIsZstdToo(t *testing.T) {
	for name, raw := range map[string][]byte{
		"one byte": {7}, "noise": random(3<<20 + 17), "memory": memoryMix(9 << 20), "a block and a byte": random(blockBytes + 1),
		"zeros": make([]byte, 2<<20+5), "zeros, then a one": append(make([]byte, blockBytes), 1), "noise, then zeros": append(random(100), make([]byte, FrameBytes)...),
	} {
		t.Run(name, func(t *testing.T) {
			b := mustBuilder(t, evidence.Zstd, 16<<20)
			b.Reset(1, b.buffer)
			if err := b.Store(raw); err != nil {
				t.Fatal(err)
			}
			p, err := b.Finish(true)
			if err != nil || !bytes.Equal(unpack(t, evidence.Zstd, p.Bytes), raw) {
				t.Errorf("other bytes come back, %v", err)
			}
			if len(p.Bytes) > len(raw)+worstGrowth(len(raw))+frameOverhead*(len(raw)/FrameBytes+1) {
				t.Errorf("%d bytes are stored in %d", len(raw), len(p.Bytes))
			}
			if name == "zeros" && len(p.Bytes) > 200 {
				t.Errorf("zeros are stored in %d bytes", len(p.Bytes))
			}
			if tool, err := exec.LookPath("zstd"); err == nil {
				cmd := exec.CommandContext(t.Context(), tool, "-dc")
				cmd.Stdin = bytes.NewReader(p.Bytes)
				if got, err := cmd.Output(); err != nil || !bytes.Equal(got, raw) {
					t.Errorf("zstd -dc gives %d bytes, %v; want %d", len(got), err, len(raw))
				}
			}
		})
	}
}

// Any mix of compressed and stored frames, large and small: each frame that
// the part names can be decompressed by itself, and together they are the
// part.
func TestFramesStandAlone(t *testing.T) {
	noise, mix := random(4<<20), memoryMix(4<<20)
	rapid.Check(t, func(r *rapid.T) {
		b := mustBuilder(t, evidence.Zstd, 8<<20)
		b.Reset(1, b.buffer)
		var raw []byte
		for range rapid.IntRange(1, 40).Draw(r, "writes") {
			src := rapid.SampledFrom([][]byte{noise, mix, make([]byte, 4<<20)}).Draw(r, "source")
			p := src[:rapid.IntRange(1, 1<<rapid.IntRange(0, 17).Draw(r, "scale")).Draw(r, "bytes")]
			how := rapid.SampledFrom([]func([]byte) error{b.Write, b.Store}).Draw(r, "how")
			if err := how(p); err != nil {
				r.Fatal(err)
			}
			raw = append(raw, p...)
		}
		part, err := b.Finish(false)
		if err != nil || len(part.Frames) == 0 || len(part.Frames) > evidence.MaxFrames {
			r.Fatalf("%d frames, %v", len(part.Frames), err)
		}
		var got []byte
		at := uint32(0)
		for _, f := range part.Frames {
			one := unpack(t, evidence.Zstd, part.Bytes[at:at+f.Stored])
			if len(one) != int(f.Raw) {
				r.Fatalf("a frame has %d bytes, it says %d", len(one), f.Raw)
			}
			got, at = append(got, one...), at+f.Stored
		}
		if int(at) != len(part.Bytes) || !bytes.Equal(got, raw) {
			r.Fatalf("the frames have %d bytes of %d, and other ones", at, len(part.Bytes))
		}
	})
}

func TestAStreamOfNothing(t *testing.T) {
	sink := &memorySink{}
	if w := write(t, sink, Options{Compression: evidence.Zstd}, nil); w.Parts() != 1 {
		t.Fatalf("%d parts, want one", w.Parts())
	}
	sink.check(t)
	if raw := unpack(t, evidence.Zstd, sink.object()); len(raw) != 0 {
		t.Errorf("it decompresses to %d bytes", len(raw))
	}
	sink = &memorySink{}
	if w := write(t, sink, Options{Compression: evidence.None}, nil); w.Parts() != 0 || sink.calls != 0 {
		t.Errorf("without compression: %d parts, %d calls; no part of zero bytes can be granted", w.Parts(), sink.calls)
	}
}

func TestTheFirstErrorOfTheSinkIsTheLast(t *testing.T) {
	for _, at := range []int32{1, 2} {
		sink := &memorySink{failAt: at}
		w, err := NewWriter(t.Context(), sink, Options{Compression: evidence.None, PartBytes: 5 << 20})
		if err != nil {
			t.Fatal(err)
		}
		n, err := w.Write(random(20 << 20))
		if !errors.Is(err, errSink) || n >= 20<<20 {
			t.Errorf("Write = %d, %v", n, err)
		}
		if n, err := w.Write([]byte("more")); n != 0 || !errors.Is(err, errSink) {
			t.Errorf("Write after the error = %d, %v", n, err)
		}
		for range 2 {
			if err := w.Close(); !errors.Is(err, errSink) {
				t.Errorf("Close = %v", err)
			}
		}
		if sink.calls != int(at) || w.Parts() != at-1 {
			t.Errorf("%d calls, %d parts; want %d and %d", sink.calls, w.Parts(), at, at-1)
		}
	}
	sink := &memorySink{failAt: 1}
	w, err := NewWriter(t.Context(), sink, Options{Compression: evidence.Zstd})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write([]byte("x"))
	if err := w.Close(); !errors.Is(err, errSink) || w.Parts() != 0 {
		t.Errorf("Close = %v, %d parts", err, w.Parts())
	}
}

func TestNothingComesAfterClose(t *testing.T) {
	sink := &memorySink{}
	w := write(t, sink, Options{Compression: evidence.Zstd}, []byte("all"))
	if _, err := w.Write([]byte("more")); !errors.Is(err, errClosed) {
		t.Errorf("Write = %v", err)
	}
	if err := w.Close(); err != nil || sink.calls != 1 {
		t.Errorf("second Close = %v, %d parts", err, sink.calls)
	}
}

// countingSink takes any number of parts and keeps none.
type countingSink struct{ n int }

func (s *countingSink) Put(context.Context, Part) error { s.n++; return nil }

func TestThePartsThatS3Allows(t *testing.T) {
	sink := &countingSink{}
	w, err := NewWriter(t.Context(), sink, Options{Compression: evidence.None, PartBytes: 5 << 20})
	if err != nil {
		t.Fatal(err)
	}
	w.parts = evidence.MaxParts - 1
	if _, err := w.Write(make([]byte, 5<<20)); err != nil {
		t.Errorf("part %d is refused: %v", evidence.MaxParts, err)
	}
	_, err = w.Write(make([]byte, 1))
	if err = errors.Join(err, w.Close()); err == nil || sink.n != 1 {
		t.Errorf("part %d is not refused: %d calls", evidence.MaxParts+1, sink.n)
	}
}

// Any writes, any part size, either compression: the same bytes come back,
// and S3 would take each part.
func TestAnyWritesGiveTheSameBytes(t *testing.T) {
	noise, mix := random(4<<20), memoryMix(4<<20)
	rapid.Check(t, func(r *rapid.T) {
		o := Options{
			Compression: rapid.SampledFrom([]evidence.Compression{evidence.None, evidence.Zstd}).Draw(r, "compression"),
			PartBytes:   rapid.IntRange(evidence.MinPartBytes, 6<<20).Draw(r, "partBytes"),
		}
		sink := &memorySink{}
		w, err := NewWriter(context.Background(), sink, o)
		if err != nil {
			r.Fatal(err)
		}
		whole := sha256.New()
		for range rapid.IntRange(0, 6).Draw(r, "writes") {
			src := rapid.SampledFrom([][]byte{noise, mix, make([]byte, 4<<20)}).Draw(r, "source")
			p := src[:rapid.IntRange(0, len(src)).Draw(r, "bytes")]
			whole.Write(p)
			if n, err := w.Write(p); n != len(p) || err != nil {
				r.Fatalf("Write = %d, %v", n, err)
			}
		}
		if err := w.Close(); err != nil {
			r.Fatal(err)
		}
		sink.check(r)
		got := sha256.Sum256(unpack(t, o.Compression, sink.object()))
		if !bytes.Equal(got[:], whole.Sum(nil)) {
			r.Fatal("other bytes come back")
		}
	})
}

// BenchmarkPack tells what packing costs over the hash alone, which is the
// least that evidence costs, for one processor, of memory as a busy host has
// it. Auto is its best case: an uplink that is never full, so that nothing is
// compressed.
func BenchmarkPack(b *testing.B) {
	raw := memorytest.Bytes(1<<20, 60<<20)
	b.Run("sha256", func(b *testing.B) {
		b.SetBytes(int64(len(raw)))
		for b.Loop() {
			sha256.Sum256(raw)
		}
	})
	for _, how := range []struct {
		name        string
		compression evidence.Compression
		add         func(*Builder, []byte) error
	}{{"none", evidence.None, (*Builder).Write}, {"auto", evidence.Zstd, (*Builder).Store}, {"zstd", evidence.Zstd, (*Builder).Write}} {
		b.Run(how.name, func(b *testing.B) {
			builder := mustBuilder(b, how.compression, len(raw))
			b.SetBytes(int64(len(raw)))
			b.ReportAllocs()
			var p Part
			for b.Loop() {
				builder.Reset(1, builder.buffer)
				for i := 0; i < len(raw); i += FrameBytes {
					if err := how.add(builder, raw[i:i+FrameBytes]); err != nil {
						b.Fatal(err)
					}
				}
				var err error
				if p, err = builder.Finish(true); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(len(raw))/float64(len(p.Bytes)), "ratio")
		})
	}
}
