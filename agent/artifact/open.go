package artifact

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// readFlags open a file for reading so that neither a FIFO, a lease nor a
// terminal holds the caller up.
const readFlags = unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC

var errNotRegular = errors.New("not a regular file")

// openAt opens for reading without changing the access time where that is
// allowed, which is to the file's owner and to CAP_FOWNER.
func openAt(dir int, name string, flags int) (int, error) {
	fd, err := unix.Openat(dir, name, readFlags|unix.O_NOATIME|flags, 0)
	if err == unix.EPERM {
		fd, err = unix.Openat(dir, name, readFlags|flags, 0)
	}
	return fd, err
}

// openRegular opens a regular file, links followed.
func openRegular(path string) (*os.File, error) {
	fd, err := openAt(unix.AT_FDCWD, path, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return nil, fmt.Errorf("cannot read %s: %w", path, errNotRegular)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// readSmall reads at most limit bytes of a regular file.
func readSmall(path string, limit int) ([]byte, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, int64(limit)))
}
