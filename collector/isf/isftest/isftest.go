// Package isftest makes small bundles of symbols for tests: those of a kernel
// that never was, with a handful of types and symbols.
package isftest

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/ebpf/btf"
)

// Banner is /proc/version of the kernel that never was.
const Banner = "Linux version 6.1.0-test (root@builder) (gcc 12) #1 SMP PREEMPT_DYNAMIC\n"

// Offset is by how much it was moved: its _text is at 0xffffffff81000000.
const Offset uint64 = 0x4200000

// Types are those that Volatility refuses a file without, and each kind of
// type that a file can hold.
func Types() []btf.Type {
	char := &btf.Int{Name: "char", Size: 1, Encoding: btf.Signed}
	number := &btf.Int{Name: "unsigned int", Size: 4}
	long := &btf.Int{Name: "long unsigned int", Size: 8}
	list := &btf.Struct{Name: "list_head", Size: 16}
	list.Members = []btf.Member{{Name: "next", Type: &btf.Pointer{Target: list}}, {Name: "prev", Type: &btf.Pointer{Target: list}, Offset: 64}}
	counter := &btf.Typedef{Name: "atomic_t", Type: &btf.Struct{Size: 4, Members: []btf.Member{{Name: "counter", Type: number}}}}
	state := &btf.Enum{Name: "task_state", Size: 4, Signed: true, Values: []btf.EnumValue{{Name: "DEAD", Value: ^uint64(0)}, {Name: "ALIVE", Value: 1}}}
	either := &btf.Union{Size: 8, Members: []btf.Member{{Name: "word", Type: long}, {Name: "half", Type: number}}}
	task := &btf.Struct{Name: "task_struct", Size: 96, Members: []btf.Member{
		{Name: "tasks", Type: list},
		{Name: "comm", Type: &btf.Array{Type: char, Index: number, Nelems: 16}, Offset: 16 * 8},
		{Name: "usage", Type: counter, Offset: 32 * 8},
		{Name: "state", Type: state, Offset: 36 * 8},
		{Name: "", Type: either, Offset: 40 * 8},
		{Name: "low", Type: number, Offset: 48 * 8, BitfieldSize: 3},
		{Name: "high", Type: number, Offset: 48*8 + 33, BitfieldSize: 2},
		{Name: "call", Type: &btf.Pointer{Target: &btf.FuncProto{Return: (*btf.Void)(nil)}}, Offset: 56 * 8},
		{Name: "stack", Type: &btf.Pointer{Target: (*btf.Void)(nil)}, Offset: 64 * 8},
		{Name: "secret", Type: &btf.Pointer{Target: &btf.Const{Type: &btf.Fwd{Name: "nowhere"}}}, Offset: 72 * 8},
		{Name: "flags", Type: &btf.Volatile{Type: long}, Offset: 80 * 8},
	}}
	all := []btf.Type{task, counter}
	for _, name := range []string{"file", "hlist_head", "mm_struct", "super_block", "vm_area_struct", "qstr", "dentry", "fs_struct", "files_struct",
		"kobject", "cred", "inode", "idr", "address_space", "page", "vfsmount", "mount"} {
		all = append(all, &btf.Struct{Name: name, Size: 8, Members: []btf.Member{{Name: "word", Type: long}}})
	}
	all = append(all, &btf.Func{Name: "wake_up", Type: &btf.FuncProto{Return: (*btf.Void)(nil)}, Linkage: btf.GlobalFunc})
	return append(all, &btf.Datasec{Name: ".data..percpu", Size: 96, Vars: []btf.VarSecinfo{
		{Type: &btf.Var{Name: "runqueues", Type: task, Linkage: btf.GlobalVar}, Size: 96}}})
}

// Members are the bundle's, bundle.json excepted, by their names.
func Members() map[string][]byte {
	kallsyms := "0000000000000000 A __per_cpu_start\n0000000000031980 A runqueues\n"
	for _, s := range []struct {
		at   uint64
		kind byte
		name string
	}{
		{0x0, 'T', "_text"}, {0x0, 'T', "_stext"}, {0x100, 't', "helper"}, {0x200, 't', "helper"}, {0x300, 't', "modules"}, {0x400, 'T', "wake_up"}, {0x1000, 'T', "_etext"},
		{0x2000, 'R', "linux_banner"}, {0x2080, 'D', "init_task"}, {0x2100, 'd', "init_mm"}, {0x2200, 'D', "init_files"},
		{0x2300, 'd', "modules"}, {0x2310, 'D', "sys_call_table"}, {0x2330, 'b', "prog_idr"}, {0x3000, 'B', "_end"},
	} {
		kallsyms += fmt.Sprintf("%016x %c %s\n", 0xffffffff81000000+Offset+s.at, s.kind, s.name)
	}
	kallsyms += "ffffffffc0477080 d driver\t[failover]\n"
	return map[string][]byte{
		"version": []byte(Banner), "kallsyms": []byte(kallsyms), "btf/vmlinux": BTF(Types()),
		"vmcoreinfo": fmt.Appendf(nil, "OSRELEASE=6.1.0-test\nBUILD-ID=00ff\nSYMBOL(_stext)=%x\nSYMBOL(kallsyms_num_syms)=ffffffff85202400\nSYMBOL(mem_section)=ffff8d3e1ec91000\nNUMBER(phys_base)=0\nKERNELOFFSET=%x\n", 0xffffffff81000000+Offset, Offset),
	}
}

// BTF is the bytes of types.
func BTF(types []btf.Type) []byte {
	b, err := btf.NewBuilder(types, nil)
	if err != nil {
		panic(err)
	}
	raw, err := b.Marshal(nil, &btf.MarshalOptions{Order: binary.LittleEndian})
	if err != nil {
		panic(err)
	}
	return raw
}

// Tar is the bundle of these members, and of a bundle.json that says so.
func Tar(members map[string][]byte) []byte {
	type file struct {
		Name   string `json:"name"`
		SHA256 string `json:"sha256"`
	}
	index := map[string]any{"format": 1, "uname": map[string]string{"machine": "x86_64"}}
	var files []file
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	add := func(name string, body []byte) {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(body)), Mode: 0o400}); err != nil {
			panic(err)
		}
		w.Write(body)
	}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		add(name, members[name])
		files = append(files, file{name, "00"})
	}
	index["files"] = files
	body, err := json.Marshal(index)
	if err != nil {
		panic(err)
	}
	add("bundle.json", body)
	if err := w.Close(); err != nil {
		panic(err)
	}
	return out.Bytes()
}
