package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz/lzma"
)

// maxWindow bounds what zstd looks back; values of 8 MiB and more, which
// journald no longer writes, are refused.
const maxWindow = 8 << 20

// unpacker decompresses payloads.
type unpacker struct {
	zstd *zstd.Decoder // nil until it is needed
}

// unpack gives the first MaxValue bytes of a payload; more says that there are
// others. With an error it gives what it has.
func (u *unpacker) unpack(flags uint8, in []byte) (out []byte, more bool, err error) {
	var r io.Reader
	switch flags {
	case dataLZ4:
		return unpackLZ4(in, MaxValue)
	case dataXZ:
		r, err = newXZ(in)
	case dataZstd:
		r, err = u.newZstd(in)
	default:
		err = fmt.Errorf("flags 0x%x name no compression", flags)
	}
	if err != nil {
		return nil, false, err
	}
	out, err = io.ReadAll(io.LimitReader(r, MaxValue+1))
	if len(out) > MaxValue {
		return out[:MaxValue], true, nil
	}
	return out, false, err
}

func (u *unpacker) newZstd(in []byte) (io.Reader, error) {
	if u.zstd == nil {
		// One at a time needs no goroutines, and so no Close.
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		u.zstd = d
	}
	return u.zstd, u.zstd.Reset(bytes.NewReader(in))
}

// newXZ reads the block of an xz stream, which journald writes with one filter,
// LZMA2. It does so without the xz package's reader, which takes as much memory
// as the stream asks for: a dictionary of MaxValue serves for that many bytes.
// Source: the .xz file format 1.2.1, 2.1.1 and 3.1.
func newXZ(in []byte) (io.Reader, error) {
	const streamHead = 12
	if len(in) < streamHead+2 || string(in[:6]) != "\xfd7zXZ\x00" {
		return nil, errors.New("no xz stream")
	}
	size := (int(in[streamHead]) + 1) * 4
	if in[streamHead] == 0 || len(in) < streamHead+size {
		return nil, errors.New("no xz block")
	}
	head, data := in[streamHead+1:streamHead+size], in[streamHead+size:]
	if head[0]&0x3f != 0 {
		return nil, errors.New("an xz block with more filters than LZMA2")
	}
	sizes, rest := head[0], head[1:]
	for _, present := range []byte{0x40, 0x80} { // compressed, uncompressed
		if sizes&present == 0 {
			continue
		}
		_, n := binary.Uvarint(rest)
		if n <= 0 {
			return nil, errors.New("an xz block of unknown size")
		}
		rest = rest[n:]
	}
	if len(rest) < 3 || rest[0] != 0x21 || rest[1] != 1 {
		return nil, errors.New("an xz block with a filter that is not LZMA2")
	}
	return lzma.Reader2Config{DictCap: MaxValue + 1}.NewReader2(bytes.NewReader(data))
}

var errLZ4 = errors.New("broken lz4 block")

// unpackLZ4 gives the first limit bytes of an LZ4 block behind its size, 8
// bytes, as journald writes it.
// Source: lz4, doc/lz4_Block_format.md; systemd, src/basic/compress.c.
func unpackLZ4(in []byte, limit int) (out []byte, more bool, err error) {
	if len(in) < 9 {
		return nil, false, errLZ4
	}
	size := order.Uint64(in)
	in = in[8:]
	out = make([]byte, 0, min(size, uint64(limit)))
	for len(in) > 0 {
		token := in[0]
		literals, rest, ok := lz4Length(int(token>>4), in[1:])
		if !ok || literals > len(rest) {
			return out, false, errLZ4
		}
		out = append(out, rest[:min(literals, limit-len(out))]...)
		in = rest[literals:]
		if len(in) == 0 || len(out) == limit {
			break
		}
		if len(in) < 2 {
			return out, false, errLZ4
		}
		back := int(order.Uint16(in))
		match, rest, ok := lz4Length(int(token&15), in[2:])
		if !ok || back == 0 || back > len(out) {
			return out, false, errLZ4
		}
		for range min(match+4, limit-len(out)) {
			out = append(out, out[len(out)-back])
		}
		in = rest
	}
	if len(out) == limit {
		return out, size > uint64(limit), nil
	}
	if uint64(len(out)) != size {
		err = errLZ4
	}
	return out, false, err
}

// lz4Length reads the rest of a length whose first half byte is n.
func lz4Length(n int, in []byte) (int, []byte, bool) {
	if n < 15 {
		return n, in, true
	}
	for i, b := range in {
		n += int(b)
		if b != 255 {
			return n, in[i+1:], true
		}
	}
	return 0, nil, false
}
