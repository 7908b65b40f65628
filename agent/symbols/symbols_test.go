package symbols

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	banner   = "Linux version 6.1.0-test (root@builder) #1 SMP\n"
	kallsyms = "0000000000000000 A __per_cpu_start\nffffffff85200000 T _text\n"
	notes    = "OSRELEASE=6.1.0-test\nKERNELOFFSET=4200000\n"
)

// host lays a host's files into a folder; those of boot are named after the
// kernel that runs the test, as uname tells no other.
func host(t *testing.T, change map[string]string) Host {
	t.Helper()
	u, err := uname()
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{
		"proc/version": banner, "proc/cmdline": "quiet\n", "proc/iomem": "00001000-0009fbff : System RAM\n", "proc/modules": "failover 1 0 - Live 0x0\n",
		"proc/kallsyms": kallsyms, "proc/cpuinfo": "processor\t: 0\nflags\t\t: sev\n\nprocessor\t: 1\n\n", "proc/kcore": string(elfCore(note("VMCOREINFO", notes), 0)),
		"sys/kernel/notes": "\x04\x00", "sys/kernel/btf/vmlinux": "types", "sys/kernel/btf/failover": "more types",
		"boot/System.map-" + u.Release: "ffffffff81000000 T _text\n", "boot/config-" + u.Release: "CONFIG_SMP=y\n", "proc/config.gz": "zipped",
	}
	for path, text := range change {
		files[strings.ReplaceAll(path, "RELEASE", u.Release)] = text
	}
	root := t.TempDir()
	for path, text := range files {
		if text == missing {
			continue
		}
		full := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if text == fifo {
			err = unix.Mkfifo(full, 0o600)
		} else {
			err = os.WriteFile(full, []byte(text), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return Host{Root: root}
}

// What a file of a test may be besides its text.
const missing, fifo = "\x00missing", "\x00fifo"

// note is an ELF note.
func note(name, desc string) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(name)+1))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(desc)))
	b = binary.LittleEndian.AppendUint32(b, 0)
	pad := func(s string) { b = append(b, s...); b = append(b, make([]byte, -len(s)&3)...) }
	pad(name + "\x00")
	pad(desc)
	return b
}

// elfCore is a kcore with these notes, and memory from a physical address on
// that holds them too.
func elfCore(notes []byte, phys uint64) []byte {
	le := binary.LittleEndian
	b := make([]byte, 64+2*56)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 4)
	le.PutUint64(b[32:], 64)
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[56:], 2)
	at := uint64(len(b))
	for i, kind := range []uint32{kindNote, kindLoad} {
		p := b[64+i*56:]
		le.PutUint32(p, kind)
		le.PutUint64(p[8:], at)
		if le.PutUint64(p[32:], uint64(len(notes))); kind == kindLoad {
			le.PutUint64(p[24:], phys)
		}
		if kind == kindNote && phys != 0 {
			le.PutUint64(p[32:], 0) // the kernel is older than the note in kcore
		}
	}
	return append(b, notes...)
}

// take gives the members of a bundle, and its index.
func take(t *testing.T, h Host) (map[string]string, Index) {
	t.Helper()
	var out bytes.Buffer
	if err := h.WriteBundle(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	members := map[string]string{}
	for r := tar.NewReader(&out); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := members[header.Name]; twice {
			t.Errorf("two members %s", header.Name)
		}
		members[header.Name] = string(body)
	}
	var index Index
	if err := json.Unmarshal([]byte(members["bundle.json"]), &index); err != nil {
		t.Fatal(err)
	}
	return members, index
}

func fileOf(t *testing.T, index Index, name string) File {
	t.Helper()
	i := slices.IndexFunc(index.Files, func(f File) bool { return f.Name == name })
	if i < 0 {
		t.Fatalf("bundle.json does not tell of %s: %+v", name, index.Files)
	}
	return index.Files[i]
}

