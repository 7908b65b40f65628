// Package pack compresses, hashes and cuts: it turns a stream, or a stretch
// of memory, into the parts that S3 stores.
//
// Each byte is compressed and hashed once, in a buffer that is used again for
// another part, so that the memory a capture needs is known before it
// begins. A compressed part is a sequence of independent zstd frames; any
// zstd decoder reads the parts of an item, one after the other, as one file.
// Where compressing would only delay the sending, frames are stored as they
// are, and are zstd frames all the same.
package pack

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
	"github.com/quicklime-ir/quicklime/proto/seekable"
)

// FrameBytes is how much of the input one zstd frame holds at most.
const FrameBytes = 1 << 20

// blockBytes is how much a block of a frame holds at most. Source: RFC 8878,
// section 3.1.1.2.4, for windows of that size and more.
const blockBytes = 128 << 10

// defaultPartBytes is how much of the output of a stream one part holds.
const defaultPartBytes = 8 << 20

// Numbers of the zstd format. Source: RFC 8878, sections 3.1.1 and 3.1.2.
const (
	frameMagic = 0xFD2FB528
	// oneSegment describes a frame whose window is its content, whose size
	// follows in four bytes, without a checksum.
	oneSegment      = 0xA0
	skippable       = 0x184D2A50
	skippableHeader = 8
)

// Options say how a stream is packed.
type Options struct {
	Compression evidence.Compression // zstd or none
	PartBytes   int                  // of output in a part; 0 is 8 MiB
	// Alloc gives the buffer of the part at hand, and what gives it back; nil
	// takes it from Go's heap.
	Alloc func(int) (b []byte, free func())
}

// Part is a stretch of an item, ready to be stored.
type Part struct {
	Number    int32
	Bytes     []byte // valid until its buffer is used again
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

// errFull says that more was written than the part's buffer has room for.
var errFull = errors.New("part is full")

// Builder packs one part at a time into a buffer that it is given, and that
// never grows. It is for one goroutine.
type Builder struct {
	encoder *zstd.Encoder // nil without compression
	zeros   []byte        // the frame of FrameBytes zeros

	buffer []byte // of the part at hand
	number int32
	raw    uint64
	frames []seekable.Frame
}

// NewBuilder returns a Builder for a compression, zstd or none. With zstd it
// takes some 3 MiB of memory beside the buffers.
func NewBuilder(c evidence.Compression) (*Builder, error) {
	switch c {
	case evidence.None:
		return &Builder{}, nil
	case evidence.Zstd:
		encoder, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest),
			zstd.WithEncoderCRC(true), zstd.WithWindowSize(FrameBytes), zstd.WithLowerEncoderMem(true))
		if err != nil {
			return nil, fmt.Errorf("cannot make compressor: %w", err)
		}
		b := &Builder{encoder: encoder}
		b.zeros = b.appendStored(nil, make([]byte, FrameBytes))
		return b, nil
	}
	return nil, fmt.Errorf("cannot pack with compression %q: unknown", c)
}

// Capacity is the room in bytes that a part of so many bytes of input, in so
// many ranges, needs at worst: input that does not compress, a LiME header
// for each range; or S3's least part.
func Capacity(input, ranges int) int {
	chunks := input/FrameBytes + 1 + 2*ranges
	return max(input+ranges*lime.HeaderSize+worstGrowth(input)+chunks*frameOverhead, evidence.MinPartBytes+skippableHeader)
}

// frameOverhead is what a frame has at most besides its blocks: its header
// and checksum, and some slack. worstGrowth is how much longer input becomes
// that does not compress: three bytes for each block, generously.
const frameOverhead = 64

func worstGrowth(input int) int { return input / 128 }

// Reset begins a part in a buffer. It takes the buffer's whole capacity; what
// is in it is written over.
func (b *Builder) Reset(number int32, buffer []byte) {
	b.buffer, b.number, b.raw, b.frames = buffer[:0], number, 0, b.frames[:0]
}

// Len is how many bytes the part has so far.
func (b *Builder) Len() int { return len(b.buffer) }

