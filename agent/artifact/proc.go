package artifact

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ticksPerSecond is USER_HZ, in which /proc counts time on every architecture
// that EC2 has. Source: linux/include/asm-generic/param.h.
const ticksPerSecond = 100

// pids lists the processes of /proc, ascending.
func (h *Host) pids() ([]int, error) {
	dir, err := os.Open(h.path("proc"))
	if err != nil {
		return nil, fmt.Errorf("cannot list processes: %w", err)
	}
	defer dir.Close()
	var pids []int
	for {
		names, err := dir.Readdirnames(1024)
		for _, name := range names {
			if pid, err := strconv.Atoi(name); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		if err != nil {
			slices.Sort(pids)
			if err == io.EOF {
				err = nil
			}
			return pids, err
		}
	}
}

// procDir is the folder of one process in /proc. It stands for that process
// alone: once the process is gone every read fails, also when its number is
// given out again.
type procDir struct {
	fd   int
	path string
}

// openProc opens the folder of a process, by its number or as "self".
func (h *Host) openProc(name string) (procDir, error) {
	path := h.path("proc", name)
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return procDir{}, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return procDir{fd, path}, nil
}

func (d procDir) close() { unix.Close(d.fd) }

// dup gives a second handle on the same process.
func (d procDir) dup() (procDir, error) {
	fd, err := unix.FcntlInt(uintptr(d.fd), unix.F_DUPFD_CLOEXEC, 0)
	return procDir{fd, d.path}, err
}

// link reads a link, such as exe or ns/net.
func (d procDir) link(name string) (string, error) {
	var buf [maxPath]byte
	n, err := unix.Readlinkat(d.fd, name, buf[:])
	if err != nil {
		return "", &os.PathError{Op: "readlink", Path: filepath.Join(d.path, name), Err: err}
	}
	return string(buf[:n]), nil
}

// read reads at most limit bytes into buf, which it grows at need, and tells
// whether there was more.
func (d procDir) read(name string, buf []byte, limit int) (data []byte, more bool, err error) {
	fail := func(op string, err error) error {
		return &os.PathError{Op: op, Path: filepath.Join(d.path, name), Err: err}
	}
	fd, err := unix.Openat(d.fd, name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, false, fail("open", err)
	}
	defer unix.Close(fd)
	buf = buf[:0]
	for {
		if len(buf) > limit {
			return buf[:limit], true, nil
		}
		if len(buf) == cap(buf) {
			buf = slices.Grow(buf, max(4096, len(buf)))
		}
		n, err := unix.Read(fd, buf[len(buf):min(cap(buf), limit+1)])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return nil, false, fail("read", err)
		case n == 0:
			return buf, false, nil
		default:
			buf = buf[:len(buf)+n]
		}
	}
}

// readNames gives the names in the folder name to do, in the kernel's order,
// at most limit of them, and tells whether there were more.
func (d procDir) readNames(name string, limit int, do func(name string) error) (more bool, err error) {
	fd, err := unix.Openat(d.fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, &os.PathError{Op: "open", Path: filepath.Join(d.path, name), Err: err}
	}
	return eachName(fd, filepath.Join(d.path, name), limit, do)
}

// eachName gives the names in an open folder to do, and closes it.
func eachName(fd int, path string, limit int, do func(name string) error) (more bool, err error) {
	dir := os.NewFile(uintptr(fd), path)
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(512)
		for _, name := range names {
			if limit--; limit < 0 {
				return true, nil
			}
			if err := do(name); err != nil {
				return false, err
			}
		}
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
}

// namespace is one namespace of some kind, and processes that are in it.
type namespace struct {
	id   uint64
	pids []int  // at most witnesses of them, ascending
	file string // that holds it, where no process is in it
}

// witnesses is how many processes of a namespace are kept, as any of them may
// end before the namespace is read through it.
const witnesses = 8

// maxNamespaces bounds the namespaces of a kind that are read.
const maxNamespaces = 16 << 10

