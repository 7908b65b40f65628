package lime

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// TestHeader pins the bytes that LiME and Volatility agree on.
func TestHeader(t *testing.T) {
	got := AppendHeader(nil, Range{0x1000, 0x9fbff})
	want := "454d694c" + "01000000" + "0010000000000000" + "fffb090000000000" + "0000000000000000"
	if hex.EncodeToString(got) != want {
		t.Errorf("header %x, want %s", got, want)
	}
	if r, err := ParseHeader(got); err != nil || r != (Range{0x1000, 0x9fbff}) {
		t.Errorf("range %v, error %v", r, err)
	}
}

func image(records ...Range) []byte {
	var b []byte
	for _, r := range records {
		b = AppendHeader(b, r)
		b = append(b, bytes.Repeat([]byte{0xA5}, int(r.Len()))...)
	}
	return b
}

func TestWalk(t *testing.T) {
	whole := image(Range{0x1000, 0x1fff}, Range{0x2000, 0x20ff}, Range{0x10000, 0x10000})
	change := func(at int, to byte) []byte {
		b := slices.Clone(whole)
		b[at] = to
		return b
	}
	tests := []struct {
		name  string
		image []byte
		want  error // nil, ErrFormat, io.ErrUnexpectedEOF
		whole int   // records before it
	}{
		{"a whole image", whole, nil, 3},
		{"nothing", nil, nil, 0},
		{"another magic", change(0, 'X'), ErrFormat, 0},
		{"another version", change(4, 2), ErrFormat, 0},
		{"cut in a header", whole[:len(whole)-10], io.ErrUnexpectedEOF, 2},
		{"cut in a record", whole[:100], io.ErrUnexpectedEOF, 0},
		{"bytes after the end", append(slices.Clone(whole), "trailing bytes that are no header!"...), ErrFormat, 3},
		{"records that go back", image(Range{0x2000, 0x2fff}, Range{0x1000, 0x1fff}), ErrFormat, 1},
		{"records that overlap", image(Range{0x1000, 0x1fff}, Range{0x1fff, 0x2fff}), ErrFormat, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Walk(bytes.NewReader(tt.image))
			if !errors.Is(err, tt.want) || tt.want == nil && err != nil || len(got) != tt.whole {
				t.Errorf("%d records, error %v; want %d, %v", len(got), err, tt.whole, tt.want)
			}
		})
	}
}

func TestReaderGivesTheBytesOfEachRecord(t *testing.T) {
	b := append(AppendHeader(nil, Range{0x10, 0x13}), "abcd"...)
	b = append(AppendHeader(b, Range{0x20, 0x21}), "ef"...)
	r := NewReader(bytes.NewReader(b))
	for _, want := range []string{"abcd", "ef"} {
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || string(got) != want {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	if _, err := r.Next(); err != io.EOF {
		t.Errorf("after the last record: %v", err)
	}
}

func TestSetsOfRanges(t *testing.T) {
	tests := []struct {
		name             string
		a, b             []Range
		merged, subtract []Range // of a; of a without b
	}{
		{"neighbours join", []Range{{10, 19}, {0, 9}}, nil, []Range{{0, 19}}, []Range{{0, 19}}},
		{"overlaps join", []Range{{0, 15}, {10, 19}}, []Range{{5, 6}}, []Range{{0, 19}}, []Range{{0, 4}, {7, 19}}},
		{"a hole stays", []Range{{0, 9}, {11, 19}}, []Range{{0, 9}}, []Range{{0, 9}, {11, 19}}, []Range{{11, 19}}},
		{"all is covered", []Range{{5, 9}}, []Range{{0, 100}}, []Range{{5, 9}}, nil},
		{"the top of memory", []Range{{^uint64(0) - 1, ^uint64(0)}}, []Range{{^uint64(0), ^uint64(0)}}, []Range{{^uint64(0) - 1, ^uint64(0)}}, []Range{{^uint64(0) - 1, ^uint64(0) - 1}}},
		{"nothing", nil, []Range{{0, 9}}, nil, nil},
	}
	for _, tt := range tests {
		if got := Merge(tt.a); !slices.Equal(got, tt.merged) {
			t.Errorf("%s: merged %v, want %v", tt.name, got, tt.merged)
		}
		if got := Subtract(tt.a, tt.b); !slices.Equal(got, tt.subtract) {
			t.Errorf("%s: left %v, want %v", tt.name, got, tt.subtract)
		}
	}
}

// TestSubtractAsSets holds Subtract and Merge against sets of small numbers.
func TestSubtractAsSets(t *testing.T) {
	ranges := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Range {
		start := rapid.Uint64Range(0, 60).Draw(t, "start")
		return Range{start, start + rapid.Uint64Range(0, 9).Draw(t, "more")}
	}), 0, 8)
	members := func(ranges []Range) map[uint64]bool {
		m := map[uint64]bool{}
		for _, r := range ranges {
			for n := r.Start; n <= r.End; n++ {
				m[n] = true
			}
		}
		return m
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b := ranges.Draw(t, "a"), ranges.Draw(t, "b")
		inA, inB, got := members(a), members(b), members(Subtract(a, b))
		for n := range uint64(80) {
			if got[n] != (inA[n] && !inB[n]) {
				t.Fatalf("%d: in a %v, in b %v, in the rest %v", n, inA[n], inB[n], got[n])
			}
		}
		if Size(Merge(a)) != uint64(len(Merge(a)))*HeaderSize+uint64(len(inA)) {
			t.Fatalf("the size of %v is not its bytes", a)
		}
	})
}

