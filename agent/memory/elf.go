package memory

import (
	"cmp"
	"encoding/binary"
	"io"
	"math"
	"slices"

	"github.com/quicklime-ir/quicklime/proto/lime"
)

// maxHeaders bounds the program headers of /proc/kcore.
const maxHeaders = 8192

// kernelHalf is the least address that can be a kernel's: with 5-level paging
// on amd64 the upper half begins there, with 4-level paging and on arm64 above.
const kernelHalf = 0xff00_0000_0000_0000

// segment is physical memory at a place in a file.
type segment struct {
	lime.Range
	offset int64
}

// load is a program header that says what of the kernel's memory is where.
type load struct {
	virtual  lime.Range
	physical uint64 // of its first byte; 0 in all of them before Linux 4.11
	offset   int64
}

// segment gives the header's memory by physical address, from start on.
func (l load) segment(start uint64) segment {
	return segment{lime.Range{Start: start, End: start + (l.virtual.End - l.virtual.Start)}, l.offset}
}

// parseKcore reads the ELF headers of a core file and gives its program
// headers for memory, PT_LOAD. Source: elf(5), fs/proc/kcore.c.
func parseKcore(r io.ReaderAt) ([]load, error) {
	var header [64]byte
	if _, err := r.ReadAt(header[:], 0); err != nil {
		return nil, refuse("kcore", Malformed, "cannot read ELF header: %v", err)
	}
	le := binary.LittleEndian
	if string(header[:6]) != "\x7fELF\x02\x01" || le.Uint16(header[16:]) != 4 {
		return nil, refuse("kcore", Malformed, "it is not a little-endian 64-bit ELF core file")
	}
	at, size, count := le.Uint64(header[32:]), le.Uint16(header[54:]), le.Uint16(header[56:])
	if size != 56 || count == 0 || count > maxHeaders || at > 1<<20 {
		return nil, refuse("kcore", Malformed, "%d program headers of %d bytes at offset %d", count, size, at)
	}
	table := make([]byte, int(count)*int(size))
	if _, err := r.ReadAt(table, int64(at)); err != nil {
		return nil, refuse("kcore", Malformed, "cannot read program headers: %v", err)
	}
	var loads []load
	for ; len(table) > 0; table = table[size:] {
		const ptLoad = 1
		offset, virtual, physical, length := le.Uint64(table[8:]), le.Uint64(table[16:]), le.Uint64(table[24:]), le.Uint64(table[40:])
		if le.Uint32(table) != ptLoad || length == 0 || virtual+length-1 < virtual || offset > math.MaxInt64 || length-1 > math.MaxInt64-offset {
			continue
		}
		loads = append(loads, load{lime.Range{Start: virtual, End: virtual + length - 1}, physical, int64(offset)})
	}
	return loads, nil
}

// untold says that the headers tell no physical addresses, as those of kernels
// before 4.11 do not. That one of several begins at address 0 is no sign of it.
func untold(loads []load) bool {
	return len(loads) > 1 && !slices.ContainsFunc(loads, func(l load) bool { return l.physical != 0 })
}

// told gives the segments that have physical addresses, ascending; where two
// overlap, as the kernel's text does its RAM, the one that begins first stays
// whole.
func told(loads []load) []segment {
	var segments []segment
	for _, l := range loads {
		// All ones: mapped by page tables, not RAM (vmalloc, modules, vmemmap).
		if l.physical == math.MaxUint64 || l.physical+(l.virtual.End-l.virtual.Start) < l.physical {
			continue
		}
		segments = append(segments, l.segment(l.physical))
	}
	return disjoint(segments)
}