func TestABundle(t *testing.T) {
	members, index := take(t, host(t, nil))
	want := map[string]string{
		"version": banner, "cmdline": "quiet\n", "kallsyms": kallsyms, "vmcoreinfo": notes, "btf/vmlinux": "types", "btf/failover": "more types",
		"System.map": "ffffffff81000000 T _text\n", "config": "CONFIG_SMP=y\n", "cpuinfo": "processor\t: 0\nflags\t\t: sev\n",
		"iomem": "00001000-0009fbff : System RAM\n", "modules": "failover 1 0 - Live 0x0\n", "notes": "\x04\x00",
	}
	for name, text := range want {
		if members[name] != text {
			t.Errorf("%s is %q, want %q", name, members[name], text)
		}
	}
	if !strings.HasPrefix(members["kcore.headers"], "\x7fELF") || len(members["kcore.headers"]) != 64+2*56 {
		t.Errorf("kcore.headers has %d bytes", len(members["kcore.headers"]))
	}
	if len(members) != len(want)+2 {
		t.Errorf("members %d, want %d", len(members), len(want)+2)
	}
	for _, f := range index.Files {
		if sum := sha256.Sum256([]byte(members[f.Name])); f.Error != "" || f.SHA256 != hex.EncodeToString(sum[:]) || f.Bytes != int64(len(members[f.Name])) {
			t.Errorf("bundle.json says %+v", f)
		}
	}
	if c := index.Clock; index.Uname.Release == "" || c.Before.After(c.After) || c.Monotonic <= 0 || c.Boottime < c.Monotonic {
		t.Errorf("uname %+v, clock %+v", index.Uname, c)
	}
}

// TestWhatIsMissingIsNamed: no file that cannot be read ends the bundle.
func TestWhatIsMissingIsNamed(t *testing.T) {
	zeros := strings.ReplaceAll(strings.ReplaceAll(kallsyms, "ffffffff852", "00000000000"), "A __", "d __")
	tests := []struct {
		name, path, text string
		file             string
		want             func(File) bool
	}{
		{"no types", "sys/kernel/btf/vmlinux", missing, "btf/vmlinux", func(f File) bool { return f.Errno == "ENOENT" && f.SHA256 == "" }},
		{"a FIFO for a file", "boot/System.map-RELEASE", fifo, "System.map", func(f File) bool { return strings.Contains(f.Error, "not a regular file") }},
		{"no config beside the kernel", "boot/config-RELEASE", missing, "config.gz", func(f File) bool { return f.Bytes == 6 }},
		{"hidden symbols", "proc/kallsyms", zeros, "kallsyms", func(f File) bool { return f.SHA256 != "" && strings.Contains(f.Note, "kptr_restrict") }},
		{"hidden addresses", "proc/iomem", "00000000-00000000 : System RAM\n  00000000-00000000 : Kernel code\n", "iomem", func(f File) bool { return strings.Contains(f.Note, "CAP_SYS_ADMIN") }},
		{"no kcore", "proc/kcore", missing, "vmcoreinfo", func(f File) bool { return f.Errno == "ENOENT" }},
		{"a kcore of another kind", "proc/kcore", strings.Repeat("x", 200), "vmcoreinfo", func(f File) bool { return strings.Contains(f.Error, "ELF") }},
		{"a kcore that ends early", "proc/kcore", "\x7fELF\x02\x01", "kcore.headers", func(f File) bool { return strings.Contains(f.Error, "EOF") }},
		{"a kcore without the note", "proc/kcore", string(elfCore(note("CORE", "x"), 0)), "vmcoreinfo", func(f File) bool { return strings.Contains(f.Error, "no VMCOREINFO") }},
		{"an odd module", "sys/kernel/btf/a.b", "x", "btf", func(f File) bool { return strings.Contains(f.Note, "left out") }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			members, index := take(t, host(t, map[string]string{tt.path: tt.text}))
			if f := fileOf(t, index, tt.file); !tt.want(f) {
				t.Errorf("bundle.json says %+v", f)
			}
			if members["version"] != banner || members["cpuinfo"] == "" {
				t.Error("what could be read is not there")
			}
		})
	}
}

