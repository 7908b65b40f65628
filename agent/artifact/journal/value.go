package journal

import (
	"bytes"
	"errors"
	"fmt"
)

// Flags of a data object: how its payload is compressed.
const (
	dataXZ      uint8 = 1
	dataLZ4     uint8 = 2
	dataZstd    uint8 = 4
	flagsOfData       = dataXZ | dataLZ4 | dataZstd
)

// valueCache keeps values by their offset, as most entries share most of
// theirs.
type valueCache struct {
	byOffset map[uint64]Field
	bytes    int
}

const (
	cacheBytes = 4 << 20 // of all values that are kept
	cachedMost = 4 << 10 // of one of them
	cacheCost  = 100     // about what the map takes for each
)

func (c *valueCache) put(off uint64, field Field) {
	cost := len(field.Name) + len(field.Value) + cacheCost
	if cost > cachedMost {
		return
	}
	if c.bytes += cost; c.bytes > cacheBytes || c.byOffset == nil {
		c.byOffset, c.bytes = map[uint64]Field{}, cost
	}
	c.byOffset[off] = field
}

// value reads the data object at off.
func (f *File) value(off uint64) (Field, error) {
	if field, ok := f.values.byOffset[off]; ok {
		return field, nil
	}
	o, err := f.objectOf(kindData, off)
	if err != nil {
		return Field{}, err
	}
	payload, cut, err := f.payload(o)
	if err != nil {
		return Field{}, fmt.Errorf("data at %d: %w", off, err)
	}
	name, value, ok := bytes.Cut(payload, []byte("="))
	if !ok || len(name) == 0 || len(name) > MaxName {
		return Field{}, fmt.Errorf("data at %d: no field name", off)
	}
	field := Field{Name: string(name), Value: value, Cut: cut}
	f.values.put(off, field)
	return field, nil
}

// payload gives the first MaxValue bytes of what a data object holds; cut says
// that there are more.
func (f *File) payload(o object) (payload []byte, cut bool, err error) {
	head := int64(64)
	if f.Header.Compact {
		head = 72
	}
	size := o.size - head
	if size <= 0 {
		return nil, false, errors.New("it is empty")
	}
	if size > MaxValue {
		size, cut = MaxValue, true
	}
	raw := make([]byte, size)
	if err := f.in.read(raw, o.at+head); err != nil {
		return nil, false, err
	}
	if o.flags&flagsOfData == 0 {
		return raw, cut, nil
	}
	out, more, err := f.unpack.unpack(o.flags&flagsOfData, raw)
	if cut && len(out) > 0 { // its end is missing, so it cannot end well
		err = nil
	}
	return out, cut || more, err
}
