package isf

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// Report says what a symbol file holds, and what it lacks.
type Report struct {
	Release  string // of the kernel, as its banner tells it
	BuildID  string // of the kernel's ELF file; "" where it is not known
	Offset   uint64 // by which the kernel was moved
	Types    int    // structs, unions and enums
	Symbols  int
	Typed    int      // of Symbols, those with a type
	Required []string // types without which Volatility refuses the file
	Missing  []string // what else there is not, a line for each
	Notes    []string // what to know when reading the image
}

// Build makes the symbol file. Version is that of this program.
func Build(b Bundle, version string) (*File, Report, error) {
	r := Report{Missing: slices.Clone(b.Lacks)}
	var err error
	if r.Release, err = releaseOf(b.Banner); err != nil {
		return nil, r, err
	}
	info, err := parseVMCoreInfo(b.VMCoreInfo)
	if err != nil {
		return nil, r, err
	}
	symbols, from, err := r.table(b, info)
	if err != nil {
		return nil, r, err
	}
	f := &File{BaseTypes: map[string]baseType{}, UserTypes: map[string]userType{}, Enums: map[string]enum{}, Symbols: map[string]variable{},
		Metadata: metadata{Format: Format, Producer: producer{"quicklime-collector", version}, Linux: origin{
			Symbols: []source{from}, Types: []source{sourceOf("symtab", "btf/vmlinux", b.BTF)}}}}
	t, err := loadTypes(b.BTF, f)
	if err != nil {
		return nil, r, err
	}
	if err := r.place(f, t, symbols, b.Banner); err != nil {
		return nil, r, err
	}
	r.sum(f, t)
	r.note(b, info)
	return f, r, nil
}

// releaseOf reads the banner, "Linux version RELEASE (".
func releaseOf(banner []byte) (string, error) {
	words := strings.Fields(string(banner))
	if !bytes.HasPrefix(banner, []byte("Linux version ")) || !bytes.HasSuffix(banner, []byte("\n")) || len(words) < 3 {
		return "", fmt.Errorf("%w: its banner is %.80q, want Linux version …", ErrBundle, banner)
	}
	return words[2], nil
}

func sourceOf(kind, name string, body []byte) source {
	sum := sha256.Sum256(body)
	return source{kind, name, "sha256", hex.EncodeToString(sum[:])}
}

// table gives the symbols where the kernel was linked: those of kallsyms
// moved back, or, where these are hidden, those of System.map, which nobody
// moved.
func (r *Report) table(b Bundle, info vmcoreinfo) (table, source, error) {
	live, err := parseSymbols(b.Kallsyms)
	if err != nil {
		return live, source{}, fmt.Errorf("cannot read kallsyms: %w", err)
	}
	if live.hidden() {
		disk, err := parseSymbols(b.SystemMap)
		if err != nil {
			return disk, source{}, fmt.Errorf("cannot read System.map: %w", err)
		}
		if _, ok := disk.first(); !ok {
			return disk, source{}, fmt.Errorf("%w: kallsyms has no addresses, and System.map is missing or a stub", ErrBundle)
		}
		r.Notes = append(r.Notes, "the symbols are of System.map, a file of the host's disk, as kallsyms has no addresses")
		r.odd("System.map", disk)
		return disk, sourceOf("system-map", "System.map", b.SystemMap), nil
	}
	if r.Offset, err = offsetOf(b, info, live); err != nil {
		return live, source{}, err
	}
	r.odd("kallsyms", live)
	live.add(info.symbols())
	return live, sourceOf("symtab", "kallsyms", b.Kallsyms), live.unslide(r.Offset)
}

func (r *Report) odd(name string, t table) {
	if t.odd > 0 {
		r.Missing = append(r.Missing, fmt.Sprintf("%d lines of %s, which are not as the kernel writes them", t.odd, name))
	}
}

// offsetOf is by how much the kernel was moved. Crash notes of another boot
// are refused.
func offsetOf(b Bundle, info vmcoreinfo, t table) (uint64, error) {
	offset, found, err := info.hex("KERNELOFFSET")
	if err != nil {
		return 0, err
	}
	stext, told, err := info.hex("SYMBOL(_stext)")
	if err != nil {
		return 0, err
	}
	if s, ok := t.find("_stext"); told && ok && s.addr != stext {
		return 0, fmt.Errorf("%w: _stext is at %#x in kallsyms and at %#x in VMCOREINFO, so they are of two boots", ErrBundle, s.addr, stext)
	}
	if found {
		return offset, nil
	}
	// x86-64 kernels are linked at 16 MiB, unless CONFIG_PHYSICAL_START says
	// otherwise, which no distribution's does. Those of arm64 differ.
	const linked = 0xffffffff81000000
	first, ok := t.first()
	if b.Machine != "x86_64" || !ok || first < linked {
		return 0, fmt.Errorf("%w: VMCOREINFO has no KERNELOFFSET, so nobody knows by how much the kernel was moved", ErrBundle)
	}
	return first - linked, nil
}

