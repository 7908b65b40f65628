package memory

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"
)

// packed gives b as a file with this ending has it.
func packed(t *testing.T, ending string, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	var err error
	switch ending {
	case "":
		return b
	case ".zst":
		w, err = zstd.NewWriter(&out)
	case ".gz":
		w = gzip.NewWriter(&out)
	case ".xz":
		w, err = xz.NewWriter(&out)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestPackedModules, as distributions install them.
func TestPackedModules(t *testing.T) {
	release, err := kernelRelease()
	if err != nil {
		t.Fatal(err)
	}
	image := append(elfModule("vermagic="+release+" SMP mod_unload \x00"), signatureMark...)
	for _, p := range packings {
		dir := t.TempDir()
		path := filepath.Join(dir, release, "lime.ko"+p.ending)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		whole := packed(t, p.ending, image)
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := findModule(Options{ModuleDir: dir})
		if err != nil {
			t.Errorf("%q: %v", p.ending, err)
			continue
		}
		if m.path != path || !m.signed || m.magic != release+" SMP mod_unload " || p.ending != "" && !bytes.Equal(m.image, image) || p.ending == "" && m.image != nil {
			t.Errorf("%q: module %s, signed %v, vermagic %q, %d bytes", p.ending, m.path, m.signed, m.magic, len(m.image))
		}
		if err := os.WriteFile(path, whole[:len(whole)-5], 0o600); err != nil {
			t.Fatal(err)
		}
		var r *Refusal
		if _, err := findModule(Options{ModuleDir: dir}); p.ending != "" && (!errors.As(err, &r) || r.Reason != Malformed) {
			t.Errorf("%q, cut: %v", p.ending, err)
		}
	}
}

// TestAPackedModuleIsBounded: a small file may hold very much.
func TestAPackedModuleIsBounded(t *testing.T) {
	bomb := packed(t, ".gz", make([]byte, maxModule+1))
	if b, err := unpack(bytes.NewReader(bomb), packings[2].open); err == nil || !strings.Contains(err.Error(), "larger") {
		t.Errorf("%d bytes, error %v", len(b), err)
	}
}

func FuzzPackedModule(f *testing.F) {
	f.Add([]byte("\x1f\x8b"), uint8(1))
	f.Fuzz(func(t *testing.T, b []byte, kind uint8) {
		if len(b) > 24 && kind%3 == 2 { // a few bytes of xz may ask for a dictionary of 4 GiB
			b = b[:24]
		}
		if image, err := unpack(bytes.NewReader(b), packings[1+kind%3].open); err == nil && len(image) > maxModule {
			t.Fatalf("%d bytes", len(image))
		}
	})
}

// TestSecureBootIsNoMissingModule: lockdown forbids modules that are not signed
// already at integrity, and /proc/kcore only at confidentiality. So with Secure
// Boot kcore works where LiME does not, and the reason says so.
func TestSecureBootIsNoMissingModule(t *testing.T) {
	const integrity, confidentiality = "none [integrity] confidentiality", "none integrity [confidentiality]"
	able := standing{capable: true}
	with := func(change func(*standing)) standing {
		s := able
		change(&s)
		return s
	}
	for _, tt := range []struct {
		name   string
		host   standing
		signed bool
		want   Reason
	}{
		{"a host as any", able, false, ""},
		{"not locked down", with(func(s *standing) { s.lockdown = "[none] integrity confidentiality" }), false, ""},
		{"integrity", with(func(s *standing) { s.lockdown = integrity }), false, Lockdown},
		{"integrity, signed", with(func(s *standing) { s.lockdown = integrity }), true, ""},
		{"confidentiality", with(func(s *standing) { s.lockdown = confidentiality }), false, Lockdown},
		{"signatures are enforced", with(func(s *standing) { s.enforced = true }), false, ModuleSignature},
		{"no module may be loaded", with(func(s *standing) { s.disabled = true }), true, NoCapability},
		{"not root", standing{}, true, NoCapability},
	} {
		err := tt.host.mayLoad(&module{path: "lime.ko", signed: tt.signed})
		var r *Refusal
		if errors.As(err, &r); tt.want == "" && err != nil || tt.want != "" && (r == nil || r.Reason != tt.want) {
			t.Errorf("lime on %s: %v, want %q", tt.name, err, tt.want)
		}
	}
	for _, tt := range []struct {
		name, lockdown string
		err            error
		want           Reason
	}{
		{"confidentiality", confidentiality, unix.EPERM, Lockdown},
		{"integrity: something else forbids it", integrity, unix.EPERM, NoCapability},
		{"not root", "", unix.EACCES, NoCapability},
		{"not built in, as in a Firecracker guest", "", unix.ENOENT, NoKcore},
		{"something else", "", unix.EIO, Failed},
	} {
		var r *Refusal
		if err := kcoreRefusal(&os.PathError{Op: "open", Path: kcorePath, Err: tt.err}, tt.lockdown); !errors.As(err, &r) || r.Reason != tt.want {
			t.Errorf("kcore, %s: %v, want %s", tt.name, err, tt.want)
		}
	}
}
