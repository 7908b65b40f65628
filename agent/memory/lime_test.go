package memory

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quicklime-ir/quicklime/proto/lime"
)

var ram = []lime.Range{{Start: 0x1000, End: 0x2fff}, {Start: 0x10000, End: 0x10fff}}

// content is what the module's fake sends of a range.
func content(r lime.Range) []byte { return bytes.Repeat([]byte{byte(r.Start >> 12)}, int(r.Len())) }

func stream(ranges ...lime.Range) []byte {
	var b []byte
	for _, r := range ranges {
		b = append(lime.AppendHeader(b, r), content(r)...)
	}
	return b
}

var limeParameters = regexp.MustCompile(`^path=tcp:(\d+) format=lime localhostonly=1 timeout=0$`)

// plain is a stream without a digest, of a host without page flags.
var plain = limeOptions{alloc: Options{}.alloc, flags: openPageFlags("/no/kpageflags", pageSize)}

// fakeModule plays the kernel: loading listens, serves one client and returns.
func fakeModule(t *testing.T, send []byte, hold time.Duration, loadErr error) (kernel, *atomic.Int32) {
	t.Helper()
	var loaded atomic.Int32
	return kernel{
		load: func(parameters string) error {
			if loadErr != nil {
				return loadErr
			}
			found := limeParameters.FindStringSubmatch(parameters)
			if found == nil {
				return fmt.Errorf("parameters %q", parameters)
			}
			l, err := net.Listen("tcp4", "127.0.0.1:"+found[1])
			if err != nil {
				return err
			}
			defer l.Close()
			loaded.Add(1)
			conn, err := l.Accept()
			if err != nil {
				return err
			}
			defer conn.Close()
			if _, err := conn.Write(send); err != nil {
				return nil // as LiME: its status says nothing
			}
			time.Sleep(hold)
			return nil
		},
		abort: func() {},
		unload: func() error {
			if loaded.Load() == 0 {
				return unix.ENOENT
			}
			loaded.Add(-1)
			return nil
		},
	}, &loaded
}

// readAll reads every range, in steps.
func readAll(ctx context.Context, s Source) (map[uint64][]byte, error) {
	r, err := s.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	out := map[uint64][]byte{}
	for _, rng := range s.Ranges() {
		p := make([]byte, rng.Len())
		for at := 0; at < len(p); at += 0x800 {
			b, _, err := r.ReadPhys(ctx, rng.Start+uint64(at), 0x800)
			if err != nil {
				return out, err
			}
			copy(p[at:], b)
		}
		out[rng.Start] = p
	}
	return out, nil
}

