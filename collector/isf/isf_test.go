package isf_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"

	"github.com/quicklime-ir/quicklime/collector/isf"
	"github.com/quicklime-ir/quicklime/collector/isf/isftest"
)

// build makes the file of a bundle with some members changed; nil removes.
func build(t *testing.T, change map[string][]byte) (map[string]any, isf.Report, error) {
	t.Helper()
	members := isftest.Members()
	for name, body := range change {
		if members[name] = body; body == nil {
			delete(members, name)
		}
	}
	b, err := isf.ReadBundle(bytes.NewReader(isftest.Tar(members)))
	if err != nil {
		return nil, isf.Report{}, err
	}
	f, r, err := isf.Build(b, "v1")
	if err != nil {
		return nil, r, err
	}
	var out bytes.Buffer
	if _, err := f.WriteTo(&out); err != nil {
		t.Fatal(err)
	}
	var parsed map[string]any
	decoder := json.NewDecoder(&out)
	decoder.UseNumber()
	if err := decoder.Decode(&parsed); err != nil {
		t.Fatal(err)
	}
	return parsed, r, nil
}

// at walks into the file.
func at(t *testing.T, file any, path ...string) any {
	t.Helper()
	for _, name := range path {
		m, ok := file.(map[string]any)
		if !ok || m[name] == nil {
			t.Fatalf("there is no %s in it", strings.Join(path, " "))
		}
		file = m[name]
	}
	return file
}

func TestTypes(t *testing.T) {
	file, _, err := build(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct{ field, want string }{
		{"tasks", `{"offset":0,"type":{"kind":"struct","name":"list_head"}}`},
		{"comm", `{"offset":16,"type":{"kind":"array","count":16,"subtype":{"kind":"base","name":"char"}}}`},
		{"usage", `{"offset":32,"type":{"kind":"struct","name":"atomic_t"}}`}, // a struct without a name has its typedef's
		{"state", `{"offset":36,"type":{"kind":"enum","name":"task_state"}}`},
		{"low", `{"offset":48,"type":{"kind":"bitfield","bit_position":0,"bit_length":3,"type":{"kind":"base","name":"unsigned int"}}}`},
		{"high", `{"offset":52,"type":{"kind":"bitfield","bit_position":1,"bit_length":2,"type":{"kind":"base","name":"unsigned int"}}}`},
		{"call", `{"offset":56,"type":{"kind":"pointer","subtype":{"kind":"function"}}}`},
		{"stack", `{"offset":64,"type":{"kind":"pointer","subtype":{"kind":"base","name":"void"}}}`},
		{"secret", `{"offset":72,"type":{"kind":"pointer","subtype":{"kind":"struct","name":"nowhere"}}}`},
		{"flags", `{"offset":80,"type":{"kind":"base","name":"long unsigned int"}}`},
	}
	for _, tt := range tests {
		same(t, at(t, file, "user_types", "task_struct", "fields", tt.field), tt.want)
	}
	inner := at(t, file, "user_types", "task_struct", "fields", "unnamed_field_4").(map[string]any)
	if inner["anonymous"] != true || !strings.HasPrefix(at(t, inner, "type", "name").(string), "unnamed_") {
		t.Errorf("the union without a name is %v", inner)
	}
	same(t, at(t, file, "enums", "task_state"), `{"size":4,"base":"int","constants":{"DEAD":-1,"ALIVE":1}}`)
	same(t, at(t, file, "user_types", "nowhere"), `{"kind":"struct","size":0,"fields":{}}`)
	same(t, at(t, file, "base_types", "pointer"), `{"size":8,"signed":false,"kind":"int","endian":"little"}`)
	same(t, at(t, file, "base_types", "void"), `{"size":0,"signed":false,"kind":"void","endian":"little"}`)
}

func same(t *testing.T, got any, want string) {
	t.Helper()
	var parsed any
	decoder := json.NewDecoder(strings.NewReader(want))
	decoder.UseNumber()
	if err := decoder.Decode(&parsed); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(parsed, got); diff != "" {
		t.Errorf("differs from %s:\n%s", want, diff)
	}
}

// TestSymbols: the kernel's own are moved back, per-processor ones stay.
func TestSymbols(t *testing.T) {
	file, r, err := build(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"_text":           `{"address":18446744071578845184,"type":{"kind":"array","count":0,"subtype":{"kind":"base","name":"char"}}}`,
		"init_task":       `{"address":18446744071578853504,"type":{"kind":"struct","name":"task_struct"}}`,
		"wake_up":         `{"address":18446744071578846208,"type":{"kind":"function"}}`,
		"__per_cpu_start": `{"address":0}`,
		"runqueues":       `{"address":203136,"type":{"kind":"struct","name":"task_struct"}}`,
		// kallsyms does not list its own tables; VMCOREINFO does.
		"kallsyms_num_syms": `{"address":18446744071578854400,"type":{"kind":"base","name":"unsigned int"}}`,
		// Of a function and a variable of one name, the variable is meant.
		"modules": `{"address":18446744071578854144,"type":{"kind":"struct","name":"list_head"}}`,
		// Four pointers fit before the next symbol.
		"sys_call_table": `{"address":18446744071578854160,"type":{"kind":"array","count":4,"subtype":{"kind":"pointer","subtype":{"kind":"base","name":"void"}}}}`,
		"linux_banner": `{"address":18446744071578853376,"type":{"kind":"array","count":128,"subtype":{"kind":"base","name":"char"}},` +
			`"constant_data":"TGludXggdmVyc2lvbiA2LjEuMC10ZXN0IChyb290QGJ1aWxkZXIpIChnY2MgMTIpICMxIFNNUCBQUkVFTVBUX0RZTkFNSUMK"}`,
	} {
		same(t, at(t, file, "symbols", name), want)
	}
	for _, name := range []string{"helper", "driver", "mem_section"} {
		if _, ok := at(t, file, "symbols").(map[string]any)[name]; ok {
			t.Errorf("symbol %s, which is of several or of a module, is in it", name)
		}
	}
	if r.Release != "6.1.0-test" || r.BuildID != "00ff" || r.Offset != isftest.Offset || len(r.Required) > 0 {
		t.Errorf("report %+v", r)
	}
	if !slices.ContainsFunc(r.Missing, func(line string) bool { return strings.HasPrefix(line, "1 names that several symbols share") }) {
		t.Errorf("the report does not say that a name is of several: %v", r.Missing)
	}
}

func TestTheSameBundleGivesTheSameBytes(t *testing.T) {
	var first []byte
	for range 5 {
		b, err := isf.ReadBundle(bytes.NewReader(isftest.Tar(isftest.Members())))
		if err != nil {
			t.Fatal(err)
		}
		f, _, err := isf.Build(b, "v1")
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if _, err := f.WriteTo(&out); err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = out.Bytes()
		}
		if !bytes.Equal(first, out.Bytes()) {
			t.Fatal("two files of one bundle differ")
		}
	}
}

