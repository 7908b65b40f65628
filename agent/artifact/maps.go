package artifact

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
)

// Bounds of the table maps.
const (
	maxMapsBytes = 1 << 20 // of /proc/PID/maps, some 10,000 lines
	maxMaps      = 2 << 20 // rows of all processes
)

// Map is a row of the table maps: a range of a process's memory.
// Source: linux/fs/proc/task_mmu.c, show_map_vma.
type Map struct {
	PID     int    `json:"pid"`
	Start   string `json:"start"` // first address, in hex
	End     string `json:"end"`   // the address after the last
	Perms   string `json:"perms"` // r, w, x, and p private or s shared
	Offset  uint64 `json:"offset,omitempty"`
	Device  string `json:"device,omitempty"` // major:minor, of the file
	Inode   uint64 `json:"inode,omitempty"`
	Path    Text   `json:"path,omitempty"` // the file, or a name as [heap] or [anon:…]; a newline in it stands as \012
	Deleted bool   `json:"deleted,omitempty"`
	Memfd   bool   `json:"memfd,omitempty"`
	// AnonExec says that it can be executed and no file stands behind it, but
	// not the kernel's own pages ([vdso], [vsyscall], …) either: what compilers
	// at run time and injected code have.
	AnonExec bool `json:"anon_exec,omitempty"`
	// WriteExec says that it can be written and executed, whatever is behind.
	WriteExec bool `json:"write_exec,omitempty"`
}

// fillMaps writes the table maps.
func fillMaps(h *Host, s *sheet) error {
	pids, err := h.pids()
	if err != nil {
		s.failed("/proc", err)
		return nil
	}
	r := &mapReader{h: h, s: s}
	for _, pid := range pids {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		if r.rows >= maxMaps {
			s.note("/proc/*/maps", NoteCut, fmt.Sprintf("ranges beyond %d, from process %d on", maxMaps, pid))
			return nil
		}
		if err := r.process(pid); err != nil {
			return err
		}
	}
	return nil
}

// mapReader reads the maps of one process after another.
type mapReader struct {
	h    *Host
	s    *sheet
	buf  []byte // nil after a read was given up
	rows int
}

// mapsRead is what was read of one process.
type mapsRead struct {
	data []byte
	more bool
	err  error
}

// process writes the maps of one process. Only what ends the table is an
// error. The read waits for the process's mm lock, so it is done patiently.
func (r *mapReader) process(pid int) error {
	shown := fmt.Sprintf("/proc/%d/maps", pid)
	dir, err := r.h.openProc(strconv.Itoa(pid))
	if err != nil {
		r.s.failed(shown, err)
		return nil
	}
	buf := r.buf
	r.buf = nil
	got, err := patiently(r.s.ctx, r.h, memoryWait, func(context.Context) (m mapsRead) {
		defer dir.close()
		m.data, m.more, m.err = dir.read("maps", buf, maxMapsBytes)
		return m
	})
	if err == errTooHung { // it was not called
		dir.close()
	}
	if err == nil {
		r.buf, err = got.data, got.err
	}
	if err != nil {
		r.s.failed(shown, err)
		return nil
	}
	if got.more {
		r.s.note(shown, NoteCut, fmt.Sprintf("longer than %d bytes", maxMapsBytes))
		got.data = got.data[:bytes.LastIndexByte(got.data, '\n')+1]
	}
	for line := range bytes.Lines(got.data) {
		line = bytes.TrimSuffix(line, []byte("\n"))
		row, ok := parseMap(line)
		if !ok {
			r.s.note(shown, NoteOdd, string(clip(line, maxWord)))
			continue
		}
		row.PID = pid
		r.rows++
		if err := r.s.put(&row); err != nil {
			return err
		}
	}
	return nil
}

// parseMap reads a line of /proc/PID/maps: range, permissions, offset, device
// and inode, each followed by one space, then spaces up to the name. The name
// is the rest of the line.
func parseMap(line []byte) (m Map, ok bool) {
	r, ok := parseRegion(string(line))
	if !ok {
		return Map{}, false
	}
	m = Map{Start: fmt.Sprintf("%08x", r.start), End: fmt.Sprintf("%08x", r.end), Perms: r.perms, Offset: r.offset, Inode: r.inode}
	if m.Inode != 0 {
		major, minor, _ := strings.Cut(r.dev, ":")
		if m.Device, ok = hexDevice(major, minor); !ok {
			return Map{}, false
		}
	}
	name := r.name
	m.Path = clip(name, maxPath)
	m.Deleted, m.Memfd = strings.HasSuffix(name, deletedMark), isMemfd(name)
	exec := m.Perms[2] == 'x'
	m.WriteExec = exec && m.Perms[1] == 'w'
	m.AnonExec = exec && m.Inode == 0 && (name == "" || name == "[heap]" || strings.HasPrefix(name, "[stack") || strings.HasPrefix(name, "[anon"))
	return m, true
}

// hexDevice gives major:minor, which maps has in hex, in decimal as the other
// tables have it.
func hexDevice(major, minor string) (string, bool) {
	a, err1 := strconv.ParseUint(major, 16, 32)
	b, err2 := strconv.ParseUint(minor, 16, 32)
	return fmt.Sprintf("%d:%d", a, b), err1 == nil && err2 == nil
}
