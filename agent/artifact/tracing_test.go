package artifact

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/google/go-cmp/cmp"
)

func TestTracingTellsWhatIsHooked(t *testing.T) {
	root := t.TempDir()
	place(t, root, map[string]string{
		"sys/kernel/debug/kprobes/list":              "ffffffff81 k  __x64_sys_kill+0x0  hid [DISABLED]\n",
		"sys/kernel/debug/tracing/current_tracer":    "nop\n",
		"sys/kernel/debug/tracing/set_ftrace_filter": "#### all functions enabled ####\n",
	})
	got, record := table[KernelHook](t, &Host{Root: root}, "tracing")
	want := []KernelHook{{"kprobes/list", "ffffffff81 k  __x64_sys_kill+0x0  hid [DISABLED]"}, {"tracing/current_tracer", "nop"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if len(record) < 6 {
		t.Errorf("files that are not there go unsaid: %+v", record)
	}
}

func TestParseKey(t *testing.T) {
	for line, want := range map[string]*Key{
		"0d83dd00 I--Q---     2 perm 1f3f0000     0 65534 keyring   _uid.0: empty": {Serial: "0d83dd00", Flags: "I--Q---", Usage: 2, Timeout: "perm",
			Permissions: "1f3f0000", GID: 65534, Type: "keyring", Description: "_uid.0: empty"},
		"1 I 1 3d 0 0 -1 user": {Serial: "1", Flags: "I", Usage: 1, Timeout: "3d", Permissions: "0", GID: -1, Type: "user"},
		"short":                nil,
		"":                     nil,
	} {
		if diff := cmp.Diff(want, parseKey(line)); diff != "" {
			t.Errorf("%q: %s", line, diff)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add("0d83dd00 I--Q---     2 perm 1f3f0000     0 65534 keyring   _uid.0: empty")
	f.Fuzz(func(t *testing.T, line string) {
		if k := parseKey(line); k != nil && (len(k.Description) > maxPath || k.Type == "") {
			t.Errorf("%q gives %+v", line, k)
		}
	})
}

func TestFDInfoID(t *testing.T) {
	for text, want := range map[string]uint32{"pos:\t0\nprog_id:\t42\n": 42, "map_id:\t42\n": 0, "prog_id:\t-1\n": 0, "": 0} {
		if got, ok := fdinfoID([]byte(text), "prog_id"); got != want || ok != (want != 0) {
			t.Errorf("%q gives %d, %t", text, got, ok)
		}
	}
}

// A program and a map that this process holds are listed as its own.
func TestEBPFNamesItsOwner(t *testing.T) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "planted", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 3})
	if err != nil {
		t.Skip("cannot make an eBPF map: ", err)
	}
	defer m.Close()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "planted", Type: ebpf.SocketFilter, License: "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}})
	if err != nil {
		t.Skip("cannot load an eBPF program: ", err)
	}
	defer p.Close()
	programs, _ := table[EBPFProgram](t, new(Host), "ebpf_programs")
	maps, _ := table[EBPFMap](t, new(Host), "ebpf_maps")
	if !slices.ContainsFunc(programs, func(r EBPFProgram) bool {
		return r.Name == "planted" && strings.EqualFold(r.Type, "SocketFilter") && r.Instructions >= 2 && slices.Contains(r.PIDs, os.Getpid())
	}) {
		t.Errorf("the program is not among %+v", programs)
	}
	if !slices.ContainsFunc(maps, func(r EBPFMap) bool {
		return r.Name == "planted" && r.MaxEntries == 3 && slices.Contains(r.PIDs, os.Getpid())
	}) {
		t.Errorf("the map is not among %+v", maps)
	}
}
