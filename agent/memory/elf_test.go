package memory

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

// area is a header of a fixture, and the RAM that is in the file there.
type area struct {
	header
	holds uint64 // the physical address of its first byte
	ram   bool   // else its bytes in the file are no RAM at all
}

// byteAt is what the fixtures' RAM holds at an address.
func byteAt(addr uint64) byte { return byte(addr>>12*37+addr>>20*11+addr) | 1 }

// coreFile writes a core file. Areas that are no RAM have no bytes in it.
func coreFile(t *testing.T, areas []area) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "kcore"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var headers []header
	for _, a := range areas {
		headers = append(headers, a.header)
		if !a.ram {
			continue
		}
		b := make([]byte, a.size)
		for i := range b {
			b[i] = byteAt(a.holds + uint64(i))
		}
		if _, err := f.WriteAt(b, int64(a.offset)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.WriteAt(elfCore(headers...), 0); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// ramAt is an area of RAM; told says that its header has its address.
func ramAt(virtual, physical, size, offset uint64, told bool) area {
	h := header{1, virtual, 0, offset, size}
	if told {
		h.paddr = physical
	}
	return area{h, physical, true}
}

// other is an area that is no RAM: vmalloc, vmemmap, modules.
func other(virtual, paddr, size uint64) area {
	return area{header: header{1, virtual, paddr, 1 << 30, size}}
}

// Virtual addresses of kernels. Source: Documentation/arch/x86/x86_64/mm.rst
// and Documentation/arch/arm64/memory.rst.
const (
	direct4     = 0xffff888000000000 // amd64, 4-level paging, since 4.20
	direct5     = 0xff11000000000000 // amd64, 5-level paging
	directOld   = 0xffff880000000000 // amd64, before 4.20
	directKASLR = 0xffff9a4c40000000 // amd64, moved
	vmallocOld  = 0xffffc90000000000 // amd64: 32 TiB
	modules     = 0xffffffffa0000000 // amd64: 1.5 GiB
	text        = 0xffffffff81000000 // amd64
	arm39       = 0xffffffc000000000 // arm64, 39-bit addresses, before 5.4: RAM's first address
	arm48       = 0xffff800000000000 // arm64, 48-bit addresses, before 5.4
	arm52       = 0xfff0000000000000 // arm64, 52-bit addresses
)

// TestKernels reads memory back through the headers of each kind of kernel.
func TestKernels(t *testing.T) {
	const small = "00001000-0009fbff : System RAM\n00100000-001fffff : System RAM\n  00110000-0011ffff : Kernel code\n"
	smallRAM := []lime.Range{{Start: 0x1000, End: 0x9fbff}, {Start: 0x100000, End: 0x1fffff}}
	smallGaps := []evidence.Gap{gap(0x9f000, 0x9fbff, NotInSource)}
	two := func(base uint64, told bool) []area {
		return []area{ramAt(base+0x1000, 0x1000, 0x9e000, 0x2000, told), ramAt(base+0x100000, 0x100000, 0x100000, 0x100000, told)}
	}
	for _, tt := range []struct {
		name  string // with the trap
		areas []area
		iomem string
		page  uint64
		ram   []lime.Range
		gaps  []evidence.Gap
	}{
		{"amd64: KCORE_TEXT overlaps a segment of RAM; vmalloc and modules have the address -1",
			append([]area{{header{1, text, 0x110000, 0x110000, 0x10000}, 0x110000, true}, other(vmallocOld, none, 32<<40), other(modules, none, 0x5f000000)}, two(direct4, true)...),
			small, pageSize, smallRAM, smallGaps},
		{"amd64, 5-level paging: only virtual addresses differ", two(direct5, true), small, pageSize, smallRAM, smallGaps},
		{"RHEL 7's 3.10 has physical addresses", append(two(directOld, true), other(vmallocOld, none, 32<<40)), small, pageSize, smallRAM, smallGaps},
		{"RAM from address 0 on: one address of 0 is no sign of an old kernel",
			[]area{ramAt(direct4, 0, 0x2000, 0x2000, true), ramAt(direct4+0x100000, 0x100000, 0x1000, 0x10000, true)},
			"00000000-00001fff : System RAM\n00100000-00100fff : System RAM\n", pageSize,
			[]lime.Range{{Start: 0, End: 0x1fff}, {Start: 0x100000, End: 0x100fff}}, nil},
		{"RAM that was added later is nested below its device",
			append(two(direct4, true), ramAt(direct4+0x1000000, 0x1000000, 0x2000, 0x300000, true)),
			small + "01000000-01ffffff : Persistent Memory\n  01000000-01001fff : dax0.0\n    01000000-01001fff : System RAM (kmem)\n", pageSize,
			append(slices.Clone(smallRAM), lime.Range{Start: 0x1000000, End: 0x1001fff}), smallGaps},
		{"before 4.11: vmalloc could hold all RAM, text and modules have the address 0 too",
			append(two(directOld, false), other(vmallocOld, 0, 32<<40), other(modules, 0, 0x5f000000), other(text, 0, 0x10000)),
			small, pageSize, smallRAM, smallGaps},
		{"before 4.11: moved by KASLR, areas in any order",
			append([]area{other(text, 0, 0x10000), other(0xffffb3d000000000, 0, 32<<40)}, two(directKASLR, false)...),
			small, pageSize, smallRAM, smallGaps},
		{"before 4.11: ranges that touch are areas of their own",
			[]area{ramAt(directOld+0x2000, 0x2000, 0x1000, 0x3000, false), ramAt(directOld+0x1000, 0x1000, 0x1000, 0x2000, false), other(vmallocOld, 0, 32<<40)},
			"00001000-00001fff : System RAM\n00002000-00002fff : System RAM\n", pageSize, []lime.Range{{Start: 0x1000, End: 0x2fff}}, nil},
		{"before 4.11: one range of RAM", []area{ramAt(directOld+0x1000, 0x1000, 0x1000, 0x2000, false), other(vmallocOld, 0, 32<<40)},
			"00001000-00001fff : System RAM\n", pageSize, []lime.Range{{Start: 0x1000, End: 0x1fff}}, nil},
		{"before 4.11: text lies within the direct map, as on old arm64; RAM is far from address 0",
			[]area{other(0xffffff8000000000, 0, 240<<30), ramAt(arm39, 0x40000000, 0x100000, 0x10000, false), ramAt(arm39+0x80000, 0x40080000, 0x8000, 0x90000, false)},
			"40000000-400fffff : System RAM\n  40080000-40087fff : Kernel code\n", pageSize, []lime.Range{{Start: 0x40000000, End: 0x400fffff}}, nil},
		{"before 4.11: arm64, pages of 64 KiB, RAM that ends inside one",
			[]area{other(0xffff000000000000, 0, 126<<40), ramAt(arm48, 0x80000000, 0x30000, 0x10000, false), ramAt(arm48+0x100000, 0x80100000, 0x10000, 0x40000, false)},
			"80000000-8003efff : System RAM\n800f8000-80117fff : System RAM\n", 64 << 10,
			[]lime.Range{{Start: 0x80000000, End: 0x8003efff}, {Start: 0x800f8000, End: 0x80117fff}},
			[]evidence.Gap{gap(0x80030000, 0x8003efff, NotInSource), gap(0x800f8000, 0x800fffff, NotInSource), gap(0x80110000, 0x80117fff, NotInSource)}},
		{"arm64: 52-bit addresses, pages of 64 KiB", []area{other(arm48, none, 100<<40), ramAt(arm52+0x40000000, 0x40000000, 0x20000, 0x10000, true)},
			"40000000-4001ffff : System RAM\n", 64 << 10, []lime.Range{{Start: 0x40000000, End: 0x4001ffff}}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := noFlags
			o.pageBytes = tt.page
			k, err := newKcore(coreFile(t, tt.areas), func() (layout, error) { return parseLayout(strings.NewReader(tt.iomem)) }, o)
			if err != nil {
				t.Fatal(err)
			}
			defer k.Close()
			if !slices.Equal(k.Ranges(), tt.ram) {
				t.Errorf("RAM %v, want %v", k.Ranges(), tt.ram)
			}
			if got := readBack(t, k); !slices.Equal(got, tt.gaps) {
				t.Errorf("gaps %v, want %v", got, tt.gaps)
			}
		})
	}
}

// readBack reads all of a source and holds it against byteAt; it gives the
// gaps.
func readBack(t *testing.T, s Source) []evidence.Gap {
	t.Helper()
	r, err := s.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var all []evidence.Gap
	for _, rng := range s.Ranges() {
		for addr := rng.Start; addr <= rng.End; {
			n := int(min(MaxRead, rng.End-addr+1))
			b, gaps, err := r.ReadPhys(t.Context(), addr, n)
			if err != nil {
				t.Fatal(err)
			}
			for i, got := range b {
				want := byteAt(addr + uint64(i))
				if inGaps(gaps, addr+uint64(i)) {
					want = 0
				}
				if got != want {
					t.Fatalf("byte %#x is %#x, want %#x", addr+uint64(i), got, want)
				}
			}
			all = append(all, gaps...)
			addr += uint64(n)
		}
	}
	return all
}

// TestOldKernelsThatCannotBeRead: where RAM could be mapped in two ways or in
// none, nothing is read, as it would be something else under RAM's name.
func TestOldKernelsThatCannotBeRead(t *testing.T) {
	vmalloc := other(vmallocOld, 0, 32<<40)
	first := ramAt(directOld+0x1000, 0x1000, 0x1000, 0x2000, false)
	second := ramAt(directOld+0x4000, 0x4000, 0x1000, 0x3000, false)
	one, both := "00001000-00001fff : System RAM\n", "00001000-00001fff : System RAM\n00004000-00004fff : System RAM\n"
	for _, tt := range []struct {
		name, iomem, want string
		areas             []area
	}{
		{"an area of the size of all RAM", one, "or at", []area{first, vmalloc, other(modules, 0, 0x1000)}},
		{"a range without its area", both, "none of 2 areas", []area{first, vmalloc}},
		{"areas at another distance", both, "none of 3 areas", []area{first, ramAt(directOld+0x5000, 0x4000, 0x1000, 0x3000, false), vmalloc}},
		{"an area that is larger than RAM", one, "none of 2 areas", []area{ramAt(directOld+0x1000, 0x1000, 0x2000, 0x2000, false), vmalloc}},
		{"vmalloc alone", one, "none of 1 areas", []area{vmalloc, vmalloc}},
		{"addresses that are no kernel's", one, "none of 1 areas", []area{ramAt(0x400000, 0x1000, 0x1000, 0x2000, false), vmalloc}},
		{"no whole page of RAM", "00001400-00001bff : System RAM\n", "no whole page", []area{first, vmalloc}},
		{"addresses of RAM are hidden", "00000000-00000000 : System RAM\n", "hidden", []area{first, second, vmalloc}},
	} {
		_, err := newKcore(coreFile(t, tt.areas), func() (layout, error) { return parseLayout(strings.NewReader(tt.iomem)) }, noFlags)
		var r *Refusal
		if !errors.As(err, &r) || r.Reason != OldKernel || !strings.Contains(r.Detail, tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}