// directMap gives the segments of a kernel that tells no physical addresses.
// It maps all RAM in one piece, at an address that kaslr may have moved: the
// one at which each range of RAM has its segment, and each of these segments
// begins and ends with RAM. Areas for vmalloc and modules, which are large
// enough to hold all RAM, are told apart by the latter. Of a range of RAM, only
// whole pages, of the kernel's size, are there. Source: fs/proc/kcore.c,
// kclist_add_private.
func directMap(loads []load, ram []lime.Range, page uint64) ([]segment, error) {
	whole := wholePages(ram, page)
	if len(whole) == 0 {
		return nil, refuse("kcore", OldKernel, "no header has a physical address, and /proc/iomem has no whole page of RAM to find them by")
	}
	var areas []lime.Range
	for _, l := range loads {
		if l.virtual.Start >= kernelHalf {
			areas = append(areas, l.virtual)
		}
	}
	areas = lime.Merge(areas)
	var bases []uint64
	for _, area := range areas {
		if base := area.Start - whole[0].Start; fits(areas, whole, base) {
			bases = append(bases, base)
		}
	}
	if len(bases) == 0 {
		return nil, refuse("kcore", OldKernel, "no header has a physical address, and none of %d areas is where %d ranges of RAM could be mapped", len(areas), len(whole))
	}
	if len(bases) > 1 {
		return nil, refuse("kcore", OldKernel, "no header has a physical address, and RAM could be mapped at %#x or at %#x", bases[0], bases[1])
	}
	var segments []segment
	for _, l := range loads {
		if area, ok := holder(areas, l.virtual); ok && begins(whole, area.Start-bases[0]) {
			segments = append(segments, l.segment(l.virtual.Start-bases[0]))
		}
	}
	return disjoint(segments), nil
}

// fits says whether all RAM can be mapped at base, in areas that hold RAM
// alone at both of their ends.
func fits(areas, ram []lime.Range, base uint64) bool {
	for _, r := range ram {
		there := lime.Range{Start: base + r.Start, End: base + r.End}
		if there.End < there.Start || there.Start < kernelHalf {
			return false
		}
		area, ok := holder(areas, there)
		if !ok || !begins(ram, area.Start-base) || !slices.ContainsFunc(ram, func(r lime.Range) bool { return base+r.End == area.End }) {
			return false
		}
	}
	return true
}

// holder gives the range, of ascending and disjoint ones, in which r lies.
func holder(ranges []lime.Range, r lime.Range) (lime.Range, bool) {
	i, _ := slices.BinarySearchFunc(ranges, r.Start, func(x lime.Range, a uint64) int { return cmp.Compare(x.End, a) })
	if i == len(ranges) || ranges[i].Start > r.Start || ranges[i].End < r.End {
		return lime.Range{}, false
	}
	return ranges[i], true
}

// begins says whether a range begins there.
func begins(ranges []lime.Range, start uint64) bool {
	return slices.ContainsFunc(ranges, func(r lime.Range) bool { return r.Start == start })
}

// wholePages cuts what fills no page off both ends of the ranges.
func wholePages(ranges []lime.Range, page uint64) []lime.Range {
	var out []lime.Range
	for _, r := range ranges {
		start, end := (r.Start+page-1)&^(page-1), (r.End+1)&^(page-1)
		if start >= r.Start && start < end {
			out = append(out, lime.Range{Start: start, End: end - 1})
		}
	}
	return out
}

// disjoint sorts the segments and cuts off what an earlier one has.
func disjoint(segments []segment) []segment {
	slices.SortStableFunc(segments, func(a, b segment) int { return cmp.Compare(a.Start, b.Start) })
	var out []segment
	for _, s := range segments {
		if n := len(out); n > 0 && s.Start <= out[n-1].End {
			if s.End <= out[n-1].End {
				continue
			}
			cut := out[n-1].End + 1 - s.Start
			s.Start, s.offset = s.Start+cut, s.offset+int64(cut)
		}
		out = append(out, s)
	}
	return out
}

// within cuts the segments to the ranges.
func within(segments []segment, ranges []lime.Range) []segment {
	var out []segment
	for _, s := range segments {
		for _, r := range ranges {
			start, end := max(s.Start, r.Start), min(s.End, r.End)
			if start <= end {
				out = append(out, segment{lime.Range{Start: start, End: end}, s.offset + int64(start-s.Start)})
			}
		}
	}
	return out
}