func TestALiMEStream(t *testing.T) {
	k, loaded := fakeModule(t, stream(ram...), 0, nil)
	s, err := startLime(t.Context(), ram, k, plain)
	if err != nil {
		t.Fatal(err)
	}
	if s.Readers() != 1 || !slices.Equal(s.Ranges(), ram) {
		t.Errorf("readers %d, ranges %v", s.Readers(), s.Ranges())
	}
	got, err := readAll(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range ram {
		if !bytes.Equal(got[r.Start], content(r)) {
			t.Errorf("range %v has other bytes", r)
		}
	}
	if _, err := s.Open(); err == nil {
		t.Error("the stream was opened twice")
	}
	if err := s.Close(); err != nil || loaded.Load() != 0 {
		t.Errorf("error %v, %d modules left", err, loaded.Load())
	}
}

func TestALiMEStreamCanSkipButNotGoBack(t *testing.T) {
	k, _ := fakeModule(t, stream(ram...), 0, nil)
	s, err := startLime(t.Context(), ram, k, plain)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r, _ := s.Open()
	if p, _, err := r.ReadPhys(t.Context(), 0x10800, 0x100); err != nil || p[0] != 0x10 {
		t.Errorf("skipping: bytes %x, %v", p, err)
	}
	if _, _, err := r.ReadPhys(t.Context(), 0x1000, 0x100); err == nil {
		t.Error("it went back")
	}
}

func TestLiMEStreamsThatAreNotWhole(t *testing.T) {
	whole := stream(ram...)
	tests := []struct {
		name string
		send []byte
		want string
	}{
		{"cut in a range", whole[:0x1000], "EOF"},
		{"a range is not sent", stream(ram[0]), "before 1 ranges are whole"},
		{"a longer range", stream(lime.Range{Start: 0x1000, End: 0x3fff}), "not the RAM"},
		{"a shorter range", stream(lime.Range{Start: 0x1000, End: 0x1fff}, ram[1]), "not the RAM"},
		{"bytes after the last range", append(slices.Clone(whole), "x"...), "after the last range"},
		{"a range too many", stream(append(slices.Clone(ram), lime.Range{Start: 0x20000, End: 0x20fff})...), "is not RAM"},
		{"other RAM", stream(lime.Range{Start: 0x5000, End: 0x5fff}), "not the RAM"},
		{"nothing", nil, "no image"},
		{"not LiME", bytes.Repeat([]byte("x"), 0x4000), "not a LiME"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k, loaded := fakeModule(t, tt.send, 0, nil)
			s, err := startLime(t.Context(), ram, k, plain)
			if err == nil {
				_, err = readAll(t.Context(), s)
				if err := s.Close(); err != nil {
					t.Errorf("closing: %v", err)
				}
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			if n := loaded.Load(); n != 0 {
				t.Errorf("%d modules left", n)
			}
		})
	}
}

func TestACancelledLiMEStreamLeavesNoModule(t *testing.T) {
	k, loaded := fakeModule(t, stream(ram[0]), time.Second, nil)
	s, err := startLime(t.Context(), ram, k, plain)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := readAll(ctx, s); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	if err := s.Close(); err != nil || loaded.Load() != 0 {
		t.Errorf("closing: %v, %d modules left", err, loaded.Load())
	}
}

func TestWhyAModuleDoesNotLoad(t *testing.T) {
	for errno, want := range map[unix.Errno]Reason{
		unix.EKEYREJECTED: ModuleSignature, unix.ENOKEY: ModuleSignature, unix.ENOEXEC: ModuleMismatch, unix.EEXIST: InUse, unix.ENOMEM: Failed,
	} {
		k, _ := fakeModule(t, nil, 0, fmt.Errorf("cannot load module: %w", errno))
		var r *Refusal
		if _, err := startLime(t.Context(), ram, k, plain); !errors.As(err, &r) || r.Reason != want {
			t.Errorf("%v: error %v, want reason %s", errno, err, want)
		}
	}
}

func TestModulesAreOfOneKernel(t *testing.T) {
	release, err := kernelRelease()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var r *Refusal
	if _, err := findModule(Options{ModuleDir: dir}); !errors.As(err, &r) || r.Reason != NoModule || !strings.Contains(r.Detail, release) {
		t.Errorf("no module: %v", err)
	}
	path := filepath.Join(dir, release, "lime.ko")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("not a module"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := findModule(Options{ModuleDir: dir}); !errors.As(err, &r) || r.Reason != Malformed {
		t.Errorf("not a module: %v", err)
	}
}

func TestVermagic(t *testing.T) {
	for info, want := range map[string]string{
		"license=GPL\x00vermagic=6.1.0-56-cloud-amd64 SMP preempt mod_unload modversions \x00": "6.1.0-56-cloud-amd64 SMP preempt mod_unload modversions ",
		"license=GPL\x00": "", "vermagic=": "", "xvermagic=6.1 SMP\x00": "",
	} {
		if got := vermagic([]byte(info)); got != want {
			t.Errorf("%q: %q, want %q", info, got, want)
		}
	}
}

func FuzzVermagic(f *testing.F) {
	f.Add([]byte("vermagic=6.1.0 SMP\x00"))
	f.Fuzz(func(t *testing.T, info []byte) {
		if got := vermagic(info); strings.Contains(got, "\x00") {
			t.Fatalf("%q", got)
		}
	})
}

func TestAFileAsMemory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image.lime")
	if err := os.WriteFile(path, stream(ram...), 0o600); err != nil {
		t.Fatal(err)
	}
	s, refused, err := Open(t.Context(), Options{Prefer: "file", File: path})
	if err != nil || len(refused) != 0 || !slices.Equal(s.Ranges(), ram) {
		t.Fatalf("source %v, refused %v, error %v", s, refused, err)
	}
	got, err := readAll(t.Context(), s)
	if err != nil || !bytes.Equal(got[0x10000], content(ram[1])) {
		t.Errorf("error %v", err)
	}
	r, _ := s.Open()
	defer r.Close()
	if _, _, err := r.ReadPhys(t.Context(), 0x5000, 16); err == nil {
		t.Error("memory that the image does not have was read")
	}
}

func TestOpenTellsWhatWasRefused(t *testing.T) {
	_, refused, err := Open(t.Context(), Options{Prefer: "lime", ModuleDir: t.TempDir()})
	if !errors.Is(err, ErrNoSource) || len(refused) != 1 || refused[0].Source != "lime" {
		t.Errorf("refused %v, error %v", refused, err)
	}
	if _, _, err := Open(t.Context(), Options{Prefer: "crystal ball"}); err == nil || errors.Is(err, ErrNoSource) {
		t.Errorf("error %v", err)
	}
}
