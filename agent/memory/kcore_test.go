package memory

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/iomem"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

// header is a program header of a fixture.
type header struct {
	kind         uint32 // 1 is PT_LOAD
	vaddr, paddr uint64
	offset, size uint64
}

// elfCore makes the headers of a core file, as fs/proc/kcore.c does.
func elfCore(headers ...header) []byte {
	le := binary.LittleEndian
	b := make([]byte, 64)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 4) // ET_CORE
	le.PutUint64(b[32:], 64)
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[56:], uint16(len(headers)))
	for _, l := range headers {
		h := make([]byte, 56)
		le.PutUint32(h, l.kind)
		le.PutUint64(h[8:], l.offset)
		le.PutUint64(h[16:], l.vaddr)
		le.PutUint64(h[24:], l.paddr)
		le.PutUint64(h[32:], l.size)
		le.PutUint64(h[40:], l.size)
		b = append(b, h...)
	}
	return b
}

const none = ^uint64(0)

func TestParseKcore(t *testing.T) {
	ram := func(start, size, offset uint64) header {
		return header{1, 0xffff888000000000 + start, start, offset, size}
	}
	tests := []struct {
		name   string
		loads  []header
		want   []segment
		reason Reason
	}{
		{"two ranges of RAM", []header{ram(0x100000, 0x3000, 0x8000), ram(0x1000, 0x2000, 0x4000)},
			[]segment{{lime.Range{Start: 0x1000, End: 0x2fff}, 0x4000}, {lime.Range{Start: 0x100000, End: 0x102fff}, 0x8000}}, ""},
		{"vmalloc and modules are no RAM", []header{{1, 0xffffc90000000000, none, 0x9000, 0x1000}, ram(0x1000, 0x1000, 0x4000)},
			[]segment{{lime.Range{Start: 0x1000, End: 0x1fff}, 0x4000}}, ""},
		{"the kernel's text lies in its RAM", []header{{1, 0xffffffff81000000, 0x101000, 0x7000, 0x1000}, ram(0x100000, 0x3000, 0x8000)},
			[]segment{{lime.Range{Start: 0x100000, End: 0x102fff}, 0x8000}}, ""},
		{"text that reaches beyond", []header{{1, 0xffffffff81000000, 0x102000, 0x7000, 0x2000}, ram(0x100000, 0x3000, 0x8000)},
			[]segment{{lime.Range{Start: 0x100000, End: 0x102fff}, 0x8000}, {lime.Range{Start: 0x103000, End: 0x103fff}, 0x8000}}, ""},
		{"5-level paging moves virtual addresses alone", []header{{1, 0xff11000000001000, 0x1000, 0x4000, 0x1000}},
			[]segment{{lime.Range{Start: 0x1000, End: 0x1fff}, 0x4000}}, ""},
		{"notes are no memory", []header{{4, 0, 0, 0x100, 0x200}, ram(0x1000, 0x1000, 0x4000)}, []segment{{lime.Range{Start: 0x1000, End: 0x1fff}, 0x4000}}, ""},
		{"a segment that wraps around", []header{{1, 0, none - 100, 0x4000, 0x1000}}, nil, ""},
		{"a segment longer than any file", []header{{1, 0, 0x1000, 1 << 62, 1<<62 + 1}}, nil, ""},
		{"RAM from address 0 on", []header{ram(0, 0x1000, 0x4000), ram(0x100000, 0x1000, 0x5000)},
			[]segment{{lime.Range{Start: 0, End: 0xfff}, 0x4000}, {lime.Range{Start: 0x100000, End: 0x100fff}, 0x5000}}, ""},
		{"no headers", nil, nil, Malformed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			loads, err := parseKcore(bytes.NewReader(elfCore(tt.loads...)))
			var r *Refusal
			if errors.As(err, &r); tt.reason != "" && (r == nil || r.Reason != tt.reason) || tt.reason == "" && err != nil {
				t.Fatalf("error %v, want reason %q", err, tt.reason)
			}
			if untold(loads) {
				t.Error("it tells no addresses")
			}
			if got := told(loads); !slices.Equal(got, tt.want) {
				t.Errorf("segments %v, want %v", got, tt.want)
			}
		})
	}
}

