package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// draft is a journal file that a test writes.
type draft struct {
	b       []byte
	compact bool
	pack    func(payload string) (flags uint8, packed []byte) // nil packs nothing
	entries []uint64
	known   map[string]uint64 // data objects by payload: journald writes each once
}

func newDraft(compact bool) *draft {
	d := &draft{b: make([]byte, 272), compact: compact, known: map[string]uint64{}}
	copy(d.b, "LPKSHHRH")
	if compact {
		order.PutUint32(d.b[12:], flagCompact)
	}
	d.b[16] = byte(Archived)
	copy(d.b[40:], bytes.Repeat([]byte{0xab}, 16))
	order.PutUint64(d.b[88:], 272)
	return d
}

// object appends an object of a head, its zeroed bytes before the payload, and
// a payload.
func (d *draft) object(k kind, flags uint8, head int, payload []byte) uint64 {
	at := len(d.b)
	d.b = append(d.b, make([]byte, head)...)
	d.b = append(d.b, payload...)
	d.b[at], d.b[at+1] = byte(k), flags
	order.PutUint64(d.b[at+8:], uint64(head+len(payload)))
	d.b = append(d.b, make([]byte, int(align(int64(len(d.b))))-len(d.b))...)
	return uint64(at)
}

func (d *draft) ref(b []byte, off uint64) []byte {
	if d.compact {
		return order.AppendUint32(b, uint32(off))
	}
	return order.AppendUint64(b, off)
}

func (d *draft) data(payload string) uint64 {
	if at, ok := d.known[payload]; ok {
		return at
	}
	head, flags, packed := 64, uint8(0), []byte(payload)
	if d.compact {
		head = 72
	}
	if d.pack != nil {
		flags, packed = d.pack(payload)
	}
	d.known[payload] = d.object(kindData, flags, head, packed)
	return d.known[payload]
}

func (d *draft) entry(payloads ...string) uint64 {
	var refs []byte
	for _, p := range payloads {
		refs = d.ref(refs, d.data(p))
		if !d.compact {
			refs = order.AppendUint64(refs, 0) // the hash
		}
	}
	at := d.object(kindEntry, 0, entryHead, refs)
	n := uint64(len(d.entries) + 1)
	order.PutUint64(d.b[at+16:], n)
	order.PutUint64(d.b[at+24:], 1_700_000_000_000_000+n)
	order.PutUint64(d.b[at+32:], n)
	copy(d.b[at+40:], bytes.Repeat([]byte{0xcd}, 16))
	d.entries = append(d.entries, at)
	return at
}

// array appends an entry array.
func (d *draft) array(entries ...uint64) uint64 {
	var refs []byte
	for _, e := range entries {
		refs = d.ref(refs, e)
	}
	return d.object(kindEntryArray, 0, 24, refs)
}

// link makes a chain of arrays, one each.
func (d *draft) link(arrays ...uint64) {
	at := 176
	for _, a := range arrays {
		order.PutUint64(d.b[at:], a)
		at = int(a) + 16
	}
	order.PutUint64(d.b[96:], uint64(len(d.b)-272))
	order.PutUint64(d.b[152:], uint64(len(d.entries)))
}

// read gives each entry of a file as text, and each damage.
func read(t testing.TB, b []byte) (entries, damages []string) {
	t.Helper()
	f, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	for e, err := range f.Entries(t.Context()) {
		if err != nil {
			var d *Damage
			if !errors.As(err, &d) {
				t.Fatal(err)
			}
			damages = append(damages, err.Error())
			continue
		}
		text := fmt.Sprint(e.Seqnum)
		for _, field := range e.Fields {
			text += fmt.Sprintf(" %s=%.40s", field.Name, field.Value)
			if field.Cut {
				text += "(cut)"
			}
		}
		if e.Cut {
			text += " (cut)"
		}
		if e.Unlinked {
			text += " (unlinked)"
		}
		entries = append(entries, text)
	}
	return entries, damages
}

func TestBothLayouts(t *testing.T) {
	for _, compact := range []bool{false, true} {
		d := newDraft(compact)
		d.entry("MESSAGE=one", "_PID=1")
		first := d.array(d.entries[0])
		d.entry("MESSAGE=two\x00\xff=x")
		d.entry("A=", "A=b")
		second := d.array(d.entries[1], d.entries[2], 0, 0)
		d.link(first, second)
		entries, damages := read(t, d.b)
		want := []string{"1 MESSAGE=one _PID=1", "2 MESSAGE=two\x00\xff=x", "3 A= A=b"}
		if diff := cmp.Diff(want, entries); diff != "" {
			t.Errorf("compact %t: %s", compact, diff)
		}
		if damages != nil {
			t.Errorf("damages: %q", damages)
		}
	}
}

