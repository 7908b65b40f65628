package artifact

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of what is read of a process's mappings.
const (
	readWait       = 5 * time.Second // for one read of a file or of memory
	maxRegions     = 64 << 10        // vm.max_map_count is 65,530 unless someone raised it
	maxRegionsText = 16 << 20        // of /proc/PID/maps, in bytes
)

// region is a mapping of a process's memory: a line of /proc/PID/maps.
type region struct {
	start, end uint64
	perms      string // such as rw-p
	offset     uint64 // in the file
	dev        string // major:minor in hex, 00:00 where there is no file
	inode      uint64
	name       string // a path, [heap], [stack], …, or nothing; newlines are \012
}

func (r region) size() uint64     { return r.end - r.start }
func (r region) readable() bool   { return r.perms[0] == 'r' }
func (r region) writable() bool   { return r.perms[1] == 'w' }
func (r region) executable() bool { return r.perms[2] == 'x' }

// parseRegion reads a line of /proc/PID/maps.
// Source: linux/fs/proc/task_mmu.c, show_map_vma.
func parseRegion(line string) (r region, ok bool) {
	var f [5]string
	rest := line
	for i := range f {
		f[i], rest, _ = strings.Cut(strings.TrimLeft(rest, " "), " ")
	}
	from, to, _ := strings.Cut(f[0], "-")
	var errs [4]error
	r.start, errs[0] = strconv.ParseUint(from, 16, 64)
	r.end, errs[1] = strconv.ParseUint(to, 16, 64)
	r.offset, errs[2] = strconv.ParseUint(f[2], 16, 64)
	r.inode, errs[3] = strconv.ParseUint(f[4], 10, 64)
	for _, err := range errs {
		if err != nil {
			return region{}, false
		}
	}
	if r.end <= r.start || len(f[1]) != 4 || len(f[3]) < 3 {
		return region{}, false
	}
	r.perms, r.dev, r.name = f[1], f[3], strings.TrimLeft(rest, " ")
	return r, true
}

// regions lists a process's mappings, ascending, and tells whether there were
// more. To ask can hang for as long as the process lets a page fault of its
// own hang, so it is done patiently.
func (h *Host) regions(ctx context.Context, dir procDir) (all []region, more bool, err error) {
	if h.hung.Load() >= maxHung {
		return nil, false, fmt.Errorf("cannot list mappings: %w", errTooHung)
	}
	own, err := dir.dup()
	if err != nil {
		return nil, false, fmt.Errorf("cannot list mappings: %w", err)
	}
	type answer struct {
		all  []region
		more bool
		err  error
	}
	got, err := patiently(ctx, h, memoryWait, func(context.Context) (a answer) {
		defer own.close()
		var data []byte
		if data, a.more, a.err = own.read("maps", nil, maxRegionsText); a.err != nil {
			return a
		}
		for line := range strings.Lines(string(data)) {
			if len(a.all) == maxRegions {
				a.more = true
				break
			}
			if r, ok := parseRegion(strings.TrimSuffix(line, "\n")); ok {
				a.all = append(a.all, r)
			}
		}
		return a
	})
	if err != nil {
		return nil, false, fmt.Errorf("cannot list mappings: %w", err)
	}
	return got.all, got.more, got.err
}

// patientFile reads a file that may hang. Each read happens on a handle of its
// own, so that one that was given up does not keep the others from ending.
type patientFile struct {
	h  *Host
	fd int
}

// readAt reads into buf and tells how much. After an error that says that the
// read was given up, buf is lost to it.
func (f patientFile) readAt(ctx context.Context, buf []byte, at int64) (int, error) {
	n, err := f.do(ctx, func(fd int) (int64, error) {
		n, err := unix.Pread(fd, buf, at)
		return int64(max(n, 0)), err
	})
	return int(n), err
}

// dataAfter gives where the first byte from at on lies that is not in a hole,
// or ENXIO where there is none.
func (f patientFile) dataAfter(ctx context.Context, at int64) (int64, error) {
	return f.do(ctx, func(fd int) (int64, error) { return unix.Seek(fd, at, unix.SEEK_DATA) })
}

func (f patientFile) do(ctx context.Context, call func(fd int) (int64, error)) (int64, error) {
	if f.h.hung.Load() >= maxHung {
		return 0, errTooHung
	}
	own, err := unix.FcntlInt(uintptr(f.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	type answer struct {
		n   int64
		err error
	}
	got, err := patiently(ctx, f.h, readWait, func(context.Context) (a answer) {
		defer unix.Close(own)
		for {
			if a.n, a.err = call(own); a.err != unix.EINTR {
				return a
			}
		}
	})
	if err != nil {
		return 0, err
	}
	return got.n, got.err
}

// close lets go of the file, in the background, as a file system that a user
// serves may make that hang too.
func (f patientFile) close(ctx context.Context) {
	_, _ = patiently(ctx, f.h, readWait, func(context.Context) error { return unix.Close(f.fd) })
}
