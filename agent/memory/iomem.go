package memory

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/quicklime-ir/quicklime/proto/iomem"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

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

func parseLimeRAM(src io.Reader) ([]lime.Range, error) {
	text, err := io.ReadAll(io.LimitReader(src, iomem.MaxBytes))
	if err != nil {
		return nil, refuse("lime", Failed, "cannot read iomem: %v", err)
	}
	ranges, err := iomem.SystemRAM(bytes.NewReader(text))
	if errors.Is(err, iomem.ErrHidden) {
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

// hostLayout is this host's. Its error is iomem.ErrHidden where addresses are.
func hostLayout() (layout, error) {
	f, err := os.Open("/proc/iomem")
	if err != nil {
		return layout{}, fmt.Errorf("cannot learn where RAM is: %w", err)
	}
	defer f.Close()
	return parseLayout(f)
}

func parseLayout(src io.Reader) (layout, error) {
	text, err := io.ReadAll(io.LimitReader(src, iomem.MaxBytes))
	if err != nil {
		return layout{}, fmt.Errorf("cannot read iomem: %w", err)
	}
	ram, err := iomem.SystemRAM(bytes.NewReader(text))
	if err != nil {
		return layout{}, err
	}
	return layout{ram, kernelRanges(text)}, nil
}

// kernelRanges gives the lines of the kernel's own code and data, which lie
// below those of System RAM. Source: arch/x86/kernel/setup.c and
// arch/arm64/kernel/setup.c.
func kernelRanges(text []byte) []lime.Range {
	var ranges []lime.Range
	for line := range strings.Lines(string(text)) {
		where, what, _ := strings.Cut(strings.TrimSpace(line), " : ")
		switch what {
		case "Kernel code", "Kernel rodata", "Kernel data", "Kernel bss":
			if r, err := iomem.ParseRange(where); err == nil && r.End > 0 && len(ranges) < iomem.MaxRanges {
				ranges = append(ranges, r)
			}
		}
	}
	return lime.Merge(ranges)
}
