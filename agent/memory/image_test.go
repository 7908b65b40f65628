package memory

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quicklime-ir/quicklime/proto/lime"
)

func TestImagesThatAreNotWhole(t *testing.T) {
	whole := stream(ram...)
	tests := []struct {
		name  string
		image []byte
	}{
		{"cut in a record", whole[:len(whole)-1]},
		{"not LiME", bytes.Repeat([]byte("x"), 100)},
		{"records that go back", stream(ram[1], ram[0])},
		{"records that overlap", stream(ram[0], ram[0])},
		{"a record of nearly all addresses", lime.AppendHeader(nil, lime.Range{Start: 0, End: ^uint64(0) - 32})},
		{"a record longer than any file", lime.AppendHeader(nil, lime.Range{Start: 0, End: 1 << 62})},
	}
	for _, tt := range tests {
		path := filepath.Join(t.TempDir(), "image.lime")
		if err := os.WriteFile(path, tt.image, 0o600); err != nil {
			t.Fatal(err)
		}
		_, refused, err := Open(t.Context(), Options{Prefer: "file", File: path})
		if !errors.Is(err, ErrNoSource) || len(refused) != 1 || refused[0].Reason != Malformed {
			t.Errorf("%s: refused %v, error %v", tt.name, refused, err)
		}
	}
}

// elfModule is a kernel module with nothing in it but .modinfo.
func elfModule(modinfo string) []byte {
	le := binary.LittleEndian
	names := "\x00.modinfo\x00.shstrtab\x00"
	b := make([]byte, 64)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 1) // ET_REL
	le.PutUint16(b[18:], 62)
	le.PutUint32(b[20:], 1)
	b = append(append(b, modinfo...), names...)
	le.PutUint64(b[40:], uint64(len(b)))
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[58:], 64)
	le.PutUint16(b[60:], 3)
	le.PutUint16(b[62:], 2)
	for _, s := range []struct {
		name, kind   uint32
		offset, size int
	}{{}, {1, 1, 64, len(modinfo)}, {10, 3, 64 + len(modinfo), len(names)}} {
		h := make([]byte, 64)
		le.PutUint32(h, s.name)
		le.PutUint32(h[4:], s.kind)
		le.PutUint64(h[24:], uint64(s.offset))
		le.PutUint64(h[32:], uint64(s.size))
		b = append(b, h...)
	}
	return b
}

func TestAModuleNamesItsKernel(t *testing.T) {
	const release = "6.1.0-56-cloud-amd64"
	fits := elfModule("license=GPL\x00vermagic=" + release + " SMP preempt mod_unload modversions \x00")
	tests := []struct {
		name   string
		module []byte
		reason Reason
		detail string
	}{
		{"this kernel", fits, "", ""},
		{"another kernel", elfModule("vermagic=5.10.0-1-amd64 SMP\x00"), ModuleMismatch, `"5.10.0-1-amd64", this is ` + release},
		{"no kernel", elfModule("license=GPL\x00"), ModuleMismatch, release},
		{"not ELF", []byte("hello"), Malformed, "no kernel module"},
		{"cut", fits[:70], Malformed, ""},
	}
	for _, tt := range tests {
		path := filepath.Join(t.TempDir(), "lime.ko")
		if err := os.WriteFile(path, tt.module, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := readModule(path, nil, release)
		var r *Refusal
		if errors.As(err, &r); tt.reason == "" && err != nil || tt.reason != "" && (r == nil || r.Reason != tt.reason || !strings.Contains(r.Detail, tt.detail)) {
			t.Errorf("%s: error %v", tt.name, err)
		}
	}
}

func FuzzModule(f *testing.F) {
	f.Add(elfModule("vermagic=6.1.0 SMP\x00"))
	path := filepath.Join(f.TempDir(), "lime.ko")
	f.Fuzz(func(t *testing.T, module []byte) {
		if err := os.WriteFile(path, module, 0o600); err != nil {
			t.Fatal(err)
		}
		var r *Refusal
		if _, err := readModule(path, nil, "6.1.0"); err != nil && !errors.As(err, &r) {
			t.Fatalf("error without a reason: %v", err)
		}
	})
}

func TestASignedModule(t *testing.T) {
	for _, tt := range []struct {
		name, content string
		want          bool
	}{
		{"signed", "module" + signatureMark, true}, {"not signed", "module, and much more of it than a mark", false}, {"short", "x", false}, {"marked inside", signatureMark + "x", false},
	} {
		if got, err := isSigned(strings.NewReader(tt.content), int64(len(tt.content))); err != nil || got != tt.want {
			t.Errorf("%s: %v, %v", tt.name, got, err)
		}
	}
}
