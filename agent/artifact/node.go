package artifact

import (
	"fmt"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"
)

// node is one file, folder, link or other thing, held by a handle that reads
// nothing and disturbs nothing (O_PATH). What is done with it is done through
// the handle, so it cannot be exchanged for another thing meanwhile.
type node struct {
	fd   int
	stat unix.Statx_t
}

const (
	pathFlags  = unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	statxFlags = unix.AT_EMPTY_PATH | unix.AT_NO_AUTOMOUNT | unix.AT_STATX_DONT_SYNC
	statxMask  = unix.STATX_BASIC_STATS | unix.STATX_BTIME
)

// openNode takes hold of name in the folder dir. A link is held itself, and
// never followed.
func openNode(dir int, name string) (*node, error) {
	fd, err := unix.Openat(dir, name, pathFlags, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return nodeOf(fd)
}

func nodeOf(fd int) (*node, error) {
	n := &node{fd: fd}
	if err := unix.Statx(fd, "", statxFlags, statxMask, &n.stat); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("cannot stat: %w", err)
	}
	return n, nil
}

// openBase takes hold of a folder below root by its path. Links on the way are
// followed, as administrators move /home and /var/log to other disks, but
// never out of root nor through /proc; linked says that there were any.
func openBase(root int, base string) (n *node, linked bool, err error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS,
	}
	fd, err := unix.Openat2(root, base, &how)
	if err == unix.ELOOP {
		linked = true
		how.Resolve = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS
		fd, err = unix.Openat2(root, base, &how)
	}
	if err == unix.ENOSYS || err == unix.EPERM {
		n, err = openBaseByStep(root, base)
		return n, false, err
	}
	if err != nil {
		return nil, linked, &os.PathError{Op: "open", Path: base, Err: err}
	}
	n, err = nodeOf(fd)
	return n, linked, err
}

// openBaseByStep does it on kernels before 5.6, which have no openat2. There
// links on the way are refused.
func openBaseByStep(root int, base string) (*node, error) {
	n, err := openNode(root, ".")
	for _, name := range splitPath(base) {
		if err != nil {
			return nil, err
		}
		next, e := openNode(n.fd, name)
		n.close()
		if e == nil && !next.is(unix.S_IFDIR) {
			next.close()
			e = &os.PathError{Op: "open", Path: base, Err: unix.ENOTDIR}
		}
		n, err = next, e
	}
	return n, err
}

// splitPath gives the elements of a path.
func splitPath(p string) []string {
	var out []string
	for p = path.Clean(p); p != "/" && p != "."; {
		dir, name := path.Split(p)
		out = append([]string{name}, out...)
		p = path.Clean(dir)
	}
	return out
}

func (n *node) close() { unix.Close(n.fd) }

func (n *node) is(kind uint16) bool { return n.stat.Mode&unix.S_IFMT == kind }

func (n *node) dev() uint64 { return unix.Mkdev(n.stat.Dev_major, n.stat.Dev_minor) }

// openDir opens the folder for listing.
func (n *node) openDir() (int, error) { return openAt(n.fd, ".", unix.O_DIRECTORY) }

// openFile opens the regular file for reading. As the handle cannot be read
// through, it is opened anew by its name in /proc/self/fd, which is this very
// file whatever its path stands for by now.
func (n *node) openFile() (int, error) {
	return openAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", n.fd), 0)
}

// target reads where a link points.
func (n *node) target() (string, error) {
	var buf [maxPath]byte
	size, err := unix.Readlinkat(n.fd, "", buf[:])
	if err != nil {
		return "", fmt.Errorf("cannot read link: %w", err)
	}
	return string(buf[:size]), nil
}

// id tells a file from every other, whatever its names.
func (n *node) id() [2]uint64 { return [2]uint64{n.dev(), n.stat.Ino} }

// holes reports whether the file takes less than its size on its disk.
func (n *node) holes() bool {
	const blockBytes = 512 // the unit of stx_blocks, whatever the file system's
	return n.stat.Size > n.stat.Blocks*blockBytes
}

// sparse reports whether the file is nearly all holes.
func (n *node) sparse() bool {
	const blockBytes = 512 // the unit of stx_blocks, whatever the file system's
	return n.stat.Size/16 > n.stat.Blocks*blockBytes
}

func timeOf(t unix.StatxTimestamp) time.Time { return time.Unix(t.Sec, int64(t.Nsec)).UTC() }

// describe tells a node's metadata, as stat does, in one line.
func (n *node) describe() string {
	st := &n.stat
	const layout = "2006-01-02T15:04:05.999999999Z07:00"
	return fmt.Sprintf("mode %06o uid %d gid %d size %d inode %d device %s atime %s mtime %s ctime %s", st.Mode, st.Uid, st.Gid, st.Size, st.Ino,
		device(n.dev()), timeOf(st.Atime).Format(layout), timeOf(st.Mtime).Format(layout), timeOf(st.Ctime).Format(layout))
}

// kindName names what a node is.
func (n *node) kindName() string {
	switch n.stat.Mode & unix.S_IFMT {
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFCHR:
		return "character device"
	case unix.S_IFBLK:
		return "block device"
	}
	return fmt.Sprintf("mode %o", n.stat.Mode)
}
