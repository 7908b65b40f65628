package isf

import (
	"bytes"
	"cmp"
	"slices"
	"testing"
)

// FuzzParseSymbols: symbols are ascending and their names plain, whatever a
// hostile host calls them; moving them back never moves those below the
// kernel.
func FuzzParseSymbols(f *testing.F) {
	f.Add([]byte("0000000000031980 A runqueues\nffffffff85200000 T _text\nffffffffc0477080 d driver\t[failover]\n"), uint64(0x4200000))
	f.Add([]byte("ffffffff85200000 T _text"), uint64(1))
	f.Add([]byte("0 T a\n\x00\x00"), uint64(0))
	f.Fuzz(func(t *testing.T, text []byte, offset uint64) {
		got, err := parseSymbols(text)
		if err != nil {
			return
		}
		if !slices.IsSortedFunc(got.symbols, func(a, b symbol) int { return cmp.Compare(a.addr, b.addr) }) {
			t.Error("not ascending")
		}
		for _, s := range got.symbols {
			if !plainName(s.name) || len(s.name) > maxSymbolName {
				t.Errorf("name %q", s.name)
			}
		}
		first, found := got.first()
		before := slices.Clone(got.symbols)
		if err := got.unslide(offset); err != nil || offset == 0 {
			return
		}
		for i, s := range got.symbols {
			if moved := before[i].addr - s.addr; found && (before[i].addr < first) != (moved == 0) || moved != 0 && moved != offset {
				t.Errorf("%s was moved from %#x to %#x", s.name, before[i].addr, s.addr)
			}
		}
	})
}

// FuzzParseVMCoreInfo: every line is a key with its value, or none is taken.
func FuzzParseVMCoreInfo(f *testing.F) {
	f.Add([]byte("OSRELEASE=6.1.0\nKERNELOFFSET=4200000\n"))
	f.Add([]byte("KERNELOFFSET=\n\x00"))
	f.Add([]byte("=\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := parseVMCoreInfo(text)
		if err != nil {
			return
		}
		for key := range got {
			if key == "" || !bytes.Contains(text, []byte(key+"=")) {
				t.Errorf("key %q", key)
			}
		}
		got.hex("KERNELOFFSET")
	})
}