// namespaces lists the namespaces of a kind (net, mnt, …) that a process is
// in, that of the lowest process first. Without privilege those of this user
// alone can be asked, and the rest is recorded. A namespace that no process is
// in, kept by a mount or an open file, is not seen.
func (h *Host) namespaces(s *sheet, kind string) ([]namespace, error) {
	pids, err := h.pids()
	if err != nil {
		s.failed("/proc", err)
		return nil, nil
	}
	var all []namespace
	var refused int
	var why error
	at := map[uint64]int{}
	for _, pid := range pids {
		if err := s.ctx.Err(); err != nil {
			return nil, err
		}
		id, err := h.namespaceOf(strconv.Itoa(pid), kind)
		if err != nil {
			if !gone(err) {
				refused, why = refused+1, err
			}
			continue
		}
		i, known := at[id]
		if !known && len(all) == maxNamespaces {
			s.note("/proc/*/ns/"+kind, NoteCut, fmt.Sprintf("more than %d namespaces", maxNamespaces))
			break
		}
		if !known {
			i, at[id] = len(all), len(all)
			all = append(all, namespace{id: id})
		}
		if len(all[i].pids) < witnesses {
			all[i].pids = append(all[i].pids, pid)
		}
	}
	if refused > 0 {
		s.failed("/proc/*/ns/"+kind, fmt.Errorf("cannot tell the namespace of %d processes: %w", refused, why))
	}
	return all, nil
}
func (h *Host) namespaceOf(name, kind string) (uint64, error) {
	dir, err := h.openProc(name)
	if err != nil {
		return 0, err
	}
	defer dir.close()
	target, err := dir.link("ns/" + kind)
	if err != nil {
		return 0, err
	}
	return parseTag(target, kind)
}

// parseTag reads the number out of kind:[number], the target of a namespace's
// or a socket's link.
func parseTag(target, kind string) (uint64, error) {
	inner, ok := strings.CutPrefix(target, kind+":[")
	inner, closed := strings.CutSuffix(inner, "]")
	if ok && closed {
		if n, err := strconv.ParseUint(inner, 10, 64); err == nil {
			return n, nil
		}
	}
	return 0, fmt.Errorf("cannot read link target %.80q: want %s:[NUMBER]", target, kind)
}

// throughNamespace opens the file name of the first process of ns that is
// still there, and gives its lines to do.
func (h *Host) throughNamespace(s *sheet, ns namespace, name string, do func(line []byte) error) error {
	if len(ns.pids) == 0 {
		s.note("/proc/*/"+name, NoteNone, fmt.Sprintf("no process is in namespace %d, which %s holds", ns.id, ns.file))
		return nil
	}
	f, _, err := h.openThrough(ns, name)
	shown := fmt.Sprintf("/proc/%d/%s", ns.pids[0], name)
	switch {
	case gone(err):
		s.note(shown, NoteNone, "")
		return nil
	case err != nil:
		s.failed(shown, err)
		return nil
	}
	defer f.Close()
	return s.linesOf(shown, f, do)
}

// openThrough opens the file name of the first process of ns that is still
// there, and tells which one that is.
func (h *Host) openThrough(ns namespace, name string) (f *os.File, pid int, err error) {
	for _, pid = range ns.pids {
		f, err = openRegular(h.path("proc", strconv.Itoa(pid), name))
		if !gone(err) {
			break
		}
	}
	return f, pid, err
}

// booted tells when the host started, by its wall clock as it is now set and
// /proc/uptime.
func (h *Host) booted() (time.Time, error) {
	data, err := readSmall(h.path("proc/uptime"), maxWord)
	if err != nil {
		return time.Time{}, err
	}
	up, err := parseUptime(data)
	if err != nil {
		return time.Time{}, err
	}
	return time.Now().Add(-up), nil
}

// parseUptime reads /proc/uptime: seconds since boot, seconds idle.
func parseUptime(data []byte) (time.Duration, error) {
	first, _, _ := strings.Cut(string(data), " ")
	up, err := strconv.ParseFloat(strings.TrimSpace(first), 64)
	if err != nil || !(up >= 0 && up < 1e9) {
		return 0, fmt.Errorf("cannot read uptime %.40q: want seconds", data)
	}
	return time.Duration(up * float64(time.Second)), nil
}