// TestABundleThatDoesNotServe: each lack is named.
func TestABundleThatDoesNotServe(t *testing.T) {
	replace := func(member, old, new string) map[string][]byte {
		body := string(isftest.Members()[member])
		if !strings.Contains(body, old) {
			t.Fatalf("%s has no %q", member, old)
		}
		return map[string][]byte{member: []byte(strings.ReplaceAll(body, old, new))}
	}
	loop := &btf.Pointer{}
	loop.Target = &btf.Const{Type: loop}
	tests := []struct {
		name   string
		change map[string][]byte
		want   string // of the error; "" is none
		says   string // in the report
	}{
		{name: "no banner", change: map[string][]byte{"version": nil}, want: "its banner is"},
		{name: "a banner of something else", change: map[string][]byte{"version": []byte("Darwin\n")}, want: "its banner is"},
		{name: "no types", change: map[string][]byte{"btf/vmlinux": nil}, want: "no little-endian BTF"},
		{name: "types cut off", change: map[string][]byte{"btf/vmlinux": isftest.Members()["btf/vmlinux"][:200]}, want: "btf/vmlinux"},
		{name: "an ELF file for BTF", change: map[string][]byte{"btf/vmlinux": append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 100)...)}, want: "no little-endian BTF"},
		{name: "no symbols", change: map[string][]byte{"kallsyms": nil}, want: "System.map is missing"},
		{name: "hidden symbols", change: map[string][]byte{"kallsyms": []byte("0000000000000000 T _text\n")}, want: "System.map is missing"},
		{name: "hidden symbols and Debian's stub", change: map[string][]byte{"kallsyms": nil, "System.map": []byte("ffffffffffffffff B The real System.map is in the linux-image-dbg package\n")}, want: "a stub"},
		{name: "hidden symbols and a System.map", change: map[string][]byte{"kallsyms": nil, "System.map": systemMap()}, says: "symbols are of System.map"},
		{name: "another boot's notes", change: replace("vmcoreinfo", "SYMBOL(_stext)=ffffffff852", "SYMBOL(_stext)=ffffffff842"), want: "of two boots"},
		{name: "a move that is no page", change: replace("vmcoreinfo", "KERNELOFFSET=4200000", "KERNELOFFSET=4200001"), want: "KERNELOFFSET is 0x4200001"},
		{name: "a move that is no number", change: replace("vmcoreinfo", "KERNELOFFSET=4200000", "KERNELOFFSET=much"), want: "want a hexadecimal number"},
		{name: "no move told", change: replace("vmcoreinfo", "KERNELOFFSET=", "KERNELBASE="), says: "taken to be linked at 16 MiB"},
		{name: "no crash notes", change: map[string][]byte{"vmcoreinfo": nil}, says: "taken to be linked at 16 MiB"},
		{name: "notes that are none", change: map[string][]byte{"vmcoreinfo": []byte("hello\n")}, want: "want KEY=VALUE"},
		{name: "no init_task", change: replace("kallsyms", " init_task\n", " other_task\n"), want: "no symbol init_task"},
		{name: "five levels", change: map[string][]byte{"vmcoreinfo": append(isftest.Members()["vmcoreinfo"], "NUMBER(pgtable_l5_enabled)=1\n"...)}, says: "five levels"},
		{name: "lines of another's making", change: map[string][]byte{"kallsyms": append(isftest.Members()["kallsyms"], "g T x\nffffffff86000000 T a\x1bb\n"...)}, says: "2 lines of kallsyms"},
		{name: "a circle of types", change: map[string][]byte{"btf/vmlinux": isftest.BTF(append(isftest.Types(), &btf.Struct{Name: "trap", Size: 8, Members: []btf.Member{{Name: "in", Type: loop}}}))}, says: "they are void"},
		{name: "a type of another file", change: map[string][]byte{"btf/vmlinux": isftest.BTF(append(isftest.Types(), &btf.Struct{Name: "file", Size: 16}))}, says: "others of the same name before them: file"},
		{name: "no type of prog_idr", change: map[string][]byte{"btf/vmlinux": isftest.BTF(without(isftest.Types(), "idr"))}, says: "the type of prog_idr: BTF has no type idr"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, r, err := build(t, tt.change)
			if tt.want == "" && err != nil || tt.want != "" && (!errors.Is(err, isf.ErrBundle) || !strings.Contains(err.Error(), tt.want)) {
				t.Fatalf("error %v, want %q", err, tt.want)
			}
			var text strings.Builder
			if err := r.WriteText(&text); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(text.String(), tt.says) {
				t.Errorf("the report does not say %q:\n%s", tt.says, text.String())
			}
		})
	}
}

