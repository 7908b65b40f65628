package lime

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestPlan: the parts hold the ranges, in order, each but the last of one
// size, whatever the ranges are.
func TestPlan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Uint64Range(1, 50).Draw(t, "size")
		var ranges []Range
		next := uint64(0)
		for range rapid.IntRange(0, 6).Draw(t, "ranges") {
			start := next + rapid.Uint64Range(0, 9).Draw(t, "hole")
			end := start + rapid.Uint64Range(0, 200).Draw(t, "more")
			ranges = append(ranges, Range{Start: start, End: end})
			next = end + 2
		}
		parts := Plan(ranges, size)
		var all []Range
		for i, p := range parts {
			var n uint64
			for _, r := range p {
				n += r.Len()
			}
			if n > size || i < len(parts)-1 && n != size || n == 0 {
				t.Fatalf("part %d of %d has %d bytes, want %d", i+1, len(parts), n, size)
			}
			all = append(all, p...)
		}
		if !slices.Equal(Merge(all), Merge(ranges)) || !slices.IsSortedFunc(all, func(a, b Range) int { return int(int64(a.Start) - int64(b.Start)) }) {
			t.Fatalf("parts %v of ranges %v", parts, ranges)
		}
	})
}
