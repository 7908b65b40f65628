package isf

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"

	"github.com/cilium/ebpf/btf"
)

// maxDepth bounds how deep a type may nest before it comes to a name; no
// kernel has more than a handful, a hostile BTF may have a circle.
const maxDepth = 32

// types turns BTF into the words of the format.
type types struct {
	spec  *btf.Spec
	names map[btf.Type]string // of struct, union and enum
	file  *File
	deep  int      // descriptors that were too deep, and became void
	wide  int      // bitfields that lie across their type
	again []string // names of which there are several, of which the first has the name
}

// loadTypes reads BTF. Source: Documentation/bpf/btf.rst.
func loadTypes(raw []byte, f *File) (*types, error) {
	const magic = 0xeb9f
	if len(raw) < 24 || binary.LittleEndian.Uint16(raw) != magic {
		return nil, fmt.Errorf("%w: btf/vmlinux is no little-endian BTF", ErrBundle)
	}
	spec, err := btf.LoadSpecFromReader(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("%w: btf/vmlinux: %w", ErrBundle, err)
	}
	t := &types{spec: spec, names: map[btf.Type]string{}, file: f}
	t.base()
	if err := t.name(); err != nil {
		return nil, err
	}
	return t, t.define()
}

// base sets the types that every file must have. Compilers name the integers
// in one of two ways; Volatility asks for gcc's.
func (t *types) base() {
	t.file.BaseTypes["void"] = baseType{0, false, "void", "little"}
	t.file.BaseTypes["pointer"] = baseType{8, false, "int", "little"}
	for name, b := range map[string]baseType{
		"char": {1, true, "char", ""}, "signed char": {1, true, "char", ""}, "unsigned char": {1, false, "char", ""},
		"short int": {2, true, "int", ""}, "short unsigned int": {2, false, "int", ""},
		"int": {4, true, "int", ""}, "unsigned int": {4, false, "int", ""},
		"long int": {8, true, "int", ""}, "long unsigned int": {8, false, "int", ""},
		"long long int": {8, true, "int", ""}, "long long unsigned int": {8, false, "int", ""},
		"_Bool": {1, false, "bool", ""},
	} {
		b.Endian = "little"
		t.file.BaseTypes[name] = b
	}
}

// name gives each struct, union and enum its name. One without is called as
// the first typedef for it is, else by its number.
func (t *types) name() error {
	taken := map[string]bool{}
	claim := func(typ btf.Type, name string) bool {
		space := "type "
		if _, ok := typ.(*btf.Enum); ok {
			space = "enum "
		}
		if !plainName(name) || taken[space+name] {
			return false
		}
		taken[space+name] = true
		t.names[typ] = name
		return true
	}
	var unnamed []btf.Type
	for typ, err := range t.spec.All() {
		if err != nil {
			return fmt.Errorf("%w: btf/vmlinux: %w", ErrBundle, err)
		}
		switch typ.(type) {
		case *btf.Struct, *btf.Union, *btf.Enum:
			if claim(typ, typ.TypeName()) {
				continue
			}
			if plainName(typ.TypeName()) {
				t.again = append(t.again, typ.TypeName())
			}
			unnamed = append(unnamed, typ)
		}
	}
	for typ := range t.spec.All() {
		if def, ok := typ.(*btf.Typedef); ok && def.Type.TypeName() == "" {
			if _, has := t.names[def.Type]; !has && isUser(def.Type) {
				claim(def.Type, def.Name)
			}
		}
	}
	for _, typ := range unnamed {
		if _, has := t.names[typ]; has {
			continue
		}
		id, err := t.spec.TypeID(typ)
		if err != nil {
			return err
		}
		if name := fmt.Sprintf("unnamed_%d", id); !claim(typ, name) {
			return fmt.Errorf("%w: btf/vmlinux has a type %s of its own", ErrBundle, name)
		}
	}
	slices.Sort(t.again)
	t.again = slices.Compact(t.again)
	return nil
}

