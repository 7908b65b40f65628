package memory

import (
	"bytes"
	"context"
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

// flagFile is a /proc/kpageflags of so many pages.
func flagFile(t testing.TB, flags map[int]uint64, pages int) string {
	t.Helper()
	b := make([]byte, 8*pages)
	for page, f := range flags {
		binary.LittleEndian.PutUint64(b[8*page:], f)
	}
	path := filepath.Join(t.TempDir(), "kpageflags")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func gap(start, end uint64, reason evidence.Reason) evidence.Gap {
	return evidence.Gap{Range: lime.Range{Start: start, End: end}, Reason: reason}
}

func TestPagesThatAreNotReal(t *testing.T) {
	for _, tt := range []struct {
		name  string
		page  uint64
		flags map[int]uint64
		addr  uint64
		n     int
		want  []evidence.Gap
	}{
		{"all are", 4096, map[int]uint64{1: slabPage, 2: tablePage, 3: 1 << 24}, 0, 0x8000, nil},
		{"one of each", 4096, map[int]uint64{1: poisonedPage, 3: offlinePage, 5: noPage}, 0, 0x8000,
			[]evidence.Gap{gap(0x1000, 0x1fff, evidence.HWPoison), gap(0x3000, 0x3fff, evidence.Offline), gap(0x5000, 0x5fff, evidence.NotBacked)}},
		{"neighbours are one", 4096, map[int]uint64{1: offlinePage, 2: offlinePage, 3: noPage}, 0, 0x8000,
			[]evidence.Gap{gap(0x1000, 0x2fff, evidence.Offline), gap(0x3000, 0x3fff, evidence.NotBacked)}},
		{"poison comes first", 4096, map[int]uint64{1: poisonedPage | offlinePage | noPage}, 0x1000, 0x1000, []evidence.Gap{gap(0x1000, 0x1fff, evidence.HWPoison)}},
		{"parts of pages", 4096, map[int]uint64{1: offlinePage, 2: noPage}, 0x1800, 0x900, []evidence.Gap{gap(0x1800, 0x1fff, evidence.Offline), gap(0x2000, 0x20ff, evidence.NotBacked)}},
		{"beyond the file nothing is known", 4096, map[int]uint64{7: offlinePage}, 0x7000, 0x9000, []evidence.Gap{gap(0x7000, 0x7fff, evidence.Offline)}},
		{"far beyond", 4096, nil, math.MaxUint64 - 0xfff, 0x1000, nil},
		{"no bytes", 4096, map[int]uint64{0: offlinePage}, 0, 0, nil},
		{"pages of 64 KiB", 64 << 10, map[int]uint64{1: offlinePage}, 0x8000, 0x20000, []evidence.Gap{gap(0x10000, 0x1ffff, evidence.Offline)}},
	} {
		f := openPageFlags(flagFile(t, tt.flags, 8), tt.page)
		if got := f.reader().unreal(tt.addr, tt.n); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
		if f.state() != "read" {
			t.Errorf("%s: %q", tt.name, f.state())
		}
		f.close()
	}
}

// TestWithoutPageFlags nothing is known of pages, and why is told.
func TestWithoutPageFlags(t *testing.T) {
	for _, path := range []string{filepath.Join(t.TempDir(), strings.Repeat("x", 250)), t.TempDir(), flagFile(t, nil, 0)} {
		f := openPageFlags(path, 4096)
		if s := f.state(); !strings.HasPrefix(s, "cannot read /proc/kpageflags: ") || len(s) > maxWhy {
			t.Errorf("state %q", s)
		}
		if got := f.reader().unreal(0, MaxRead); got != nil {
			t.Errorf("gaps %v", got)
		}
		if got := order(t.Context(), make([][]lime.Range, 3), nil, f); !slices.Equal(got, []int{0, 1, 2}) {
			t.Errorf("order %v", got)
		}
		if err := f.close(); err != nil {
			t.Error(err)
		}
	}
}

// TestFlagsThatCannotBeReadAreTold, once there were some.
func TestFlagsThatCannotBeReadAreTold(t *testing.T) {
	f := openPageFlags(flagFile(t, nil, 8), 4096)
	f.close()
	if got := f.reader().unreal(0x2000, 0x1000); got != nil || !strings.HasPrefix(f.state(), "read, but not of page 0x2: ") {
		t.Errorf("gaps %v, state %q", got, f.state())
	}
}

// TestPagesThatAreNeverTouched: reading a poisoned page may bring the machine
// down, reading one that Xen's balloon took may hang. kcore gives zeros, and no
// error, for most of them; here their reads would fail.
func TestPagesThatAreNeverTouched(t *testing.T) {
	f := &badPages{bad: map[int64]error{0x5000: os.ErrDeadlineExceeded, 0x6000: os.ErrDeadlineExceeded, 0x9000: os.ErrDeadlineExceeded}}
	r := reader(t, f)
	defer r.Close()
	flags := openPageFlags(flagFile(t, map[int]uint64{0x105: poisonedPage, 0x106: poisonedPage, 0x109: offlinePage}, 0x200), 4096)
	defer flags.close()
	r.flags = flags.reader()
	copy(r.file.buffer()[0x5000:], bytes.Repeat([]byte{9}, 0x1000)) // of an earlier read
	p, gaps, err := r.ReadPhys(t.Context(), 0x100000, 1<<20)
	want := []evidence.Gap{gap(0x105000, 0x106fff, evidence.HWPoison), gap(0x109000, 0x109fff, evidence.Offline)}
	if err != nil || !slices.Equal(gaps, want) {
		t.Fatalf("gaps %v, error %v; want %v", gaps, err, want)
	}
	for i, b := range p {
		if real := !inGaps(gaps, 0x100000+uint64(i)); real && b != 7 || !real && b != 0 {
			t.Fatalf("byte %#x is %d", i, b)
		}
	}
}

func FuzzPageFlags(f *testing.F) {
	f.Add([]byte("\x00\x00\x80\x00\x00\x00\x00\x00\x00\x00\x08\x00\x00\x00\x00\x00"), uint64(0x800), uint16(0x1000))
	path := filepath.Join(f.TempDir(), "kpageflags")
	f.Fuzz(func(t *testing.T, words []byte, addr uint64, n uint16) {
		if addr+uint64(n) < addr {
			return
		}
		if err := os.WriteFile(path, words, 0o600); err != nil {
			t.Fatal(err)
		}
		flags := openPageFlags(path, 4096)
		defer flags.close()
		after := addr
		for _, g := range flags.reader().unreal(addr, int(n)) {
			if g.Range.Start < after || g.Range.End < g.Range.Start || g.Range.End-addr >= uint64(n) {
				t.Fatalf("gap %v of %d bytes at %x", g, n, addr)
			}
			after = g.Range.End
		}
	})
}

// TestBound: a part lists so many gaps, and no page that is not real is left
// out.
func TestBound(t *testing.T) {
	var all []evidence.Gap
	for i := range uint64(evidence.MaxGaps + 10) {
		all = append(all, gap(i*0x2000, i*0x2000+0xfff, evidence.Offline))
	}
	if got := Bound(all[:evidence.MaxGaps]); len(got) != evidence.MaxGaps || got[evidence.MaxGaps-1].Reason != evidence.Offline {
		t.Errorf("as many as may be: %d gaps, the last %v", len(got), got[len(got)-1])
	}
	got := Bound(all)
	first := uint64(evidence.MaxGaps-1) * 0x2000
	if want := gap(first, all[len(all)-1].Range.End, evidence.Mixed); len(got) != evidence.MaxGaps || got[evidence.MaxGaps-1] != want {
		t.Errorf("%d gaps, the last %v, want %v", len(got), got[len(got)-1], want)
	}
	if all[evidence.MaxGaps-1].Reason != evidence.Offline {
		t.Error("the caller's gaps were changed")
	}
	if got := Bound(nil); got != nil {
		t.Errorf("no gaps: %v", got)
	}
}

// TestOrder: the kernel first, then page tables and slab, the rest ascending.
func TestOrder(t *testing.T) {
	flags := map[int]uint64{}
	for page := range 16 {
		flags[0x30+page] = slabPage // part 3: all of it
	}
	flags[0x51], flags[0x52] = tablePage, 1<<11|tablePage // part 5: two pages
	f := openPageFlags(flagFile(t, flags, 0x80), 4096)
	defer f.close()
	var parts [][]lime.Range
	for i := range uint64(8) {
		parts = append(parts, []lime.Range{{Start: i << 16, End: i<<16 | 0x7fff}, {Start: i<<16 | 0x8000, End: i<<16 | 0xffff}})
	}
	kernel := []lime.Range{{Start: 0x6f000, End: 0x70fff}} // parts 6 and 7
	if got, want := order(t.Context(), parts, kernel, f), []int{6, 7, 3, 5, 0, 1, 2, 4}; !slices.Equal(got, want) {
		t.Errorf("order %v, want %v", got, want)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if got, want := order(ended, parts, kernel, f), []int{6, 7, 0, 1, 2, 3, 4, 5}; !slices.Equal(got, want) {
		t.Errorf("without time: order %v, want %v", got, want)
	}
}

// TestOrderOfALargeHost samples: 24 TiB of RAM in 10,000 parts, and the flags
// of no more than maxFlags pages and fewFlags for each part are read.
func TestOrderOfALargeHost(t *testing.T) {
	const parts, pages = 10_000, 24 << 40 / 10_000 / 4096
	path := flagFile(t, nil, 1)
	if err := os.Truncate(path, parts*pages*8); err != nil {
		t.Skipf("no sparse file of %d bytes: %v", parts*pages*8, err)
	}
	w, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt([]byte{slabPage}, 7000*pages*8); err != nil { // the first page of part 7000
		t.Fatal(err)
	}
	w.Close()
	f := openPageFlags(path, 4096)
	defer f.close()
	var list [][]lime.Range
	for i := range uint64(parts) {
		list = append(list, []lime.Range{{Start: i * pages * 4096, End: (i+1)*pages*4096 - 1}})
	}
	got := order(t.Context(), list, nil, f)
	if len(got) != parts {
		t.Fatalf("%d parts", len(got))
	}
	seen := slices.Sorted(slices.Values(got))
	for i, v := range seen {
		if i != v {
			t.Fatalf("no permutation: %d at %d", v, i)
		}
	}
}

func TestKernelInIomem(t *testing.T) {
	const text = "00001000-0009fbff : System RAM\n00100000-1ffdffff : System RAM\n  01000000-01dfffff : Kernel code\n  01e00000-021fffff : Kernel rodata\n  02200000-023fffff : Kernel data\n  02600000-027fffff : Kernel bss\n  04000000-04ffffff : Crash kernel\n"
	got, err := parseLayout(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if want := []lime.Range{{Start: 0x1000000, End: 0x23fffff}, {Start: 0x2600000, End: 0x27fffff}}; !slices.Equal(got.kernel, want) {
		t.Errorf("kernel %v, want %v", got.kernel, want)
	}
	if want := []lime.Range{{Start: 0x1000, End: 0x9fbff}, {Start: 0x100000, End: 0x1ffdffff}}; !slices.Equal(got.ram, want) {
		t.Errorf("RAM %v, want %v", got.ram, want)
	}
	if got := kernelRanges([]byte("00000000-00000000 : Kernel code\n")); got != nil {
		t.Errorf("hidden addresses: %v", got)
	}
}
