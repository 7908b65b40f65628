package memory

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

// TestAnOpenThatIsCancelledLeavesNoModule: a load cannot be called off before
// the module listens, and must not stay behind when it does.
func TestAnOpenThatIsCancelledLeavesNoModule(t *testing.T) {
	for _, after := range []time.Duration{0, 50 * time.Millisecond} {
		t.Run(after.String(), func(t *testing.T) {
			defer goleak.VerifyNone(t)
			k, loaded := fakeModule(t, stream(ram...), 0, nil)
			listen := k.load
			k.load = func(parameters string) error {
				time.Sleep(200 * time.Millisecond) // the kernel links the module
				return listen(parameters)
			}
			ctx, cancel := context.WithTimeout(t.Context(), after)
			defer cancel()
			if _, err := startLime(ctx, ram, k, plain); err == nil {
				t.Fatal("it opened")
			}
			if n := loaded.Load(); n != 0 {
				t.Errorf("%d modules left", n)
			}
		})
	}
}

// TestAnothersModuleStays: what this agent did not load, it does not remove.
func TestAnothersModuleStays(t *testing.T) {
	k := kernel{
		load:   func(string) error { return fmt.Errorf("cannot load module: %w", unix.EEXIST) },
		abort:  func() {},
		unload: func() error { t.Error("it was removed"); return nil },
	}
	var r *Refusal
	if _, err := startLime(t.Context(), ram, k, plain); !errors.As(err, &r) || r.Reason != InUse {
		t.Errorf("error %v", err)
	}
}

// TestRemovalIsTriedAgain: the module is busy for a moment after its image.
func TestRemovalIsTriedAgain(t *testing.T) {
	k, _ := fakeModule(t, stream(ram...), 0, nil)
	tries := 0
	k.unload = func() error {
		if tries++; tries < 3 {
			return unix.EAGAIN
		}
		return nil
	}
	s, err := startLime(t.Context(), ram, k, plain)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil || tries != 3 {
		t.Errorf("error %v after %d tries", err, tries)
	}
}

// TestAStalledStreamIsGivenUp, and the module removed.
func TestAStalledStreamIsGivenUp(t *testing.T) {
	k, loaded := fakeModule(t, stream(ram[0])[:0x1000], time.Second, nil) // then the module ends the stream
	s, err := startLime(t.Context(), ram, k, plain)
	if err != nil {
		t.Fatal(err)
	}
	s.stall = 50 * time.Millisecond
	if _, err := readAll(t.Context(), s); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	s.stall = streamStall
	if err := s.Close(); err != nil || loaded.Load() != 0 {
		t.Errorf("closing: %v, %d modules left", err, loaded.Load())
	}
}

// TestThePaddingOfLiMEIsAGap: LiME writes zeros for the end of a range that
// fills no page, and they must not pass for memory.
func TestThePaddingOfLiMEIsAGap(t *testing.T) {
	odd := []lime.Range{{Start: 0x1000, End: 0x33ff}, {Start: 0x10000, End: 0x10fff}}
	k, _ := fakeModule(t, stream(odd...), 0, nil)
	s, err := startLime(t.Context(), odd, k, plain)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r, err := s.Open()
	if err != nil {
		t.Fatal(err)
	}
	made := func(start, end uint64) []evidence.Gap {
		return []evidence.Gap{{Range: lime.Range{Start: start, End: end}, Reason: NotInSource}}
	}
	for _, step := range []struct {
		addr, length uint64
		want         []evidence.Gap
	}{
		{0x1000, 0x2000, nil},
		{0x3000, 0x100, made(0x3000, 0x30ff)},
		{0x3100, 0x300, made(0x3100, 0x33ff)},
		{0x10000, 0x1000, nil},
	} {
		_, gaps, err := r.ReadPhys(t.Context(), step.addr, int(step.length))
		if err != nil || !slices.Equal(gaps, step.want) {
			t.Errorf("%x bytes at %x: gaps %v, error %v; want %v", step.length, step.addr, gaps, err, step.want)
		}
	}
}

// TestNeighboursAreRecordsOfTheirOwn: two lines of /proc/iomem that touch are
// one range here, and two records of LiME's.
func TestNeighboursAreRecordsOfTheirOwn(t *testing.T) {
	k, _ := fakeModule(t, stream(lime.Range{Start: 0x1000, End: 0x1fff}, lime.Range{Start: 0x2000, End: 0x2fff}, ram[1]), 0, nil)
	s, err := startLime(t.Context(), ram, k, plain)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r, err := s.Open()
	if err != nil {
		t.Fatal(err)
	}
	p, _, err := r.ReadPhys(t.Context(), 0x1800, 0x1000)
	if err != nil || p[0] != 1 || p[0x7ff] != 1 || p[0x800] != 2 {
		t.Errorf("across the border: bytes %d %d %d, %v", p[0], p[0x7ff], p[0x800], err)
	}
	if p, _, err := r.ReadPhys(t.Context(), 0x10000, 0x1000); err != nil || p[0] != 0x10 {
		t.Errorf("after it: %d bytes, %v", len(p), err)
	}
}

// TestAModuleThatNeverListens: a load that ends without a client gives no
// image, and no wait.
func TestAModuleThatNeverListens(t *testing.T) {
	free := regexp.MustCompile(`tcp:(\d+)`)
	k := kernel{
		load: func(parameters string) error {
			port := free.FindStringSubmatch(parameters)[1]
			l, err := net.Listen("tcp4", "127.0.0.1:"+port)
			if err != nil {
				return err
			}
			return l.Close() // it was loaded, and served nobody
		},
		abort:  func() {},
		unload: func() error { return nil },
	}
	s, err := startLime(t.Context(), ram, k, plain)
	if err == nil { // the port was open for a moment
		_, err = readAll(t.Context(), s)
		defer s.Close()
	}
	if err == nil {
		t.Error("it gave an image")
	}
}

func TestRAMThatLiMETakes(t *testing.T) {
	tests := []struct {
		name, iomem string
		want        []lime.Range
		reason      Reason
	}{
		{"a small host", "00001000-0009fbff : System RAM\n00100000-1ffdffff : System RAM\n  01000000-01e0ffff : Kernel code\n",
			[]lime.Range{{Start: 0x1000, End: 0x9fbff}, {Start: 0x100000, End: 0x1ffdffff}}, ""},
		{"lines that touch", "00001000-00001fff : System RAM\n00002000-00002fff : System RAM\n", []lime.Range{{Start: 0x1000, End: 0x2fff}}, ""},
		{"RAM below a device", "00001000-00001fff : System RAM\n100000000-1ffffffff : CXL Window 0\n  100000000-1ffffffff : System RAM\n", nil, Failed},
		{"RAM of a driver", "00001000-00001fff : System RAM\n00004000-00004fff : dax0.0\n  00004000-00004fff : System RAM (kmem)\n", nil, Failed},
		{"RAM that begins inside a page", "00001400-00001fff : System RAM\n", nil, Failed},
		{"without CAP_SYS_ADMIN", "00000000-00000000 : System RAM\n", nil, NoCapability},
		{"no RAM", "00000000-00000fff : Reserved\n", nil, Failed},
	}
	for _, tt := range tests {
		got, err := parseLimeRAM(strings.NewReader(tt.iomem))
		var r *Refusal
		if errors.As(err, &r); tt.reason != "" && (r == nil || r.Reason != tt.reason) || tt.reason == "" && err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, %v", tt.name, got, err)
		}
	}
}
