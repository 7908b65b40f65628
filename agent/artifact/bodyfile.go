package artifact

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Bounds of the walk for a bodyfile. Each reader holds a folder open for each
// level it is deep.
const (
	maxBodyReaders = 4
	bodyBuffer     = 64 << 10 // bytes of lines that a reader gathers
)

// BodyfileReaders is how many folders WriteBodyfile reads at a time.
func BodyfileReaders() int { return min(maxBodyReaders, runtime.GOMAXPROCS(0)) }

// WriteBodyfile writes a line for each name on the host's local file systems,
// those of other disks, of RAM and of containers' layers too:
//
//	MD5|name|inode|mode_as_string|UID|GID|size|atime|mtime|ctime|crtime
//
// which is the bodyfile of mactime 3.x. MD5 is 0, as nothing is read; times are
// seconds UTC with nanoseconds, 0 where not known; a link's name is followed by
// " -> " and its target. In names a backslash is \\, a bar \|, and what is
// no printable UTF-8 is \xNN for each byte. The order of lines is not fixed.
//
// Every folder is seen once: of several mounts of one file system the widest
// is walked, and overlays are not, as their layers are. Those of refusedTypes
// are not entered. What could not be read, and each limit that was reached, is
// recorded; an error means that w failed or ctx ended.
func (h *Host) WriteBodyfile(ctx context.Context, w io.Writer, rec *Record) error {
	root, err := unix.Open(h.path(), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot open the host's root %s: %w", h.path(), err)
	}
	defer unix.Close(root)
	b := &bodyWalk{rec: rec, w: w, hash: sha256.New(), limits: h.Limits.filled(), started: time.Now(), idle: make(chan struct{}, BodyfileReaders()-1)}
	s := newSheet(ctx, "bodyfile", io.Discard, rec)
	s.entry.Source = bodySource
	if b.points, err = bodyPoints(h, s); err != nil {
		return err
	}
	if err := b.walk(ctx, root); err != nil {
		return fmt.Errorf("cannot write the bodyfile: %w", err)
	}
	return nil
}

const bodySource = "bodyfile"

// bodyWalk is one walk. Its readers share it.
type bodyWalk struct {
	ctx     context.Context
	stop    context.CancelCauseFunc
	rec     *Record
	limits  Limits
	started time.Time
	points  mountPlan
	idle    chan struct{}  // holds a token for each reader beside the first
	readers sync.WaitGroup // those
	entries atomic.Int64
	gone    atomic.Int64 // names that vanished before they were looked at

	mu    sync.Mutex
	w     io.Writer // owned by mu, as are the rest
	hash  hash.Hash
	bytes int64
	rows  int64
}

var (
	errBodyEntries = errors.New("entries")
	errBodyTime    = errors.New("time")
)

// walk runs the readers, waits for them, and records the whole.
func (b *bodyWalk) walk(ctx context.Context, root int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, b.limits.BodyTime, errBodyTime)
	defer cancel()
	b.ctx, b.stop = context.WithCancelCause(ctx)
	defer b.stop(nil)
	b.first(root)
	b.readers.Wait()
	e := Entry{Source: bodySource, Rows: b.rows, Bytes: b.bytes, SHA256: hex.EncodeToString(b.hash.Sum(nil)), Started: b.started, Ended: time.Now()}
	if n := b.gone.Load(); n > 0 {
		e.Detail = Text(fmt.Sprintf("%d names vanished", n))
	}
	err := context.Cause(b.ctx)
	if err == errBodyEntries || err == errBodyTime {
		e.Note, e.Detail, err = NoteCut, Text(err.Error()), nil
	}
	if err != nil {
		e = e.failed(err)
	}
	b.rec.Add(e)
	return err
}

func (b *bodyWalk) first(root int) {
	defer idly()()
	r := &bodyReader{bodyWalk: b}
	defer r.flush()
	n, err := openNode(root, ".")
	if err != nil {
		r.failed("/", err)
		return
	}
	defer n.close()
	r.line("/", "", &n.stat)
	fd, err := n.openDir()
	if err != nil {
		r.failed("/", err)
		return
	}
	r.folder(fd, "/", &n.stat, 1)
}