func TestParseKcoreOfBrokenFiles(t *testing.T) {
	whole := elfCore(header{1, 0, 0x1000, 0x4000, 0x1000})
	for name, b := range map[string][]byte{
		"empty": nil, "cut in the header": whole[:40], "cut in the table": whole[:100], "not ELF": bytes.Repeat([]byte("x"), 200),
	} {
		var r *Refusal
		if _, err := parseKcore(bytes.NewReader(b)); !errors.As(err, &r) || r.Reason != Malformed {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func FuzzParseKcore(f *testing.F) {
	f.Add(elfCore(header{1, 0, 0x1000, 0x4000, 0x1000}, header{1, 1, none, 1, 1}))
	f.Fuzz(func(t *testing.T, b []byte) {
		loads, err := parseKcore(bytes.NewReader(b))
		if err != nil {
			return
		}
		segments := told(loads)
		if mapped, err := directMap(loads, ram, pageSize); err == nil {
			ascend(t, mapped)
		}
		ascend(t, segments)
	})
}

func ascend(t *testing.T, segments []segment) {
	t.Helper()
	for i, s := range segments {
		if s.End < s.Start || s.offset < 0 || i > 0 && s.Start <= segments[i-1].End {
			t.Fatalf("segments %v are not ascending and disjoint", segments)
		}
	}
}

// noFlags is a host without page flags, whatever this one has.
var noFlags = Options{pageFlags: "/no/kpageflags", pageBytes: pageSize}

// where is a host with this RAM.
func where(ram ...lime.Range) func() (layout, error) {
	return func() (layout, error) { return layout{ram: ram}, nil }
}

// fakeKcore is a kcore file with RAM at 0x1000-0x2fff and 0x10000-0x10fff,
// each byte of which is the high byte of its address's page number.
func fakeKcore(t *testing.T) string {
	t.Helper()
	b := elfCore(header{1, 0, 0x1000, 0x4000, 0x2000}, header{1, 0, 0x10000, 0x8000, 0x1000})
	b = append(b, make([]byte, 0x9000-len(b))...)
	for page, at := range map[byte]int{1: 0x4000, 2: 0x5000, 0x10: 0x8000} {
		copy(b[at:], bytes.Repeat([]byte{page}, pageSize))
	}
	path := filepath.Join(t.TempDir(), "kcore")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestKcoreFollowsSystemRAM: kcore has whole pages, /proc/iomem may end a
// range inside one; the odd bytes are in the image, as a gap.
func TestKcoreFollowsSystemRAM(t *testing.T) {
	k, err := newKcore(fakeKcore(t), where(lime.Range{Start: 0x1000, End: 0x33ff}, lime.Range{Start: 0x10000, End: 0x10fff}), noFlags)
	if err != nil {
		t.Fatal(err)
	}
	r, err := k.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, gaps, err := r.ReadPhys(t.Context(), 0x1000, 0x2400)
	if err != nil {
		t.Fatal(err)
	}
	if p[0] != 1 || p[0x1000] != 2 || p[0x2000] != 0 {
		t.Errorf("bytes %d %d %d", p[0], p[0x1000], p[0x2000])
	}
	if want := []evidence.Gap{{Range: lime.Range{Start: 0x3000, End: 0x33ff}, Reason: NotInSource}}; !slices.Equal(gaps, want) {
		t.Errorf("gaps %v, want %v", gaps, want)
	}
	if p, gaps, err := r.ReadPhys(t.Context(), 0x10010, 100); err != nil || gaps != nil || p[0] != 0x10 {
		t.Errorf("gaps %v, error %v, byte %d", gaps, err, p[0])
	}
}

func TestKcoreWithoutAddressesInIomem(t *testing.T) {
	k, err := newKcore(fakeKcore(t), func() (layout, error) { return layout{}, iomem.ErrHidden }, noFlags)
	if err != nil || !slices.Equal(k.Ranges(), []lime.Range{{Start: 0x1000, End: 0x2fff}, {Start: 0x10000, End: 0x10fff}}) {
		t.Errorf("ranges %v, error %v", k.Ranges(), err)
	}
}

func TestKcoreThatIsNotThere(t *testing.T) {
	var r *Refusal
	if _, err := newKcore(filepath.Join(t.TempDir(), "no"), nil, noFlags); !errors.As(err, &r) || r.Reason != NoKcore {
		t.Errorf("error %v", err)
	}
}

// badPages fails reads that touch a page at one of these offsets.
type badPages struct {
	bad map[int64]error
}

func (f *badPages) ReadAt(p []byte, off int64) (int, error) {
	for at, err := range f.bad {
		if at < off+int64(len(p)) && at+pageSize > off {
			return 0, err
		}
	}
	for i := range p {
		p[i] = 7
	}
	return len(p), nil
}

func (f *badPages) Close() error { return nil }

// reader reads 1 MiB of memory at 0x100000 from f, until the test ends.
func reader(t *testing.T, f handle) *kcoreReader {
	t.Helper()
	file, err := newPatient(func() (handle, error) { return f, nil }, Options{}.alloc, readLimit)
	if err != nil {
		t.Fatal(err)
	}
	return &kcoreReader{segments: []segment{{lime.Range{Start: 0x100000, End: 0x1fffff}, 0}}, file: file}
}

// TestOneBadPage: the kernel gives nothing of a read that touches a bad page.
// Read again by pages, that page alone is lost, and named.
func TestOneBadPage(t *testing.T) {
	f := &badPages{bad: map[int64]error{0x5000: unix.EFAULT, 0x6000: unix.EFAULT, 0x9000: unix.EIO}}
	r := reader(t, f)
	defer r.Close()
	p, gaps, err := r.ReadPhys(t.Context(), 0x100000, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	want := []evidence.Gap{
		{Range: lime.Range{Start: 0x105000, End: 0x106fff}, Reason: evidence.ReadError, Errno: "EFAULT"},
		{Range: lime.Range{Start: 0x109000, End: 0x109fff}, Reason: evidence.ReadError, Errno: "EIO"},
	}
	if !slices.Equal(gaps, want) {
		t.Errorf("gaps %v, want %v", gaps, want)
	}
	if p[0x4fff] != 7 || p[0x5000] != 0 || p[0x6fff] != 0 || p[0x7000] != 7 {
		t.Error("a bad page has bytes, or a good one has none")
	}
}
