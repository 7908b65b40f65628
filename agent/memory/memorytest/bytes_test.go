package memorytest

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/klauspost/compress/zstd"
	"pgregory.net/rapid"

	"github.com/quicklime-ir/quicklime/agent/memory"
)

// TestTheMixOfPages: over the length after which the kinds come again, a
// third is zero, and text, heap and noise have as much of the rest, to a run.
func TestTheMixOfPages(t *testing.T) {
	var runs [noise + 1]int
	const all = 3 * 6 * runsOfBlock
	for run := range uint64(all) {
		runs[kindOf(run)]++
	}
	if runs[zero] != all/3 {
		t.Errorf("%d of %d runs are zero, want a third", runs[zero], all)
	}
	for k := text; k <= noise; k++ {
		if got, want := runs[k], all*2/9; got < want-1 || got > want+1 {
			t.Errorf("%d of %d runs are of kind %d, want %d", got, all, k, want)
		}
	}
}

// TestABlockInUseHasNoRunTwice: else a compressor would find what no host has.
func TestABlockInUseHasNoRunTwice(t *testing.T) {
	for block := range uint64(64) {
		seen := map[string]bool{}
		for run := range uint64(runsOfBlock) {
			addr := block*blockBytes + run*runBytes
			if b := Bytes(addr+8, pageSize-8); kindOf(addr/runBytes) != zero {
				if seen[string(b)] {
					t.Errorf("block %d has a run twice", block)
				}
				seen[string(b)] = true
			}
		}
	}
}

// TestEveryByteFollowsFromItsAddress: however memory is cut, it is the same.
func TestEveryByteFollowsFromItsAddress(t *testing.T) {
	const base, size = 1 << 20, 3 << 20
	whole := Bytes(base, size)
	rapid.Check(t, func(t *rapid.T) {
		at := rapid.IntRange(0, size-1).Draw(t, "at")
		n := rapid.IntRange(1, min(3*pageSize, size-at)).Draw(t, "n")
		if !bytes.Equal(Bytes(base+uint64(at), n), whole[at:at+n]) {
			t.Fatalf("the %d bytes at %d differ", n, at)
		}
	})
	for at := 0; at < size; at += pageSize {
		addr := uint64(base + at)
		if got := binary.LittleEndian.Uint64(whole[at:]); kindOf(addr/runBytes) != zero && got != addr {
			t.Fatalf("the page at %x says it is at %x", addr, got)
		}
	}
}

// TestItCompressesAsMemoryDoes: zeros to nothing, noise not at all, text to
// about a half, heap better.
func TestItCompressesAsMemoryDoes(t *testing.T) {
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer encoder.Close()
	tests := map[kind]struct{ least, most float64 }{text: {1.4, 3}, heap: {3, 8}, noise: {0.9, 1.01}}
	for k, want := range tests {
		template := shared()[k]
		if got := float64(len(template)) / float64(len(encoder.EncodeAll(template, nil))); got < want.least || got > want.most {
			t.Errorf("kind %d compresses %.2f times, want %.1f to %.1f", k, got, want.least, want.most)
		}
	}
}

func BenchmarkFill(b *testing.B) {
	p := make([]byte, memory.MaxRead)
	b.SetBytes(int64(len(p)))
	t := shared()
	for i := 0; b.Loop(); i++ {
		t.fill(p, uint64(i)*uint64(len(p)))
	}
}
