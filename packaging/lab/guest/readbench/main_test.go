package main

import (
	"debug/elf"
	"slices"
	"testing"

	"github.com/quicklime-ir/quicklime/proto/lime"
)

func TestStretches(t *testing.T) {
	load := func(off, phys, size uint64) elf.ProgHeader {
		return elf.ProgHeader{Type: elf.PT_LOAD, Off: off, Paddr: phys, Filesz: size}
	}
	ranges := []lime.Range{{Start: 0x1000, End: 0x9fbff}, {Start: 0x100000, End: 0x4ffffff}}
	tests := []struct {
		name  string
		progs []elf.ProgHeader
		want  []stretch
	}{
		{"none", nil, nil},
		{"a note, and what is no RAM", []elf.ProgHeader{{Type: elf.PT_NOTE, Paddr: 0x1000, Filesz: 99}, load(7, ^uint64(0), 1<<30)}, nil},
		{"whole pages alone", []elf.ProgHeader{load(0x10000, 0x1000, 0x9e000), load(0x200000, 0x100000, 0x4f00000)},
			[]stretch{{0x10000, 0x9e000}, {0x200000, 0x4f00000}}},
		{"the text comes first and overlaps", []elf.ProgHeader{load(0x900000, 0x1000000, 0x1000000), load(0x200000, 0x100000, 0x4f00000)},
			[]stretch{{0x200000, 0x4f00000}}},
		{"one segment for both, with the hole", []elf.ProgHeader{load(0, 0, 0x8000000)}, []stretch{{0x1000, 0x9ec00}, {0x100000, 0x4f00000}}},
		{"two for one range", []elf.ProgHeader{load(0x50, 0x3000000, 0x2000000), load(0x20, 0x100000, 0x1000000)},
			[]stretch{{0x20, 0x1000000}, {0x50, 0x2000000}}},
	}
	for _, tt := range tests {
		if got := stretches(tt.progs, ranges); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %x, want %x", tt.name, got, tt.want)
		}
	}
}
