package memory

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

// kcorePath is an ELF core file of the running kernel.
const kcorePath = "/proc/kcore"

// maxHeaders bounds the program headers of /proc/kcore.
const maxHeaders = 8192

// segment is physical memory at a place in /proc/kcore.
type segment struct {
	lime.Range
	offset int64
}

// kcore reads memory through /proc/kcore. Source: fs/proc/kcore.c.
type kcore struct {
	path     string
	alloc    func() ([]byte, func())
	ranges   []lime.Range
	segments []segment // ascending, disjoint
}

func probeKcore(Options) error {
	_, err := newKcore(kcorePath, hostRAM)
	return err
}

func openKcore(_ context.Context, o Options) (Source, error) {
	k, err := newKcore(kcorePath, hostRAM)
	if err != nil {
		return nil, err
	}
	k.alloc = o.alloc
	return k, nil
}

func newKcore(path string, ram func() ([]lime.Range, error)) (*kcore, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, kcoreRefusal(err)
	}
	defer f.Close()
	segments, err := parseKcore(f)
	if err != nil {
		return nil, err
	}
	ranges, err := ram()
	if errors.Is(err, ErrHidden) { // the headers tell the RAM by whole pages
		for _, s := range segments {
			ranges = append(ranges, s.Range)
		}
		ranges = lime.Merge(ranges)
	} else if err != nil {
		return nil, refuse("kcore", Failed, "%v", err)
	}
	k := &kcore{path: path, ranges: ranges, alloc: Options{}.alloc}
	k.segments = within(segments, ranges)
	if len(k.segments) == 0 {
		return nil, refuse("kcore", Malformed, "none of its %d segments lies in System RAM", len(segments))
	}
	return k, nil
}

func kcoreRefusal(err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return refuse("kcore", NoKcore, "%s does not exist: the kernel is built without CONFIG_PROC_KCORE", kcorePath)
	case errors.Is(err, os.ErrPermission):
		if strings.Contains(lockdownState(), "[confidentiality]") {
			return refuse("kcore", Lockdown, "the kernel is locked down to confidentiality, which forbids %s", kcorePath)
		}
		return refuse("kcore", NoCapability, "CAP_SYS_RAWIO is needed: %v", err)
	}
	return refuse("kcore", Failed, "%v", err)
}

