package lime

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

// ascending draws ranges that ascend and do not overlap.
var ascending = rapid.Custom(func(t *rapid.T) []Range {
	var out []Range
	next := rapid.Uint64Range(0, 1<<40).Draw(t, "start")
	for range rapid.IntRange(0, 6).Draw(t, "count") {
		start := next + rapid.Uint64Range(0, 5000).Draw(t, "hole")
		end := start + rapid.Uint64Range(0, 5000).Draw(t, "more")
		out, next = append(out, Range{start, end}), end+1
	}
	return out
})

// TestWalkTakesBackWhatWasWritten, however the bytes arrive; and a cut image
// is never whole, unless it is cut between two records.
func TestWalkTakesBackWhatWasWritten(t *testing.T) {
	arrivals := map[string]func(io.Reader) io.Reader{
		"at once": func(r io.Reader) io.Reader { return r }, "by halves": iotest.HalfReader, "with the end": iotest.DataErrReader,
	}
	rapid.Check(t, func(t *rapid.T) {
		want := ascending.Draw(t, "ranges")
		b := image(want...)
		if uint64(len(b)) != Size(want) {
			t.Fatalf("%d bytes, Size says %d", len(b), Size(want))
		}
		for name, arrive := range arrivals {
			if got, err := Walk(arrive(bytes.NewReader(b))); err != nil || !slices.Equal(got, want) {
				t.Fatalf("%s: %v, %v; want %v", name, got, err, want)
			}
		}
		if len(b) == 0 {
			return
		}
		cut := rapid.IntRange(0, len(b)-1).Draw(t, "cut")
		got, err := Walk(bytes.NewReader(b[:cut]))
		if between := Size(got) == uint64(cut); (err == nil) != between || !slices.Equal(got, want[:len(got)]) {
			t.Fatalf("cut at %d of %d: %v, %v", cut, len(b), got, err)
		}
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut at %d of %d: error %v", cut, len(b), err)
		}
	})
}

// TestAReadErrorIsNotTheEnd of an image.
func TestAReadErrorIsNotTheEnd(t *testing.T) {
	b := image(Range{0x1000, 0x1fff}, Range{0x3000, 0x3fff})
	broken := errors.New("broken")
	for _, at := range []int{0, 10, HeaderSize, 100, HeaderSize + 4096, HeaderSize + 4100} {
		if _, err := Walk(io.MultiReader(bytes.NewReader(b[:at]), iotest.ErrReader(broken))); !errors.Is(err, broken) {
			t.Errorf("after %d bytes: error %v", at, err)
		}
	}
}

// FuzzReader reads records in part and skips the rest: what it gives lies
// where the records say, and no more of it than they say.
func FuzzReader(f *testing.F) {
	f.Add(image(Range{0, 15}, Range{32, 40}), uint8(3))
	f.Add(AppendHeader(nil, Range{0, ^uint64(0) - 1}), uint8(200))
	f.Fuzz(func(t *testing.T, b []byte, some uint8) {
		r := NewReader(bytes.NewReader(b))
		offset := uint64(0)
		var last Range
		for n := 0; ; n++ {
			rng, err := r.Next()
			if err != nil {
				if errors.Is(err, io.EOF) && offset != uint64(len(b)) {
					t.Fatalf("the end at %d of %d bytes", offset, len(b))
				}
				return
			}
			if n > 0 && rng.Start <= last.End {
				t.Fatalf("%v after %v", rng, last)
			}
			got, err := io.ReadAll(io.LimitReader(r, int64(some)))
			if begin := offset + HeaderSize; uint64(len(got)) > rng.Len() || !bytes.Equal(got, b[begin:begin+uint64(len(got))]) {
				t.Fatalf("record %v at %d gave other bytes", rng, offset)
			}
			if err != nil {
				return
			}
			last, offset = rng, offset+HeaderSize+rng.Len()
		}
	})
}
