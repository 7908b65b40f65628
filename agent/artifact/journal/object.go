package journal

import (
	"errors"
	"fmt"
)

// kind is the type of an object.
type kind uint8

const (
	kindUnused kind = iota
	kindData
	kindField
	kindEntry
	kindDataHash
	kindFieldHash
	kindEntryArray
	kindTag
	kinds
)

// minBytes is the least size of an object of each kind, without payload.
var minBytes = [kinds]uint64{16, 64, 40, 64, 16, 16, 24, 64}

var kindNames = [kinds]string{"unused", "data", "field", "entry", "data hash table", "field hash table", "entry array", "tag"}

func (k kind) String() string {
	if k < kinds {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// object is the head of an object: 16 bytes.
type object struct {
	at    int64
	kind  kind
	flags uint8
	size  int64 // head included; it lies within the file
}

const headBytes = 16

// end is where the next object begins.
func (o object) end() int64 { return align(o.at + o.size) }

func align(off int64) int64 { return (off + 7) &^ 7 }

// object reads the head of the object at off. An unknown kind is no error, as
// the format may get more.
func (f *File) object(off uint64) (object, error) {
	if off%8 != 0 || off < uint64(f.Header.Size) || off >= uint64(f.in.size) {
		return object{}, fmt.Errorf("no object can lie at %d", off)
	}
	var b [headBytes]byte
	if err := f.in.read(b[:], int64(off)); err != nil {
		return object{}, err
	}
	o := object{at: int64(off), kind: kind(b[0]), flags: b[1]}
	size := order.Uint64(b[8:])
	switch {
	case o.kind == kindUnused:
		return object{}, errors.New("an unused object")
	case size < headBytes || o.kind < kinds && size < minBytes[o.kind]:
		return object{}, fmt.Errorf("an object (%s) of %d bytes is too small", o.kind, size)
	case size > uint64(f.in.size)-off:
		return object{}, fmt.Errorf("an object (%s) of %d bytes leads beyond the file's end", o.kind, size)
	}
	o.size = int64(size)
	return o, nil
}

// objectOf reads the head of an object that something refers to as one of a
// kind.
func (f *File) objectOf(want kind, off uint64) (object, error) {
	o, err := f.object(off)
	if err != nil && off < uint64(f.in.size) { // perhaps it was being written
		f.in.forget(int64(off))
		o, err = f.object(off)
	}
	if err == nil && o.kind != want {
		err = fmt.Errorf("an object (%s) stands where one (%s) should", o.kind, want)
	}
	return o, err
}

// offsetBytes is how long a reference from an array or entry is.
func (f *File) offsetBytes() int64 {
	if f.Header.Compact {
		return 4
	}
	return 8
}

// offset reads a reference.
func (f *File) offset(at int64) (uint64, error) {
	var b [8]byte
	err := f.in.read(b[:f.offsetBytes()], at)
	return order.Uint64(b[:]), err
}
