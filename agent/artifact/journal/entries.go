package journal

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"iter"
)

// Field is a name and a value. A name may occur several times in an entry.
type Field struct {
	Name  string
	Value []byte // not to be changed: entries share it
	Cut   bool   // the value goes on beyond MaxValue, or MaxEntry
}

// Entry is one entry of the log.
type Entry struct {
	Offset    int64 // in the file
	Seqnum    uint64
	Realtime  uint64 // microseconds since 1970
	Monotonic uint64 // microseconds since the boot
	Boot      string // its ID, 32 hex digits
	Fields    []Field
	Cut       bool // it has more fields, beyond MaxFields or MaxEntry
	// Unlinked says that the chain of entry arrays does not lead to it: it
	// was being written, or the chain is damaged, or was made to pass it by.
	Unlinked bool
}

// Entries gives the entries in the order in which they were written. What
// cannot be read comes as a *Damage with no entry, and the iteration goes on
// behind it; when ctx ends, its error is the last.
func (f *File) Entries(ctx context.Context) iter.Seq2[*Entry, error] {
	return func(yield func(*Entry, error) bool) {
		w := &walk{f: f, ctx: ctx, yield: yield}
		w.run()
		if err := ctx.Err(); err != nil && !w.stopped {
			yield(nil, err)
		}
	}
}

// walk is one iteration. It merges two lists of entries that both only go
// forward in the file: the chain's and the sweep's.
type walk struct {
	f       *File
	ctx     context.Context
	yield   func(*Entry, error) bool
	stopped bool
	read    uint64 // entries that were yielded
}

func (w *walk) over() bool { return w.stopped || w.ctx.Err() != nil }

// damage yields what cannot be read.
func (w *walk) damage(off int64, err error) {
	if !w.over() {
		w.stopped = !w.yield(nil, &Damage{off, err})
	}
}

func (w *walk) run() {
	h := &w.f.Header
	if h.Used > uint64(w.f.in.size) && h.State != Online {
		w.damage(w.f.in.size, fmt.Errorf("the file ends, of %d bytes that are in use", h.Used))
	}
	c := &chain{walk: w, array: h.entryArrayOffset}
	s := &sweep{walk: w, at: uint64(h.Size), synced: true}
	linked, found := c.next(), s.next()
	for linked != none || found != none {
		off := min(linked, found)
		w.entry(off, linked != off)
		if linked == off {
			linked = c.next()
		}
		if found == off {
			found = s.next()
		}
		if w.over() {
			return
		}
	}
	if w.read < h.Entries {
		w.damage(152, fmt.Errorf("the header counts %d entries, %d could be read", h.Entries, w.read))
	}
}

// none is the offset behind all others.
const none = ^uint64(0)

// chain follows the entry arrays.
type chain struct {
	*walk
	array     uint64 // the array to go on with; 0 is the end
	item, end int64  // what is left of the array that is being read
	last      uint64 // the entry it led to last
}

// next gives the next entry's offset, or none.
func (c *chain) next() uint64 {
	for !c.over() {
		if c.item == c.end && !c.open() {
			return none
		}
		at := c.item
		off, err := c.f.offset(at)
		c.item += c.f.offsetBytes()
		switch {
		case err != nil:
			c.damage(at, err)
		case off == 0: // the rest of an array is not filled yet
			c.array, c.item = 0, c.end
		case off <= c.last:
			c.damage(at, fmt.Errorf("the chain of entries leads back from %d to %d", c.last, off))
		case off >= uint64(c.f.in.size) && c.f.Header.State == Online:
			return none // written since the file was opened
		case off >= uint64(c.f.in.size):
			c.damage(at, fmt.Errorf("an entry would lie at %d, beyond the file's end", off))
		default:
			c.last = off
			return off
		}
	}
	return none
}

// open turns to the next array of the chain.
func (c *chain) open() bool {
	for c.array != 0 && !c.over() {
		at := c.array
		c.array = 0
		o, err := c.f.objectOf(kindEntryArray, at)
		if err != nil {
			c.damage(int64(min(at, uint64(c.f.in.size))), fmt.Errorf("the chain of entries is broken: %w", err))
			return false
		}
		var b [8]byte
		if err := c.f.in.read(b[:], o.at+16); err != nil {
			c.damage(o.at, err)
		}
		if next := order.Uint64(b[:]); next > at {
			c.array = next
		} else if next != 0 {
			c.damage(o.at, fmt.Errorf("the chain of entries leads back to %d", next))
		}
		c.item = o.at + 24
		c.end = c.item + (o.size-24)/c.f.offsetBytes()*c.f.offsetBytes()
		if c.item < c.end {
			return true
		}
	}
	return false
}

// sweep goes over all objects. Where they stop making sense it looks, 8 bytes
// at a time, for two that do.
type sweep struct {
	*walk
	at     uint64
	synced bool
	gap    uint64 // where sense was lost
	dirty  bool   // not all since then was zeros
}

