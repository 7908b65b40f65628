// Package arena gives buffers that the kernel never writes to a disk.
//
// Evidence passes through them: it must not reach the host's swap, nor a core
// file. They lie outside of Go's heap, so the collector of garbage neither
// counts nor keeps them, and what a capture takes is what it was given.
package arena

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Arena is the buffers of one capture. It may be used by many goroutines.
type Arena struct {
	taken    atomic.Int64
	unlocked atomic.Pointer[error] // why the first buffer that is not locked is not
}

// Alloc gives n bytes, all zero, and what gives them back: call it once, when
// nobody reads or writes them any more. Memory is taken from the host page by
// page, as it is first written to. Where the kernel will not lock a buffer it
// is given all the same, and Unlocked says why.
func (a *Arena) Alloc(n int) (b []byte, free func(), err error) {
	size := (n + os.Getpagesize() - 1) &^ (os.Getpagesize() - 1)
	all, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot take a buffer of %d bytes: %w", n, err)
	}
	if err := lock(all); err != nil {
		err = fmt.Errorf("cannot lock %d bytes in memory: %w; allow CAP_IPC_LOCK, or raise RLIMIT_MEMLOCK", size, err)
		a.unlocked.CompareAndSwap(nil, &err)
	}
	_ = unix.Madvise(all, unix.MADV_DONTDUMP) // Linux before 3.4 has no such advice
	a.taken.Add(int64(size))
	return all[:n:n], func() {
		a.taken.Add(-int64(size))
		_ = unix.Munmap(all) // it unlocks, too; what was mapped can be unmapped
	}, nil
}

// Taken is how many bytes are given out now.
func (a *Arena) Taken() int64 { return a.taken.Load() }

// Unlocked says why a buffer could not be locked, nil where all of them are.
func (a *Arena) Unlocked() error {
	if err := a.unlocked.Load(); err != nil {
		return *err
	}
	return nil
}

// lock keeps pages in memory from when they are first written to; on kernels
// before 4.4, which cannot do that, from now on. Source: mlock(2).
func lock(b []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_MLOCK2, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MLOCK_ONFAULT) // golang.org/x/sys/unix does not wrap it
	if errno == 0 {
		return nil
	}
	if errors.Is(errno, unix.ENOSYS) || errors.Is(errno, unix.EINVAL) {
		return unix.Mlock(b)
	}
	return errno
}
