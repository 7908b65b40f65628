package symbols

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"time"

	"golang.org/x/sys/unix"
)

// chunk is how much is read at a time, in bytes.
const chunk = 256 << 10

// patience is how long one read, or one opening, may take. Those of the
// kernel's own files return at once; /boot may lie on a file system of a
// hostile user.
const patience = 20 * time.Second

var errHung = errors.New("given up: it does not return")

// bundle is a tar that is being written. It holds one chunk at a time, and
// what is smaller than one.
type bundle struct {
	ctx   context.Context // of the whole stream
	host  Host
	tar   *tar.Writer
	limit int64 // bytes of one member
	index Index
	buf   []byte // of the read that runs; replaced where one was given up
}

// last is the file that was tried last.
func (b *bundle) last() *File { return &b.index.Files[len(b.index.Files)-1] }

// file takes one file of the host. The files of proc do not tell their
// length, and a tar wants it first, so it is read twice: to count, and to copy
// as much as was counted.
func (b *bundle) file(name, source string) error {
	f := File{Name: name, Source: source}
	err := b.copyFile(&f)
	if b.ctx.Err() != nil {
		return context.Cause(b.ctx)
	}
	b.index.Files = append(b.index.Files, f)
	return err
}

// copyFile fails where the tar does; why the source cannot be read is in f.
func (b *bundle) copyFile(f *File) error {
	size, err := b.count(f)
	if err != nil {
		f.failed(err)
		return nil
	}
	in, err := b.open(f.Source)
	if err != nil {
		f.failed(err)
		return nil
	}
	defer in.Close()
	if err := b.header(f.Name, size); err != nil {
		return err
	}
	sum, zeros := sha256.New(), &zeroes{}
	read, readErr, err := b.copy(io.MultiWriter(b.tar, sum, zeros), in, size)
	if err != nil {
		return err
	}
	if readErr != nil {
		f.failed(readErr)
	}
	f.Bytes, f.Padded, f.SHA256 = size, size-read, hex.EncodeToString(sum.Sum(nil))
	if f.Name == "kallsyms" && size > 0 && zeros.all() {
		f.Note = "every address is zero: they are hidden by kernel.kptr_restrict or for want of CAP_SYSLOG"
	}
	if f.Name == "iomem" && size > 0 && zeros.all() {
		f.Note = "every address is zero: they are hidden for want of CAP_SYS_ADMIN"
	}
	return nil
}

// count reads a file for its length, at most the limit.
func (b *bundle) count(f *File) (int64, error) {
	in, err := b.open(f.Source)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	var size int64
	for {
		n, err := b.read(in)
		size += int64(len(n))
		if size > b.limit {
			f.Cut = true
			return b.limit, nil
		}
		if errors.Is(err, io.EOF) {
			return size, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

// copy writes size bytes: what it can read, then zeros.
func (b *bundle) copy(w io.Writer, in *os.File, size int64) (read int64, readErr, err error) {
	for read < size && readErr == nil {
		var got []byte
		got, readErr = b.read(in)
		got = got[:min(int64(len(got)), size-read)]
		if _, err := w.Write(got); err != nil {
			return read, nil, err
		}
		read += int64(len(got))
	}
	if read == size || errors.Is(readErr, io.EOF) {
		readErr = nil
	}
	clear(b.buf)
	for at := read; at < size; {
		n, err := w.Write(b.buf[:min(int64(len(b.buf)), size-at)])
		if err != nil {
			return read, nil, err
		}
		at += int64(n)
	}
	return read, readErr, nil
}

// read gives the next bytes of a file, valid until its next call. A read
// that hangs is given up, and its goroutine left to end with it: at most one
// for each file, as nothing more is read of that one.
func (b *bundle) read(in *os.File) ([]byte, error) {
	buf := b.buf
	n, err := patiently(b.ctx, func() (int, error) { return in.Read(buf) })
	if errors.Is(err, errHung) {
		b.buf = make([]byte, chunk) // the old one belongs to the read
	}
	return buf[:n], err
}

// open opens a regular file of the host, so that neither a FIFO nor a lease
// holds it up.
func (b *bundle) open(source string) (*os.File, error) {
	at := b.host.path(source)
	return patiently(b.ctx, func() (*os.File, error) {
		fd, err := unix.Open(at, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: at, Err: err}
		}
		f := os.NewFile(uintptr(fd), at)
		if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
			return nil, errors.Join(fmt.Errorf("cannot read %s: not a regular file", at), err, f.Close())
		}
		return f, nil
	})
}

// patiently gives f up when it has not returned after a while.
func patiently[T any](ctx context.Context, f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := f()
		done <- result{value, err}
	}()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	var none T
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return none, errors.Join(errHung, context.Cause(ctx))
	case <-timer.C:
		return none, errHung
	}
}

