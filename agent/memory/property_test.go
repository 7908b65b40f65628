package memory

import (
	"io"
	"slices"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

// fakeMemory is a core file whose pages may fail or hang, by physical address.
type fakeMemory struct {
	segments []segment
	fail     map[uint64]bool
	hang     map[uint64]bool
	release  chan struct{}
}

func (f *fakeMemory) ReadAt(p []byte, off int64) (int, error) {
	for _, s := range f.segments {
		if off < s.offset || off+int64(len(p)) > s.offset+int64(s.Len()) {
			continue
		}
		addr := s.Start + uint64(off-s.offset)
		for page := addr &^ (pageSize - 1); page < addr+uint64(len(p)); page += pageSize {
			if f.hang[page] {
				<-f.release
				return 0, io.ErrClosedPipe
			}
		}
		for page := addr &^ (pageSize - 1); page < addr+uint64(len(p)); page += pageSize {
			if f.fail[page] {
				return 0, unix.EFAULT
			}
		}
		for i := range p {
			p[i] = byteAt(addr + uint64(i))
		}
		return len(p), nil
	}
	return 0, io.EOF
}

func (f *fakeMemory) Close() error { return nil }

// TestAnyMemory: whatever RAM, segments, page flags, failures, hangs and sizes
// of reads there are, what is read is what memory holds, except exactly where
// gaps say otherwise, and there are gaps only where something is wrong.
func TestAnyMemory(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const pages = 2400 // of addresses, more than two MaxReads
		page := rapid.Uint64Range(0, pages-1)
		f := &fakeMemory{fail: map[uint64]bool{}, hang: map[uint64]bool{}}
		var ram []lime.Range
		for _, start := range rapid.SliceOfN(page, 1, 5).Draw(rt, "RAM") {
			first := start*pageSize + rapid.Uint64Range(0, 1).Draw(rt, "odd start")*0x400
			ram = append(ram, lime.Range{Start: first, End: first + rapid.Uint64Range(0, 1<<21).Draw(rt, "length")})
		}
		ram = lime.Merge(ram)
		offset := int64(0x1000)
		for _, start := range rapid.SliceOfN(page, 1, 8).Draw(rt, "segments") {
			n := rapid.Uint64Range(1, pages).Draw(rt, "pages")
			f.segments = append(f.segments, segment{lime.Range{Start: start * pageSize, End: (start+n)*pageSize - 1}, offset})
			offset += int64(n+1) * pageSize
		}
		f.segments = disjoint(f.segments)
		for _, p := range rapid.SliceOfN(page, 0, 6).Draw(rt, "pages that fail") {
			f.fail[p*pageSize] = true
		}
		for _, p := range rapid.SliceOfN(page, 0, 2).Draw(rt, "pages that hang") {
			f.hang[p*pageSize] = true
		}
		flags := map[int]uint64{}
		for _, p := range rapid.SliceOfN(page, 0, 6).Draw(rt, "pages that are not real") {
			flags[int(p)] = rapid.SampledFrom([]uint64{poisonedPage, offlinePage, noPage}).Draw(rt, "flag")
		}
		pageFlags := openPageFlags(flagFile(t, flags, 2*pages), pageSize)
		defer pageFlags.close()
		chunk := rapid.SampledFrom([]int{1000, pageSize, 64 << 10, 300_000, MaxRead}).Draw(rt, "bytes of a read")

		synctest.Test(t, func(t *testing.T) {
			f.release = make(chan struct{})
			file, err := newPatient(func() (handle, error) { return f, nil }, Options{}.alloc, readLimit)
			if err != nil {
				t.Fatal(err)
			}
			r := &kcoreReader{segments: within(f.segments, ram), file: file, flags: pageFlags.reader()}
			defer r.Close()
			defer close(f.release)
			for _, rng := range ram {
				for addr := rng.Start; addr <= rng.End; {
					n := int(min(uint64(chunk), rng.End-addr+1))
					b, gaps, err := r.ReadPhys(t.Context(), addr, n)
					if err != nil {
						if len(f.hang) > 0 && file.hung.Load() >= maxHung {
							return // the bound is reached, as it must
						}
						t.Fatal(err)
					}
					holdAgainst(t, f, flags, b, addr, gaps)
					addr += uint64(n)
				}
			}
		})
	})
}

// holdAgainst checks a read, byte by byte and gap by gap.
func holdAgainst(t *testing.T, f *fakeMemory, flags map[int]uint64, b []byte, addr uint64, gaps []evidence.Gap) {
	t.Helper()
	for i, g := range gaps {
		if g.Range.End < g.Range.Start || i > 0 && g.Range.Start <= gaps[i-1].Range.End {
			t.Fatalf("gaps %v do not ascend", gaps)
		}
	}
	hangs := false
	for page := range f.hang {
		hangs = hangs || page < addr+uint64(len(b)) && page+pageSize > addr
	}
	for len(b) > 0 {
		bad, reason, n := next(gaps, addr, min(len(b), pageSize-int(addr%pageSize)))
		must := evidence.Reason("")
		unreal, flagged := unreality(flags[int(addr/pageSize)])
		switch page := addr &^ (pageSize - 1); {
		case flagged:
			must = unreal
		case !slices.ContainsFunc(f.segments, func(s segment) bool { return s.Start <= addr && addr <= s.End }):
			must = NotInSource
		case hangs && reason == evidence.TimedOut:
			must = reason // how far it reaches, other tests say
		case f.hang[page]:
			must = evidence.TimedOut
		case f.fail[page]:
			must = evidence.ReadError
		}
		if reason != must {
			t.Fatalf("%d bytes at %#x: reason %q, want %q", n, addr, reason, must)
		}
		for i, got := range b[:n] {
			want := byteAt(addr + uint64(i))
			if bad {
				want = 0
			}
			if got != want {
				t.Fatalf("byte %#x is %#x, want %#x (reason %q)", addr+uint64(i), got, want, reason)
			}
		}
		b, addr = b[n:], addr+uint64(n)
	}
}