func packXZ(payload string) (uint8, []byte) {
	var b bytes.Buffer
	w, err := xz.NewWriter(&b)
	if err == nil {
		_, err = io.WriteString(w, payload)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		panic(err)
	}
	return dataXZ, b.Bytes()
}

func packZstd(payload string) (uint8, []byte) {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		panic(err)
	}
	return dataZstd, w.EncodeAll([]byte(payload), nil)
}

// packLZ4 writes a block of literals but for a run at the end of the first
// byte's repeats, which is one match.
func packLZ4(payload string) (uint8, []byte) {
	out := order.AppendUint64(nil, uint64(len(payload)))
	length := func(n int) {
		for ; n >= 255; n -= 255 {
			out = append(out, 255)
		}
		out = append(out, byte(n))
	}
	last := payload[len(payload)-1]
	head := len(strings.TrimRight(payload, string(last))) + 1
	run := len(payload) - head - 5 // the last five are literals
	if run < 19 {
		out = append(out, 15<<4)
		length(len(payload) - 15)
		return dataLZ4, append(out, payload...)
	}
	if head < 15 {
		out = append(out, byte(head)<<4|15)
	} else {
		out = append(out, 15<<4|15)
		length(head - 15)
	}
	out = append(out, payload[:head]...)
	out = append(out, 1, 0)
	length(run - 19)
	out = append(out, 5<<4)
	return dataLZ4, append(out, payload[len(payload)-5:]...)
}

func TestEveryCompressionIsReadAndBounded(t *testing.T) {
	for name, pack := range map[string]func(string) (uint8, []byte){"xz": packXZ, "zstd": packZstd, "lz4": packLZ4} {
		for size, cut := range map[int]bool{60: false, 5000: false, MaxValue: false, MaxValue + 1: true, 3 * MaxValue: true} {
			payload := "MESSAGE=" + strings.Repeat("a", size-8)
			d := newDraft(false)
			d.pack = pack
			d.entry(payload)
			d.link(d.array(d.entries...))
			f, err := Open(bytes.NewReader(d.b), int64(len(d.b)))
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for e, err := range f.Entries(t.Context()) {
				if err != nil {
					t.Fatalf("%s of %d: %v", name, size, err)
				}
				n++
				got := e.Fields[0]
				if want := payload[8:min(size, MaxValue)]; string(got.Value) != want || got.Cut != cut {
					t.Errorf("%s of %d: got %d bytes, cut %t", name, size, len(got.Value), got.Cut)
				}
			}
			if n != 1 {
				t.Errorf("%s of %d: %d entries", name, size, n)
			}
		}
	}
}

// TestRealFiles reads what systemd-journal-remote 252 wrote, 40 entries of
// which every tenth has a long message that is compressed.
func TestRealFiles(t *testing.T) {
	for _, name := range []string{"regular", "compact"} {
		b := realFile(t, name)
		f, err := Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		h := f.Header
		if h.Compact != (name == "compact") || !h.Zstd || h.Entries != 40 || h.State != Offline || h.MachineID != "fedcba9876543210fedcba9876543210" {
			t.Errorf("%s: header %+v", name, h)
		}
		i := 0
		for e, err := range f.Entries(t.Context()) {
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			message := fmt.Sprintf("message number %d", i)
			if i%10 == 3 {
				message = strings.Repeat(fmt.Sprintf("line %d\n", i), 300)
			}
			if e.Seqnum != uint64(i+1) || e.Unlinked || e.Boot != "0123456789abcdef0123456789abcdef" ||
				e.Realtime != 1_700_000_000_000_000+uint64(i)*1_000_000 || e.Monotonic != 5_000_000+uint64(i)*1_000_000 {
				t.Errorf("%s: entry %d: %+v", name, i, e)
			}
			values := map[string]string{}
			for _, field := range e.Fields {
				values[field.Name] = string(field.Value)
			}
			if values["MESSAGE"] != message || values["_PID"] != fmt.Sprint(1000+i) || values["_SYSTEMD_UNIT"] != "ssh.service" || len(values) != 12 {
				t.Errorf("%s: entry %d: %q", name, i, values)
			}
			i++
		}
		if i != 40 {
			t.Errorf("%s: %d entries, want 40", name, i)
		}
	}
}

