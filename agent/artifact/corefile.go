package artifact

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of the memory of processes that is taken.
const (
	maxProcesses  = 64
	maxCoreLoads  = 60_000  // mappings; program headers are counted in 16 bits
	maxCoreGaps   = 4096    // of one process that are listed; the last then reaches over the rest
	maxAuxv       = 4 << 10 // of /proc/PID/auxv
	coreChunk     = 256 << 10
	corePageBytes = 4096 // the smallest that a host has, and the unit of gaps
	memoryRoot    = "live_response/process_memory"
)

// Gap is a row of gaps.jsonl: memory that could not be read, and is zeros in
// the core.
type Gap struct {
	Start string `json:"start"` // address, in hex
	Bytes uint64 `json:"bytes"`
	Why   string `json:"why"` // the kernel's code, such as EIO, or in words
}

// WriteProcessMemory writes the memory of processes to w as one tar stream:
// for each live_response/process_memory/PID/core, an ELF core file with every
// readable mapping, then gaps.jsonl with the ranges in it that are zeros because
// they could not be read. The processes are not stopped and go on changing
// while they are read.
//
// The core's notes are NT_PRSTATUS, of the main thread and without registers, as
// those of a running process are not to be had, and NT_AUXV. Of a process larger
// than Limits.ProcessBytes its writable memory is taken first; the program
// headers then say of the rest that it is not in the file.
//
// What could not be read is recorded and does not end it; an error means that
// w failed or ctx ended.
func (h *Host) WriteProcessMemory(ctx context.Context, w io.Writer, rec *Record, pids []int) error {
	c := &coreWriter{h: h, s: newSheet(ctx, "", io.Discard, rec), tar: tar.NewWriter(w), limits: h.Limits.filled(),
		buf: make([]byte, coreChunk), hash: sha256.New()}
	c.s.entry.Source = "process_memory"
	c.left = c.limits.TotalBytes
	wanted := slices.Compact(slices.Sorted(slices.Values(pids)))
	if len(wanted) > maxProcesses {
		c.s.note("/proc", NoteCut, fmt.Sprintf("more than %d processes", maxProcesses))
		wanted = wanted[:maxProcesses]
	}
	for _, pid := range wanted {
		if err := c.take(pid); err != nil {
			return fmt.Errorf("cannot take the memory of process %d: %w", pid, err)
		}
	}
	if err := c.tar.Close(); err != nil {
		return fmt.Errorf("cannot end the tar: %w", err)
	}
	return nil
}

// coreWriter writes one core after another.
type coreWriter struct {
	h      *Host
	s      *sheet // for its notes; it has no rows
	tar    *tar.Writer
	limits Limits
	left   int64 // bytes that may still be taken
	buf    []byte
	hash   hash.Hash
}

// take writes one process. It fails only when the tar does, or the context
// ends.
func (c *coreWriter) take(pid int) error {
	e := Entry{Source: "process_memory", Path: clip(fmt.Sprintf("/proc/%d/mem", pid), maxPath), Started: time.Now()}
	err := c.core(pid, &e)
	e.Ended = time.Now()
	if err != nil {
		e = e.failed(err)
	}
	c.s.rec.Add(e)
	return err
}

func (c *coreWriter) core(pid int, e *Entry) error {
	dir, err := c.h.openProc(strconv.Itoa(pid))
	if err != nil {
		*e = e.failed(err)
		return nil
	}
	defer dir.close()
	fd, err := unix.Openat(dir.fd, "mem", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		*e = e.failed(fmt.Errorf("cannot open memory: %w", err))
		return nil
	}
	mem := patientFile{c.h, fd}
	defer mem.close(c.s.ctx)
	all, more, err := c.h.regions(c.s.ctx, dir)
	if err != nil {
		*e = e.failed(err)
		return nil
	}
	all = slices.DeleteFunc(all, func(r region) bool { return !r.readable() })
	if len(all) == 0 {
		e.Note = NoteNone // a kernel thread, or it has ended
		return nil
	}
	if more || len(all) > maxCoreLoads {
		e.Note, e.Detail = NoteCut, Text(fmt.Sprintf("more than %d mappings", min(len(all), maxCoreLoads)))
		all = all[:min(len(all), maxCoreLoads)]
	}
	sizes := c.share(all, e)
	auxv, _, err := dir.read("auxv", nil, maxAuxv)
	if err != nil {
		c.s.failed(fmt.Sprintf("/proc/%d/auxv", pid), err)
	}
	return c.write(pid, mem, all, sizes, coreHead(pid, all, sizes, auxv), e)
}

