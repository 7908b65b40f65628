package guest

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Range is a span of physical memory. End is inclusive, as in /proc/iomem.
type Range struct{ Start, End uint64 }

// Size is the number of bytes in the range.
func (r Range) Size() uint64 { return r.End - r.Start + 1 }

// errHidden says that the kernel showed zeros for addresses.
var errHidden = errors.New("all addresses are zero: the reader lacked CAP_SYS_ADMIN")

// systemRAM reads the top-level "System RAM" lines of /proc/iomem (printed by
// r_show in the kernel's kernel/resource.c: two spaces of indent per level). It
// refuses ranges that are empty, reversed, out of order or overlapping, and a
// text without any.
func systemRAM(iomem string) ([]Range, error) {
	var ranges []Range
	for line := range strings.Lines(iomem) {
		span, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " : ")
		if !ok || name != "System RAM" || strings.HasPrefix(span, " ") {
			continue
		}
		r, err := parseRange(span)
		if err != nil {
			return nil, err
		}
		if n := len(ranges); n > 0 && r.Start <= ranges[n-1].End {
			return nil, fmt.Errorf("cannot use the System RAM range %q: it does not follow %#x", span, ranges[n-1].End)
		}
		ranges = append(ranges, r)
	}
	if len(ranges) == 0 {
		return nil, errors.New("cannot find a System RAM range in /proc/iomem")
	}
	return ranges, nil
}

func parseRange(span string) (Range, error) {
	from, to, ok := strings.Cut(span, "-")
	if !ok {
		return Range{}, fmt.Errorf("cannot read the range %q: want START-END", span)
	}
	start, err := strconv.ParseUint(from, 16, 64)
	if err != nil {
		return Range{}, fmt.Errorf("cannot read the range %q: %w", span, err)
	}
	end, err := strconv.ParseUint(to, 16, 64)
	if err != nil {
		return Range{}, fmt.Errorf("cannot read the range %q: %w", span, err)
	}
	if start == 0 && end == 0 {
		return Range{}, fmt.Errorf("cannot use /proc/iomem: %w", errHidden)
	}
	if end <= start {
		return Range{}, fmt.Errorf("cannot use the range %q: it ends where it starts, or before", span)
	}
	return Range{start, end}, nil
}
