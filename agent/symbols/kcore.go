package symbols

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Bounds of what is read of /proc/kcore, in bytes: its headers stand at its
// start, and VMCOREINFO is a page, more on newer kernels.
const (
	headersBytes = 1 << 20
	notesBytes   = 1 << 20
	vmcoreBytes  = 64 << 10
)

const kcorePath = "/proc/kcore"

// crashNotes takes the program headers of /proc/kcore, which tell where RAM
// lies in it and in the kernel's addresses, and VMCOREINFO, which tells by how
// much the kernel was moved.
func (b *bundle) crashNotes() error {
	headers, vmcore := File{Name: "kcore.headers", Source: kcorePath}, File{Name: "vmcoreinfo", Source: kcorePath}
	core, err := b.kcore()
	if err != nil {
		headers.failed(err)
		vmcore.failed(err)
		return errors.Join(b.taken(headers, nil), b.taken(vmcore, nil))
	}
	defer core.file.Close()
	if err := b.taken(headers, core.headers); err != nil {
		return err
	}
	text, err := b.vmcoreinfo(core)
	if errors.Is(err, errNoNote) { // kernels before 4.19
		vmcore.Source = "/sys/kernel/vmcoreinfo"
		text, err = b.pointedNote(core, vmcore.Source)
	}
	if err != nil {
		vmcore.failed(err)
	}
	return b.taken(vmcore, text)
}

var errNoNote = errors.New("no VMCOREINFO among its notes")

// core is /proc/kcore. Source: fs/proc/kcore.c; gABI, "ELF header".
type core struct {
	file    *os.File
	headers []byte // the ELF header and the program headers after it
	progs   []prog
}

// prog is a program header.
type prog struct {
	kind               uint32
	offset, phys, size uint64
}

const (
	kindLoad = 1
	kindNote = 4
)

// kcore opens /proc/kcore and reads its headers.
func (b *bundle) kcore() (*core, error) {
	file, err := b.open(kcorePath)
	if err != nil {
		return nil, err
	}
	c := &core{file: file}
	if err := b.readHeaders(c); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return c, nil
}

func (b *bundle) readHeaders(c *core) error {
	const headerBytes, progBytes = 64, 56
	header, err := b.readAt(c.file, 0, headerBytes)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	if string(header[:6]) != "\x7fELF\x02\x01" {
		return errors.New("cannot read kcore: it is not a little-endian 64-bit ELF file")
	}
	at, size, count := le.Uint64(header[32:]), le.Uint16(header[54:]), le.Uint16(header[56:])
	if size != progBytes || at < headerBytes || at+uint64(count)*progBytes > headersBytes {
		return fmt.Errorf("cannot read kcore: %d program headers of %d bytes at offset %d", count, size, at)
	}
	if c.headers, err = b.readAt(c.file, 0, int(at)+int(count)*progBytes); err != nil {
		return err
	}
	for table := c.headers[at:]; len(table) > 0; table = table[progBytes:] {
		c.progs = append(c.progs, prog{kind: le.Uint32(table), offset: le.Uint64(table[8:]), phys: le.Uint64(table[24:]), size: le.Uint64(table[32:])})
	}
	return nil
}

// vmcoreinfo finds the note of that name among the core's.
func (b *bundle) vmcoreinfo(c *core) ([]byte, error) {
	i := slices.IndexFunc(c.progs, func(p prog) bool { return p.kind == kindNote })
	if i < 0 || c.progs[i].size > notesBytes {
		return nil, errNoNote
	}
	notes, err := b.readAt(c.file, c.progs[i].offset, int(c.progs[i].size))
	if err != nil {
		return nil, err
	}
	return findNote(notes)
}

// pointedNote follows /sys/kernel/vmcoreinfo, "PHYSICAL-ADDRESS SIZE" in hex,
// into memory. Source: kernel/ksysfs.c.
func (b *bundle) pointedNote(c *core, source string) ([]byte, error) {
	text, err := b.head(source)
	if err != nil {
		return nil, errors.Join(errNoNote, err)
	}
	where, length, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	addr, err1 := strconv.ParseUint(strings.TrimPrefix(where, "0x"), 16, 64)
	size, err2 := strconv.ParseUint(length, 16, 64)
	if err1 != nil || err2 != nil || size == 0 || size > vmcoreBytes {
		return nil, fmt.Errorf("cannot read VMCOREINFO: %s says %.80q, want an address and a size", source, text)
	}
	for _, p := range c.progs {
		// No address, or all ones, is not RAM.
		if p.kind == kindLoad && p.phys != 0 && p.phys != ^uint64(0) && addr >= p.phys && addr-p.phys < p.size && p.size-(addr-p.phys) >= size {
			note, err := b.readAt(c.file, p.offset+(addr-p.phys), int(size))
			if err != nil {
				return nil, err
			}
			return findNote(note)
		}
	}
	return nil, fmt.Errorf("cannot read VMCOREINFO: its physical address %#x is in no segment of kcore", addr)
}

// readAt reads n bytes at an offset of a file.
func (b *bundle) readAt(in *os.File, offset uint64, n int) ([]byte, error) {
	return patiently(b.ctx, func() ([]byte, error) {
		body := make([]byte, n)
		if _, err := in.ReadAt(body, int64(offset)); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		} else if err != nil {
			return nil, io.ErrUnexpectedEOF
		}
		return body, nil
	})
}

// findNote gives what the note VMCOREINFO describes. Each note is three
// words (the lengths of name and description, a type), then both, each padded
// to four bytes. Source: gABI, "Note section".
func findNote(notes []byte) ([]byte, error) {
	const wordsBytes = 12
	for len(notes) >= wordsBytes {
		le := binary.LittleEndian
		nameLen, descLen := uint64(le.Uint32(notes)), uint64(le.Uint32(notes[4:]))
		descAt := wordsBytes + (nameLen+3)&^3
		end := descAt + (descLen+3)&^3
		if descAt+descLen > uint64(len(notes)) {
			break
		}
		name := bytes.TrimRight(notes[wordsBytes:wordsBytes+nameLen], "\x00")
		if string(name) == "VMCOREINFO" && descLen <= vmcoreBytes {
			return notes[descAt : descAt+descLen], nil
		}
		notes = notes[min(end, uint64(len(notes))):]
	}
	return nil, errNoNote
}