// share says how much of each mapping is taken: all of it, until a limit is
// reached, of the writable ones first.
func (c *coreWriter) share(all []region, e *Entry) []uint64 {
	order := make([]int, len(all))
	for i := range order {
		order[i] = i
		e.Size += int64(min(all[i].size(), 1<<48))
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(all[a].rank(), all[b].rank()) })
	left := uint64(max(0, min(c.limits.ProcessBytes, c.left)))
	sizes := make([]uint64, len(all))
	for _, i := range order {
		sizes[i] = min(all[i].size(), left/corePageBytes*corePageBytes)
		left -= sizes[i]
		if sizes[i] < all[i].size() && e.Note == "" {
			e.Note, e.Detail = NoteCut, "bytes of process memory"
		}
	}
	return sizes
}

// rank sorts mappings by what only memory tells: what was written and no file
// backs, then code that no file backs, then the rest.
func (r region) rank() int {
	switch {
	case r.writable() && r.inode == 0, r.executable() && r.inode == 0:
		return 0
	case r.writable():
		return 1
	}
	return 2
}

// write writes the core, which has a known size, and its gaps.
func (c *coreWriter) write(pid int, mem patientFile, all []region, sizes []uint64, head []byte, e *Entry) error {
	total := int64(len(head))
	for _, n := range sizes {
		total += int64(n)
	}
	name := fmt.Sprintf("%s/%d/", memoryRoot, pid)
	if err := c.tar.WriteHeader(&tar.Header{Format: tar.FormatPAX, Typeflag: tar.TypeReg, Name: name + "core", Size: total, Mode: 0o600, ModTime: time.Now()}); err != nil {
		return err
	}
	c.left -= total
	c.hash.Reset()
	out := io.MultiWriter(c.tar, c.hash)
	if _, err := out.Write(head); err != nil {
		return err
	}
	var gaps gapList
	for i, r := range all {
		if err := c.copy(out, mem, r.start, sizes[i], &gaps); err != nil {
			return err
		}
	}
	e.Bytes, e.Padded, e.SHA256 = total, int64(gaps.bytes), hex.EncodeToString(c.hash.Sum(nil))
	text := gaps.text()
	if err := c.tar.WriteHeader(&tar.Header{Format: tar.FormatPAX, Typeflag: tar.TypeReg, Name: name + "gaps.jsonl", Size: int64(len(text)), Mode: 0o600, ModTime: time.Now()}); err != nil {
		return err
	}
	_, err := c.tar.Write(text)
	return err
}

// copy writes a stretch of memory. After an error the page is a gap, and the
// next one is tried; after a read that hangs, or the end of the process, the
// rest of the stretch is a gap.
func (c *coreWriter) copy(out io.Writer, mem patientFile, start, size uint64, gaps *gapList) error {
	for at := uint64(0); at < size; {
		if err := c.s.ctx.Err(); err != nil {
			return err
		}
		n, err := 0, error(nil)
		if addr := start + at; addr < 1<<63 { // beyond is the vsyscall page
			n, err = mem.readAt(c.s.ctx, c.buf[:min(uint64(len(c.buf)), size-at)], int64(addr))
		}
		if n > 0 {
			if _, err := out.Write(c.buf[:n]); err != nil {
				return err
			}
			at += uint64(n)
			continue
		}
		lost := min(corePageBytes-(start+at)%corePageBytes, size-at)
		why := "no memory there any more"
		switch {
		case errors.Is(err, errHung), errors.Is(err, errTooHung):
			c.buf = make([]byte, coreChunk) // the old one is the lost read's
			lost, why = size-at, err.Error()
		case err == nil:
			lost = size - at
		default:
			why = cmp.Or(errnoName(err), err.Error())
		}
		gaps.add(start+at, lost, why)
		if err := writeZeros(c.s.ctx, out, int64(lost)); err != nil {
			return err
		}
		at += lost
	}
	return nil
}

