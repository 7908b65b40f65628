// Package memorytest is memory for tests and benchmarks: as much of it as
// they like, at no cost, with the mix of pages that a busy host has.
//
// Each byte follows from its address alone, so that any stretch can be made
// again and compared. All sources together keep 4 MiB, whatever their size.
package memorytest

import (
	"context"
	"fmt"
	"sync"

	"github.com/quicklime-ir/quicklime/agent/memory"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

// Where a PC has its RAM: from 1 MiB on, and what would be in the devices'
// hole below 4 GiB from there on.
const (
	firstRAM = 1 << 20
	hole     = 3 << 30
	high     = 4 << 30
)

var shared = sync.OnceValue(newTemplates)

// Bytes gives what synthetic memory has at n bytes from addr on, in a slice
// of the caller's own.
func Bytes(addr uint64, n int) []byte {
	p := make([]byte, n)
	shared().fill(p, addr)
	return p
}

// Synthetic gives a host of so many bytes of RAM, none of which is kept: a
// third of its pages is zero, the others are text, heap and noise. size is
// rounded up to whole pages, and at least one. It has any number of readers.
func Synthetic(size uint64) memory.Source {
	size = max(1, (size+pageSize-1)/pageSize) * pageSize
	s := &synthetic{ranges: []lime.Range{{Start: firstRAM, End: min(firstRAM+size, hole) - 1}}}
	if below := uint64(hole - firstRAM); size > below {
		s.ranges = append(s.ranges, lime.Range{Start: high, End: high + size - below - 1})
	}
	return s
}

type synthetic struct{ ranges []lime.Range }

func (s *synthetic) Name() string         { return "synthetic" }
func (s *synthetic) Ranges() []lime.Range { return s.ranges }
func (s *synthetic) Readers() int         { return 0 }
func (s *synthetic) PageFlags() string    { return "synthetic memory has no kernel that keeps them" }
func (s *synthetic) Close() error         { return nil }

// Order implements memory.Source: this memory knows no kernel, so its parts
// come as they lie.
func (s *synthetic) Order(_ context.Context, parts [][]lime.Range) []int {
	order := make([]int, len(parts))
	for i := range order {
		order[i] = i
	}
	return order
}

func (s *synthetic) Open() (memory.Reader, error) {
	return &reader{ranges: s.ranges, buffer: make([]byte, memory.MaxRead)}, nil
}

type reader struct {
	ranges []lime.Range
	buffer []byte
}

func (r *reader) ReadPhys(ctx context.Context, addr uint64, n int) ([]byte, []evidence.Gap, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, nil, err
	}
	if n < 1 || n > memory.MaxRead {
		return nil, nil, fmt.Errorf("cannot read %d bytes at a time: want 1 to %d", n, memory.MaxRead)
	}
	for _, ram := range r.ranges {
		if addr >= ram.Start && addr <= ram.End && uint64(n-1) <= ram.End-addr {
			b := r.buffer[:n]
			shared().fill(b, addr)
			return b, nil, nil
		}
	}
	return nil, nil, fmt.Errorf("cannot read %d bytes at %08x: not in one range of RAM", n, addr)
}

func (r *reader) Close() error { return nil }
