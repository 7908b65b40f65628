package isf

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/cilium/ebpf/btf"
)

// known gives the types of the variables that Volatility's Linux plugins ask
// for, as the kernel's sources declare them, from 5.2 on, where BTF begins.
//
// A type is written outside in: "*T" points to T, "[N]T" is N of T in a row,
// "[]T" as many as there is room for until the next symbol; then a name of BTF
// (a struct, an enum, a typedef, an integer), or "{a,b}", the struct without a
// name that has these members. Where kernels differ, "|" parts what is tried
// in turn.
var known = map[string]string{
	// The stackers, pslist, and what every plugin stands on.
	"init_task": "task_struct", "init_mm": "mm_struct", "init_files": "files_struct", "init_fs": "fs_struct", "init_cred": "cred",
	"init_pid_ns": "pid_namespace", "init_uts_ns": "uts_namespace", "init_net": "net", "init_top_pgt": "[512]pgd_t", "swapper_pg_dir": "[512]pgd_t",
	"linux_banner": "[]char", "saved_command_line": "*char", "jiffies_64": "long unsigned int",
	"_text": "[0]char", "_stext": "[0]char", "_etext": "[0]char", "_sinittext": "[0]char", "_einittext": "[0]char", "_end": "[0]char",
	// Layout of memory: page cache, page tables.
	"page_offset_base": "long unsigned int", "vmalloc_base": "long unsigned int", "vmemmap_base": "long unsigned int",
	"phys_base": "long unsigned int", "mem_map": "*page", "mem_section": "**mem_section", "node_data": "[]*pglist_data",
	"super_blocks": "list_head", "inode_hashtable": "*hlist_head", "dentry_hashtable": "*hlist_bl_head", "slab_caches": "list_head",
	// lsmod, hidden_modules, check_modules, modxview.
	"modules": "list_head", "mod_tree": "mod_tree_root", "module_kset": "*kset", "taint_flags": "[]taint_flag",
	"module_addr_min": "long unsigned int", "module_addr_max": "long unsigned int",
	// boottime.
	"tk_core": "{seq,timekeeper}|tk_data",
	// capabilities, iomem, ebpf, tty_check, keyboard_notifiers, fbdev.
	"cap_last_cap": "int", "iomem_resource": "resource", "ioport_resource": "resource",
	"prog_idr": "idr", "map_idr": "idr", "link_idr": "idr", "tty_drivers": "list_head", "keyboard_notifier_list": "atomic_notifier_head",
	"num_registered_fb": "int", "registered_fb": "[32]*fb_info",
	// kmsg.
	"prb": "*printk_ringbuffer", "printk_rb_static": "printk_ringbuffer", "printk_rb_dynamic": "printk_ringbuffer",
	"log_buf": "*char", "log_buf_len": "unsigned int", "log_first_idx": "unsigned int", "log_next_idx": "unsigned int",
	// sockstat, sockscan, netfilter, ip, check_afinfo.
	"net_namespace_list": "list_head", "socket_file_ops": "file_operations", "sockfs_dentry_operations": "dentry_operations",
	"tcp4_seq_ops": "seq_operations", "tcp6_seq_ops": "seq_operations", "udp_seq_ops": "seq_operations", "udp6_seq_ops": "seq_operations",
	"raw_seq_ops": "seq_operations", "raw6_seq_ops": "seq_operations", "arp_seq_ops": "seq_operations", "unix_seq_ops": "seq_operations",
	"tcp_seq_ops": "seq_operations", "packet_seq_ops": "seq_operations",
	// check_idt, check_syscall.
	"idt_table": "[256]gate_desc", "sys_call_table": "[]*void", "ia32_sys_call_table": "[]*void",
	// ftrace, tracepoints, kallsyms.
	"ftrace_ops_list": "*ftrace_ops", "ftrace_list_end": "ftrace_ops", "ftrace_ops_trampoline_list": "list_head", "ftrace_mod_maps": "list_head",
	"__start___tracepoints_ptrs": "[]tracepoint_ptr_t", "bpf_kallsyms": "list_head", "bpf_tree": "latch_tree_root",
	"kallsyms_num_syms": "unsigned int", "kallsyms_relative_base": "long unsigned int", "kallsyms_offsets": "[]int", "kallsyms_markers": "[]unsigned int",
	"kallsyms_names": "[]unsigned char", "kallsyms_token_table": "[]char", "kallsyms_token_index": "[]short unsigned int",
	"kallsyms_seqs_of_names": "[]unsigned char",
}

