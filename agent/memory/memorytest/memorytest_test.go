package memorytest

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/quicklime-ir/quicklime/agent/memory"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

func TestTheRangesHoldTheSize(t *testing.T) {
	for size, want := range map[uint64]uint64{0: pageSize, 1: pageSize, 36 << 20: 36 << 20, hole: hole, 64 << 30: 64 << 30} {
		var got uint64
		ranges := Synthetic(size).Ranges()
		for _, r := range ranges {
			got += r.Len()
		}
		if got != want || len(lime.Merge(ranges)) != len(ranges) {
			t.Errorf("a host of %d bytes has %d, in %v", size, got, ranges)
		}
	}
}

// TestReaders: each has a buffer of its own, reads what is there, and refuses
// what is not.
func TestReaders(t *testing.T) {
	s := Synthetic(8 << 30)
	first, err := s.Open()
	if err != nil {
		t.Fatal(err)
	}
	second, err := s.Open()
	if err != nil {
		t.Fatal(err)
	}
	const addr = high + 5*blockBytes + 100
	b, gaps, err := first.ReadPhys(t.Context(), addr, 9000)
	if err != nil || len(gaps) > 0 {
		t.Fatal(gaps, err)
	}
	if _, _, err := second.ReadPhys(t.Context(), firstRAM, memory.MaxRead); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, Bytes(addr, 9000)) {
		t.Error("the bytes are other than those of that address")
	}
	for _, bad := range []struct {
		addr uint64
		n    int
	}{{0, 1}, {hole - 1, 2}, {hole, 1}, {high - 1, 1}, {firstRAM, 0}, {firstRAM, memory.MaxRead + 1}, {high + 6<<30, 1}, {^uint64(0), 2}} {
		if _, _, err := first.ReadPhys(t.Context(), bad.addr, bad.n); err == nil {
			t.Errorf("%d bytes at %x were read", bad.n, bad.addr)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	if _, _, err := first.ReadPhys(ctx, firstRAM, 1); !errors.Is(err, why) {
		t.Errorf("read after the end: %v", err)
	}
}

// TestTheSizeCostsNothing: 24 TiB are as cheap as one page.
func TestTheSizeCostsNothing(t *testing.T) {
	r, err := Synthetic(24 << 40).Open()
	if err != nil {
		t.Fatal(err)
	}
	addr := uint64(high)
	if n := testing.AllocsPerRun(100, func() {
		if _, _, err := r.ReadPhys(t.Context(), addr, memory.MaxRead); err != nil {
			t.Fatal(err)
		}
		addr += memory.MaxRead
	}); n > 0 {
		t.Errorf("a read makes %v allocations", n)
	}
}
