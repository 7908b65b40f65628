// Package seekable reads and writes the seek table of an image in zstd.
//
// With it, any stretch of the image can be read without the rest: it names
// every frame with its bytes before and after compression. It is the last
// thing in the object, inside a frame that every zstd decoder passes over, so
// that an image with one is still a zstd file like any other:
//
//	size    field
//	4       0x184D2A5E, a skippable frame (RFC 8878, section 3.1.2)
//	4       bytes that follow: 8 n + 9
//	8 n     for each frame: bytes stored, bytes raw
//	4       n
//	1       descriptor, 0: frames have no checksums here
//	4       0x8F92EAB1
//
// All numbers are little-endian. Source: Zstandard's repository,
// contrib/seekable_format/zstd_seekable_compression_format.md, version 0.1.0.
package seekable

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	skippable  = 0x184D2A5E
	magic      = 0x8F92EAB1
	headerSize = 8
	frameSize  = 8
	footerSize = 9
)

// MaxFrames bounds a table: 10,000 parts of 64 frames.
const MaxFrames = 640_000

// ErrFormat is the kind of every error that the bytes themselves cause.
var ErrFormat = errors.New("not a zstd seek table")

// Frame is a stretch that can be decompressed by itself: one or more zstd
// frames, skippable ones included.
type Frame struct {
	Stored uint32 `json:"stored"` // bytes of the object
	Raw    uint32 `json:"raw"`    // bytes before compression
}

// Size is the length in bytes of a table of n frames.
func Size(n int) int { return headerSize + n*frameSize + footerSize }

// AppendTable appends the table of frames, of which there are MaxFrames at
// most. The frames begin at the object's first byte, and the table follows
// the last of them.
func AppendTable(b []byte, frames []Frame) ([]byte, error) {
	if len(frames) > MaxFrames {
		return b, fmt.Errorf("cannot make seek table: %d frames, want %d at most", len(frames), MaxFrames)
	}
	le := binary.LittleEndian
	b = le.AppendUint32(b, skippable)
	b = le.AppendUint32(b, uint32(len(frames)*frameSize+footerSize))
	for _, f := range frames {
		b = le.AppendUint32(b, f.Stored)
		b = le.AppendUint32(b, f.Raw)
	}
	b = le.AppendUint32(b, uint32(len(frames)))
	b = append(b, 0)
	return le.AppendUint32(b, magic), nil
}

// ReadTable reads the table at the end of an object of size bytes. It holds
// it against the object: the frames' stored bytes and the table's own are the
// object's, all of them. What is no table, or another object's, is ErrFormat.
func ReadTable(object io.ReaderAt, size int64) ([]Frame, error) {
	le := binary.LittleEndian
	var footer [footerSize]byte
	if size < headerSize+footerSize {
		return nil, fmt.Errorf("%w: the object has %d bytes", ErrFormat, size)
	}
	if _, err := object.ReadAt(footer[:], size-footerSize); err != nil {
		return nil, fmt.Errorf("cannot read seek table: %w", err)
	}
	if le.Uint32(footer[5:]) != magic || footer[4] != 0 {
		return nil, fmt.Errorf("%w: the object ends with % x", ErrFormat, footer[4:])
	}
	n := int64(le.Uint32(footer[:]))
	if n > MaxFrames || int64(Size(int(n))) > size {
		return nil, fmt.Errorf("%w: %d frames in an object of %d bytes, want %d at most", ErrFormat, n, size, MaxFrames)
	}
	table := make([]byte, Size(int(n)))
	if _, err := object.ReadAt(table, size-int64(len(table))); err != nil {
		return nil, fmt.Errorf("cannot read seek table: %w", err)
	}
	if le.Uint32(table) != skippable || int(le.Uint32(table[4:])) != len(table)-headerSize {
		return nil, fmt.Errorf("%w: its frame begins with % x", ErrFormat, table[:headerSize])
	}
	frames := make([]Frame, n)
	stored := int64(len(table))
	for i := range frames {
		at := table[headerSize+i*frameSize:]
		frames[i] = Frame{Stored: le.Uint32(at), Raw: le.Uint32(at[4:])}
		stored += int64(frames[i].Stored)
	}
	if stored != size {
		return nil, fmt.Errorf("%w: its frames and itself have %d bytes, the object %d", ErrFormat, stored, size)
	}
	return frames, nil
}
