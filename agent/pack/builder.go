// Package pack compresses, hashes and cuts: it turns a stream, or a stretch
// of memory, into the parts that S3 stores.
//
// Each byte is compressed and hashed once, in a buffer that is used again for
// the next part, so that the memory a capture needs is known before it
// begins. A compressed part is a sequence of independent zstd frames; any
// zstd decoder reads the parts of an item, one after the other, as one file.
package pack

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
	"github.com/quicklime-ir/quicklime/proto/seekable"
)

// FrameBytes is how much of the input one zstd frame holds at most.
const FrameBytes = 1 << 20

// defaultPartBytes is how much of the output of a stream one part holds.
const defaultPartBytes = 8 << 20

// skippable begins a frame that decoders pass over. Source: RFC 8878,
// section 3.1.2; its length follows in four little-endian bytes.
const (
	skippable       = 0x184D2A50
	skippableHeader = 8
)

// Options say how to pack.
type Options struct {
	Compression evidence.Compression
	// PartBytes is how many bytes of input a Builder must hold, and how many
	// of output a Writer puts into a part; 0 is 8 MiB.
	PartBytes int
}

// Part is a stretch of an item, ready to be stored.
type Part struct {
	Number    int32
	Bytes     []byte // valid until its Builder is reset
	SHA256    evidence.Digest
	RawSize   uint64 // bytes before compression and padding
	Ranges    []lime.Range
	Gaps      []evidence.Gap
	Started   time.Time
	Ended     time.Time
	Monotonic time.Duration
	// Frames are the part's stretches that can be decompressed by themselves,
	// for an image's seek table; evidence.MaxFrames at most.
	Frames []seekable.Frame
}

// errFull says that more was written than a Builder has room for.
var errFull = errors.New("part is full")

// Builder packs one part at a time. Its buffer is made once, with room for
// PartBytes of input that does not compress and 4,096 LiME headers besides,
// and never grows. It is for one goroutine.
type Builder struct {
	encoder *zstd.Encoder // nil without compression
	buffer  []byte
	number  int32
	raw     uint64
	zeros   []byte // the frame of FrameBytes zeros
}

// NewBuilder returns a Builder.
func NewBuilder(o Options) (*Builder, error) {
	if o.PartBytes == 0 {
		o.PartBytes = defaultPartBytes
	}
	if o.PartBytes < 0 || o.PartBytes > evidence.MaxPartBytes/2 {
		return nil, fmt.Errorf("cannot pack parts of %d bytes: want 1 to %d", o.PartBytes, int64(evidence.MaxPartBytes/2))
	}
	b := &Builder{buffer: make([]byte, 0, capacity(o.PartBytes))}
	switch o.Compression {
	case evidence.None:
	case evidence.Zstd:
		encoder, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest),
			zstd.WithEncoderCRC(true), zstd.WithWindowSize(FrameBytes), zstd.WithLowerEncoderMem(true))
		if err != nil {
			return nil, fmt.Errorf("cannot make compressor: %w", err)
		}
		b.encoder = encoder
		b.zeros = encoder.EncodeAll(make([]byte, FrameBytes), nil)
	default:
		return nil, fmt.Errorf("cannot pack with compression %q: unknown", o.Compression)
	}
	return b, nil
}

// capacity is what a part of so many bytes of memory needs at worst: input
// that does not compress, in up to 4,096 ranges, each with a LiME header in a
// frame of its own (32 bytes, and some 100 for the two frames); or S3's least
// part.
func capacity(input int) int {
	const slack = 1 << 20
	return max(input+input/64+slack, evidence.MinPartBytes+skippableHeader)
}

// Reset begins a part. The bytes of the one before are no longer valid.
func (b *Builder) Reset(number int32) {
	b.buffer, b.number, b.raw = b.buffer[:0], number, 0
}

// Len is how many bytes the part has so far.
func (b *Builder) Len() int { return len(b.buffer) }

// Write appends input, in frames of at most FrameBytes.
func (b *Builder) Write(p []byte) error {
	for len(p) > 0 {
		chunk := p[:min(len(p), FrameBytes)]
		p = p[len(chunk):]
		if worst := len(chunk) + len(chunk)/128 + 64; len(b.buffer)+worst > cap(b.buffer) {
			return fmt.Errorf("cannot add %d bytes to part %d: %w at %d bytes", len(chunk), b.number, errFull, len(b.buffer))
		}
		switch {
		case b.encoder == nil:
			b.buffer = append(b.buffer, chunk...)
		case len(chunk) == FrameBytes && isZero(chunk):
			b.buffer = append(b.buffer, b.zeros...)
		default:
			b.buffer = b.encoder.EncodeAll(chunk, b.buffer)
		}
		b.raw += uint64(len(chunk))
	}
	return nil
}

// isZero compares in large strides; a page that is not zero mostly says so in
// its first bytes.
func isZero(p []byte) bool {
	return p[0] == 0 && bytes.Equal(p[:len(p)-1], p[1:])
}

// Finish ends the part and hashes it. Any part but an item's last must have
// evidence.MinPartBytes: a compressed one is filled up with a skippable
// frame to exactly that, or to seven bytes more where less than a frame's
// header is lacking; an uncompressed one that is shorter is an error.
func (b *Builder) Finish(last bool) (Part, error) {
	if lack := evidence.MinPartBytes - len(b.buffer); !last && lack > 0 {
		if b.encoder == nil {
			return Part{}, fmt.Errorf("cannot end part %d: it has %d bytes, S3 wants %d of every part but the last", b.number, len(b.buffer), evidence.MinPartBytes)
		}
		b.pad(max(lack-skippableHeader, 0))
	}
	if last && len(b.buffer) == 0 && b.encoder != nil {
		b.buffer = b.encoder.EncodeAll(nil, b.buffer)
	}
	return Part{Number: b.number, Bytes: b.buffer, SHA256: sha256.Sum256(b.buffer), RawSize: b.raw}, nil
}

// pad appends a skippable frame of n zeros.
func (b *Builder) pad(n int) {
	b.buffer = binary.LittleEndian.AppendUint32(b.buffer, skippable)
	b.buffer = binary.LittleEndian.AppendUint32(b.buffer, uint32(n))
	end := len(b.buffer) + n
	clear(b.buffer[len(b.buffer):end])
	b.buffer = b.buffer[:end]
}
