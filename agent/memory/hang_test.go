package memory

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

// hanging blocks reads that touch one of its pages until it is released.
type hanging struct {
	badPages
	pages   []int64
	release chan struct{}
	closed  atomic.Int32
}

func (f *hanging) ReadAt(p []byte, off int64) (int, error) {
	for _, page := range f.pages {
		if page < off+int64(len(p)) && page+pageSize > off {
			<-f.release
			return 0, io.ErrClosedPipe
		}
	}
	return f.badPages.ReadAt(p, off)
}

func (f *hanging) Close() error { f.closed.Add(1); return nil }

func timedOut(start, end uint64) evidence.Gap {
	return evidence.Gap{Range: lime.Range{Start: start, End: end}, Reason: evidence.TimedOut}
}

// TestAReadThatHangsIsGivenUp, as on Xen hosts: RAM that the hypervisor has not
// backed takes up to 22 seconds for each page.
func TestAReadThatHangsIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &hanging{pages: []int64{0x2000}, release: make(chan struct{})}
		defer close(f.release)
		r := reader(t, f)
		defer r.Close()
		_, gaps, err := r.ReadPhys(t.Context(), 0x102000, 2*pageSize)
		if err != nil || !slices.Equal(gaps, []evidence.Gap{timedOut(0x102000, 0x103fff)}) {
			t.Fatalf("gaps %v, error %v", gaps, err)
		}
		if p, gaps, err := r.ReadPhys(t.Context(), 0x104000, 2*pageSize); err != nil || gaps != nil || p[0] != 7 {
			t.Errorf("the read after it: gaps %v, error %v", gaps, err)
		}
		for range maxHung {
			_, _, err = r.ReadPhys(t.Context(), 0x102000, 2*pageSize)
		}
		if !errors.Is(err, errTooManyHung) {
			t.Errorf("reads hang without bound: %v", err)
		}
	})
}

// TestWhatAHangCosts: the step with the page that hangs, and where several
// steps hang, what is left of the read; never more time than maxHangs limits.
func TestWhatAHangCosts(t *testing.T) {
	for _, tt := range []struct {
		name  string
		pages []int64
		want  []evidence.Gap
		hangs int
	}{
		{"one page", []int64{0x45000}, []evidence.Gap{timedOut(0x140000, 0x14ffff)}, 2},
		{"the last page", []int64{0xff000}, []evidence.Gap{timedOut(0x1f0000, 0x1fffff)}, 2},
		{"two pages of one step", []int64{0x45000, 0x46000}, []evidence.Gap{timedOut(0x140000, 0x14ffff)}, 2},
		{"two steps", []int64{0x45000, 0x85000}, []evidence.Gap{timedOut(0x140000, 0x14ffff), timedOut(0x180000, 0x1fffff)}, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &hanging{pages: tt.pages, release: make(chan struct{})}
				defer close(f.release)
				r := reader(t, f)
				defer r.Close()
				began := time.Now()
				p, gaps, err := r.ReadPhys(t.Context(), 0x100000, 1<<20)
				if err != nil || !slices.Equal(gaps, tt.want) {
					t.Fatalf("gaps %v, error %v; want %v", gaps, err, tt.want)
				}
				if took := time.Since(began); took != time.Duration(tt.hangs)*readLimit {
					t.Errorf("it took %v, want %d limits", took, tt.hangs)
				}
				for i, b := range p {
					if real := !inGaps(gaps, 0x100000+uint64(i)); real && b != 7 || !real && b != 0 {
						t.Fatalf("byte %#x is %d", i, b)
					}
				}
			})
		})
	}
}

func inGaps(gaps []evidence.Gap, addr uint64) bool {
	return slices.ContainsFunc(gaps, func(g evidence.Gap) bool { return g.Range.Start <= addr && addr <= g.Range.End })
}

// TestCareAfterAHang: memory after a hang is read in steps, until a MiB of it
// went well.
func TestCareAfterAHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &lengths{}
		slow := &hanging{pages: []int64{0x2000}, release: make(chan struct{})}
		defer close(slow.release)
		files := []handle{slow, f, f}
		file, err := newPatient(func() (handle, error) {
			next := files[0]
			files = files[1:]
			return next, nil
		}, Options{}.alloc, readLimit)
		if err != nil {
			t.Fatal(err)
		}
		r := &kcoreReader{segments: []segment{{lime.Range{Start: 0, End: 8<<20 - 1}, 0}}, file: file}
		defer r.Close()
		for _, want := range []int{careStep, careStep, MaxRead} { // again, after it, and from then on
			f.longest = 0
			if _, gaps, err := r.ReadPhys(t.Context(), 0, MaxRead); err != nil || gaps != nil || f.longest != want {
				t.Errorf("longest read %d, want %d; gaps %v, error %v", f.longest, want, gaps, err)
			}
		}
	})
}

