// Package iomem reads /proc/iomem, the kernel's map of physical addresses.
package iomem

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/quicklime-ir/quicklime/proto/lime"
)

// Bounds of the map; the largest hosts have some thousand lines.
const (
	maxLines = 100_000
	// MaxRanges is how many ranges of RAM there may be.
	MaxRanges = 4096
	// MaxBytes is how much of the text is worth reading.
	MaxBytes = 16 << 20
)

// ErrHidden says that the kernel shows no addresses, as it does to those
// without CAP_SYS_ADMIN.
var ErrHidden = errors.New("physical addresses are hidden: CAP_SYS_ADMIN is needed")

// SystemRAM reads the System RAM lines, nested ones as well ("System RAM
// (kmem)" below a persistent memory device), ascending, with neighbours
// joined. Source: kernel/resource.c.
func SystemRAM(r io.Reader) ([]lime.Range, error) {
	var ranges []lime.Range
	lines := bufio.NewScanner(r)
	for n := 0; lines.Scan(); n++ {
		if n >= maxLines || len(ranges) >= MaxRanges {
			return nil, fmt.Errorf("cannot read iomem: more than %d lines or %d ranges of RAM", maxLines, MaxRanges)
		}
		where, what, ok := strings.Cut(strings.TrimSpace(lines.Text()), " : ")
		if !ok || what != "System RAM" && !strings.HasPrefix(what, "System RAM (") {
			continue
		}
		rng, err := ParseRange(where)
		if err != nil {
			return nil, fmt.Errorf("cannot read iomem: %w", err)
		}
		ranges = append(ranges, rng)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("cannot read iomem: %w", err)
	}
	if len(ranges) == 0 {
		return nil, errors.New("cannot read iomem: no System RAM in it")
	}
	for _, r := range ranges {
		if r != (lime.Range{}) {
			return lime.Merge(ranges), nil
		}
	}
	return nil, fmt.Errorf("cannot read iomem: %w", ErrHidden)
}

// ParseRange reads the addresses of a line: 00100000-1ffdffff.
func ParseRange(text string) (lime.Range, error) {
	first, last, ok := strings.Cut(text, "-")
	start, err1 := strconv.ParseUint(first, 16, 64)
	end, err2 := strconv.ParseUint(last, 16, 64)
	if !ok || err1 != nil || err2 != nil || end < start || end-start == ^uint64(0) {
		return lime.Range{}, fmt.Errorf("%.80q is no range of addresses", text)
	}
	return lime.Range{Start: start, End: end}, nil
}