func isUser(typ btf.Type) bool {
	switch typ.(type) {
	case *btf.Struct, *btf.Union, *btf.Enum:
		return true
	}
	return false
}

// define writes every type into the file.
func (t *types) define() error {
	var declared []*btf.Fwd
	for typ, err := range t.spec.All() {
		if err != nil {
			return fmt.Errorf("%w: btf/vmlinux: %w", ErrBundle, err)
		}
		switch typ := typ.(type) {
		case *btf.Int:
			t.integer(typ)
		case *btf.Float:
			if plainName(typ.Name) {
				t.file.BaseTypes[typ.Name] = baseType{typ.Size, true, "float", "little"}
			}
		case *btf.Struct:
			t.file.UserTypes[t.names[typ]] = userType{"struct", typ.Size, t.fields(typ.Members)}
		case *btf.Union:
			t.file.UserTypes[t.names[typ]] = userType{"union", typ.Size, t.fields(typ.Members)}
		case *btf.Enum:
			t.file.Enums[t.names[typ]] = constants(typ)
		case *btf.Fwd:
			declared = append(declared, typ)
		}
	}
	// What is declared and nowhere defined has a name to point to, and no
	// more.
	for _, fwd := range declared {
		if _, defined := t.file.UserTypes[fwd.Name]; !defined && plainName(fwd.Name) {
			t.file.UserTypes[fwd.Name] = userType{fwd.Kind.String(), 0, map[string]field{}}
		}
	}
	return nil
}

func (t *types) integer(i *btf.Int) {
	name := baseName(i)
	if _, known := t.file.BaseTypes[name]; known && name == i.Name {
		return // its own definition says the same, unless it lies
	}
	if plainName(i.Name) {
		t.file.BaseTypes[i.Name] = baseType{i.Size, i.Encoding == btf.Signed, kindOf(i), "little"}
	}
}

func kindOf(i *btf.Int) string {
	switch {
	case i.Encoding == btf.Bool:
		return "bool"
	case i.Encoding == btf.Char:
		return "char"
	}
	return "int"
}

// gcc's names for clang's integers.
var gccNames = map[string]string{
	"short": "short int", "unsigned short": "short unsigned int", "long": "long int", "unsigned long": "long unsigned int",
	"long long": "long long int", "unsigned long long": "long long unsigned int", "bool": "_Bool",
}

func baseName(i *btf.Int) string {
	if name, ok := gccNames[i.Name]; ok {
		return name
	}
	return i.Name
}

// fields gives the members of a struct or union.
func (t *types) fields(members []btf.Member) map[string]field {
	out := make(map[string]field, len(members))
	for n, m := range members {
		name, anonymous := m.Name, false
		if name == "" {
			name = fmt.Sprintf("unnamed_field_%d", n)
			switch strip(m.Type).(type) {
			case *btf.Struct, *btf.Union:
				anonymous = true // its members are as its parent's
			}
		}
		if !plainName(name) {
			continue
		}
		f := field{Offset: m.Offset.Bytes(), Anonymous: anonymous}
		if m.BitfieldSize > 0 {
			f = t.bitfield(m)
		} else {
			f.Type = t.describe(m.Type, 0)
		}
		if f.Type != nil {
			out[name] = f
		}
	}
	return out
}

// bitfield places a bitfield in the unit of its type that holds its first
// bit. One that a packed struct lays across two units cannot be told; nor can
// one of a type without size.
func (t *types) bitfield(m btf.Member) field {
	var unit uint32
	switch typ := strip(m.Type).(type) {
	case *btf.Int:
		unit = typ.Size * 8
	case *btf.Enum:
		unit = typ.Size * 8
	}
	if unit == 0 || unit > 128 {
		t.wide++
		return field{}
	}
	start := uint32(m.Offset) / unit * unit
	position, length := uint32(m.Offset)-start, uint32(m.BitfieldSize)
	if position+length > unit {
		start = uint32(m.Offset) / 8 * 8
		position = uint32(m.Offset) - start
	}
	if position+length > unit {
		t.wide++
		return field{}
	}
	return field{Offset: start / 8, Type: &descriptor{Kind: "bitfield", BitPosition: &position, BitLength: &length, Type: t.describe(m.Type, 0)}}
}