// bodyReader reads folders in one goroutine.
type bodyReader struct {
	*bodyWalk
	lines bytes.Buffer
}

// folder writes the lines of what lies in a folder, whose handle it closes.
func (r *bodyReader) folder(fd int, at string, st *unix.Statx_t, depth int) {
	more, err := eachName(fd, at, maxBodyNames, func(name string) error {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		r.name(fd, name, path.Join(at, name), st, depth)
		return nil
	})
	if err != nil && r.ctx.Err() == nil {
		r.failed(at, err)
	}
	if more {
		r.note(at, NoteCut, fmt.Sprintf("more than %d names", maxBodyNames))
	}
}

// maxBodyNames bounds the names of one folder.
const maxBodyNames = 16 << 20

// name writes the line of one name, and enters it where it is a folder.
func (r *bodyReader) name(dir int, name, at string, parent *unix.Statx_t, depth int) {
	point, mounted := r.points[at]
	if mounted && point != "" {
		r.note(at, NoteFileSystem, point) // to look it up may already hang
		return
	}
	if r.entries.Add(1) > r.limits.BodyEntries {
		r.stop(errBodyEntries)
		return
	}
	var st unix.Statx_t
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT | unix.AT_STATX_DONT_SYNC
	if err := unix.Statx(dir, name, flags, statxMask, &st); err != nil {
		r.lost(at, err)
		return
	}
	target := ""
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		var err error
		if target, err = readLink(dir, name); err != nil {
			r.lost(at, err)
		}
	}
	r.line(at, target, &st)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return
	}
	if !mounted && strangeMount(&st, parent) {
		r.note(at, NoteFileSystem, "mounted since the walk began")
		return
	}
	if int64(depth) >= r.limits.BodyDepth {
		r.note(at, NoteCut, "depth")
		return
	}
	r.enter(dir, name, at, &st, depth+1)
}

// strangeMount reports whether a folder is the root of a mount that the plan
// does not know. A btrfs subvolume has a device of its own and is no mount.
func strangeMount(st, parent *unix.Statx_t) bool {
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
	}
	return st.Dev_major != parent.Dev_major || st.Dev_minor != parent.Dev_minor // before Linux 5.8
}

// enter reads a folder, in a goroutine of its own while a reader is free.
func (r *bodyReader) enter(dir int, name, at string, st *unix.Statx_t, depth int) {
	fd, err := openAt(dir, name, unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		r.lost(at, err)
		return
	}
	select {
	case r.idle <- struct{}{}:
		other := &bodyReader{bodyWalk: r.bodyWalk}
		stat := *st
		r.readers.Go(func() {
			defer func() { <-r.idle }()
			defer idly()()
			defer other.flush()
			other.folder(fd, at, &stat, depth)
		})
	default:
		r.folder(fd, at, st, depth)
	}
}

func (b *bodyWalk) lost(at string, err error) {
	if gone(err) {
		b.gone.Add(1)
		return
	}
	b.failed(at, err)
}

func (b *bodyWalk) failed(at string, err error) {
	now := time.Now()
	b.rec.Add(Entry{Source: bodySource, Path: clip(at, maxPath), Started: now, Ended: now}.failed(err))
}

func (b *bodyWalk) note(at, note, detail string) {
	now := time.Now()
	b.rec.Add(Entry{Source: bodySource, Path: clip(at, maxPath), Note: note, Detail: clip(detail, maxPath), Started: now, Ended: now})
}

func (r *bodyReader) line(at, target string, st *unix.Statx_t) {
	r.lines.Write(appendBodyLine(r.lines.AvailableBuffer(), at, target, st))
	if r.lines.Len() >= bodyBuffer {
		r.flush()
	}
}

// flush writes whole lines.
func (r *bodyReader) flush() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rows += int64(bytes.Count(r.lines.Bytes(), []byte("\n")))
	r.bytes += int64(r.lines.Len())
	r.hash.Write(r.lines.Bytes())
	if _, err := r.w.Write(r.lines.Bytes()); err != nil {
		r.stop(err)
	}
	r.lines.Reset()
}

