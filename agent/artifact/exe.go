package artifact

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// deletedMark ends the kernel's name of a file that is no longer there.
// Source: linux/fs/d_path.c.
const deletedMark = " (deleted)"

// Executable is what a process runs. It is read through /proc/PID/exe, which
// is the file itself, also when its name is gone, lies in a container, or
// stands for another file by now.
type Executable struct {
	Exe        Text   `json:"exe,omitempty"` // the kernel's name for it, with its " (deleted)"
	ExeDeleted bool   `json:"exe_deleted"`
	ExeSize    int64  `json:"exe_size,omitempty"`
	ExeDevice  string `json:"exe_device,omitempty"` // major:minor
	ExeInode   uint64 `json:"exe_inode,omitempty"`
	ExeLinks   uint64 `json:"exe_links"`            // names that the file has; 0 is deleted everywhere
	ExeSHA256  string `json:"exe_sha256,omitempty"` // of the whole file, in hex
}

// maxExes bounds the executables whose hash is remembered.
const maxExes = 16 << 10

// exeHasher hashes executables, each once.
type exeHasher struct {
	h      *Host
	limits Limits
	known  map[exeKey]string
	left   int64 // bytes that may still be hashed
}

// exeKey says which file, in which state.
type exeKey struct {
	dev, inode uint64
	size       int64
	mtime      unix.Timespec
}

func newExeHasher(h *Host) *exeHasher {
	limits := h.Limits.filled()
	return &exeHasher{h: h, limits: limits, known: map[exeKey]string{}, left: limits.ExesBytes}
}

// readExe reads what p runs. It can hang on a file system that a user or a
// network serves, so it is done patiently.
func (r *processReader) readExe(dir procDir, p *Process) {
	target, err := dir.link("exe")
	if r.missed(p, "exe", err) {
		return
	}
	p.Exe = Text(target)
	name, marked := strings.CutSuffix(target, deletedMark)
	p.ExeDeleted = marked && name != ""
	own, err := dir.dup()
	if r.missed(p, "exe", err) {
		return
	}
	got, err := patiently(r.s.ctx, r.h, exeWait, func(ctx context.Context) exeRead {
		defer own.close()
		return r.exes.look(ctx, own, target)
	})
	if err == errTooHung { // it was not called
		own.close()
	}
	if err != nil {
		r.missed(p, "exe_sha256", err)
		// What the lost read may still touch is its own from now on.
		r.exes = newExeHasher(r.h)
		return
	}
	if got.stat != nil {
		p.ExeSize, p.ExeInode, p.ExeLinks = got.stat.Size, got.stat.Ino, uint64(got.stat.Nlink)
		p.ExeDevice = device(got.stat.Dev)
		p.ExeDeleted = marked && !got.named
	}
	p.ExeSHA256 = got.sum
	r.missed(p, "exe_sha256", got.err)
}

// exeRead is what was learnt of an executable.
type exeRead struct {
	stat  *unix.Stat_t
	named bool // a file of the very name exe gives, mark and all, is this file
	sum   string
	err   error
}

func (e *exeHasher) look(ctx context.Context, dir procDir, target string) (got exeRead) {
	fd, err := openAt(dir.fd, "exe", 0)
	if err != nil {
		got.err = fmt.Errorf("cannot open the executable: %w", err)
		return got
	}
	defer unix.Close(fd)
	var stat, other unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		got.err = fmt.Errorf("cannot stat the executable: %w", err)
		return got
	}
	got.stat = &stat
	err = unix.Lstat(e.h.path(target), &other)
	got.named = err == nil && other.Dev == stat.Dev && other.Ino == stat.Ino
	got.sum, got.err = e.sum(ctx, fd, &stat)
	return got
}

var errOverLimit = errors.New("over the limit")

// sum gives the file's SHA-256, in hex.
func (e *exeHasher) sum(ctx context.Context, fd int, stat *unix.Stat_t) (string, error) {
	key := exeKey{stat.Dev, stat.Ino, stat.Size, stat.Mtim}
	if sum, ok := e.known[key]; ok {
		return sum, nil
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFREG {
		return "", errNotRegular
	}
	if stat.Size > e.limits.ExeBytes || stat.Size > e.left {
		return "", fmt.Errorf("not hashed, %d bytes: %w", stat.Size, errOverLimit)
	}
	sum, err := hashFile(ctx, fd, stat.Size)
	if err != nil {
		return "", err
	}
	e.left -= stat.Size
	if len(e.known) < maxExes {
		e.known[key] = sum
	}
	return sum, nil
}

// hashFile hashes size bytes of a file; it is an error if there are fewer.
func hashFile(ctx context.Context, fd int, size int64) (string, error) {
	hash := sha256.New()
	buf := make([]byte, 256<<10)
	for at := int64(0); at < size; {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		n, err := unix.Pread(fd, buf[:min(int64(len(buf)), size-at)], at)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("cannot read the executable: %w", err)
		}
		if n == 0 {
			return "", fmt.Errorf("cannot read the executable: it shrank to %d of %d bytes", at, size)
		}
		hash.Write(buf[:n])
		at += int64(n)
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// device gives a device number as major:minor.
func device(dev uint64) string {
	return fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev))
}