// gapList lists gaps, ascending; those that touch and have one reason are one.
type gapList struct {
	all   []gap
	bytes uint64
}

type gap struct {
	start, end uint64
	why        string
}

func (l *gapList) add(start, bytes uint64, why string) {
	l.bytes += bytes
	if n := len(l.all); n > 0 {
		last := &l.all[n-1]
		if last.end == start && last.why == why {
			last.end += bytes
			return
		}
		if n == maxCoreGaps {
			last.end, last.why = start+bytes, "several, and what lies between them"
			return
		}
	}
	l.all = append(l.all, gap{start, start + bytes, why})
}

// text gives the gaps as JSON Lines.
func (l *gapList) text() []byte {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	for _, g := range l.all {
		// Texts and numbers are written to memory without fail.
		_ = enc.Encode(Gap{Start: fmt.Sprintf("%x", g.start), Bytes: g.end - g.start, Why: g.why})
	}
	return out.Bytes()
}

// coreHead makes all of a core that comes before the memory: ELF header, program
// headers, notes, and zeros up to a page.
// Source: elf(5), core(5); linux/fs/binfmt_elf.c.
func coreHead(pid int, all []region, sizes []uint64, auxv []byte) []byte {
	machine, registers := elf.EM_X86_64, 27*8
	if runtime.GOARCH == "arm64" {
		machine, registers = elf.EM_AARCH64, 34*8
	}
	// struct elf_prstatus: the process is the fifth int of what follows the
	// signals, at byte 32; times end at 112; registers and fpvalid follow.
	status := make([]byte, 112+registers+8)
	binary.LittleEndian.PutUint32(status[32:], uint32(pid))
	notes := appendNote(nil, elf.NT_PRSTATUS, status)
	if len(auxv) > 0 {
		const ntAuxv = 6 // NT_AUXV of linux/include/uapi/linux/elf.h
		notes = appendNote(notes, ntAuxv, auxv)
	}
	const headerBytes, progBytes = 64, 56
	noteAt := uint64(headerBytes + progBytes*(len(all)+1))
	at := (noteAt + uint64(len(notes)) + corePageBytes - 1) / corePageBytes * corePageBytes
	var out bytes.Buffer
	put := func(v any) { _ = binary.Write(&out, binary.LittleEndian, v) } // to memory, of fixed size
	put(elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_CORE), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT),
		Phoff: headerBytes, Ehsize: headerBytes, Phentsize: progBytes, Phnum: uint16(len(all) + 1),
	})
	put(elf.Prog64{Type: uint32(elf.PT_NOTE), Off: noteAt, Filesz: uint64(len(notes)), Align: 4})
	for i, r := range all {
		put(elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: r.flags(), Off: at, Vaddr: r.start, Filesz: sizes[i], Memsz: r.size(), Align: uint64(os.Getpagesize())})
		at += sizes[i]
	}
	out.Write(notes)
	if rest := out.Len() % corePageBytes; rest > 0 {
		out.Write(zeros[:corePageBytes-rest])
	}
	return out.Bytes()
}

// flags gives the mapping's rights as a program header's.
func (r region) flags() uint32 {
	flags := elf.PF_R
	if r.writable() {
		flags |= elf.PF_W
	}
	if r.executable() {
		flags |= elf.PF_X
	}
	return uint32(flags)
}

// appendNote appends a note of owner CORE, padded to four bytes.
func appendNote(b []byte, kind elf.NType, desc []byte) []byte {
	for _, n := range []int{len("CORE") + 1, len(desc), int(kind)} {
		b = binary.LittleEndian.AppendUint32(b, uint32(n))
	}
	b = append(append(b, "CORE\x00\x00\x00\x00"...), desc...)
	return append(b, make([]byte, -len(desc)&3)...)
}
