package memory

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

// flagsPath has 8 bytes for each of the kernel's pages, by page frame number.
// Source: fs/proc/page.c.
const flagsPath = "/proc/kpageflags"

// The bits of it that are used here. There is none for pages that the kernel
// guards (debug_pagealloc, KFENCE, memfd_secret): such a page reads as zeros or
// fails, and nothing tells the zeros apart. Source:
// include/uapi/linux/kernel-page-flags.h.
const (
	slabPage     = 1 << 7
	poisonedPage = 1 << 19
	noPage       = 1 << 20
	offlinePage  = 1 << 23 // before Linux 5.1: in a balloon
	tablePage    = 1 << 26 // since Linux 4.18
)

// maxWhy bounds what is said of page flags that cannot be read, in bytes.
const maxWhy = 200

// pageFlags is what the kernel tells of its pages. All readers of a source
// use it at once; none of its methods changes it but for missed.
type pageFlags struct {
	file   *os.File // nil where there is none
	page   uint64   // bytes of one of the kernel's pages: 4 KiB, on some arm64 more
	why    string   // there is none
	missed atomic.Pointer[string]
}

// openPageFlags opens the file; where it cannot be read, all that is known of
// pages is why.
func openPageFlags(path string, page uint64) *pageFlags {
	f := &pageFlags{page: page}
	var err error
	if f.file, err = os.Open(path); err == nil {
		if _, err = f.file.ReadAt(make([]byte, 8), 0); err == nil {
			return f
		}
		f.file.Close()
		f.file = nil
	}
	f.why = fmt.Sprintf("cannot read %s: %v", flagsPath, reasonOnly(err))
	return f
}

// reasonOnly gives an error without the path that it is about.
func reasonOnly(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

// state says whether flags are read, in at most maxWhy bytes.
func (f *pageFlags) state() string {
	state := "read"
	if f.file == nil {
		state = f.why
	} else if missed := f.missed.Load(); missed != nil {
		state = *missed
	}
	return state[:min(len(state), maxWhy)]
}

func (f *pageFlags) close() error {
	if f.file == nil {
		return nil
	}
	return f.file.Close()
}

// read gives the flags of pages from the one with number first on, in the
// space of words; those that the kernel does not know are left out.
func (f *pageFlags) read(words []byte, first uint64) []byte {
	if f.file == nil || first > 1<<60 {
		return nil
	}
	n, err := f.file.ReadAt(words, int64(first)*8)
	if err != nil && !errors.Is(err, io.EOF) {
		why := fmt.Sprintf("read, but not of page %#x: %v", first, reasonOnly(err))
		f.missed.CompareAndSwap(nil, &why)
	}
	return words[:n&^7]
}

// unreality is the reason why a page with such flags holds nothing of the
// host's memory, or must not be touched: a poisoned one may bring the machine
// down, and one that the hypervisor took may never come.
func unreality(flags uint64) (evidence.Reason, bool) {
	switch {
	case flags&poisonedPage != 0:
		return evidence.HWPoison, true
	case flags&offlinePage != 0:
		return evidence.Offline, true
	case flags&noPage != 0:
		return evidence.NotBacked, true
	}
	return "", false
}

// flagReader reads flags for one reader of memory.
type flagReader struct {
	*pageFlags
	words []byte         // of MaxRead bytes of memory that begin and end anywhere
	gaps  []evidence.Gap // at most one for each page of MaxRead bytes
}

func (f *pageFlags) reader() *flagReader {
	return &flagReader{pageFlags: f, words: make([]byte, 8*(MaxRead/f.page+2))}
}

// unreal gives what of n bytes at addr is on pages that are not real, ascending,
// with neighbours joined. It holds until the next call.
func (f *flagReader) unreal(addr uint64, n int) []evidence.Gap {
	if f == nil || n == 0 {
		return nil
	}
	f.gaps = f.gaps[:0]
	end := addr + uint64(n) - 1
	first := addr / f.page
	words := f.read(f.words[:8*(end/f.page-first+1)], first)
	for i := 0; i < len(words); i += 8 {
		if reason, bad := unreality(binary.LittleEndian.Uint64(words[i:])); bad {
			page := (first + uint64(i)/8) * f.page
			start := max(page, addr)
			f.gaps = add(f.gaps, start, int(min(page+f.page-1, end)-start+1), reason, "")
		}
	}
	return f.gaps
}

// next says whether n bytes at addr begin in one of gaps, ascending, and how
// many of them are, or are not.
func next(gaps []evidence.Gap, addr uint64, n int) (bad bool, reason evidence.Reason, some int) {
	for _, g := range gaps {
		switch {
		case g.Range.End < addr:
			continue
		case g.Range.Start > addr:
			return false, "", int(min(uint64(n), g.Range.Start-addr))
		}
		return true, g.Reason, int(min(uint64(n), g.Range.End-addr+1))
	}
	return false, "", n
}

// zeros adds to gaps, ascending, those pages of the memory b at addr that are
// all zero, and unreal: a source that reads without regard to flags made the
// zeros up.
func (f *flagReader) zeros(gaps []evidence.Gap, b []byte, addr uint64) []evidence.Gap {
	for _, g := range f.unreal(addr, len(b)) {
		for at := g.Range.Start; at <= g.Range.End; {
			n := min(f.page-at%f.page, g.Range.End-at+1)
			if lo := at - addr; allZero(b[lo : lo+n]) {
				gaps = add(gaps, at, int(n), g.Reason, "")
			}
			at += n
		}
	}
	return gaps
}

func allZero(b []byte) bool {
	for len(b) >= 8 {
		if binary.NativeEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// pagesOf is how many of the kernel's pages begin in a range.
func (f *pageFlags) pagesOf(r lime.Range) uint64 { return (r.Len() + f.page - 1) / f.page }
