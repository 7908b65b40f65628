package artifact

import (
	"bytes"
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// Bounds of what is read of descriptors.
const (
	maxScan        = 1 << 20 // descriptors of a process that are looked through for what they hold
	maxDescriptors = 4096    // descriptors of a process that get a row
	maxOpenFiles   = 2 << 20 // and of all
	maxLocks       = 8       // locks in a descriptor's row
)

// OpenFile is a row of the table open_files: a descriptor of a process.
type OpenFile struct {
	PID     int    `json:"pid"`
	FD      int    `json:"fd"`
	Target  Text   `json:"target"`            // a path, or socket:[N], pipe:[N], anon_inode:…
	Deleted bool   `json:"deleted,omitempty"` // the kernel's name for it ends so; memfds do too
	Memfd   bool   `json:"memfd,omitempty"`   // a file of memfd_create(2)
	Flags   string `json:"flags,omitempty"`   // of open(2), in octal
	Pos     int64  `json:"pos"`               // the file offset
	FDInfo
}

// FDInfo is what /proc/PID/fdinfo/FD says beyond the offset and the flags.
// Source: linux/fs/proc/fd.c, seq_show, and each show_fdinfo.
type FDInfo struct {
	MountID int    `json:"mount_id,omitempty"` // as in the table mounts
	Inode   uint64 `json:"inode,omitempty"`    // from Linux 5.14 on
	Locks   []Text `json:"locks,omitempty"`    // file locks held through it, 8 at most
	// What an anon_inode stands for: a process, by number; a BPF program, map
	// or link, by the kernel's number for it.
	PIDFD   int    `json:"pidfd,omitempty"`
	BPFProg uint32 `json:"bpf_prog,omitempty"`
	BPFMap  uint32 `json:"bpf_map,omitempty"`
	BPFLink uint32 `json:"bpf_link,omitempty"`
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

// fillOpenFiles writes the table open_files.
func fillOpenFiles(h *Host, s *sheet) error {
	var buf []byte
	rows := 0
	return h.eachFD(s, maxDescriptors, func(dir procDir, pid, fd int, target string) error {
		if rows++; rows > maxOpenFiles {
			if rows == maxOpenFiles+1 {
				s.note("/proc/*/fd", NoteCut, fmt.Sprintf("descriptors beyond %d, from process %d on", maxOpenFiles, pid))
			}
			return s.ctx.Err()
		}
		row := OpenFile{PID: pid, FD: fd, Target: Text(target), Deleted: strings.HasSuffix(target, deletedMark), Memfd: isMemfd(target)}
		data, _, err := dir.read("fdinfo/"+strconv.Itoa(fd), buf, maxPath)
		if err == nil {
			buf = data
			parseFDInfo(data, &row)
		} else if !gone(err) {
			s.failed(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd), err)
		}
		return s.put(&row)
	})
}

// parseFDInfo reads /proc/PID/fdinfo/FD into row. A line of no known key, or
// without the expected form, is left out.
func parseFDInfo(data []byte, row *OpenFile) {
	for line := range bytes.Lines(data) {
		k, v, _ := bytes.Cut(line, []byte(":"))
		value := string(bytes.TrimSpace(v))
		switch string(k) {
		case "pos":
			row.Pos, _ = strconv.ParseInt(value, 10, 64)
		case "flags":
			if len(value) <= 16 && strings.Trim(value, "01234567") == "" {
				row.Flags = value
			}
		case "mnt_id":
			setInt(&row.MountID, value)
		case "ino":
			row.Inode, _ = strconv.ParseUint(value, 10, 64)
		case "lock":
			if len(row.Locks) < maxLocks {
				row.Locks = append(row.Locks, clip(value, maxWord))
			}
		case "Pid":
			setInt(&row.PIDFD, value)
		case "prog_id":
			setID(&row.BPFProg, value)
		case "map_id":
			setID(&row.BPFMap, value)
		case "link_id":
			setID(&row.BPFLink, value)
		}
	}
}

func setID(field *uint32, value string) {
	if n, err := strconv.ParseUint(value, 10, 32); err == nil {
		*field = uint32(n)
	}
}