// needed are the symbols without which Volatility reads no image.
var needed = []string{"linux_banner", "init_task", "init_mm", "init_files"}

var (
	// required are the types without which Volatility refuses the file.
	required = []string{"file", "list_head", "hlist_head", "mm_struct", "super_block", "task_struct", "vm_area_struct", "qstr", "dentry",
		"fs_struct", "files_struct", "kobject", "cred", "inode", "idr", "address_space", "page", "vfsmount", "mount"}
	// asked are types that some plugins look up.
	asked = []string{"mnt_namespace", "module", "bpf_prog", "bpf_prog_aux", "net", "net_device", "socket", "sock", "inet_sock", "unix_sock",
		"netlink_sock", "packet_sock", "vsock_sock", "bt_sock", "xdp_sock", "tty_struct", "tty_driver", "fb_info", "ftrace_ops", "tracepoint"}
)

// maxRoom bounds the elements of an array whose length is guessed.
const maxRoom = 1 << 20

// knownType gives the type of a variable of the table. room is how many bytes
// it may have.
func (t *types) knownType(name string, room uint64) (*descriptor, error) {
	var err error
	for written := range strings.SplitSeq(known[name], "|") {
		var d *descriptor
		if d, err = t.parse(written, room); err == nil {
			return d, nil
		}
	}
	return nil, err
}

func (t *types) parse(written string, room uint64) (*descriptor, error) {
	if to, ok := strings.CutPrefix(written, "*"); ok {
		d, err := t.parse(to, 0)
		return &descriptor{Kind: "pointer", Subtype: d}, err
	}
	if rest, ok := strings.CutPrefix(written, "["); ok {
		length, of, _ := strings.Cut(rest, "]")
		d, err := t.parse(of, 0)
		if err != nil {
			return nil, err
		}
		count, err := t.count(length, d, room)
		return &descriptor{Kind: "array", Count: &count, Subtype: d}, err
	}
	if members, ok := strings.CutPrefix(written, "{"); ok {
		return t.shaped(strings.Split(strings.TrimSuffix(members, "}"), ","))
	}
	return t.named(written)
}

func (t *types) count(length string, of *descriptor, room uint64) (uint32, error) {
	if length != "" {
		n, err := strconv.ParseUint(length, 10, 32)
		return uint32(n), err
	}
	size := t.size(of)
	if size == 0 {
		return 0, fmt.Errorf("a row of things without size")
	}
	return uint32(min(room/uint64(size), maxRoom)), nil
}

// size is how many bytes a type that the table names has.
func (t *types) size(d *descriptor) uint32 {
	switch d.Kind {
	case "pointer":
		return 8
	case "base":
		return t.file.BaseTypes[d.Name].Size
	case "enum":
		return t.file.Enums[d.Name].Size
	}
	return t.file.UserTypes[d.Name].Size
}

// named finds a type by its name, as BTF has it or as every file does.
func (t *types) named(name string) (*descriptor, error) {
	if u, ok := t.file.UserTypes[name]; ok {
		return &descriptor{Kind: u.Kind, Name: name}, nil
	}
	if _, ok := t.file.BaseTypes[name]; ok {
		return &descriptor{Kind: "base", Name: name}, nil
	}
	all, err := t.spec.AnyTypesByName(name)
	if err != nil {
		return nil, fmt.Errorf("BTF has no type %s", name)
	}
	for _, typ := range all {
		if def, ok := typ.(*btf.Typedef); ok {
			return t.describe(def, 0), nil
		}
	}
	return nil, fmt.Errorf("BTF has no type %s", name)
}

// shaped finds the struct without a name that has just these members.
func (t *types) shaped(members []string) (*descriptor, error) {
	for typ, err := range t.spec.All() {
		if err != nil {
			return nil, err
		}
		s, ok := typ.(*btf.Struct)
		if !ok || s.Name != "" || len(s.Members) != len(members) {
			continue
		}
		same := true
		for i, m := range s.Members {
			same = same && m.Name == members[i]
		}
		if same {
			return &descriptor{Kind: "struct", Name: t.names[s]}, nil
		}
	}
	return nil, fmt.Errorf("BTF has no struct of members %s", strings.Join(members, ", "))
}
