package memory

import (
	"cmp"
	"context"
	"encoding/binary"
	"slices"
	"time"

	"github.com/quicklime-ir/quicklime/proto/lime"
)

// Bounds of a look at the page flags of all memory.
const (
	maxFlags  = 4 << 20 // flags that are read: all of them up to 16 GiB of RAM, else evenly spread
	orderTime = 2 * time.Second
	fewFlags  = 64   // read at a time where not all are; at least so many of each range of a part
	allFlags  = 4096 // and where they are
)

// ascending is the order of a source that is read from its start to its end.
func ascending(parts [][]lime.Range) []int {
	order := make([]int, len(parts))
	for i := range order {
		order[i] = i
	}
	return order
}

// order gives the indexes of parts: those that hold the kernel itself, then the
// others by their share of page tables and slab, where page flags tell it. On
// hosts with more than maxFlags pages it takes samples, and what is not seen
// within orderTime comes last, ascending.
func order(ctx context.Context, parts [][]lime.Range, kernel []lime.Range, flags *pageFlags) []int {
	weight := density(ctx, parts, flags) // 0 to 1, and 2 for the kernel
	for i, part := range parts {
		if overlap(part, kernel) {
			weight[i] = 2
		}
	}
	order := ascending(parts)
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(weight[b], weight[a]) })
	return order
}

// density gives the share of page tables and slab in each part.
func density(ctx context.Context, parts [][]lime.Range, flags *pageFlags) []float64 {
	shares := make([]float64, len(parts))
	if flags.file == nil {
		return shares
	}
	ctx, cancel := context.WithTimeout(ctx, orderTime)
	defer cancel()
	var pages uint64
	for _, part := range parts {
		for _, r := range part {
			pages += flags.pagesOf(r)
		}
	}
	window, every := uint64(allFlags), uint64(1)
	if pages > maxFlags {
		window, every = fewFlags, (pages+maxFlags-1)/maxFlags
	}
	words := make([]byte, 8*window)
	for i, part := range parts {
		var seen, hot int
		for _, r := range part {
			first, count := r.Start/flags.page, flags.pagesOf(r)
			for at := uint64(0); at < count; at += window * every {
				if ctx.Err() != nil {
					return shares
				}
				got := flags.read(words[:8*min(window, count-at)], first+at)
				seen += len(got) / 8
				hot += hotPages(got)
			}
		}
		if seen > 0 {
			shares[i] = float64(hot) / float64(seen)
		}
	}
	return shares
}

// hotPages counts the pages of slab and page tables.
func hotPages(words []byte) int {
	hot := 0
	for ; len(words) > 0; words = words[8:] {
		if binary.LittleEndian.Uint64(words)&(slabPage|tablePage) != 0 {
			hot++
		}
	}
	return hot
}

// overlap says whether any of a touches any of b.
func overlap(a, b []lime.Range) bool {
	return slices.ContainsFunc(a, func(x lime.Range) bool {
		return slices.ContainsFunc(b, func(y lime.Range) bool { return x.Start <= y.End && y.Start <= x.End })
	})
}
