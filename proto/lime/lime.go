// Package lime reads and writes the bytes of the LiME v1 memory image format.
//
// It knows bytes only: how large an image of given ranges is, what a header
// looks like, and how to walk an image to its end, so that capture and proof
// share one truth. A LiME image is a sequence of records, each a 32-byte
// little-endian header and then the bytes of one range of physical memory:
//
//	offset size
//	0      4    magic 0x4C694D45
//	4      4    version 1
//	8      8    first address
//	16     8    last address, inclusive
//	24     8    reserved, zero
//
// Records ascend and do not overlap; there may be any number of them, so a
// range of RAM may be split into several. Source: LiME, src/lime.h.
package lime

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// HeaderSize is the length of a record's header in bytes.
const HeaderSize = 32

const (
	magic   = 0x4C694D45
	version = 1
)

// ErrFormat is the kind of every error that the bytes themselves cause.
var ErrFormat = errors.New("not a LiME v1 image")

// Range is a range of physical memory; both ends are inclusive, as in a LiME
// header and in /proc/iomem.
type Range struct {
	Start uint64 `json:"start"`
	End   uint64 `json:"end"`
}

// Len is the number of bytes in the range. The whole 64-bit space, which no
// host has, would be 0.
func (r Range) Len() uint64 { return r.End - r.Start + 1 }

// String gives the range as /proc/iomem prints it.
func (r Range) String() string { return fmt.Sprintf("%08x-%08x", r.Start, r.End) }

// Size is the exact length in bytes of an image with one record for each
// range.
func Size(ranges []Range) uint64 {
	n := uint64(len(ranges)) * HeaderSize
	for _, r := range ranges {
		n += r.Len()
	}
	return n
}

// AppendHeader appends the header of a record.
func AppendHeader(b []byte, r Range) []byte {
	b = binary.LittleEndian.AppendUint32(b, magic)
	b = binary.LittleEndian.AppendUint32(b, version)
	b = binary.LittleEndian.AppendUint64(b, r.Start)
	b = binary.LittleEndian.AppendUint64(b, r.End)
	return binary.LittleEndian.AppendUint64(b, 0)
}

// ParseHeader reads a header of HeaderSize bytes. Its errors are ErrFormat.
func ParseHeader(b []byte) (Range, error) {
	if len(b) < HeaderSize {
		return Range{}, fmt.Errorf("%w: header of %d bytes, want %d", ErrFormat, len(b), HeaderSize)
	}
	if m := binary.LittleEndian.Uint32(b); m != magic {
		return Range{}, fmt.Errorf("%w: magic %#08x, want %#08x", ErrFormat, m, magic)
	}
	if v := binary.LittleEndian.Uint32(b[4:]); v != version {
		return Range{}, fmt.Errorf("%w: version %d, want %d", ErrFormat, v, version)
	}
	r := Range{Start: binary.LittleEndian.Uint64(b[8:]), End: binary.LittleEndian.Uint64(b[16:])}
	if r.End < r.Start || r.Len() == 0 {
		return Range{}, fmt.Errorf("%w: range %v ends before it starts", ErrFormat, r)
	}
	return r, nil
}

// Merge returns the ranges in ascending order, with neighbours and overlaps
// joined: the memory that a set of records covers, however it was split.
func Merge(ranges []Range) []Range {
	sorted := slices.Clone(ranges)
	slices.SortFunc(sorted, func(a, b Range) int { return cmp.Compare(a.Start, b.Start) })
	var out []Range
	for _, r := range sorted {
		if n := len(out); n > 0 && (r.Start <= out[n-1].End || r.Start-1 == out[n-1].End) {
			out[n-1].End = max(out[n-1].End, r.End)
			continue
		}
		out = append(out, r)
	}
	return out
}

// Subtract returns what of a is not in b, ascending.
func Subtract(a, b []Range) []Range {
	var out []Range
	cuts := Merge(b)
	for _, r := range Merge(a) {
		gone := false
		for _, c := range cuts {
			if c.End < r.Start {
				continue
			}
			if c.Start > r.End {
				break
			}
			if c.Start > r.Start {
				out = append(out, Range{r.Start, c.Start - 1})
			}
			if gone = c.End >= r.End; gone {
				break
			}
			r.Start = c.End + 1
		}
		if !gone {
			out = append(out, r)
		}
	}
	return out
}

// Total is how many bytes the ranges hold, which do not overlap.
func Total(ranges []Range) uint64 {
	var n uint64
	for _, r := range ranges {
		n += r.Len()
	}
	return n
}

// Parts is how many parts Plan makes, without making them.
func Parts(ranges []Range, partBytes uint64) uint64 {
	if partBytes == 0 {
		return 0
	}
	total := Total(ranges)
	parts := total / partBytes
	if total%partBytes > 0 {
		parts++
	}
	return parts
}

// Plan cuts the ranges, which ascend, into parts of partBytes each, the last
// excepted. It depends on its arguments alone, so that whoever knows them
// knows which memory part N holds. There are Parts(ranges, partBytes) parts,
// which is the caller's to bound.
func Plan(ranges []Range, partBytes uint64) [][]Range {
	if partBytes == 0 {
		return nil
	}
	var parts [][]Range
	var part []Range
	room := partBytes
	for _, r := range ranges {
		for {
			if r.Len() <= room {
				part = append(part, r)
				room -= r.Len()
				break
			}
			if room > 0 {
				part = append(part, Range{Start: r.Start, End: r.Start + room - 1})
				r.Start += room
			}
			parts = append(parts, part)
			part, room = nil, partBytes
		}
	}
	if len(part) > 0 {
		parts = append(parts, part)
	}
	return parts
}

// Planned is part number of Plan, from 1, without the others; nil where there
// is none.
func Planned(ranges []Range, partBytes uint64, number uint64) []Range {
	if number < 1 || number > Parts(ranges, partBytes) {
		return nil
	}
	skip, room := (number-1)*partBytes, partBytes
	var part []Range
	for _, r := range ranges {
		if skip >= r.Len() {
			skip -= r.Len()
			continue
		}
		r.Start += skip
		skip = 0
		if r.Len() >= room {
			return append(part, Range{Start: r.Start, End: r.Start + room - 1})
		}
		part = append(part, r)
		room -= r.Len()
	}
	return part
}