func realFile(t testing.TB, name string) []byte {
	t.Helper()
	packed, err := os.ReadFile("testdata/" + name + ".journal.xz")
	if err != nil {
		t.Fatal(err)
	}
	r, err := xz.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestDamage breaks one thing at a time in a file of three entries, and tells
// what is still read.
func TestDamage(t *testing.T) {
	const lost = "hold no object that can be read"
	for _, test := range []struct {
		name    string
		spoil   func(d *draft, array uint64)
		want    string // sequence numbers; u after those that are not linked
		damages []string
	}{
		{"nothing", func(d *draft, array uint64) {}, "1 2 3", nil},
		{"the chain passes an entry by", func(d *draft, array uint64) {
			order.PutUint64(d.b[array+24+8:], d.entries[2])
			order.PutUint64(d.b[array+24+16:], 0)
		}, "1 2u 3", nil},
		{"the chain is cut off", func(d *draft, array uint64) { order.PutUint64(d.b[176:], 0) }, "1u 2u 3u", nil},
		{"the chain leads out", func(d *draft, array uint64) { order.PutUint64(d.b[176:], 1<<60) }, "1u 2u 3u", []string{"the chain of entries is broken"}},
		{"the chain is a loop", func(d *draft, array uint64) { order.PutUint64(d.b[array+16:], array) }, "1 2 3", []string{"leads back to"}},
		{"the chain leads back", func(d *draft, array uint64) { order.PutUint64(d.b[array+24+16:], d.entries[0]) }, "1 2 3u", []string{"leads back from"}},
		{"an entry beyond the end", func(d *draft, array uint64) { order.PutUint64(d.b[array+24+16:], 1<<60) }, "1 2 3u", []string{"beyond the file's end"}},
		{"an entry is of another kind", func(d *draft, array uint64) { d.b[d.entries[0]] = byte(kindTag) }, "2 3",
			[]string{"an object (tag) stands where one (entry) should", "the header counts 3 entries, 2 could be read"}},
		{"an object is torn", func(d *draft, array uint64) { clear(d.b[272:300]) }, "1 2 3",
			[]string{lost, "field 0: an unused object"}},
		{"an object's size is a lie", func(d *draft, array uint64) { order.PutUint64(d.b[272+8:], 1<<62) }, "1 2 3",
			[]string{lost, "field 0: an object (data) of 4611686018427387904 bytes leads beyond the file's end"}},
		{"a field has no name", func(d *draft, array uint64) { d.b[272+64] = '=' }, "1 2 3", []string{"no field name"}},
		{"compression is of two kinds", func(d *draft, array uint64) { d.b[272+1] = 3 }, "1 2 3", []string{"flags 0x3 name no compression"}},
		{"compressed is no xz", func(d *draft, array uint64) { d.b[272+1] = dataXZ }, "1 2 3", []string{"no xz stream"}},
		{"compressed is no lz4", func(d *draft, array uint64) { d.b[272+1] = dataLZ4 }, "1 2 3", []string{"broken lz4 block"}},
		{"compressed is no zstd", func(d *draft, array uint64) { d.b[272+1] = dataZstd }, "1 2 3", []string{"data at 272"}},
		{"the file is cut", func(d *draft, array uint64) { d.b = d.b[:d.entries[2]] }, "1u 2u",
			[]string{"the file ends", "the chain of entries is broken", "the header counts 3 entries, 2 could be read"}},
		{"journald died", func(d *draft, array uint64) {
			d.b[16] = byte(Online)
			order.PutUint64(d.b[array+24+16:], 0)
			d.b = append(d.b, make([]byte, 200_000)...)
		}, "1 2 3u", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := newDraft(false)
			for i := range 3 {
				d.entry(fmt.Sprintf("MESSAGE=%d", i))
			}
			array := d.array(d.entries...)
			d.link(array)
			test.spoil(d, array)
			entries, damages := read(t, d.b)
			var got []string
			for _, e := range entries {
				number, rest, _ := strings.Cut(e, " ")
				if strings.HasSuffix(rest, "(unlinked)") {
					number += "u"
				}
				got = append(got, number)
			}
			if strings.Join(got, " ") != test.want {
				t.Errorf("got %q, want %s", got, test.want)
			}
			if len(damages) != len(test.damages) {
				t.Fatalf("damages %q, want %q", damages, test.damages)
			}
			for i, want := range test.damages {
				if !strings.Contains(strings.Join(damages, "\n"), want) {
					t.Errorf("damage %d of %q: want %q", i, damages, want)
				}
			}
		})
	}
}

