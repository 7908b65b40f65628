package journal

import (
	"fmt"
	"io"
)

const (
	blockBytes = 64 << 10
	blockSlots = 32 // 2 MiB in all
)

// blocks reads a file through a few blocks that it keeps, as entries refer to
// values all over the file.
type blocks struct {
	r     io.ReaderAt
	size  int64
	slots [blockSlots]block
}

type block struct {
	number int64 // of the block in the file, from 1; 0 is none
	data   []byte
}

// read fills p from the file.
func (b *blocks) read(p []byte, off int64) error {
	if off < 0 || int64(len(p)) > b.size-off {
		return fmt.Errorf("%d bytes lead beyond the file's end at %d", len(p), b.size)
	}
	for len(p) > 0 {
		data, err := b.block(off / blockBytes)
		if err != nil {
			return err
		}
		at := off % blockBytes
		if at >= int64(len(data)) {
			return io.ErrUnexpectedEOF
		}
		n := copy(p, data[at:])
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// block gives a block of the file, which is valid until the next call.
func (b *blocks) block(index int64) ([]byte, error) {
	slot := &b.slots[index%blockSlots]
	if slot.number == index+1 {
		return slot.data, nil
	}
	slot.number = 0
	if slot.data == nil {
		slot.data = make([]byte, blockBytes)
	}
	start := index * blockBytes
	want := slot.data[:cap(slot.data)][:min(blockBytes, b.size-start)]
	n, err := b.r.ReadAt(want, start)
	if n == len(want) || err == io.EOF {
		err = nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read: %w", err)
	}
	slot.number, slot.data = index+1, slot.data[:cap(slot.data)][:n]
	if n < len(want) { // the file shrank: it is not kept, as it may grow again
		slot.number = 0
	}
	return slot.data, nil
}

// forget drops the block of an offset, as journald may have written there
// since it was read.
func (b *blocks) forget(off int64) {
	slot := &b.slots[off/blockBytes%blockSlots]
	if slot.number == off/blockBytes+1 {
		slot.number = 0
	}
}