// strip takes off what changes neither size nor layout.
func strip(typ btf.Type) btf.Type {
	for range maxDepth {
		switch q := typ.(type) {
		case *btf.Typedef:
			typ = q.Type
		case *btf.Const:
			typ = q.Type
		case *btf.Volatile:
			typ = q.Type
		case *btf.Restrict:
			typ = q.Type
		case *btf.TypeTag:
			typ = q.Type
		default:
			return typ
		}
	}
	return nil // a circle
}

var void = &descriptor{Kind: "base", Name: "void"}

// describe tells a type where it is used.
func (t *types) describe(typ btf.Type, depth int) *descriptor {
	if depth > maxDepth {
		t.deep++
		return void
	}
	switch typ := strip(typ).(type) {
	case *btf.Void:
		return void
	case *btf.Int:
		if name := baseName(typ); plainName(name) {
			return &descriptor{Kind: "base", Name: name}
		}
	case *btf.Float:
		if plainName(typ.Name) {
			return &descriptor{Kind: "base", Name: typ.Name}
		}
	case *btf.Pointer:
		return &descriptor{Kind: "pointer", Subtype: t.describe(typ.Target, depth+1)}
	case *btf.Array:
		count := typ.Nelems
		return &descriptor{Kind: "array", Count: &count, Subtype: t.describe(typ.Type, depth+1)}
	case *btf.Struct:
		return &descriptor{Kind: "struct", Name: t.names[typ]}
	case *btf.Union:
		return &descriptor{Kind: "union", Name: t.names[typ]}
	case *btf.Enum:
		return &descriptor{Kind: "enum", Name: t.names[typ]}
	case *btf.Fwd:
		if plainName(typ.Name) {
			return &descriptor{Kind: typ.Kind.String(), Name: typ.Name}
		}
	case *btf.FuncProto:
		return &descriptor{Kind: "function"}
	}
	t.deep++
	return void
}

// constants gives an enum; BTF holds a signed one's values extended.
func constants(e *btf.Enum) enum {
	out := enum{Size: e.Size, Base: enumBase(e), Constants: make(map[string]json.Number, len(e.Values))}
	for _, v := range e.Values {
		if !plainName(v.Name) {
			continue
		}
		text := strconv.FormatUint(v.Value, 10)
		if e.Signed {
			text = strconv.FormatInt(int64(v.Value), 10)
		}
		out.Constants[v.Name] = json.Number(text)
	}
	return out
}

func enumBase(e *btf.Enum) string {
	names := map[uint32][2]string{
		1: {"unsigned char", "signed char"}, 2: {"short unsigned int", "short int"},
		8: {"long unsigned int", "long int"},
	}
	pair, ok := names[e.Size]
	if !ok {
		pair = [2]string{"unsigned int", "int"}
	}
	if e.Signed {
		return pair[1]
	}
	return pair[0]
}

// symbols gives the types of those that BTF knows: functions, per-processor
// variables, and all variables of a kernel that was built so.
func (t *types) symbols() (variables, functions map[string]btf.Type, err error) {
	variables, functions = map[string]btf.Type{}, map[string]btf.Type{}
	for typ, err := range t.spec.All() {
		if err != nil {
			return nil, nil, fmt.Errorf("%w: btf/vmlinux: %w", ErrBundle, err)
		}
		switch typ := typ.(type) {
		case *btf.Func:
			functions[typ.Name] = typ.Type
		case *btf.Datasec:
			for _, v := range typ.Vars {
				if v, ok := v.Type.(*btf.Var); ok {
					variables[v.Name] = v.Type
				}
			}
		}
	}
	return variables, functions, nil
}
