package packages

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A hash database of Berkeley DB, as rpm's Packages is one: pages, whose
// entries are keys and values in turn; a long value lies in a chain of
// overflow pages. Source: db, src/dbinc/db_page.h.
const (
	bdbMagic    = 0x061561
	bdbHead     = 26 // bytes of a page's header
	bdbUnsorted = 2
	bdbOverflow = 7
	bdbHash     = 13
	bdbMetaHash = 8
	bdbInline   = 1 // H_KEYDATA
	bdbOffPage  = 3 // H_OFFPAGE
)

// maxBroken bounds the broken parts of a database that are told.
const maxBroken = 64

// bdb reads one database, each page at most twice: in turn, and in a chain.
type bdb struct {
	r       io.ReaderAt
	order   binary.ByteOrder
	size    int64 // bytes of a page
	pages   int64
	chained []bool
	do      func(value []byte, err error) error
	broken  int
	left    int64 // bytes that may still be told: entries of a page may overlap
}

// errBroken ends the reading of a database of which too much is broken.
var errBroken = fmt.Errorf("cannot read more: %d parts are broken", maxBroken)

// BDB gives the values of a hash database of size bytes to do, or why one could
// not be read, until do fails.
func BDB(r io.ReaderAt, size int64, do func(value []byte, err error) error) error {
	var meta [72]byte
	if _, err := r.ReadAt(meta[:], 0); err != nil {
		return fmt.Errorf("cannot read database header: %w", err)
	}
	b := &bdb{r: r, order: binary.LittleEndian, do: do}
	if b.order.Uint32(meta[12:]) != bdbMagic {
		b.order = binary.BigEndian
	}
	b.size = int64(b.order.Uint32(meta[20:]))
	switch {
	case b.order.Uint32(meta[12:]) != bdbMagic || meta[25] != bdbMetaHash:
		return errors.New("cannot read database: it does not begin as a hash of Berkeley DB's does")
	case meta[24] != 0:
		return errors.New("cannot read database: it is encrypted")
	case b.size < 512 || b.size > 64<<10 || b.size&(b.size-1) != 0:
		return fmt.Errorf("cannot read database: no page has %d bytes", b.size)
	}
	b.pages = size / b.size
	b.chained, b.left = make([]bool, b.pages), 2*size
	page := make([]byte, b.size)
	for number := int64(1); number < b.pages; number++ {
		if err := b.page(page, number); err != nil {
			return err
		}
	}
	return nil
}

func (b *bdb) fail(err error) error {
	if b.broken++; b.broken > maxBroken {
		return errBroken
	}
	return b.do(nil, err)
}

func (b *bdb) page(page []byte, number int64) error {
	if _, err := b.r.ReadAt(page, number*b.size); err != nil {
		return b.fail(fmt.Errorf("cannot read page %d: %w", number, err))
	}
	if page[25] != bdbUnsorted && page[25] != bdbHash {
		return nil
	}
	entries := int(b.order.Uint16(page[20:]))
	if bdbHead+2*entries > len(page) {
		return b.fail(fmt.Errorf("cannot read page %d: it has no room for %d entries", number, entries))
	}
	offset := func(i int) int { return int(b.order.Uint16(page[bdbHead+2*i:])) }
	for i := 1; i < entries; i += 2 { // keys are even
		start, end := offset(i), offset(i-1)
		if start >= end || end > len(page) {
			if err := b.fail(fmt.Errorf("cannot read entry %d of page %d: it leaves the page", i, number)); err != nil {
				return err
			}
			continue
		}
		if b.left -= int64(end - start); b.left < 0 {
			return errors.New("cannot read more: entries overlap")
		}
		if err := b.value(page[start:end], number); err != nil {
			return err
		}
	}
	return nil
}

func (b *bdb) value(entry []byte, number int64) error {
	switch entry[0] {
	case bdbInline:
		return b.do(entry[1:], nil)
	case bdbOffPage:
		if len(entry) < 12 {
			break
		}
		data, err := b.chain(int64(b.order.Uint32(entry[4:])), int64(b.order.Uint32(entry[8:])))
		if err != nil {
			return b.fail(err)
		}
		return b.do(data, nil)
	}
	return b.fail(fmt.Errorf("cannot read an entry of page %d: it is of kind %d", number, entry[0]))
}

// chain joins a value of size bytes that starts in page number.
func (b *bdb) chain(number, size int64) ([]byte, error) {
	if size > MaxHeader || size > b.pages*b.size {
		return nil, fmt.Errorf("cannot read value of page %d: it has %d bytes, and at most %d are read", number, size, MaxHeader)
	}
	var out []byte
	page := make([]byte, b.size)
	for int64(len(out)) < size {
		if number < 1 || number >= b.pages || b.chained[number] {
			return nil, fmt.Errorf("cannot read page %d of a value: it is not there, or part of another", number)
		}
		b.chained[number] = true
		if _, err := b.r.ReadAt(page, number*b.size); err != nil {
			return nil, fmt.Errorf("cannot read page %d of a value: %w", number, err)
		}
		here := int64(b.order.Uint16(page[22:]))
		if page[25] != bdbOverflow || here == 0 || bdbHead+here > b.size {
			return nil, fmt.Errorf("cannot read page %d of a value: kind %d with %d bytes", number, page[25], here)
		}
		out = append(out, page[bdbHead:bdbHead+min(here, size-int64(len(out)))]...)
		number = int64(b.order.Uint32(page[16:]))
	}
	return out, nil
}