// next gives the next entry's offset, or none.
func (s *sweep) next() uint64 {
	for ; s.at < uint64(s.f.in.size) && !s.over(); s.synced = s.step() {
		if !s.synced && !s.resync() {
			break
		}
		o, err := s.f.object(s.at)
		if err == nil && o.kind == kindEntry {
			s.synced, s.at = true, uint64(o.end())
			return uint64(o.at)
		}
	}
	if !s.synced && s.dirty {
		s.lost(uint64(s.f.in.size))
		s.synced = true
	}
	return none
}

// step goes over an object; false means that there is none.
func (s *sweep) step() bool {
	o, err := s.f.object(s.at)
	if err != nil {
		s.gap, s.dirty = s.at, false
		return false
	}
	s.at = uint64(o.end())
	return true
}

// resync looks for the next object that can be believed.
func (s *sweep) resync() bool {
	for ; s.at < uint64(s.f.in.size); s.at += 8 {
		if s.at%blockBytes == 0 && s.over() {
			return false
		}
		if s.zero() {
			continue
		}
		if s.credible() {
			s.lost(s.at)
			s.synced = true
			return true
		}
		s.dirty = true
	}
	return false
}

func (s *sweep) lost(until uint64) {
	s.damage(int64(s.gap), fmt.Errorf("%d bytes hold no object that can be read", until-s.gap))
}

// zero reports whether the next 8 bytes are zeros. It leaps over what cannot
// be read and over whole blocks of zeros, of which a file that journald has
// laid out in advance has many.
func (s *sweep) zero() bool {
	data, err := s.f.in.block(int64(s.at / blockBytes))
	at := s.at % blockBytes
	if err != nil {
		s.damage(int64(s.at), err)
	}
	if err != nil || at >= uint64(len(data)) {
		s.at += blockBytes - at - 8
		return true
	}
	if at == 0 && bytes.Equal(data, zeros[:len(data)]) {
		s.at += blockBytes - 8
		return true
	}
	rest := data[at:]
	n := min(8, len(rest))
	return bytes.Equal(rest[:n], zeros[:n])
}

var zeros [blockBytes]byte

// credible reports whether an object of a known kind is here, with another or
// nothing behind it.
func (s *sweep) credible() bool {
	o, err := s.f.object(s.at)
	if err != nil || o.kind >= kinds || o.flags > flagsOfData {
		return false
	}
	if o.kind == kindEntry && !s.f.credibleEntry(o) {
		return false
	}
	next := uint64(o.end())
	if next+headBytes > uint64(s.f.in.size) {
		return true
	}
	var b [headBytes]byte
	if s.f.in.read(b[:], int64(next)) == nil && b == [headBytes]byte{} {
		return true
	}
	after, err := s.f.object(next)
	return err == nil && after.kind < kinds
}

// credibleEntry asks for a first field that is there.
func (f *File) credibleEntry(o object) bool {
	if o.size < entryHead+f.itemBytes() {
		return false
	}
	off, err := f.offset(o.at + entryHead)
	if err != nil {
		return false
	}
	_, err = f.objectOf(kindData, off)
	return err == nil
}

const entryHead = 64 // bytes of an entry before its items

// itemBytes is how long an item of an entry is: a reference and, unless the
// file is compact, a hash.
func (f *File) itemBytes() int64 {
	if f.Header.Compact {
		return 4
	}
	return 16
}

// entry reads an entry, and yields it and what of it cannot be read.
func (w *walk) entry(off uint64, unlinked bool) {
	o, err := w.f.objectOf(kindEntry, off)
	var b [entryHead]byte
	if err == nil {
		err = w.f.in.read(b[:], o.at)
	}
	if err != nil {
		w.damage(int64(off), err)
		return
	}
	e := &Entry{
		Offset: o.at, Unlinked: unlinked,
		Seqnum: order.Uint64(b[16:]), Realtime: order.Uint64(b[24:]), Monotonic: order.Uint64(b[32:]),
		Boot: hex.EncodeToString(b[40:56]),
	}
	w.fields(e, o)
	if !w.over() {
		w.read++
		w.stopped = !w.yield(e, nil)
	}
}

func (w *walk) fields(e *Entry, o object) {
	count, room := (o.size-entryHead)/w.f.itemBytes(), MaxEntry
	if count > MaxFields {
		e.Cut, count = true, MaxFields
	}
	for i := range count {
		at := o.at + entryHead + i*w.f.itemBytes()
		off, err := w.f.offset(at)
		if err == nil && off == 0 && w.f.Header.State == Online {
			return // it is being written
		}
		var field Field
		if err == nil {
			field, err = w.f.value(off)
		}
		if err != nil {
			w.damage(at, fmt.Errorf("field %d: %w", i, err))
			continue
		}
		if room -= len(field.Name) + len(field.Value); room < 0 {
			e.Cut = true
			return
		}
		e.Fields = append(e.Fields, field)
	}
}
