package artifact

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// maxEBPF bounds the rows of each table of eBPF, and maxEBPFOwners the processes
// that a row names.
const (
	maxEBPF       = 64 << 10
	maxEBPFOwners = 64
)

// EBPFProgram is a row of the table ebpf_programs.
type EBPFProgram struct {
	ID           uint32   `json:"id"`
	Type         string   `json:"type"`
	Name         Text     `json:"name,omitempty"`
	Tag          string   `json:"tag,omitempty"`          // hash of its instructions, in hex
	LoadedNS     int64    `json:"loaded_ns,omitempty"`    // nanoseconds since boot, suspension included
	UID          *uint32  `json:"uid,omitempty"`          // of the user who loaded it
	Instructions int      `json:"instructions,omitempty"` // as the kernel runs them, before they become machine code
	Maps         []uint32 `json:"maps,omitempty"`         // IDs of those that it uses
	PIDs         []int    `json:"pids,omitempty"`         // processes that hold it; none where it is pinned or attached alone
}

// EBPFMap is a row of the table ebpf_maps.
type EBPFMap struct {
	ID         uint32 `json:"id"`
	Type       string `json:"type"`
	Name       Text   `json:"name,omitempty"`
	KeyBytes   uint32 `json:"key_bytes"`
	ValueBytes uint32 `json:"value_bytes"`
	MaxEntries uint32 `json:"max_entries"`
	Flags      uint32 `json:"flags"` // BPF_F_… of linux/bpf.h
	Frozen     bool   `json:"frozen,omitempty"`
	PIDs       []int  `json:"pids,omitempty"` // processes that hold it
}

// EBPFLink is a row of the table ebpf_links: where a program is attached, as
// far as that was done by a link. The number of its type is that of
// enum bpf_link_type of linux/bpf.h.
type EBPFLink struct {
	ID      uint32 `json:"id"`
	Type    uint32 `json:"type"`
	Program uint32 `json:"program"`
	Target  Text   `json:"target,omitempty"` // what it is attached to, as far as the kernel tells it
	PIDs    []int  `json:"pids,omitempty"`   // processes that hold it
}

// fdinfoID reads the number that a line of fdinfo gives for key.
func fdinfoID(data []byte, key string) (uint32, bool) {
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(line, ":")
		if name == key {
			n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 32)
			return uint32(n), err == nil
		}
	}
	return 0, false
}

// eachEBPF gives each ID that next finds to do. A kernel that refuses, or has
// no eBPF, is on record.
func (h *Host) eachEBPF(s *sheet, what string, next func(uint32) (uint32, error), do func(id uint32) error) error {
	if !h.running() {
		s.note(what, NoteNone, "asked of the running kernel alone, and this is another root")
		return nil
	}
	var id uint32
	for range maxEBPF {
		following, err := next(id)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			s.failed(what, fmt.Errorf("cannot list %s: %w", what, err))
			return nil
		}
		id = following
		if err := errors.Join(s.ctx.Err(), do(id)); err != nil {
			return err
		}
	}
	s.note(what, NoteCut, fmt.Sprintf("more than %d", maxEBPF))
	return nil
}

// fillEBPFPrograms writes the table ebpf_programs.
func fillEBPFPrograms(h *Host, s *sheet) error {
	owners, err := h.ebpfOwners(s, "prog_id")
	if err != nil {
		return err
	}
	next := func(id uint32) (uint32, error) {
		n, err := ebpf.ProgramGetNextID(ebpf.ProgramID(id))
		return uint32(n), err
	}
	return h.eachEBPF(s, "ebpf programs", next, func(id uint32) error {
		row, err := readEBPFProgram(id)
		if err != nil {
			s.failed(fmt.Sprintf("ebpf program %d", id), err)
			return nil
		}
		row.PIDs = owners[id]
		return s.put(row)
	})
}

func readEBPFProgram(id uint32) (*EBPFProgram, error) {
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if err != nil {
		return nil, err
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return nil, err
	}
	row := &EBPFProgram{ID: id, Type: info.Type.String(), Name: clip(info.Name, maxWord), Tag: info.Tag}
	if at, ok := info.LoadTime(); ok {
		row.LoadedNS = int64(at / time.Nanosecond)
	}
	if uid, ok := info.CreatedByUID(); ok {
		row.UID = &uid
	}
	if size, err := info.TranslatedSize(); err == nil {
		const instructionBytes = 8 // struct bpf_insn
		row.Instructions = size / instructionBytes
	}
	if maps, ok := info.MapIDs(); ok {
		for _, m := range maps {
			row.Maps = append(row.Maps, uint32(m))
		}
	}
	return row, nil
}