// systemMap is the test kernel's as it was linked.
func systemMap() []byte {
	return bytes.ReplaceAll(isftest.Members()["kallsyms"], []byte("ffffffff852"), []byte("ffffffff810"))
}

func without(types []btf.Type, name string) []btf.Type {
	return slices.DeleteFunc(types, func(t btf.Type) bool { return t.TypeName() == name })
}

// TestWhatVolatilityRefuses: the report names the types that it cannot do
// without.
func TestWhatVolatilityRefuses(t *testing.T) {
	_, r, err := build(t, map[string][]byte{"btf/vmlinux": isftest.BTF(without(isftest.Types(), "qstr"))})
	if err != nil || !slices.Equal(r.Required, []string{"qstr"}) {
		t.Errorf("required and missing: %v, %v", r.Required, err)
	}
}

func TestReadBundle(t *testing.T) {
	whole := isftest.Tar(isftest.Members())
	twice := slices.Concat(whole[:len(whole)-1024], isftest.Tar(map[string][]byte{"version": []byte("Linux version 2\n")}))
	large := isftest.Tar(map[string][]byte{"version": make([]byte, 5000)})
	for name, tt := range map[string]struct {
		bytes []byte
		want  string
	}{
		"cut off":          {whole[:len(whole)/2], "bundle"},
		"no tar":           {[]byte("hello"), "cannot read the bundle"},
		"a member twice":   {twice, "two members"},
		"a banner too big": {large, "over 4096"},
		"nothing":          {nil, "bundle.json is missing"},
	} {
		if _, err := isf.ReadBundle(bytes.NewReader(tt.bytes)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want %q", name, err, tt.want)
		}
	}
}

// FuzzBuild feeds a hostile host's bundle: whatever it is, it ends in a file
// or in an error.
func FuzzBuild(f *testing.F) {
	m := isftest.Members()
	f.Add(m["kallsyms"], m["vmcoreinfo"], m["btf/vmlinux"])
	f.Add([]byte("0 T _text\n"), []byte("KERNELOFFSET=0\n"), m["btf/vmlinux"][:100])
	f.Fuzz(func(t *testing.T, kallsyms, vmcoreinfo, types []byte) {
		file, r, err := isf.Build(isf.Bundle{Banner: []byte(isftest.Banner), Kallsyms: kallsyms, VMCoreInfo: vmcoreinfo, BTF: types, Machine: "x86_64"}, "v1")
		if err != nil {
			return
		}
		var out bytes.Buffer
		if _, err := file.WriteTo(&out); err != nil || !json.Valid(out.Bytes()) {
			t.Errorf("no JSON: %v", err)
		}
		if r.Typed > r.Symbols || len(slices.Collect(maps.Keys(file.Symbols))) != r.Symbols {
			t.Errorf("report %+v", r)
		}
	})
}
