package memorytest

import (
	"encoding/binary"
	"math/rand/v2"
)

// How the memory is made up: runs of pages of one kind, in blocks of 1 MiB.
const (
	pageSize     = 4096
	runBytes     = 64 << 10
	blockBytes   = 1 << 20
	runsOfBlock  = blockBytes / runBytes
	templateRuns = 21 // of each kind that is not zero: 4 MiB in all
)

// kind is what a run of pages holds.
type kind int

const (
	zero kind = iota
	text
	heap
	noise
)

// kindOf gives the kind of a run. A sixth of all blocks is zero, as memory is
// that nobody has used since boot; in the others every fifth run is, as freed
// pages are between used ones: a third in all. The rest is text, heap and
// noise, as much of each.
func kindOf(run uint64) kind {
	block, at := run/runsOfBlock, run%runsOfBlock
	if block%6 == 0 {
		return zero
	}
	run = (block-block/6-1)*runsOfBlock + at // among the blocks that are in use
	if run%5 == 0 {
		return zero
	}
	return text + kind((run-run/5-1)%3)
}

// templates holds the runs of each kind that is not zero. They are shared,
// and never changed once they are made.
type templates [noise + 1][]byte

func newTemplates() *templates {
	var t templates
	fills := [...]func([]byte, *rand.Rand){text: fillText, heap: fillHeap, noise: fillNoise}
	for k := text; k <= noise; k++ {
		t[k] = make([]byte, templateRuns*runBytes)
		fills[k](t[k], rand.New(rand.NewPCG(1, uint64(k))))
	}
	return &t
}

// fill writes what memory has from addr on into p. Runs come from the
// templates, in turn, and each page in use begins with its own address, so
// that no two are alike and one in a wrong place is seen.
func (t *templates) fill(p []byte, addr uint64) {
	for len(p) > 0 {
		run := addr / runBytes
		at := addr % runBytes
		n := min(uint64(len(p)), runBytes-at)
		k := kindOf(run)
		if k == zero {
			clear(p[:n])
		} else {
			from := run % templateRuns * runBytes
			copy(p[:n], t[k][from+at:])
			stamp(p[:n], addr)
		}
		p, addr = p[n:], addr+n
	}
}

// stamp writes its address, little-endian, over the first eight bytes of each
// page that p holds a part of.
func stamp(p []byte, addr uint64) {
	for page := addr &^ (pageSize - 1); page < addr+uint64(len(p)); page += pageSize {
		if page >= addr && page+8 <= addr+uint64(len(p)) {
			binary.LittleEndian.PutUint64(p[page-addr:], page)
			continue
		}
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], page)
		for i, c := range b {
			if at := page + uint64(i); at >= addr && at < addr+uint64(len(p)) {
				p[at-addr] = c
			}
		}
	}
}

// fillText writes what compresses like a program: instructions out of a
// vocabulary in which few are frequent, each sixth with an operand of its
// own.
func fillText(p []byte, r *rand.Rand) {
	var words [1024][]byte
	for i := range words {
		words[i] = make([]byte, 2+r.IntN(6))
		fillNoise(words[i], r)
	}
	often := rand.NewZipf(r, 1.5, 6, uint64(len(words)-1))
	for len(p) > 0 {
		n := copy(p, words[often.Uint64()])
		p = p[n:]
		if r.IntN(6) == 0 {
			var operand [4]byte
			binary.LittleEndian.PutUint32(operand[:], r.Uint32()>>(8*r.IntN(3)))
			p = p[copy(p, operand[:]):]
		}
	}
}

// fillHeap writes what compresses like objects: a header, pointers into one
// arena, small numbers, words of text, and room not in use.
func fillHeap(p []byte, r *rand.Rand) {
	const arena = 0x00007f3a_5c000000
	words := [...]string{"session", "/var/lib/", "Content-Type: ", "eu-central-1", "error", "nil", "user@host", "id="}
	le := binary.LittleEndian
	for len(p) >= 64 {
		le.PutUint64(p, 0x31)
		le.PutUint64(p[8:], arena+uint64(r.IntN(1<<26))&^15)
		le.PutUint64(p[16:], arena+uint64(r.IntN(1<<26))&^15)
		le.PutUint32(p[24:], uint32(r.IntN(1<<10)))
		switch r.IntN(3) {
		case 0:
			copy(p[32:64], words[r.IntN(len(words))])
		case 1:
			le.PutUint64(p[32:], arena+uint64(r.IntN(1<<26))&^15)
			le.PutUint64(p[40:], r.Uint64())
		}
		p = p[64:]
	}
}

// fillNoise writes what does not compress, as pages of packed or enciphered
// files do not.
func fillNoise(p []byte, r *rand.Rand) {
	for ; len(p) >= 8; p = p[8:] {
		binary.LittleEndian.PutUint64(p, r.Uint64())
	}
	for i := range p {
		p[i] = byte(r.Uint32())
	}
}
