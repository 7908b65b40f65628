package memory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

// Bounds of what a read that hangs costs.
//
// A read that hangs does not tell which of its pages is at fault. What it was
// to read is read again in steps, of which the one that hangs is lost; where
// maxHangs reads of one ReadPhys have hung, the rest of it is lost as well. So
// one page that hangs costs careStep bytes and two readLimits, and no ReadPhys
// takes more than maxHangs readLimits or loses more than itself. Memory after
// it is read in steps at once, until MaxRead bytes of it went well.
const (
	careStep = 64 << 10
	maxHangs = 3
)

// kcoreReader reads /proc/kcore by physical address.
type kcoreReader struct {
	segments []segment
	file     *patient
	flags    *flagReader
	care     int // bytes that are still to be read in steps
	hangs    int // of the ReadPhys at hand
}

func (r *kcoreReader) Close() error {
	r.file.close()
	return nil
}

func (r *kcoreReader) ReadPhys(ctx context.Context, addr uint64, n int) ([]byte, []evidence.Gap, error) {
	if err := checkRead(addr, n); err != nil {
		return nil, nil, err
	}
	if r.file.hand == nil {
		return nil, nil, fmt.Errorf("cannot read %s: %w", kcorePath, errLost)
	}
	r.hangs = 0
	var gaps []evidence.Gap
	untouchable := r.flags.unreal(addr, n)
	for lo := 0; lo < n; {
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		at := addr + uint64(lo)
		s, some := r.find(at, n-lo)
		bad, reason, some := next(untouchable, at, some)
		hi := lo + some
		switch {
		case bad:
			gaps = r.lose(gaps, lo, hi, at, reason, "")
		case s == nil:
			gaps = r.lose(gaps, lo, hi, at, NotInSource, "")
		default:
			var err error
			if gaps, err = r.fill(ctx, gaps, lo, hi, at, s.offset+int64(at-s.Start)); err != nil {
				return nil, nil, err
			}
		}
		lo = hi
	}
	if r.hangs == 0 {
		r.care = max(0, r.care-n)
	}
	return r.file.buffer()[:n], gaps, nil
}

// find gives the segment that holds addr, and how many of the next bytes it
// holds; nil and the bytes up to the next segment where none does.
func (r *kcoreReader) find(addr uint64, want int) (*segment, int) {
	i, _ := slices.BinarySearchFunc(r.segments, addr, func(s segment, a uint64) int { return cmp.Compare(s.End, a) })
	if i == len(r.segments) {
		return nil, want
	}
	s := &r.segments[i]
	if addr < s.Start {
		return nil, int(min(uint64(want), s.Start-addr))
	}
	return s, int(min(uint64(want), s.End-addr+1))
}

// fill reads bytes that are in one segment. A large read that fails says
// nothing about which page was at fault, and the kernel gives no part of it:
// it is read again in steps, and a step that fails by pages.
func (r *kcoreReader) fill(ctx context.Context, gaps []evidence.Gap, lo, hi int, addr uint64, offset int64) ([]evidence.Gap, error) {
	if r.care > 0 && hi-lo > careStep {
		return r.split(ctx, gaps, lo, hi, addr, offset, careStep)
	}
	err := r.file.readAt(ctx, lo, hi, offset)
	hung := errors.Is(err, errHung)
	switch {
	case err == nil:
		return gaps, nil
	case fatal(ctx, err):
		return nil, fmt.Errorf("cannot read %s: %w", kcorePath, err)
	case hung:
		r.hangs, r.care = r.hangs+1, MaxRead
	}
	switch {
	case hi-lo > careStep:
		return r.split(ctx, gaps, lo, hi, addr, offset, careStep)
	case hung:
		return r.lose(gaps, lo, hi, addr, evidence.TimedOut, ""), nil
	case addr%pageSize+uint64(hi-lo) > pageSize: // more than one
		return r.split(ctx, gaps, lo, hi, addr, offset, pageSize)
	}
	return r.lose(gaps, lo, hi, addr, evidence.ReadError, errnoName(err)), nil
}

// split fills in steps, each of which ends at a multiple of its size.
func (r *kcoreReader) split(ctx context.Context, gaps []evidence.Gap, lo, hi int, addr uint64, offset int64, step int) ([]evidence.Gap, error) {
	for lo < hi {
		if r.hangs >= maxHangs {
			return r.lose(gaps, lo, hi, addr, evidence.TimedOut, ""), nil
		}
		n := min(hi-lo, step-int(addr%uint64(step)))
		var err error
		if gaps, err = r.fill(ctx, gaps, lo, lo+n, addr, offset); err != nil {
			return nil, err
		}
		lo, addr, offset = lo+n, addr+uint64(n), offset+int64(n)
	}
	return gaps, nil
}

// lose notes that the buffer has nothing of memory from lo to hi.
func (r *kcoreReader) lose(gaps []evidence.Gap, lo, hi int, addr uint64, reason evidence.Reason, errno string) []evidence.Gap {
	clear(r.file.buffer()[lo:hi])
	return add(gaps, addr, hi-lo, reason, errno)
}

// fatal tells an error of the whole reader from one of a page.
func fatal(ctx context.Context, err error) bool {
	return ctx.Err() != nil || errors.Is(err, os.ErrClosed) || errors.Is(err, os.ErrInvalid) || errors.Is(err, errTooManyHung) || errors.Is(err, errLost)
}

// add appends a gap, or lengthens the last one.
func add(gaps []evidence.Gap, addr uint64, n int, reason evidence.Reason, errno string) []evidence.Gap {
	end := addr + uint64(n) - 1
	if i := len(gaps) - 1; i >= 0 && gaps[i].Range.End+1 == addr && gaps[i].Reason == reason && gaps[i].Errno == errno {
		gaps[i].Range.End = end
		return gaps
	}
	return append(gaps, evidence.Gap{Range: lime.Range{Start: addr, End: end}, Reason: reason, Errno: errno})
}

func errnoName(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return unix.ErrnoName(errno)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "EOF"
	}
	return ""
}
