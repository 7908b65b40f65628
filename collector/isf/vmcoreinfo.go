package isf

import (
	"fmt"
	"strconv"
	"strings"
)

// vmcoreinfo is the kernel's note to crash tools: lines KEY=VALUE.
// Source: kernel/vmcore_info.c, Documentation/admin-guide/kdump/vmcoreinfo.rst.
type vmcoreinfo map[string]string

// maxLines bounds it; kernels have some 150.
const maxLines = 10_000

func parseVMCoreInfo(text []byte) (vmcoreinfo, error) {
	v := vmcoreinfo{}
	for line := range strings.Lines(strings.TrimRight(string(text), "\x00")) {
		key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("%w: VMCOREINFO has a line %.80q, want KEY=VALUE", ErrBundle, line)
		}
		if v[key] = value; len(v) > maxLines {
			return nil, fmt.Errorf("%w: VMCOREINFO has over %d lines", ErrBundle, maxLines)
		}
	}
	return v, nil
}

// symbols gives the addresses that it tells, among them those of kallsyms' own
// tables, which kallsyms leaves out.
func (v vmcoreinfo) symbols() []symbol {
	var out []symbol
	for key := range v {
		name, isSymbol := strings.CutPrefix(key, "SYMBOL(")
		addr, _, err := v.hex(key)
		if name = strings.TrimSuffix(name, ")"); isSymbol && err == nil && plainName(name) && len(name) <= maxSymbolName {
			out = append(out, symbol{addr, 'D', name})
		}
	}
	return out
}

// hex gives a number that is written in hexadecimal, as addresses are.
func (v vmcoreinfo) hex(key string) (n uint64, found bool, err error) {
	text, found := v[key]
	if !found {
		return 0, false, nil
	}
	n, err = strconv.ParseUint(text, 16, 64)
	if err != nil {
		return 0, true, fmt.Errorf("%w: VMCOREINFO's %s is %.40q, want a hexadecimal number", ErrBundle, key, text)
	}
	return n, true, nil
}