// cpuinfo takes the first processor's paragraph, whose flags hold for all.
func (b *bundle) cpuinfo() error {
	f := File{Name: "cpuinfo", Source: "/proc/cpuinfo"}
	body, err := b.head(f.Source)
	if err != nil {
		f.failed(err)
	} else if first, _, found := bytes.Cut(body, []byte("\n\n")); found {
		body = append(first, '\n')
	}
	f.Cut = len(body) > cpuinfoBytes
	return b.taken(f, body[:min(len(body), cpuinfoBytes)])
}

// head gives the first chunk of a file.
func (b *bundle) head(source string) ([]byte, error) {
	in, err := b.open(source)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	var head []byte
	for len(head) < chunk {
		got, err := b.read(in)
		head = append(head, got[:min(len(got), chunk-len(head))]...)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	return head, nil
}

// taken writes a member that is at hand, unless its file failed.
func (b *bundle) taken(f File, body []byte) error {
	if f.Error == "" {
		if err := b.member(f.Name, body); err != nil {
			return err
		}
		sum := sha256.Sum256(body)
		f.Bytes, f.SHA256 = int64(len(body)), hex.EncodeToString(sum[:])
	}
	b.index.Files = append(b.index.Files, f)
	return nil
}

// moduleName is what a kernel module is called, and may become part of a
// member's name.
var moduleName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// modules takes the types of the loaded modules, which build on the
// kernel's.
func (b *bundle) modules() error {
	const dir = "/sys/kernel/btf"
	names, err := patiently(b.ctx, func() ([]string, error) {
		d, err := os.Open(b.host.path(dir))
		if err != nil {
			return nil, err
		}
		defer d.Close()
		names, err := d.Readdirnames(maxModules + 2)
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return names, err
	})
	all := File{Name: "btf", Source: dir}
	if err != nil {
		all.failed(err)
	}
	left := int64(modulesBytes)
	for _, name := range names {
		switch {
		case name == "vmlinux":
			continue
		case !moduleName.MatchString(name):
			all.Note = "a module's name cannot be part of a member's; it was left out"
			continue
		case left <= 0:
			all.Cut = true
			continue
		}
		b.limit = min(fileBytes, left)
		if err := b.file(path.Join("btf", name), path.Join(dir, name)); err != nil {
			return err
		}
		left -= b.last().Bytes
	}
	b.limit = fileBytes
	if all.Cut = all.Cut || len(names) > maxModules+1; all.Cut || all.Error != "" || all.Note != "" {
		b.index.Files = append(b.index.Files, all)
	}
	return nil
}

func (b *bundle) member(name string, body []byte) error {
	if err := b.header(name, int64(len(body))); err != nil {
		return err
	}
	_, err := b.tar.Write(body)
	return err
}

func (b *bundle) header(name string, size int64) error {
	return b.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o400, ModTime: b.index.Clock.After.Truncate(time.Second)})
}

// failed notes why a file could not be read.
func (f *File) failed(err error) {
	f.Error = err.Error()
	var errno unix.Errno
	if errors.As(err, &errno) {
		f.Errno = unix.ErrnoName(errno)
	}
}

// zeroes looks at the text that is written to it, and at the addresses that
// begin its lines: "0000 T name", "  0000-0000 : name".
type zeroes struct {
	began, past bool // the line's address has begun, and has ended
	seen        bool // a digit other than 0
}

func (z *zeroes) Write(p []byte) (int, error) {
	for _, c := range p {
		switch {
		case c == '\n':
			z.began, z.past = false, false
		case z.past || c == ' ' && !z.began:
		case c == '0' || c == '-':
			z.began = true
		case c >= '1' && c <= '9' || c >= 'a' && c <= 'f':
			z.began, z.seen = true, true
		default:
			z.past = true
		}
	}
	return len(p), nil
}

// all reports whether no address was anything but zero.
func (z *zeroes) all() bool { return !z.seen }
