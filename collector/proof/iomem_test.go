package proof

import (
	"archive/tar"
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/quicklime-ir/quicklime/collector/custody"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

// bundle is a tar of symbols with the members in the order of their names.
func bundle(t *testing.T, members ...[2]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		if err := w.WriteHeader(&tar.Header{Name: m[0], Mode: 0o600, Size: int64(len(m[1]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(m[1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// withImage writes a sealed case of an image of two pages of RAM, at 0x1000
// and 0x4000, and of a bundle of symbols; nil is none.
func withImage(t *testing.T, symbols []byte) (dir string, key *custody.Key) {
	t.Helper()
	dir = t.TempDir()
	ram := []lime.Range{{Start: 0x1000, End: 0x1fff}, {Start: 0x4000, End: 0x4fff}}
	var raw []byte
	for _, r := range ram {
		raw = append(lime.AppendHeader(raw, r), make([]byte, r.Len())...)
	}
	image := putItem(t, dir, evidence.Memory, "memory", evidence.LiME, raw)
	image.RAM, image.PartRAMBytes, image.Parts[0].Ranges = ram, 1<<20, ram
	if symbols == nil {
		return dir, seal(t, dir, image)
	}
	return dir, seal(t, dir, image, putItem(t, dir, evidence.Symbols, "symbols", evidence.Tar, symbols))
}

// TestAnImageIsOfAllTheRAMThatTheHostHad: an image that agrees with its own
// manifest in every byte is held against the host's map of addresses too.
func TestAnImageIsOfAllTheRAMThatTheHostHad(t *testing.T) {
	const rest = "00000000-00000fff : Reserved\n00001000-00001fff : System RAM\n00002000-00002fff : ACPI Tables\n"
	version := [2]string{"version", "Linux version 6.1.0"}
	var many [][2]string
	for range iomemBefore {
		many = append(many, version)
	}
	tests := []struct {
		name    string
		symbols []byte
		proven  bool
		want    string // in what is printed
	}{
		{"the same RAM", bundle(t, version, [2]string{"iomem", rest + "00004000-00004fff : System RAM\n"}), true,
			"ok      iomem: its 2 ranges of RAM, 8192 bytes, are those of the host's /proc/iomem"},
		{"RAM that the image leaves out", bundle(t, [2]string{"iomem", rest + "00004000-00004fff : System RAM\n100000000-13fffffff : System RAM\n"}), false,
			"BAD     iomem: its RAM has 8192 bytes, that of the host's /proc/iomem 1073750016; 1073741824 bytes in 1 ranges are left out, first 100000000-13fffffff"},
		{"a range that is no RAM", bundle(t, [2]string{"iomem", rest}), false,
			"4096 bytes in 1 ranges are no RAM there, first 00004000-00004fff"},
		{"hidden addresses", bundle(t, [2]string{"iomem", "00000000-00000000 : System RAM\n"}), true,
			"note    its RAM is not compared with the host's /proc/iomem: cannot read iomem: physical addresses are hidden"},
		{"a bundle without it", bundle(t, version), true, "iomem is not there: the agent could not read it"},
		{"a bundle in which it comes too late", bundle(t, append(many, [2]string{"iomem", rest})...), true, "iomem is not there"},
		{"no bundle", nil, true, "the manifest names no bundle of symbols"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir, key := withImage(t, tt.symbols)
			proven, out := proved(t, dir, key)
			if proven != tt.proven || !strings.Contains(out, tt.want) {
				t.Errorf("proven %v, want %v and %q in\n%s", proven, tt.proven, tt.want, out)
			}
		})
	}
}

func FuzzMember(f *testing.F) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range []string{"version", "iomem"} {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: 3}); err != nil {
			f.Fatal(err)
		}
		if _, err := w.Write([]byte("abc")); err != nil {
			f.Fatal(err)
		}
	}
	f.Add(b.Bytes())
	f.Add(slices.Repeat([]byte{0}, 1024))
	f.Fuzz(func(t *testing.T, body []byte) {
		if text, err := member(bytes.NewReader(body), "iomem", 64); err == nil && len(text) > 64 {
			t.Fatalf("%d bytes", len(text))
		}
	})
}
