package artifact

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// Bounds of what is read of descriptors.
const (
	maxOwners      = 64      // owners of a socket in its row
	maxHolds       = 1 << 20 // owners of all sockets, some 32 MiB
	maxScan        = 1 << 20 // descriptors of a process that are looked through for sockets
	maxDescriptors = 4096    // descriptors of a process that get a row
)

// OpenFile is a row of the table open_files: a descriptor of a process.
type OpenFile struct {
	PID     int    `json:"pid"`
	FD      int    `json:"fd"`
	Target  Text   `json:"target"`            // a path, or socket:[N], pipe:[N], anon_inode:…
	Deleted bool   `json:"deleted,omitempty"` // the kernel's name for it ends so; memfds do too
	Flags   string `json:"flags,omitempty"`   // of open(2), in octal
	Pos     int64  `json:"pos,omitempty"`     // the file offset
}

// eachFD gives each descriptor of each process to do, with the target of its
// link, at most limit of a process.
func (h *Host) eachFD(s *sheet, limit int, do func(dir procDir, pid, fd int, target string) error) error {
	pids, err := h.pids()
	if err != nil {
		s.failed("/proc", err)
		return nil
	}
	for _, pid := range pids {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		if err := h.eachFDOf(s, pid, limit, do); err != nil {
			return err
		}
	}
	return nil
}

func (h *Host) eachFDOf(s *sheet, pid, limit int, do func(dir procDir, pid, fd int, target string) error) error {
	shown := fmt.Sprintf("/proc/%d/fd", pid)
	dir, err := h.openProc(strconv.Itoa(pid))
	if err != nil {
		s.failed(shown, err)
		return nil
	}
	defer dir.close()
	var stop error    // do's, which ends the table, unlike a fault of this process
	var refused error // the first link's that could not be read
	var count int     // of such links
	more, err := dir.readNames("fd", limit, func(name string) error {
		fd, err := strconv.Atoi(name)
		if err != nil {
			return nil
		}
		target, err := dir.link("fd/" + name)
		if err != nil {
			if !gone(err) { // descriptors come and go
				refused = cmp.Or(refused, err)
				count++
			}
			return nil
		}
		stop = do(dir, pid, fd, target)
		return stop
	})
	if stop != nil {
		return stop
	}
	if count > 0 {
		s.failed(shown, fmt.Errorf("cannot read %d descriptors: %w", count, refused))
	}
	if err != nil {
		s.failed(shown, err)
	}
	if more {
		s.note(shown, NoteCut, fmt.Sprintf("more than %d descriptors", limit))
	}
	return nil
}

// socketOwners finds who holds each socket, by inode. An inode names a
// socket in the whole system, whatever its network namespace.
func (h *Host) socketOwners(s *sheet) (map[uint64][]SocketOwner, error) {
	owners := map[uint64][]SocketOwner{}
	holds := 0
	err := h.eachFD(s, maxScan, func(_ procDir, pid, fd int, target string) error {
		if err := s.ctx.Err(); err != nil || !strings.HasPrefix(target, "socket:[") {
			return err
		}
		inode, err := parseTag(target, "socket")
		if err != nil || holds >= maxHolds || len(owners[inode]) > maxOwners {
			return nil
		}
		if holds++; holds == maxHolds {
			s.note("/proc/*/fd", NoteCut, fmt.Sprintf("owners of sockets beyond %d", maxHolds))
		}
		owners[inode] = append(owners[inode], SocketOwner{pid, fd})
		return nil
	})
	return owners, err
}

// fillOpenFiles writes the table open_files.
func fillOpenFiles(h *Host, s *sheet) error {
	var buf []byte
	return h.eachFD(s, maxDescriptors, func(dir procDir, pid, fd int, target string) error {
		row := OpenFile{PID: pid, FD: fd, Target: Text(target), Deleted: strings.HasSuffix(target, deletedMark)}
		data, _, err := dir.read("fdinfo/"+strconv.Itoa(fd), buf, maxPath)
		if err == nil {
			buf = data
			row.Pos, row.Flags = parseFDInfo(data)
		} else if !gone(err) {
			s.failed(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd), err)
		}
		return s.put(row)
	})
}

// parseFDInfo reads the first lines of /proc/PID/fdinfo/FD.
// Source: linux/fs/proc/fd.c, seq_show.
func parseFDInfo(data []byte) (pos int64, flags string) {
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch key {
		case "pos":
			pos, _ = strconv.ParseInt(value, 10, 64)
		case "flags":
			if len(value) <= 16 && strings.Trim(value, "01234567") == "" {
				return pos, value
			}
		}
	}
	return pos, ""
}
