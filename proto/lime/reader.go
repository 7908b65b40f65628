package lime

import (
	"errors"
	"fmt"
	"io"
)

// Reader walks an image, record by record. It holds one header and no more.
type Reader struct {
	src     io.Reader
	left    uint64 // bytes of the current record not yet read
	lastEnd uint64
	started bool
	header  [HeaderSize]byte
}

// NewReader returns a Reader of the image in src.
func NewReader(src io.Reader) *Reader { return &Reader{src: src} }

// Next skips what is left of the current record and returns the range of the
// next one. At the end of a whole image it returns io.EOF; an image that
// ends inside a record gives io.ErrUnexpectedEOF; records that do not ascend
// give ErrFormat.
func (r *Reader) Next() (Range, error) {
	if _, err := io.Copy(io.Discard, r); err != nil {
		return Range{}, err
	}
	if _, err := io.ReadFull(r.src, r.header[:]); errors.Is(err, io.EOF) {
		return Range{}, io.EOF
	} else if err != nil {
		return Range{}, fmt.Errorf("cannot read a record's header: %w", err)
	}
	rng, err := ParseHeader(r.header[:])
	if err != nil {
		return Range{}, err
	}
	if r.started && rng.Start <= r.lastEnd {
		return Range{}, fmt.Errorf("%w: record %v does not come after address %08x", ErrFormat, rng, r.lastEnd)
	}
	r.started, r.lastEnd, r.left = true, rng.End, rng.Len()
	return rng, nil
}

// Read reads the bytes of the current record, and io.EOF at its end.
func (r *Reader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	if uint64(len(p)) > r.left {
		p = p[:r.left]
	}
	n, err := r.src.Read(p)
	r.left -= uint64(n)
	if errors.Is(err, io.EOF) {
		if r.left > 0 {
			return n, io.ErrUnexpectedEOF
		}
		err = nil
	}
	return n, err
}

// Walk reads an image to its end and returns the ranges of its records. With
// an error it also returns the ranges of the records that were whole.
func Walk(src io.Reader) ([]Range, error) {
	r := NewReader(src)
	var out []Range
	for {
		rng, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			return out, fmt.Errorf("record %v: %w", rng, err)
		}
		out = append(out, rng)
	}
}
