package packages

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// rpm's own database, Packages.db of SUSE: pages of slots, then blobs in
// blocks of 16 bytes; numbers are little-endian.
// Source: rpm, lib/backend/ndb/rpmpkg.c.
const (
	ndbHead  = 32
	ndbPage  = 4096
	ndbSlot  = 16
	ndbBlock = 16
)

// NDB gives the blobs of a database of size bytes to do, or why one could not
// be read, until do fails.
func NDB(r io.ReaderAt, size int64, do func(value []byte, err error) error) error {
	var head [ndbHead]byte
	if _, err := r.ReadAt(head[:], 0); err != nil {
		return fmt.Errorf("cannot read database header: %w", err)
	}
	number := binary.LittleEndian.Uint32
	if string(head[:4]) != "RpmP" || number(head[4:]) != 0 {
		return errors.New("cannot read database: it does not begin as rpm's own of version 0 do")
	}
	pages := int64(number(head[12:]))
	if pages*ndbPage > size {
		return fmt.Errorf("cannot read database: %d pages of slots do not fit in %d bytes", pages, size)
	}
	broken, left := 0, 4*size // no database tells its bytes more than once; this one may
	for at := int64(ndbHead); at < pages*ndbPage; at += ndbSlot {
		var slot [ndbSlot]byte
		if _, err := r.ReadAt(slot[:], at); err != nil {
			return fmt.Errorf("cannot read slot at %d: %w", at, err)
		}
		if string(slot[:4]) == "Slot" && number(slot[4:]) == 0 {
			continue
		}
		data, err := ndbBlob(r, slot, size)
		if left -= int64(len(data)); left < 0 {
			return errors.New("cannot read more: its blobs overlap")
		}
		if err != nil {
			if broken++; broken > maxBroken {
				return errBroken
			}
		}
		if err := do(data, err); err != nil {
			return err
		}
	}
	return nil
}

func ndbBlob(r io.ReaderAt, slot [ndbSlot]byte, size int64) ([]byte, error) {
	number := binary.LittleEndian.Uint32
	index, at := number(slot[4:]), int64(number(slot[8:]))*ndbBlock
	var head [16]byte
	if string(slot[:4]) != "Slot" || at+int64(len(head)) > size {
		return nil, fmt.Errorf("cannot read slot of package %d: no slot, or outside of the file", index)
	}
	if _, err := r.ReadAt(head[:], at); err != nil {
		return nil, fmt.Errorf("cannot read blob of package %d: %w", index, err)
	}
	length := int64(number(head[12:]))
	if string(head[:4]) != "BlbS" || number(head[4:]) != index || length > MaxHeader || at+16+length > size {
		return nil, fmt.Errorf("cannot read blob of package %d: its header is another's, or its %d bytes are too many", index, length)
	}
	data := make([]byte, length)
	if _, err := r.ReadAt(data, at+16); err != nil {
		return nil, fmt.Errorf("cannot read blob of package %d: %w", index, err)
	}
	return data, nil
}