func TestHeadersThatAreRefused(t *testing.T) {
	whole := newDraft(false).b
	for name, spoil := range map[string]func(b []byte) []byte{
		"beyond the file's end": func(b []byte) []byte { return b[:100] },
		"does not begin with":   func(b []byte) []byte { b[0] = 'X'; return b },
		"flags 0x20":            func(b []byte) []byte { b[12] = 0x20; return b },
		"a header of 0 bytes":   func(b []byte) []byte { b[88], b[89] = 0, 0; return b },
	} {
		b := spoil(bytes.Clone(whole))
		if _, err := Open(bytes.NewReader(b), int64(len(b))); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEntriesAreBounded(t *testing.T) {
	d := newDraft(true)
	many := make([]string, MaxFields+1)
	for i := range many {
		many[i] = fmt.Sprintf("F%d=", i)
	}
	d.entry(many...)
	big := "M=" + strings.Repeat("x", MaxValue-2)
	d.entry(big, big, big, big, big)
	d.link(d.array(d.entries...))
	f, err := Open(bytes.NewReader(d.b), int64(len(d.b)))
	if err != nil {
		t.Fatal(err)
	}
	var counts []int
	for e, err := range f.Entries(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if !e.Cut {
			t.Error("a cut went unsaid")
		}
		counts = append(counts, len(e.Fields))
	}
	if diff := cmp.Diff([]int{MaxFields, 4}, counts); diff != "" {
		t.Error(diff)
	}
}

func FuzzEntries(f *testing.F) {
	for _, pack := range []func(string) (uint8, []byte){nil, packXZ, packZstd, packLZ4} {
		for _, compact := range []bool{false, true} {
			d := newDraft(compact)
			d.pack = pack
			for range 3 {
				d.entry("MESSAGE="+strings.Repeat("a", 60), "_PID=1"+strings.Repeat("b", 60))
			}
			d.link(d.array(d.entries...))
			f.Add(d.b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		last := int64(0)
		for e, err := range file.Entries(t.Context()) {
			if err != nil {
				continue
			}
			if e.Offset <= last {
				t.Fatalf("entry at %d after the one at %d", e.Offset, last)
			}
			last = e.Offset
			if len(e.Fields) > MaxFields {
				t.Fatalf("%d fields", len(e.Fields))
			}
		}
	})
}

func FuzzUnpackLZ4(f *testing.F) {
	_, packed := packLZ4("MESSAGE=" + strings.Repeat("a", 500))
	f.Add(packed)
	f.Fuzz(func(t *testing.T, b []byte) {
		if out, _, _ := unpackLZ4(b, 1000); len(out) > 1000 {
			t.Errorf("%d bytes", len(out))
		}
	})
}

// BenchmarkEntries reads a file of 10,000 entries of 12 fields each, as ssh and
// the like write them; most values are shared.
func BenchmarkEntries(b *testing.B) {
	for _, compact := range []bool{false, true} {
		b.Run(fmt.Sprintf("compact=%t", compact), func(b *testing.B) {
			const count = 10_000
			d := newDraft(compact)
			for i := range count {
				d.entry("_TRANSPORT=syslog", "PRIORITY=6", "SYSLOG_IDENTIFIER=sshd", fmt.Sprintf("_PID=%d", i), "_UID=0", "_COMM=sshd",
					"_EXE=/usr/sbin/sshd", "_CMDLINE=sshd: root", "_SYSTEMD_UNIT=ssh.service", "_HOSTNAME=host", "SYSLOG_FACILITY=4", fmt.Sprintf("MESSAGE=message number %d", i))
			}
			d.link(d.array(d.entries...))
			b.SetBytes(int64(len(d.b)))
			b.ResetTimer()
			for range b.N {
				f, err := Open(bytes.NewReader(d.b), int64(len(d.b)))
				if err != nil {
					b.Fatal(err)
				}
				n := 0
				for _, err := range f.Entries(b.Context()) {
					if err != nil {
						b.Fatal(err)
					}
					n++
				}
				if n != count {
					b.Fatalf("%d entries", n)
				}
			}
			b.ReportMetric(float64(count)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}