// place puts the symbols into the file.
func (r *Report) place(f *File, t *types, symbols table, banner []byte) error {
	variables, functions, err := t.symbols()
	if err != nil {
		return err
	}
	one, ambiguous := symbols.unique(func(name string) bool {
		return known[name] != "" || variables[name] != nil
	})
	for name, s := range one {
		v := variable{Address: s.addr}
		if typ := variables[name]; typ != nil {
			v.Type = t.describe(typ, 0)
		} else if typ := functions[name]; typ != nil && !s.data() {
			v.Type = t.describe(typ, 0)
		}
		f.Symbols[name] = v
	}
	for _, name := range slices.Sorted(maps.Keys(known)) {
		v, ok := f.Symbols[name]
		if !ok || v.Type != nil {
			continue
		}
		if v.Type, err = t.knownType(name, symbols.room(v.Address)); err != nil {
			r.Missing = append(r.Missing, fmt.Sprintf("the type of %s: %v", name, err))
			continue
		}
		f.Symbols[name] = v
	}
	for _, name := range needed {
		if _, ok := f.Symbols[name]; !ok {
			return fmt.Errorf("%w: it has no symbol %s, or several", ErrBundle, name)
		}
	}
	for _, name := range ambiguous {
		if known[name] != "" {
			r.Missing = append(r.Missing, fmt.Sprintf("symbol %s: several have the name", name))
		}
	}
	if len(ambiguous) > 0 {
		r.Missing = append(r.Missing, fmt.Sprintf("%d names that several symbols share", len(ambiguous)))
	}
	v := f.Symbols["linux_banner"]
	v.ConstantData = banner
	f.Symbols["linux_banner"] = v
	return nil
}

// sum counts, and looks for the types that Volatility asks for.
func (r *Report) sum(f *File, t *types) {
	r.Types, r.Symbols = len(f.UserTypes)+len(f.Enums), len(f.Symbols)
	for _, v := range f.Symbols {
		if v.Type != nil {
			r.Typed++
		}
	}
	lacks := func(names []string) (out []string) {
		for _, name := range names {
			if u, ok := f.UserTypes[name]; !ok || u.Size == 0 {
				out = append(out, name)
			}
		}
		return out
	}
	r.Required = lacks(required)
	if lost := lacks(asked); len(lost) > 0 {
		r.Missing = append(r.Missing, "types that some plugins ask for, in modules or not in this kernel: "+strings.Join(lost, ", "))
	}
	if len(t.again) > 0 {
		r.Missing = append(r.Missing, fmt.Sprintf("%d types by their name, as BTF has others of the same name before them: %s", len(t.again), shorten(t.again)))
	}
	if t.wide > 0 {
		r.Missing = append(r.Missing, fmt.Sprintf("%d bitfields that the format has no words for", t.wide))
	}
	if t.deep > 0 {
		r.Missing = append(r.Missing, fmt.Sprintf("%d uses of types that the format has no words for; they are void", t.deep))
	}
}

// shorten lists a few names.
func shorten(names []string) string {
	const most = 12
	if len(names) > most {
		return strings.Join(names[:most], ", ") + ", …"
	}
	return strings.Join(names, ", ")
}

// note says what the image's reader should know.
func (r *Report) note(b Bundle, info vmcoreinfo) {
	r.BuildID = info["BUILD-ID"]
	if release := info["OSRELEASE"]; release != "" && release != r.Release {
		r.Notes = append(r.Notes, fmt.Sprintf("the banner says release %s, VMCOREINFO %s", r.Release, release))
	}
	if _, ok := info["KERNELOFFSET"]; !ok && r.Offset > 0 {
		r.Notes = append(r.Notes, "VMCOREINFO has no KERNELOFFSET: the kernel is taken to be linked at 16 MiB, as distributions do")
	}
	if info["NUMBER(pgtable_l5_enabled)"] == "1" {
		r.Notes = append(r.Notes, "the kernel uses page tables of five levels, which Volatility 3 does not read")
	}
	if b.Machine == "aarch64" {
		r.Notes = append(r.Notes, "the kernel is of arm64, whose images Volatility 3 does not read as published")
	}
}

// WriteText prints a report for a person. Every word of the bundle in it is
// printable.
func (r Report) WriteText(w io.Writer) error {
	plain := func(text string) string { return strings.Trim(fmt.Sprintf("%+.400q", text), `"`) }
	fmt.Fprintf(w, "kernel    %s, build id %s, moved by %#x\n", plain(r.Release), plain(r.BuildID), r.Offset)
	fmt.Fprintf(w, "holds     %d types, %d symbols, %d of them with a type\n", r.Types, r.Symbols, r.Typed)
	for _, name := range r.Required {
		fmt.Fprintf(w, "REQUIRED  type %s is missing: Volatility refuses the file\n", name)
	}
	for _, line := range r.Missing {
		fmt.Fprintf(w, "missing   %s\n", plain(line))
	}
	for _, line := range r.Notes {
		fmt.Fprintf(w, "note      %s\n", plain(line))
	}
	return nil
}
