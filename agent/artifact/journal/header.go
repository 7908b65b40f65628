package journal

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
)

// Bounds.
const (
	MaxFile   = 8 << 30  // bytes of a file that are read; journald rotates at 4 GiB at most
	MaxValue  = 1 << 20  // bytes of a name and its value that are kept
	MaxEntry  = 4 << 20  // bytes of all fields of an entry
	MaxFields = 1024     // of an entry, as journald has it
	MaxName   = 256      // bytes of a field's name; journald takes 64
	maxHeader = 64 << 10 // bytes of a header; 272 are in use
	minHeader = 208      // bytes of the first version's
)

// State tells what the last writer did.
type State uint8

// The states.
const (
	Offline  State = iota // closed after writing
	Online                // being written, or the writer died
	Archived              // rotated
)

// Incompatible flags of a header.
const (
	flagXZ uint32 = 1 << iota
	flagLZ4
	flagKeyedHash
	flagZstd
	flagCompact
	flagsKnown = flagCompact<<1 - 1
)

const flagSealed uint32 = 1 // compatible

// Header is what a file says of itself. Times are microseconds since 1970.
type Header struct {
	State            State
	Sealed, Compact  bool
	XZ, LZ4, Zstd    bool // its values may be compressed so
	KeyedHash        bool
	FileID           string // 32 hex digits, as all IDs
	MachineID        string
	SeqnumID         string
	Size             int64  // of the header
	Used             uint64 // bytes of the file that are in use, as it says
	Entries          uint64 // as it says
	HeadSeqnum       uint64
	TailSeqnum       uint64
	HeadRealtime     uint64
	TailRealtime     uint64
	entryArrayOffset uint64
}

var order = binary.LittleEndian

// parseHeader reads the first bytes of a file, at least minHeader.
func parseHeader(b []byte) (Header, error) {
	if string(b[:8]) != "LPKSHHRH" {
		return Header{}, errors.New("no journal: it does not begin with LPKSHHRH")
	}
	flags := order.Uint32(b[12:])
	if unknown := flags &^ flagsKnown; unknown != 0 {
		return Header{}, fmt.Errorf("incompatible flags 0x%x are unknown to this reader", unknown)
	}
	size := order.Uint64(b[88:])
	if size < minHeader || size > maxHeader || size%8 != 0 {
		return Header{}, fmt.Errorf("a header of %d bytes", size)
	}
	return Header{
		State:  State(b[16]),
		Sealed: order.Uint32(b[8:])&flagSealed != 0,
		XZ:     flags&flagXZ != 0, LZ4: flags&flagLZ4 != 0, Zstd: flags&flagZstd != 0,
		KeyedHash: flags&flagKeyedHash != 0, Compact: flags&flagCompact != 0,
		FileID: hex.EncodeToString(b[24:40]), MachineID: hex.EncodeToString(b[40:56]), SeqnumID: hex.EncodeToString(b[72:88]),
		Size: int64(size), Used: size + order.Uint64(b[96:]),
		Entries:    order.Uint64(b[152:]),
		TailSeqnum: order.Uint64(b[160:]), HeadSeqnum: order.Uint64(b[168:]),
		entryArrayOffset: order.Uint64(b[176:]),
		HeadRealtime:     order.Uint64(b[184:]), TailRealtime: order.Uint64(b[192:]),
	}, nil
}

// Damage is something in a file that cannot be read.
type Damage struct {
	Offset int64 // in the file
	Err    error
}

func (d *Damage) Error() string { return fmt.Sprintf("at offset %d: %v", d.Offset, d.Err) }

func (d *Damage) Unwrap() error { return d.Err }

// File is an open journal file. It is used by one goroutine.
type File struct {
	Header Header

	in     blocks
	values valueCache
	unpack unpacker
}

// Open reads the header of a file of size bytes. What the file grows by
// afterwards is not read.
func Open(r io.ReaderAt, size int64) (*File, error) {
	f := &File{in: blocks{r: r, size: min(size, MaxFile)}}
	var b [minHeader]byte
	err := f.in.read(b[:], 0)
	if err == nil {
		f.Header, err = parseHeader(b[:])
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read a journal's header: %w", err)
	}
	return f, nil
}
