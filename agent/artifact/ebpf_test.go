package artifact

import (
	"os"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// TestALinkAndItsProgramAreFound: a program that this process has attached is in
// the tables, with what it is attached to and with this process.
func TestALinkAndItsProgramAreFound(t *testing.T) {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "planted", Type: ebpf.RawTracepoint, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}})
	if err != nil {
		t.Skipf("no program can be loaded here: %v", err)
	}
	defer program.Close()
	attached, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sched_process_exit", Program: program})
	if err != nil {
		t.Skipf("no program can be attached here: %v", err)
	}
	defer attached.Close()
	info, err := attached.Info()
	if err != nil {
		t.Skipf("this kernel has no links: %v", err)
	}
	links, _ := table[EBPFLink](t, new(Host), "ebpf_links")
	at := slices.IndexFunc(links, func(l EBPFLink) bool { return l.ID == uint32(info.ID) })
	if at < 0 {
		t.Fatalf("link %d is not among %+v", info.ID, links)
	}
	if got := links[at]; got.Target != "raw tracepoint sched_process_exit" || got.Program != uint32(info.Program) || !slices.Contains(got.PIDs, os.Getpid()) {
		t.Errorf("got %+v", got)
	}
	programs, _ := table[EBPFProgram](t, new(Host), "ebpf_programs")
	at = slices.IndexFunc(programs, func(p EBPFProgram) bool { return p.ID == uint32(info.Program) })
	if at < 0 || programs[at].Name != "planted" || !slices.Contains(programs[at].PIDs, os.Getpid()) {
		t.Errorf("program %d is not among %+v", info.Program, programs)
	}
}
