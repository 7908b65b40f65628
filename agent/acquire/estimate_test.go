package acquire

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/quicklime-ir/quicklime/agent/memory"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

// TestAnEstimateKnowsTheHost: how much there is, how it compresses, and what
// could not be read.
func TestAnEstimateKnowsTheHost(t *testing.T) {
	r := &ram{ranges: []lime.Range{{Start: 1 << 20, End: 19<<20 - 1}}, bad: []lime.Range{{Start: 2 << 20, End: 2<<20 + 4095}}}
	a := &Acquirer{Log: slog.New(slog.DiscardHandler), OpenMemory: func(context.Context, memory.Options) (memory.Source, []memory.Refusal, error) {
		return r, nil, nil
	}}
	e, _, err := a.Estimate(t.Context(), Order{})
	if err != nil {
		t.Fatal(err)
	}
	if e.Source != "ram" || e.RAM != 18<<20 || e.Sampled == 0 || e.Sampled > e.RAM || e.Ratio < 1.2 || e.Ratio > 10 {
		t.Errorf("estimate %+v", e)
	}
	if e.Sampled == e.RAM && e.Unread != 4096 {
		t.Errorf("%d bytes could not be read, want 4096", e.Unread)
	}
	if n := r.open.Load(); n != 0 {
		t.Errorf("%d readers are still open", n)
	}
	if _, _, err := a.Estimate(t.Context(), Order{MemorySource: "lime"}); err == nil || !strings.Contains(err.Error(), "use kcore") {
		t.Errorf("by lime: %v", err)
	}
}

func TestTimesOfAnEstimate(t *testing.T) {
	e := Estimate{RAM: 1000, Encoders: 2, ZstdRate: 50, AsIsRate: 250, Ratio: 4}
	tests := []struct {
		uplink     uint64
		zstd, asIs time.Duration
	}{{0, 10 * time.Second, 2 * time.Second}, {100, 10 * time.Second, 10 * time.Second}, {10, 25 * time.Second, 100 * time.Second}}
	for _, tt := range tests {
		if zstd, asIs := e.Times(tt.uplink); zstd != tt.zstd || asIs != tt.asIs {
			t.Errorf("uplink of %d: %v and %v, want %v and %v", tt.uplink, zstd, asIs, tt.zstd, tt.asIs)
		}
	}
}

// TestSpread: every place comes once.
func TestSpread(t *testing.T) {
	for count := 1; count < 200; count++ {
		seen := map[int]bool{}
		for n := range count {
			seen[spread(n, count)] = true
		}
		if len(seen) != count {
			t.Errorf("of %d places, %d come", count, len(seen))
		}
	}
}
