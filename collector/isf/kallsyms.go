package isf

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Bounds of a symbol table. Kernels have some 200,000 symbols, with names of
// 512 bytes at most (KSYM_NAME_LEN).
const (
	maxSymbolCount = 2_000_000
	maxSymbolName  = 512
)

// symbol is a line of /proc/kallsyms or System.map: "ADDRESS KIND NAME".
type symbol struct {
	addr uint64
	kind byte // as nm prints it: T text, D data, B bss, R read-only, A absolute; lower case is local
	name string
}

// global reports whether the symbol is seen by other files of the kernel.
func (s symbol) global() bool { return s.kind >= 'A' && s.kind <= 'Z' }

// data reports whether the symbol may be a variable.
func (s symbol) data() bool { return strings.IndexByte("dDbBrRgGsSaA", s.kind) >= 0 }

// table is a symbol table.
type table struct {
	symbols []symbol // ascending by address
	odd     int      // lines that are not understood
}

// parseSymbols reads a table. Symbols of modules, which have a fourth column,
// are left out: modules lie elsewhere at each boot.
func parseSymbols(text []byte) (table, error) {
	var t table
	text = bytes.TrimRight(text, "\x00")
	for line := range bytes.Lines(text) {
		if len(t.symbols) == maxSymbolCount {
			return t, fmt.Errorf("%w: it has over %d symbols", ErrBundle, maxSymbolCount)
		}
		fields := bytes.Fields(line)
		if len(fields) == 4 && fields[3][0] == '[' {
			continue
		}
		s, ok := parseSymbol(fields)
		if !ok {
			t.odd++
			continue
		}
		t.symbols = append(t.symbols, s)
	}
	t.sort()
	return t, nil
}

func (t *table) sort() {
	slices.SortStableFunc(t.symbols, func(a, b symbol) int { return cmp.Compare(a.addr, b.addr) })
}

// add takes in what is not there yet by its name and lies in the kernel.
func (t *table) add(more []symbol) {
	first, ok := t.first()
	have := map[string]bool{}
	for _, s := range t.symbols {
		have[s.name] = true
	}
	for _, s := range more {
		if ok && s.addr >= first && !have[s.name] {
			t.symbols = append(t.symbols, s)
		}
	}
	t.sort()
}

func parseSymbol(fields [][]byte) (symbol, bool) {
	if len(fields) != 3 || len(fields[1]) != 1 || len(fields[2]) > maxSymbolName {
		return symbol{}, false
	}
	addr, err := strconv.ParseUint(string(fields[0]), 16, 64)
	name := string(fields[2])
	return symbol{addr, fields[1][0], name}, err == nil && plainName(name)
}

// plainName reports whether a name is what compilers make: printable ASCII,
// and no '!', by which Volatility parts a table's name from a symbol's.
func plainName(name string) bool {
	for i := range len(name) {
		if c := name[i]; c < ' ' || c > '~' || c == '!' || c == '"' || c == '\\' {
			return false
		}
	}
	return name != ""
}

// hidden reports whether the kernel kept the addresses to itself.
func (t table) hidden() bool { return len(t.symbols) == 0 || t.symbols[len(t.symbols)-1].addr == 0 }

// find gives the first symbol of a name.
func (t table) find(name string) (symbol, bool) {
	i := slices.IndexFunc(t.symbols, func(s symbol) bool { return s.name == name })
	if i < 0 {
		return symbol{}, false
	}
	return t.symbols[i], true
}

// unslide moves the symbols back to where the kernel was linked. Those below
// its first byte stay: the kernel shows per-processor ones, offsets that they
// are on x86 before 6.15, as they are. From 6.15 on, and on arm64, they are
// addresses in the kernel like others. Source: kernel/kallsyms.c,
// kallsyms_sym_address.
func (t table) unslide(offset uint64) error {
	if offset == 0 {
		return nil
	}
	first, ok := t.first()
	if !ok {
		return fmt.Errorf("%w: neither _text nor _stext is among the symbols", ErrBundle)
	}
	if offset%4096 != 0 || offset > first {
		return fmt.Errorf("%w: KERNELOFFSET is %#x, and the kernel begins at %#x", ErrBundle, offset, first)
	}
	for i := range t.symbols {
		if s := &t.symbols[i]; s.addr >= first {
			s.addr -= offset
		}
	}
	return nil
}

// first is where the kernel begins.
func (t table) first() (uint64, bool) {
	addr, found := ^uint64(0), false
	for _, name := range []string{"_text", "_stext"} {
		if s, ok := t.find(name); ok {
			addr, found = min(addr, s.addr), true
		}
	}
	return addr, found
}

// unique gives one symbol for each name, and the names for which it cannot.
// Of several, a variable is meant where isVariable says so; then the one that
// other files see.
func (t table) unique(isVariable func(name string) bool) (map[string]symbol, []string) {
	byName := map[string][]symbol{}
	for _, s := range t.symbols {
		byName[s.name] = append(byName[s.name], s)
	}
	out := make(map[string]symbol, len(byName))
	var ambiguous []string
	for name, all := range byName {
		if len(all) > 1 && isVariable(name) {
			all = prefer(all, symbol.data)
		}
		if len(all) > 1 {
			all = prefer(all, symbol.global)
		}
		if slices.ContainsFunc(all, func(s symbol) bool { return s.addr != all[0].addr }) {
			ambiguous = append(ambiguous, name)
			continue
		}
		out[name] = all[0]
	}
	slices.Sort(ambiguous)
	return out, ambiguous
}

// prefer gives those that are like it, or all where none is.
func prefer(all []symbol, is func(symbol) bool) []symbol {
	if like := slices.DeleteFunc(slices.Clone(all), func(s symbol) bool { return !is(s) }); len(like) > 0 {
		return like
	}
	return all
}

// room is how many bytes lie between a symbol and the next one that is
// elsewhere: the most that it can have.
func (t table) room(addr uint64) uint64 {
	i, _ := slices.BinarySearchFunc(t.symbols, addr, func(s symbol, a uint64) int {
		if s.addr <= a {
			return -1
		}
		return 1
	})
	if i == len(t.symbols) {
		return 0
	}
	return t.symbols[i].addr - addr
}