// TestPlan: the parts hold the ranges, in order, each but the last of one
// size, whatever the ranges are; and each can be had by itself.
func TestPlan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Uint64Range(1, 50).Draw(t, "size")
		var ranges []Range
		next := uint64(0)
		for range rapid.IntRange(0, 6).Draw(t, "ranges") {
			start := next + rapid.Uint64Range(0, 9).Draw(t, "hole")
			end := start + rapid.Uint64Range(0, 200).Draw(t, "more")
			ranges = append(ranges, Range{start, end})
			next = end + 1
		}
		parts := Plan(ranges, size)
		if Parts(ranges, size) != uint64(len(parts)) {
			t.Fatalf("%d parts, Parts says %d", len(parts), Parts(ranges, size))
		}
		var all []Range
		for i, p := range parts {
			if n := Total(p); n > size || i < len(parts)-1 && n != size || n == 0 {
				t.Fatalf("part %d of %d has %d bytes, want %d", i+1, len(parts), n, size)
			}
			if one := Planned(ranges, size, uint64(i+1)); !slices.Equal(one, p) {
				t.Fatalf("part %d is %v, by itself %v", i+1, p, one)
			}
			all = append(all, p...)
		}
		ascend := slices.IsSortedFunc(all, func(a, b Range) int { return int(int64(a.Start) - int64(b.Start)) })
		if !slices.Equal(Merge(all), Merge(ranges)) || !ascend {
			t.Fatalf("parts %v of ranges %v", parts, ranges)
		}
		for _, none := range []uint64{0, uint64(len(parts)) + 1, 1 << 63} {
			if one := Planned(ranges, size, none); one != nil {
				t.Fatalf("there is a part %d: %v", none, one)
			}
		}
	})
	if Plan([]Range{{0, 9}}, 0) != nil || Parts([]Range{{0, 9}}, 0) != 0 || Planned([]Range{{0, 9}}, 0, 1) != nil {
		t.Error("parts of no bytes are planned")
	}
}

func FuzzParseHeader(f *testing.F) {
	f.Add(AppendHeader(nil, Range{0, 4095}))
	f.Add([]byte(strings.Repeat("\xff", HeaderSize)))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseHeader(b)
		if err != nil {
			return
		}
		again, err := ParseHeader(AppendHeader(nil, r))
		if err != nil || again != r {
			t.Fatalf("%v became %v, %v", r, again, err)
		}
	})
}

func FuzzWalk(f *testing.F) {
	f.Add(image(Range{0, 15}, Range{32, 40}))
	f.Fuzz(func(t *testing.T, b []byte) {
		records, err := Walk(bytes.NewReader(b))
		if err == nil && Size(records) != uint64(len(b)) {
			t.Fatalf("a whole image of %d bytes has records of %d", len(b), Size(records))
		}
	})
}
