package acquire

import (
	"testing"

	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

// TestBudget: never over its limit while a part fits into that, and at most
// 9,999 parts.
func TestBudget(t *testing.T) {
	for _, tt := range []struct {
		ram        uint64
		processors int
		part       uint64
		encoders   int
		buffers    int
	}{
		{256 << 20, 2, 8 << 20, 1, 1},
		{512 << 20, 2, 11 << 20, 1, 2},
		{1 << 30, 2, 16 << 20, 1, 2},
		{4 << 30, 2, 16 << 20, 2, 5},
		{64 << 30, 2, 16 << 20, 2, 5},
		{64 << 30, 16, 16 << 20, 8, 12},
		{200 << 30, 16, 32 << 20, 5, 6},
		{1 << 40, 96, 128 << 20, 1, 1},
		{24 << 40, 448, 4 << 30, 1, 1},
	} {
		ranges := []lime.Range{{Start: 0x1000, End: 0x9fbff}, {Start: 0x100000, End: 0x100000 + tt.ram - 1}}
		b := budgetFor(ranges, tt.processors)
		if b.partRAM != tt.part || b.encoders != tt.encoders || b.buffers != tt.buffers {
			t.Errorf("%d MiB of RAM, %d processors: parts of %d MiB, %d encoders, %d buffers; want %d, %d, %d",
				tt.ram>>20, tt.processors, b.partRAM>>20, b.encoders, b.buffers, tt.part>>20, tt.encoders, tt.buffers)
		}
		if parts := len(lime.Plan(ranges, b.partRAM)); parts > evidence.MaxParts-1 {
			t.Errorf("%d MiB of RAM: %d parts", tt.ram>>20, parts)
		}
		all := b.takes(ranges, b.encoders, b.buffers)
		if bound := limit(tt.ram); all > bound && b.buffers > 1 {
			t.Errorf("%d MiB of RAM: %d MiB of buffers, want %d at most", tt.ram>>20, all>>20, bound>>20)
		}
		if b.buffers > MaxUploads {
			t.Errorf("%d parts may be on their way, %d connections are kept", b.buffers, MaxUploads)
		}
	}
}
