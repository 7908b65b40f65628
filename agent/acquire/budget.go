package acquire

import (
	"github.com/quicklime-ir/quicklime/agent/pack"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

// Bounds of a memory capture.
const (
	smallPart    = 8 << 20   // RAM in a part, at least
	usualPart    = 16 << 20  // and where it fits: S3's least part would else be filled up
	partStep     = 1 << 20   // between them
	leastMemory  = 16 << 20  // one small part must fit, whatever the host
	smallHost    = 400 << 20 // RAM; on others two parts must,
	twoParts     = 30 << 20  // of 11 MiB: of smaller ones, half of what is stored would be filling
	mostMemory   = 256 << 20 // of all buffers
	shareOfRAM   = 20        // they use at most one part in so many: 5 %
	maxEncoders  = 8
	encoderBytes = 7 << 20 // an encoder's read buffer and its tables

	// MaxUploads is how many parts of an image may be on their way at a time.
	MaxUploads = 2*maxEncoders + 1
)

// budget is what a capture may use.
type budget struct {
	partRAM  uint64 // RAM in a part
	buffer   int    // bytes of a part's buffer
	encoders int    // that read and pack at a time
	buffers  int    // of parts that are filled or on their way
}

// budgetFor says how much RAM a part holds and how many may be at hand, so
// that at most 5 % of the host's memory (30 MiB where that is less, 16 MiB
// below 400 MiB of RAM) and never over 256 MiB is used, and the parts are
// 9,999 at most: S3 takes one more, and that is the seek table. On hosts of more than 2.4 TiB a single part is larger than that: S3's bound
// wins. Each processor has an encoder; while it fills one buffer another is on
// its way, and a third waits for whoever is first.
func budgetFor(ranges []lime.Range, processors int) budget {
	ram := total(ranges)
	all := limit(ram)
	b := budget{partRAM: usualPart, encoders: max(1, min(processors, maxEncoders))}
	for b.partRAM > smallPart && b.takes(ranges, 1, 2) > all {
		b.partRAM -= partStep
	}
	for (ram+b.partRAM-1)/b.partRAM > evidence.MaxParts-1 {
		b.partRAM *= 2
	}
	for b.encoders > 1 && b.takes(ranges, b.encoders, b.encoders+1) > all {
		b.encoders--
	}
	b.buffers = 2*b.encoders + 1
	for b.buffers > 1 && b.takes(ranges, b.encoders, b.buffers) > all {
		b.buffers--
	}
	b.buffer = b.room(ranges)
	return b
}

// limit is how many bytes all buffers may have.
func limit(ram uint64) uint64 {
	least := uint64(leastMemory)
	if ram >= smallHost {
		least = twoParts
	}
	return min(max(ram/shareOfRAM, least), mostMemory)
}

// room is the buffer of a part: that of the part with the most ranges.
func (b budget) room(ranges []lime.Range) int {
	most := 1
	for _, part := range lime.Plan(ranges, b.partRAM) {
		most = max(most, len(part))
	}
	return pack.Capacity(int(b.partRAM), most)
}

func (b budget) takes(ranges []lime.Range, encoders, buffers int) uint64 {
	return uint64(encoders)*encoderBytes + uint64(buffers)*uint64(b.room(ranges))
}

func total(ranges []lime.Range) uint64 {
	var n uint64
	for _, r := range ranges {
		n += r.Len()
	}
	return n
}