// Write appends input, in frames of at most FrameBytes.
func (b *Builder) Write(p []byte) error {
	return b.add(p, func(chunk []byte) []byte { return b.encoder.EncodeAll(chunk, b.buffer) })
}

// Store appends input as Write does, but does not compress it: its blocks are
// stored as they are, and those that are all zero in four bytes. It costs
// little more than a copy.
func (b *Builder) Store(p []byte) error {
	return b.add(p, func(chunk []byte) []byte { return b.appendStored(b.buffer, chunk) })
}

func (b *Builder) add(p []byte, frame func([]byte) []byte) error {
	for len(p) > 0 {
		chunk := p[:min(len(p), FrameBytes)]
		p = p[len(chunk):]
		if worst := len(chunk) + worstGrowth(len(chunk)) + frameOverhead; len(b.buffer)+worst > cap(b.buffer) {
			return fmt.Errorf("cannot add %d bytes to part %d: %w at %d bytes", len(chunk), b.number, errFull, len(b.buffer))
		}
		begin := len(b.buffer)
		switch {
		case b.encoder == nil:
			b.buffer = append(b.buffer, chunk...)
		case len(chunk) == FrameBytes && isZero(chunk):
			b.buffer = append(b.buffer, b.zeros...)
		default:
			b.buffer = frame(chunk)
		}
		b.raw += uint64(len(chunk))
		b.note(len(b.buffer)-begin, len(chunk))
	}
	return nil
}

// note keeps a frame's sizes. Where there are too many, neighbours become
// one: they can be decompressed together as well.
func (b *Builder) note(stored, raw int) {
	if len(b.frames) == evidence.MaxFrames {
		for i := range len(b.frames) / 2 {
			one, two := b.frames[2*i], b.frames[2*i+1]
			b.frames[i] = seekable.Frame{Stored: one.Stored + two.Stored, Raw: one.Raw + two.Raw}
		}
		b.frames = b.frames[:len(b.frames)/2]
	}
	b.frames = append(b.frames, seekable.Frame{Stored: uint32(stored), Raw: uint32(raw)})
}

// appendStored appends a frame whose blocks are raw, or one byte and its
// count where they are all zero. Source: RFC 8878, section 3.1.1.2.
func (b *Builder) appendStored(to, chunk []byte) []byte {
	const (
		last     = 1
		raw      = 0 << 1
		repeated = 1 << 1
	)
	le := binary.LittleEndian
	to = append(le.AppendUint32(to, frameMagic), oneSegment)
	to = le.AppendUint32(to, uint32(len(chunk)))
	for {
		block := chunk[:min(len(chunk), blockBytes)]
		chunk = chunk[len(block):]
		header := uint32(len(block)) << 3
		if len(chunk) == 0 {
			header |= last
		}
		if isZero(block) {
			header |= repeated
			to = append(to, byte(header), byte(header>>8), byte(header>>16), 0)
		} else {
			header |= raw
			to = append(to, byte(header), byte(header>>8), byte(header>>16))
			to = append(to, block...)
		}
		if len(chunk) == 0 {
			return to
		}
	}
}

// isZero compares in large strides; a page that is not zero mostly says so in
// its first bytes.
func isZero(p []byte) bool {
	return p[0] == 0 && bytes.Equal(p[:len(p)-1], p[1:])
}

// Finish ends the part and hashes it. Any part but an object's last must have
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
	part := Part{Number: b.number, Bytes: b.buffer, SHA256: sha256.Sum256(b.buffer), RawSize: b.raw}
	if b.encoder != nil {
		part.Frames = slices.Clone(b.frames)
	}
	return part, nil
}

// pad appends a skippable frame of n zeros, as a part of the last frame.
func (b *Builder) pad(n int) {
	begin := len(b.buffer)
	b.buffer = binary.LittleEndian.AppendUint32(b.buffer, skippable)
	b.buffer = binary.LittleEndian.AppendUint32(b.buffer, uint32(n))
	end := len(b.buffer) + n
	clear(b.buffer[len(b.buffer):end])
	b.buffer = b.buffer[:end]
	if len(b.frames) > 0 {
		b.frames[len(b.frames)-1].Stored += uint32(end - begin)
	}
}
