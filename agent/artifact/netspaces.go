package artifact

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quicklime-ir/quicklime/agent/artifact/netlink"
)

// spacesLast is how long a list of network namespaces is good for the tables that
// follow: to look at each process for each of them would take as long as they do.
const spacesLast = 10 * time.Second

// netSpaces gives the network namespaces, on the running host as they were at
// most spacesLast ago.
func (h *Host) netSpaces(s *sheet) ([]namespace, error) {
	h.recent.Lock()
	spaces, at := h.recent.spaces, h.recent.spacesAt
	h.recent.Unlock()
	if h.running() && time.Since(at) < spacesLast {
		return spaces, s.ctx.Err()
	}
	spaces, err := h.listNetSpaces(s)
	if err == nil {
		h.recent.Lock()
		defer h.recent.Unlock()
		h.recent.spaces, h.recent.spacesAt = spaces, time.Now()
	}
	return spaces, err
}

// listNetSpaces lists the network namespaces: those that a process is in, and on
// the running host also those that are kept by a name in /run/netns, by another
// mount that the agent sees, or by a descriptor that the last walk came across.
// One that only a thread other than a process's first is in, or a socket, is
// not seen.
func (h *Host) listNetSpaces(s *sheet) ([]namespace, error) {
	all, err := h.namespaces(s, "net")
	if err != nil || !h.running() {
		return all, err
	}
	known := map[uint64]bool{}
	for _, ns := range all {
		known[ns.id] = true
	}
	add := func(id uint64, file string) {
		if id != 0 && !known[id] && len(all) < maxNamespaces {
			known[id] = true
			all = append(all, namespace{id: id, file: file})
		}
	}
	for _, name := range h.namedSpaces(s) {
		if f, err := openSpace(name); err == nil {
			add(fileInode(f), name)
			f.Close()
		}
	}
	err = s.lines(h.path("proc/self/mountinfo"), func(line []byte) error {
		if m := parseMount(line); m != nil && m.Type == "nsfs" {
			id, _ := parseTag(string(m.Root), "net")
			add(id, h.path(string(m.Point)))
		}
		return nil
	})
	if last := h.lastHolders(); last != nil {
		for _, id := range slices.Sorted(maps.Keys(last.nets)) {
			add(id, last.nets[id])
		}
	}
	return all, err
}

// namedSpaces lists the files of /run/netns, where ip-netns(8) keeps
// namespaces by name.
func (h *Host) namedSpaces(s *sheet) []string {
	place := h.path("run/netns")
	dir, err := os.Open(place)
	if err != nil {
		if !gone(err) {
			s.failed(place, err)
		}
		return nil
	}
	defer dir.Close()
	names, err := dir.Readdirnames(maxNetFiles)
	if err != nil && !errors.Is(err, io.EOF) {
		s.failed(place, err)
	}
	for i, name := range names {
		names[i] = filepath.Join(place, name)
	}
	slices.Sort(names)
	return names
}

// openSpace opens a file that holds a namespace. Whatever else has its place,
// a FIFO or a device, is not opened.
func openSpace(path string) (*os.File, error) {
	flags := unix.O_PATH | unix.O_CLOEXEC
	if !strings.HasPrefix(path, "/proc/") {
		flags |= unix.O_NOFOLLOW
	}
	at, err := unix.Open(path, flags, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(at)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(at, &fs); err != nil {
		return nil, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	if fs.Type != unix.NSFS_MAGIC {
		return nil, fmt.Errorf("cannot open %s: it is no namespace", path)
	}
	fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(at), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

func fileInode(f *os.File) uint64 {
	var stat unix.Stat_t
	if unix.Fstat(int(f.Fd()), &stat) != nil {
		return 0
	}
	return stat.Ino
}

// dial opens netlink in a network namespace: the agent's own without entering
// it, another through a process that is in it, or a file that holds it.
func (h *Host) dial(ns namespace, protocol int) (*netlink.Conn, error) {
	if own, err := h.namespaceOf("self", "net"); err == nil && own == ns.id {
		return netlink.Dial(protocol, nil)
	}
	files := []string{ns.file}
	if ns.file == "" {
		files = nil
		for _, pid := range ns.pids {
			files = append(files, h.path("proc", strconv.Itoa(pid), "ns/net"))
		}
	}
	err := error(unix.ESRCH) // until one says else
	for _, name := range files {
		var f *os.File
		if f, err = openSpace(name); err != nil {
			continue
		}
		if fileInode(f) != ns.id { // the process, or what holds it, is another now
			f.Close()
			err = unix.ESRCH
			continue
		}
		defer f.Close()
		return netlink.Dial(protocol, f)
	}
	return nil, fmt.Errorf("cannot reach network namespace %d: %w", ns.id, err)
}

// errWouldLoad says why the kernel is not asked.
var errWouldLoad = errors.New("the kernel has not loaded what would answer, and to ask would make it run modprobe")

// askable tells whether the part of the kernel that a module holds is there, so
// that a question to it loads none. A module that is built in need not show in
// /sys/module; then the kernel's own list of such is believed.
func (h *Host) askable(module string) bool {
	if _, err := os.Lstat(h.path("sys/module", module)); err == nil {
		return true
	}
	if _, err := os.Lstat(h.path("proc/modules")); gone(err) {
		return true // a kernel that loads no modules
	}
	disabled, err := readSmall(h.path("proc/sys/kernel/modules_disabled"), maxWord)
	if err == nil && strings.TrimSpace(string(disabled)) == "1" {
		return true
	}
	var name unix.Utsname
	if unix.Uname(&name) != nil {
		return false
	}
	const maxBuiltIn = 1 << 20
	list, err := readSmall(h.path("lib/modules", filepath.Base(unix.ByteSliceToString(name.Release[:])), "modules.builtin"), maxBuiltIn)
	return err == nil && strings.Contains(string(list), "/"+module+".ko\n")
}