// fillEBPFMaps writes the table ebpf_maps.
func fillEBPFMaps(h *Host, s *sheet) error {
	owners, err := h.ebpfOwners(s, "map_id")
	if err != nil {
		return err
	}
	next := func(id uint32) (uint32, error) {
		n, err := ebpf.MapGetNextID(ebpf.MapID(id))
		return uint32(n), err
	}
	return h.eachEBPF(s, "ebpf maps", next, func(id uint32) error {
		row, err := readEBPFMap(id)
		if err != nil {
			s.failed(fmt.Sprintf("ebpf map %d", id), err)
			return nil
		}
		row.PIDs = owners[id]
		return s.put(row)
	})
}

func readEBPFMap(id uint32) (*EBPFMap, error) {
	m, err := ebpf.NewMapFromID(ebpf.MapID(id))
	if err != nil {
		return nil, err
	}
	defer m.Close()
	info, err := m.Info()
	if err != nil {
		return nil, err
	}
	return &EBPFMap{ID: id, Type: info.Type.String(), Name: clip(info.Name, maxWord), KeyBytes: info.KeySize, ValueBytes: info.ValueSize,
		MaxEntries: info.MaxEntries, Flags: info.Flags, Frozen: info.Frozen()}, nil
}

// fillEBPFLinks writes the table ebpf_links.
func fillEBPFLinks(h *Host, s *sheet) error {
	if !h.running() {
		s.note("ebpf links", NoteNone, "asked of the running kernel alone, and this is another root")
		return nil
	}
	owners, err := h.ebpfOwners(s, "link_id")
	if err != nil {
		return err
	}
	links := new(link.Iterator)
	defer links.Close()
	for count := 0; links.Next(); count++ {
		if count == maxEBPF {
			s.note("ebpf links", NoteCut, fmt.Sprintf("more than %d", maxEBPF))
			return nil
		}
		info, err := links.Link.Info()
		if err != nil {
			s.failed(fmt.Sprintf("ebpf link %d", links.ID), err)
			continue
		}
		id := uint32(info.ID)
		if err := s.put(EBPFLink{ID: id, Type: uint32(info.Type), Program: uint32(info.Program), Target: clip(linkTarget(info), maxPath), PIDs: owners[id]}); err != nil {
			return err
		}
	}
	if err := links.Err(); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOENT) {
		s.failed("ebpf links", fmt.Errorf("cannot list ebpf links: %w", err))
	}
	return nil
}

// linkTarget says in words what a link is attached to. Attach types are numbers
// of enum bpf_attach_type, hooks those of linux/netfilter.h.
// Source: linux/bpf.h, struct bpf_link_info.
func linkTarget(info *link.Info) string {
	if t := info.Tracing(); t != nil {
		return fmt.Sprintf("attach type %d of program or BTF object %d, BTF id %d", t.AttachType, t.TargetObjectId, t.TargetBtfId)
	}
	if t := info.RawTracepoint(); t != nil {
		return "raw tracepoint " + t.Name
	}
	if t := info.Cgroup(); t != nil {
		return fmt.Sprintf("cgroup %d, attach type %d", t.CgroupId, t.AttachType)
	}
	if t := info.NetNs(); t != nil {
		return fmt.Sprintf("net:[%d], attach type %d", t.NetnsInode, t.AttachType)
	}
	if t := info.XDP(); t != nil {
		return fmt.Sprintf("interface %d", t.Ifindex)
	}
	if t := info.TCX(); t != nil {
		return fmt.Sprintf("interface %d, attach type %d", t.Ifindex, t.AttachType)
	}
	if t := info.Netkit(); t != nil {
		return fmt.Sprintf("interface %d, attach type %d", t.Ifindex, t.AttachType)
	}
	if t := info.Netfilter(); t != nil {
		return fmt.Sprintf("netfilter family %d, hook %d, priority %d", t.ProtocolFamily, t.Hook, t.Priority)
	}
	if t := info.KprobeMulti(); t != nil {
		return fmt.Sprintf("kprobes of %d functions", t.Count)
	}
	if t := info.UprobeMulti(); t != nil {
		return fmt.Sprintf("%d uprobes of %s", t.Count, t.File)
	}
	if t := info.PerfEvent(); t != nil {
		return eventTarget(t)
	}
	return ""
}

func eventTarget(t *link.PerfEventInfo) string {
	if e := t.Kprobe(); e != nil {
		return fmt.Sprintf("kprobe %s+%#x at %#x", e.Function, e.Offset, e.Address)
	}
	if e := t.Uprobe(); e != nil {
		return fmt.Sprintf("uprobe %s+%#x", e.File, e.Offset)
	}
	if e := t.Tracepoint(); e != nil {
		return "tracepoint " + e.Tracepoint
	}
	if e := t.Event(); e != nil {
		return fmt.Sprintf("perf event of type %d, config %d", e.Type, e.Config)
	}
	return ""
}