// TestAnOldKernelsCrashNotes: before 4.19 kcore has no VMCOREINFO, and sysfs
// tells where in memory it lies.
func TestAnOldKernelsCrashNotes(t *testing.T) {
	body := note("VMCOREINFO", notes)
	pointer := func(addr string) map[string]string {
		return map[string]string{"proc/kcore": string(elfCore(body, 0x100000)), "sys/kernel/vmcoreinfo": addr}
	}
	length := "0x" // %pa writes the prefix, %x does not
	members, index := take(t, host(t, pointer(length+"100000 "+hexOf(len(body))+"\n")))
	if members["vmcoreinfo"] != notes {
		t.Errorf("vmcoreinfo is %q, %+v", members["vmcoreinfo"], fileOf(t, index, "vmcoreinfo"))
	}
	for text, want := range map[string]string{"900000 40\n": "in no segment", "nonsense\n": "want an address and a size", "100000 ffffffffff\n": "want an address"} {
		_, index := take(t, host(t, pointer(text)))
		if f := fileOf(t, index, "vmcoreinfo"); !strings.Contains(f.Error, want) {
			t.Errorf("%q: %+v", text, f)
		}
	}
}

func hexOf(n int) string {
	return strings.TrimLeft(hex.EncodeToString(binary.BigEndian.AppendUint32(nil, uint32(n))), "0")
}

// TestALargeFileIsCut: its member has as many bytes as one may have.
func TestALargeFileIsCut(t *testing.T) {
	h := host(t, map[string]string{"proc/cmdline": strings.Repeat("x", chunk+1000)})
	var out bytes.Buffer
	b := &bundle{ctx: t.Context(), host: h, tar: tar.NewWriter(&out), limit: chunk + 10, buf: make([]byte, chunk)}
	if err := b.file("cmdline", "/proc/cmdline"); err != nil {
		t.Fatal(err)
	}
	if f := b.last(); !f.Cut || f.Bytes != chunk+10 || f.Padded != 0 {
		t.Errorf("%+v", *f)
	}
}

// TestAFileThatShrinks is padded with zeros, and says so.
func TestAFileThatShrinks(t *testing.T) {
	h := host(t, nil)
	in, err := os.Open(h.path("/proc/version"))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	b := &bundle{ctx: t.Context(), buf: make([]byte, chunk)}
	var out bytes.Buffer
	read, readErr, err := b.copy(&out, in, int64(len(banner))+5)
	if read != int64(len(banner)) || readErr != nil || err != nil || out.String() != banner+"\x00\x00\x00\x00\x00" {
		t.Errorf("read %d of %q, %v, %v", read, out.String(), readErr, err)
	}
}

func TestAnEndedOrderEndsTheBundle(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("cancelled by the collector"))
	if err := host(t, nil).WriteBundle(ctx, io.Discard); err == nil || !strings.Contains(err.Error(), "cancelled by the collector") {
		t.Errorf("error %v", err)
	}
	if err := host(t, nil).WriteBundle(t.Context(), full{}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a full place: %v", err)
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, unix.ENOSPC }

// FuzzFindNote: whatever the notes are, what is found lies in them.
func FuzzFindNote(f *testing.F) {
	f.Add(slices.Concat(note("CORE", "abc"), note("VMCOREINFO", notes)))
	f.Add(note("VMCOREINFO", "")[:14])
	f.Add(bytes.Repeat([]byte{0xff}, 64))
	f.Fuzz(func(t *testing.T, notes []byte) {
		got, err := findNote(notes)
		if err == nil && !bytes.Contains(notes, got) {
			t.Errorf("found %q", got)
		}
	})
}
