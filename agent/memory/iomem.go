package memory

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/quicklime-ir/quicklime/proto/lime"
)

// Bounds of /proc/iomem; the largest hosts have some thousand lines.
const (
	maxIomemLines = 100_000
	maxRAMRanges  = 4096
	maxIomemBytes = 16 << 20
)

// ErrHidden says that the kernel shows /proc/iomem without addresses, as it
// does to those without CAP_SYS_ADMIN.
var ErrHidden = errors.New("physical addresses are hidden: CAP_SYS_ADMIN is needed")

// SystemRAM reads the System RAM lines of /proc/iomem, nested ones as well
// ("System RAM (kmem)" below a persistent memory device), ascending, with
// neighbours joined. Source: kernel/resource.c.
func SystemRAM(r io.Reader) ([]lime.Range, error) {
	var ranges []lime.Range
	lines := bufio.NewScanner(r)
	for n := 0; lines.Scan(); n++ {
		if n >= maxIomemLines || len(ranges) >= maxRAMRanges {
			return nil, fmt.Errorf("cannot read iomem: more than %d lines or %d ranges of RAM", maxIomemLines, maxRAMRanges)
		}
		where, what, ok := strings.Cut(strings.TrimSpace(lines.Text()), " : ")
		if !ok || what != "System RAM" && !strings.HasPrefix(what, "System RAM (") {
			continue
		}
		rng, err := parseRange(where)
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

func parseRange(text string) (lime.Range, error) {
	first, last, ok := strings.Cut(text, "-")
	start, err1 := strconv.ParseUint(first, 16, 64)
	end, err2 := strconv.ParseUint(last, 16, 64)
	if !ok || err1 != nil || err2 != nil || end < start || end-start == ^uint64(0) {
		return lime.Range{}, fmt.Errorf("%.80q is no range of addresses", text)
	}
	return lime.Range{Start: start, End: end}, nil
}

// limeRAM is the RAM that LiME's image has, all of this host's. It refuses
// hosts on which that would not be so: the module takes only the lines that are
// indented under no other and say System RAM and no more, and it takes a range
// that begins inside a page for one that begins with it. Source: LiME,
// src/main.c.
func limeRAM() ([]lime.Range, error) {
	f, err := os.Open("/proc/iomem")
	if err != nil {
		return nil, refuse("lime", Failed, "cannot learn where RAM is: %v", err)
	}
	defer f.Close()
	return parseLimeRAM(f)
}

func parseLimeRAM(iomem io.Reader) ([]lime.Range, error) {
	text, err := io.ReadAll(io.LimitReader(iomem, maxIomemBytes))
	if err != nil {
		return nil, refuse("lime", Failed, "cannot read iomem: %v", err)
	}
	ranges, err := SystemRAM(bytes.NewReader(text))
	if errors.Is(err, ErrHidden) {
		return nil, refuse("lime", NoCapability, "%v", err)
	}
	if err != nil {
		return nil, refuse("lime", Failed, "%v", err)
	}
	for line := range strings.Lines(string(text)) {
		_, what, _ := strings.Cut(strings.TrimSpace(line), " : ")
		if strings.HasPrefix(what, "System RAM (") || what == "System RAM" && strings.HasPrefix(line, " ") {
			return nil, refuse("lime", Failed, "LiME would leave out the RAM of %.80q in /proc/iomem", strings.TrimSpace(line))
		}
	}
	for _, r := range ranges {
		if r.Start%pageSize != 0 {
			return nil, refuse("lime", Failed, "LiME would misread the RAM %v, which begins inside a page", r)
		}
	}
	return ranges, nil
}

// layout is what /proc/iomem tells of RAM.
type layout struct {
	ram    []lime.Range // ascending, disjoint
	kernel []lime.Range // where the running kernel lies in it; none where that is not told
}

// hostLayout is this host's. Its error is ErrHidden where addresses are.
func hostLayout() (layout, error) {
	f, err := os.Open("/proc/iomem")
	if err != nil {
		return layout{}, fmt.Errorf("cannot learn where RAM is: %w", err)
	}
	defer f.Close()
	return parseLayout(f)
}

func parseLayout(iomem io.Reader) (layout, error) {
	text, err := io.ReadAll(io.LimitReader(iomem, maxIomemBytes))
	if err != nil {
		return layout{}, fmt.Errorf("cannot read iomem: %w", err)
	}
	ram, err := SystemRAM(bytes.NewReader(text))
	if err != nil {
		return layout{}, err
	}
	return layout{ram, kernelRanges(text)}, nil
}

// kernelRanges gives the lines of the kernel's own code and data, which lie
// below those of System RAM. Source: arch/x86/kernel/setup.c and
// arch/arm64/kernel/setup.c.
func kernelRanges(iomem []byte) []lime.Range {
	var ranges []lime.Range
	for line := range strings.Lines(string(iomem)) {
		where, what, _ := strings.Cut(strings.TrimSpace(line), " : ")
		switch what {
		case "Kernel code", "Kernel rodata", "Kernel data", "Kernel bss":
			if r, err := parseRange(where); err == nil && r.End > 0 && len(ranges) < maxRAMRanges {
				ranges = append(ranges, r)
			}
		}
	}
	return lime.Merge(ranges)
}
