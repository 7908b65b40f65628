package packages

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
)

// MaxHeader bounds the bytes of a header; rpm takes 256 MiB, and the largest
// in distributions have a few. Source: rpm, lib/header.c.
const MaxHeader = 16 << 20

// Tags of a header. Source: rpm, include/rpm/rpmtag.h.
const (
	tagSigPGP  = 259 // of old signatures; RSA below
	tagRSA     = 268
	tagDSA     = 267
	tagName    = 1000
	tagVersion = 1001
	tagRelease = 1002
	tagEpoch   = 1003
	tagBuilt   = 1006
	tagInstall = 1008
	tagSize    = 1009
	tagVendor  = 1011
	tagGroup   = 1016
	tagArch    = 1022
	tagSource  = 1044
	tagBases   = 1117
	tagLong    = 5009 // size beyond 4 GiB
)

// Types of a tag's values.
const (
	typeInt32     = 4
	typeInt64     = 5
	typeString    = 6
	typeBinary    = 7
	typeStrings   = 8
	typeI18N      = 9
	indexEntry    = 16 // bytes
	maxRPMEntries = 64 << 10
)

// Header reads an rpm header as databases store it: the number of entries and
// of bytes of data, the entries (tag, type, offset, count), the data; all
// numbers big-endian.
func Header(b []byte) (Package, error) {
	if len(b) < 8 {
		return Package{}, errors.New("cannot read rpm header: shorter than 8 bytes")
	}
	count, size := int64(binary.BigEndian.Uint32(b)), int64(binary.BigEndian.Uint32(b[4:]))
	if count > maxRPMEntries || 8+count*indexEntry+size > int64(len(b)) {
		return Package{}, fmt.Errorf("cannot read rpm header: %d entries and %d bytes do not fit in %d", count, size, len(b))
	}
	h := header{index: b[8 : 8+count*indexEntry], data: b[8+count*indexEntry:][:size]}
	p := Package{Name: h.text(tagName), Arch: h.text(tagArch), Source: h.text(tagSource), Vendor: h.text(tagVendor), Section: h.text(tagGroup),
		InstallTime: h.number(tagInstall), BuildTime: h.number(tagBuilt), InstalledKiB: max(h.number(tagSize), h.number(tagLong)) >> 10}
	p.Version = h.text(tagVersion) + "-" + h.text(tagRelease)
	if _, _, found := h.find(tagEpoch); found {
		p.Version = fmt.Sprintf("%d:%s", h.number(tagEpoch), p.Version)
	}
	_, p.Files, _ = h.find(tagBases)
	p.Signature = h.signer()
	if p.Name == "" {
		return Package{}, errors.New("cannot read rpm header: it names no package")
	}
	return p, nil
}

type header struct{ index, data []byte }

// find gives a tag's data from where it starts, and how many values it has.
func (h header) find(tag uint32, kinds ...uint32) (data []byte, count int64, found bool) {
	for e := h.index; len(e) >= indexEntry; e = e[indexEntry:] {
		if binary.BigEndian.Uint32(e) != tag {
			continue
		}
		at := int64(binary.BigEndian.Uint32(e[8:]))
		if at > int64(len(h.data)) {
			return nil, 0, false
		}
		kind := binary.BigEndian.Uint32(e[4:])
		for i, k := range kinds {
			if k == kind {
				break
			}
			if i == len(kinds)-1 {
				return nil, 0, false
			}
		}
		return h.data[at:], int64(binary.BigEndian.Uint32(e[12:])), true
	}
	return nil, 0, false
}

func (h header) text(tag uint32) string {
	data, _, _ := h.find(tag, typeString, typeStrings, typeI18N)
	end := bytes.IndexByte(data, 0)
	if end < 0 {
		end = len(data)
	}
	return clip(string(data[:min(end, maxText)]))
}

func (h header) number(tag uint32) int64 {
	if data, _, ok := h.find(tag, typeInt32); ok && len(data) >= 4 {
		return int64(binary.BigEndian.Uint32(data))
	}
	if data, _, ok := h.find(tag, typeInt64); ok && len(data) >= 8 {
		return int64(binary.BigEndian.Uint64(data) &^ (1 << 63))
	}
	return 0
}

// signer gives the key ID of the header's signature, an OpenPGP packet of
// version 3 or 4. Nothing is verified.
// Source: RFC 4880, 5.2.
func (h header) signer() string {
	for _, tag := range []uint32{tagRSA, tagDSA, tagSigPGP} {
		data, count, ok := h.find(tag, typeBinary)
		if !ok {
			continue
		}
		if id := signatureKey(data[:min(int64(len(data)), count)]); id != "" {
			return id
		}
	}
	return ""
}

func signatureKey(b []byte) string {
	body := packetBody(b)
	if len(body) >= 15 && body[0] == 3 {
		return hex.EncodeToString(body[7:15])
	}
	if len(body) < 6 || body[0] != 4 {
		return ""
	}
	for rest := body[4:]; len(rest) >= 2; { // hashed, then unhashed subpackets
		size := int(binary.BigEndian.Uint16(rest))
		if size > len(rest)-2 {
			return ""
		}
		for sub := rest[2 : 2+size]; len(sub) > 1; {
			n := int(sub[0])
			if n == 0 || n >= 192 || n+1 > len(sub) {
				break // longer ones are none that tell a key
			}
			if sub[1]&0x7f == 16 && n == 9 {
				return hex.EncodeToString(sub[2:10])
			}
			sub = sub[1+n:]
		}
		rest = rest[2+size:]
	}
	return ""
}

// packetBody gives the body of a signature packet of either form.
func packetBody(b []byte) []byte {
	if len(b) < 3 || b[0]&0x80 == 0 {
		return nil
	}
	if b[0]&0x40 != 0 { // new form
		switch {
		case b[0]&0x3f != 2:
			return nil
		case b[1] < 192:
			return b[2:]
		case b[1] < 224:
			return b[3:]
		}
		return nil
	}
	if b[0]>>2&0xf != 2 {
		return nil
	}
	return b[min(len(b), 1+1<<(b[0]&3)):]
}