// TestAHangKeepsItsBuffer: the kernel may yet write into it, so it goes back
// only when the read returns, and bytes that were read before are not lost.
func TestAHangKeepsItsBuffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var given, back int
		alloc := func() ([]byte, func()) {
			given++
			return make([]byte, MaxRead), func() { back++ }
		}
		f := &hanging{pages: []int64{0x3000}, release: make(chan struct{})}
		file, err := newPatient(func() (handle, error) { return f, nil }, alloc, readLimit)
		if err != nil {
			t.Fatal(err)
		}
		half := int64(0x2000) // in the file, what lies before it elsewhere
		r := &kcoreReader{segments: []segment{{lime.Range{Start: 0, End: 0x1fff}, 0}, {lime.Range{Start: 0x2000, End: 0x3fff}, half}}, file: file}
		p, gaps, err := r.ReadPhys(t.Context(), 0, 0x4000)
		if err != nil || !slices.Equal(gaps, []evidence.Gap{timedOut(0x2000, 0x3fff)}) || p[0] != 7 || p[0x1fff] != 7 || p[0x2000] != 0 {
			t.Errorf("gaps %v, error %v", gaps, err)
		}
		r.Close()
		synctest.Wait()
		if given != 2 || back != 1 || f.closed.Load() != 1 {
			t.Errorf("%d buffers given, %d back, %d handles closed", given, back, f.closed.Load())
		}
		close(f.release)
		synctest.Wait()
		if back != 2 || f.closed.Load() != 2 {
			t.Errorf("after it returned: %d buffers back, %d handles closed", back, f.closed.Load())
		}
	})
}

// TestAHangWithoutAnotherHandle ends the reader, with an error.
func TestAHangWithoutAnotherHandle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &hanging{pages: []int64{0}, release: make(chan struct{})}
		defer close(f.release)
		first := true
		file, err := newPatient(func() (handle, error) {
			if !first {
				return nil, unix.EMFILE
			}
			first = false
			return f, nil
		}, Options{}.alloc, readLimit)
		if err != nil {
			t.Fatal(err)
		}
		r := &kcoreReader{segments: []segment{{lime.Range{Start: 0, End: 0xffff}, 0}}, file: file}
		defer r.Close()
		for range 2 {
			if _, _, err := r.ReadPhys(t.Context(), 0, 100); !errors.Is(err, errLost) {
				t.Errorf("error %v", err)
			}
		}
	})
}

func TestAReaderWithoutABuffer(t *testing.T) {
	f := &hanging{}
	none := func() ([]byte, func()) { return nil, func() {} }
	if _, err := newPatient(func() (handle, error) { return f, nil }, none, readLimit); err == nil || f.closed.Load() != 1 {
		t.Errorf("error %v, %d handles closed", err, f.closed.Load())
	}
}

func TestACancelledReadEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &hanging{pages: []int64{0x2000}, release: make(chan struct{})}
		defer close(f.release)
		r := reader(t, f)
		defer r.Close()
		r.file.limit = time.Hour
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if _, _, err := r.ReadPhys(ctx, 0x102000, pageSize); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
	})
}

// TestReadsThatEndedDoNotCountAsHanging: what hung and has returned does not
// stand in the way of the next.
func TestReadsThatEndedDoNotCountAsHanging(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &hanging{pages: []int64{0x2000}, release: make(chan struct{})}
		r := reader(t, f)
		defer r.Close()
		for i := range 2 * maxHung {
			if _, gaps, err := r.ReadPhys(t.Context(), 0x102000, pageSize); err != nil || len(gaps) != 1 {
				t.Fatalf("read %d: gaps %v, error %v", i, gaps, err)
			}
			f.release <- struct{}{}
			synctest.Wait()
		}
	})
}

// lengths notes the longest read.
type lengths struct {
	badPages
	longest int
}

func (f *lengths) ReadAt(p []byte, off int64) (int, error) {
	f.longest = max(f.longest, len(p))
	return f.badPages.ReadAt(p, off)
}

// TestReadsAreBounded: older kernels do not yield the processor during one.
func TestReadsAreBounded(t *testing.T) {
	r := reader(t, &badPages{})
	defer r.Close()
	for _, n := range []int{-1, MaxRead + 1} {
		if _, _, err := r.ReadPhys(t.Context(), 0x100000, n); err == nil {
			t.Errorf("%d bytes were read", n)
		}
	}
	if p, gaps, err := r.ReadPhys(t.Context(), 0x100000, 0); err != nil || len(p) != 0 || gaps != nil {
		t.Errorf("no bytes: %d, gaps %v, error %v", len(p), gaps, err)
	}
}

// TestAClosedReaderLeavesNothing waits for its goroutine.
func TestAClosedReaderLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // fails where a goroutine is left
		f := &hanging{}
		r := reader(t, f)
		if err := r.Close(); err != nil || f.closed.Load() != 1 {
			t.Errorf("error %v, %d handles closed", err, f.closed.Load())
		}
		if _, _, err := r.ReadPhys(t.Context(), 0x100000, 1); !errors.Is(err, errLost) && !errors.Is(err, os.ErrClosed) {
			t.Errorf("a closed reader reads: %v", err)
		}
	})
}