// lockdownState is the line of the lockdown module, "" where there is none.
// Source: security/lockdown/lockdown.c.
func lockdownState() string {
	b, err := os.ReadFile("/sys/kernel/security/lockdown")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// parseKcore reads the ELF headers and gives the segments with physical
// addresses, ascending; where two overlap, as the kernel's text does its
// RAM, the one that begins first stays whole.
func parseKcore(r io.ReaderAt) ([]segment, error) {
	var header [64]byte
	if _, err := r.ReadAt(header[:], 0); err != nil {
		return nil, refuse("kcore", Malformed, "cannot read ELF header: %v", err)
	}
	le := binary.LittleEndian
	if string(header[:6]) != "\x7fELF\x02\x01" || le.Uint16(header[16:]) != 4 {
		return nil, refuse("kcore", Malformed, "it is not a little-endian 64-bit ELF core file")
	}
	at, size, count := le.Uint64(header[32:]), le.Uint16(header[54:]), le.Uint16(header[56:])
	if size != 56 || count == 0 || count > maxHeaders || at > 1<<20 {
		return nil, refuse("kcore", Malformed, "%d program headers of %d bytes at offset %d", count, size, at)
	}
	table := make([]byte, int(count)*int(size))
	if _, err := r.ReadAt(table, int64(at)); err != nil {
		return nil, refuse("kcore", Malformed, "cannot read program headers: %v", err)
	}
	var segments []segment
	loads, zeros := 0, 0
	for ; len(table) > 0; table = table[size:] {
		const load = 1
		offset, phys, length := le.Uint64(table[8:]), le.Uint64(table[24:]), le.Uint64(table[40:])
		if le.Uint32(table) != load {
			continue
		}
		loads++
		if phys == 0 {
			zeros++
		}
		// All ones: mapped by page tables, not RAM (vmalloc, modules, vmemmap).
		if phys == ^uint64(0) || length == 0 || phys+length-1 < phys || offset > 1<<63-1 || offset+length-1 > 1<<63-1 {
			continue
		}
		segments = append(segments, segment{lime.Range{Start: phys, End: phys + length - 1}, int64(offset)})
	}
	if loads > 1 && zeros == loads {
		return nil, refuse("kcore", OldKernel, "no segment has a physical address: the kernel is older than 4.11")
	}
	return disjoint(segments), nil
}

// disjoint sorts the segments and cuts off what an earlier one has.
func disjoint(segments []segment) []segment {
	slices.SortStableFunc(segments, func(a, b segment) int { return cmp.Compare(a.Start, b.Start) })
	var out []segment
	for _, s := range segments {
		if n := len(out); n > 0 && s.Start <= out[n-1].End {
			if s.End <= out[n-1].End {
				continue
			}
			cut := out[n-1].End + 1 - s.Start
			s.Start, s.offset = s.Start+cut, s.offset+int64(cut)
		}
		out = append(out, s)
	}
	return out
}

// within cuts the segments to the ranges.
func within(segments []segment, ranges []lime.Range) []segment {
	var out []segment
	for _, s := range segments {
		for _, r := range ranges {
			start, end := max(s.Start, r.Start), min(s.End, r.End)
			if start <= end {
				out = append(out, segment{lime.Range{Start: start, End: end}, s.offset + int64(start-s.Start)})
			}
		}
	}
	return out
}

func (k *kcore) Name() string         { return "kcore" }
func (k *kcore) Ranges() []lime.Range { return k.ranges }
func (k *kcore) Readers() int         { return 0 }
func (k *kcore) Close() error         { return nil }
func (k *kcore) PageFlags() string    { return "not asked for" }

func (k *kcore) Order(_ context.Context, parts [][]lime.Range) []int { return ascending(parts) }

// Open opens a handle of its own: the kernel copies through a buffer that
// belongs to the open file, so two readers of one handle would mix pages.
func (k *kcore) Open() (Reader, error) {
	open := func() (handle, error) { return os.Open(k.path) }
	first, err := open()
	if err != nil {
		return nil, kcoreRefusal(err)
	}
	buffer, free := k.alloc()
	return &kcoreReader{segments: k.segments, buffer: buffer, free: free, file: &patient{open: open, current: first, limit: readLimit}}, nil
}

type kcoreReader struct {
	segments []segment
	buffer   []byte
	free     func()
	file     *patient
}

func (r *kcoreReader) Close() error {
	if r.free != nil {
		r.free()
	}
	return r.file.close()
}

func (r *kcoreReader) ReadPhys(ctx context.Context, addr uint64, n int) ([]byte, []evidence.Gap, error) {
	if err := checkRead(addr, n); err != nil {
		return nil, nil, err
	}
	gaps, err := r.read(ctx, r.buffer[:n], addr)
	if err != nil {
		return nil, nil, err
	}
	return r.buffer[:n], gaps, nil
}

func (r *kcoreReader) read(ctx context.Context, p []byte, addr uint64) ([]evidence.Gap, error) {
	var gaps []evidence.Gap
	for len(p) > 0 {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		s, n := r.find(addr, len(p))
		part := p[:n]
		if s == nil {
			clear(part)
			gaps = add(gaps, addr, n, NotInSource, "")
		} else {
			var err error
			if gaps, err = r.fill(ctx, gaps, part, addr, s.offset+int64(addr-s.Start)); err != nil {
				return nil, err
			}
		}
		p, addr = p[n:], addr+uint64(n)
	}
	return gaps, nil
}

// find gives the segment that holds addr, and how many of the next bytes it
// holds; nil and the bytes up to the next segment where none does.
func (r *kcoreReader) find(addr uint64, want int) (*segment, int) {
	i, _ := slices.BinarySearchFunc(r.segments, addr, func(s segment, a uint64) int { return cmp.Compare(s.End, a) })
	if i == len(r.segments) {
		return nil, want
	}
	s := &r.segments[i]
	if addr < s.Start {
		return nil, int(min(uint64(want), s.Start-addr))
	}
	return s, int(min(uint64(want), s.End-addr+1))
}

// fill reads bytes that are in one segment. A large read that fails says
// nothing about which page was at fault, and the kernel gives no part of it:
// it is read again page by page.
func (r *kcoreReader) fill(ctx context.Context, gaps []evidence.Gap, p []byte, addr uint64, offset int64) ([]evidence.Gap, error) {
	err := r.file.readAt(ctx, p, offset)
	if err == nil {
		return gaps, nil
	}
	if len(p) <= pageSize || errors.Is(err, errHung) {
		if fatal(ctx, err) {
			return nil, fmt.Errorf("cannot read %s: %w", kcorePath, err)
		}
		clear(p)
		reason := evidence.ReadError
		if errors.Is(err, errHung) {
			reason = evidence.TimedOut
		}
		return add(gaps, addr, len(p), reason, errnoName(err)), nil
	}
	for len(p) > 0 {
		n := min(len(p), pageSize-int(addr%pageSize))
		if gaps, err = r.fill(ctx, gaps, p[:n], addr, offset); err != nil {
			return nil, err
		}
		p, addr, offset = p[n:], addr+uint64(n), offset+int64(n)
	}
	return gaps, nil
}

// fatal tells an error of the whole reader from one of a page.
func fatal(ctx context.Context, err error) bool {
	return ctx.Err() != nil || errors.Is(err, os.ErrClosed) || errors.Is(err, os.ErrInvalid) || errors.Is(err, errTooManyHung)
}

// add appends a gap, or lengthens the last one.
func add(gaps []evidence.Gap, addr uint64, n int, reason evidence.Reason, errno string) []evidence.Gap {
	end := addr + uint64(n) - 1
	if i := len(gaps) - 1; i >= 0 && gaps[i].Range.End+1 == addr && gaps[i].Reason == reason && gaps[i].Errno == errno {
		gaps[i].Range.End = end
		return gaps
	}
	return append(gaps, evidence.Gap{Range: lime.Range{Start: addr, End: end}, Reason: reason, Errno: errno})
}

func errnoName(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return unix.ErrnoName(errno)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "EOF"
	}
	return ""
}