// appendBodyLine writes a line of a bodyfile.
func appendBodyLine(b []byte, at, target string, st *unix.Statx_t) []byte {
	b = appendBodyName(append(b, "0|"...), at)
	if target != "" {
		b = appendBodyName(append(b, " -> "...), target)
	}
	b = strconv.AppendUint(append(b, '|'), st.Ino, 10)
	b = appendBodyMode(append(b, '|'), st.Mode)
	for _, n := range []uint64{uint64(st.Uid), uint64(st.Gid), st.Size} {
		b = strconv.AppendUint(append(b, '|'), n, 10)
	}
	birth := st.Btime
	if st.Mask&unix.STATX_BTIME == 0 {
		birth = unix.StatxTimestamp{}
	}
	for _, t := range []unix.StatxTimestamp{st.Atime, st.Mtime, st.Ctime, birth} {
		b = appendBodyTime(append(b, '|'), t)
	}
	return append(b, '\n')
}

// appendBodyTime writes seconds, with nanoseconds unless they are 0. The
// kernel's nanoseconds count forward also before 1970, a decimal's backward.
func appendBodyTime(b []byte, t unix.StatxTimestamp) []byte {
	sec, nsec := t.Sec, t.Nsec
	if sec < 0 && nsec > 0 {
		sec, nsec = sec+1, 1e9-nsec
		if sec == 0 {
			b = append(b, '-')
		}
	}
	b = strconv.AppendInt(b, sec, 10)
	if nsec > 0 {
		b = fmt.Appendf(b, ".%09d", nsec)
	}
	return b
}

// appendBodyMode writes a mode as The Sleuth Kit does: r/rrwxr-xr-x.
func appendBodyMode(b []byte, mode uint16) []byte {
	kind := byte('-')
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		kind = 'r'
	case unix.S_IFDIR:
		kind = 'd'
	case unix.S_IFLNK:
		kind = 'l'
	case unix.S_IFIFO:
		kind = 'p'
	case unix.S_IFSOCK:
		kind = 'h'
	case unix.S_IFCHR:
		kind = 'c'
	case unix.S_IFBLK:
		kind = 'b'
	}
	b = append(b, kind, '/', kind)
	for i := range 9 {
		bit := "rwxrwxrwx"[i]
		if mode&(0o400>>i) == 0 {
			bit = '-'
		}
		b = append(b, bit)
	}
	for i, special := range []struct {
		bit      uint16
		with, no byte
	}{{unix.S_ISUID, 's', 'S'}, {unix.S_ISGID, 's', 'S'}, {unix.S_ISVTX, 't', 'T'}} {
		at := len(b) - 7 + 3*i // the x of owner, group, others
		if mode&special.bit == 0 {
			continue
		}
		if b[at] == 'x' {
			b[at] = special.with
		} else {
			b[at] = special.no
		}
	}
	return b
}

// appendBodyName writes a name so that it stays within its line and field.
func appendBodyName(b []byte, name string) []byte {
	for i := 0; i < len(name); {
		c, size := utf8.DecodeRuneInString(name[i:])
		switch {
		case c == utf8.RuneError && size == 1, c < 0x20, c >= 0x7f && c < 0xa0, c == '\u2028', c == '\u2029':
			for _, each := range []byte(name[i : i+size]) {
				b = append(b, '\\', 'x', "0123456789abcdef"[each>>4], "0123456789abcdef"[each&15])
			}
		case c == '\\' || c == '|':
			b = append(b, '\\', byte(c))
		default:
			b = append(b, name[i:i+size]...)
		}
		i += size
	}
	return b
}

// readLink reads where the link dir/name points.
func readLink(dir int, name string) (string, error) {
	var buf [maxPath]byte
	n, err := unix.Readlinkat(dir, name, buf[:])
	if err != nil {
		return "", fmt.Errorf("cannot read link: %w", err)
	}
	return string(buf[:n]), nil
}
