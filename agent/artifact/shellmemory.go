package artifact

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of what is read of shells' memory.
const (
	maxShells      = 512
	maxShellRegion = 16 << 20 // bytes of one mapping
	maxShellMemory = 64 << 20 // and of one shell
	maxStamps      = 256 << 10
)

// ShellCommand is a row of the table shell_memory: a command that a running
// bash remembers, also where HISTFILE is unset.
type ShellCommand struct {
	PID     int       `json:"pid"`
	Exe     Text      `json:"exe"`
	Time    time.Time `json:"time"` // as the shell noted it
	Command Text      `json:"command"`
}

// span is a stretch of a process's memory.
type span struct {
	start uint64
	data  []byte
}

// fillShellMemory writes the table shell_memory: for each running bash (or sh,
// which may be one) the entries of its history list. Shells that note no times
// in their memory, as dash and zsh, give none.
func fillShellMemory(h *Host, s *sheet) error {
	pids, err := h.pids()
	if err != nil {
		s.failed("/proc", err)
		return nil
	}
	shells := 0
	for _, pid := range pids {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		dir, err := h.openProc(strconv.Itoa(pid))
		if err != nil {
			continue // gone
		}
		exe, err := dir.link("exe")
		name := path.Base(strings.TrimSuffix(exe, deletedMark))
		if err != nil || name != "bash" && name != "sh" && name != "rbash" {
			dir.close()
			continue
		}
		if shells++; shells > maxShells {
			dir.close()
			s.note("/proc", NoteCut, fmt.Sprintf("more than %d shells", maxShells))
			return nil
		}
		err = h.shellMemory(s, dir, pid, exe)
		dir.close()
		if err != nil {
			return err
		}
	}
	if shells == 0 {
		s.note("/proc", NoteNone, "no shell runs")
	}
	return nil
}

// shellMemory writes the rows of one shell.
func (h *Host) shellMemory(s *sheet, dir procDir, pid int, exe string) error {
	shown := fmt.Sprintf("/proc/%d/mem", pid)
	fd, err := unix.Openat(dir.fd, "mem", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		s.failed(shown, err)
		return nil
	}
	mem := patientFile{h, fd}
	defer mem.close(s.ctx)
	all, _, err := h.regions(s.ctx, dir)
	if err != nil {
		s.failed(shown, err)
		return nil
	}
	var spans []span
	left := uint64(maxShellMemory)
	for _, r := range all {
		if !r.readable() || !r.writable() || r.inode != 0 || r.name != "" && r.name != "[heap]" {
			continue
		}
		size := min(r.size(), maxShellRegion, left)
		if size < r.size() {
			s.note(shown, NoteCut, fmt.Sprintf("%d of %d bytes at %x", size, r.size(), r.start))
		}
		if size == 0 {
			continue
		}
		data := make([]byte, size)
		n, err := mem.readAt(s.ctx, data, int64(r.start))
		if err != nil {
			s.failed(shown, err)
			continue
		}
		left -= size
		spans = append(spans, span{r.start, data[:n]})
	}
	for _, c := range findHistory(spans) {
		c.PID, c.Exe = pid, Text(exe)
		if err := s.put(c); err != nil {
			return err
		}
	}
	return nil
}

// findHistory finds the entries of readline's history list: a pointer to the
// line, then one to its time, text of the form #SECONDS. So each such text is
// looked for, then what points to one.
// Source: readline's history.h, struct _hist_entry.
func findHistory(spans []span) []ShellCommand {
	stamps := map[uint64]time.Time{}
	for _, sp := range spans {
		for at := 0; len(stamps) < maxStamps; at++ {
			next := bytes.IndexByte(sp.data[at:], '#')
			if next < 0 {
				break
			}
			at += next
			if when, ok := parseStamp(sp.data[at:]); ok {
				stamps[sp.start+uint64(at)] = when
			}
		}
	}
	var out []ShellCommand
	for _, sp := range spans {
		for at := 0; at+16 <= len(sp.data); at += 8 {
			when, ok := stamps[binary.LittleEndian.Uint64(sp.data[at+8:])]
			if !ok {
				continue
			}
			line, ok := stringAt(spans, binary.LittleEndian.Uint64(sp.data[at:]))
			if ok && len(line) > 0 && len(out) < maxStamps {
				out = append(out, ShellCommand{Time: when, Command: clip(line, maxPath)})
			}
		}
	}
	return out
}

// parseStamp reads #SECONDS and the NUL that ends it: nine to eleven digits.
func parseStamp(b []byte) (time.Time, bool) {
	end := bytes.IndexByte(b[:min(len(b), 13)], 0)
	if end < 10 {
		return time.Time{}, false
	}
	seconds, err := strconv.ParseUint(string(b[1:end]), 10, 63)
	return time.Unix(int64(seconds), 0).UTC(), err == nil
}

// stringAt gives the text that lies at an address, up to its NUL.
func stringAt(spans []span, addr uint64) ([]byte, bool) {
	for _, sp := range spans {
		if addr < sp.start || addr-sp.start >= uint64(len(sp.data)) {
			continue
		}
		text := sp.data[addr-sp.start:]
		text = text[:min(len(text), maxLine)]
		if end := bytes.IndexByte(text, 0); end >= 0 {
			text = text[:end]
		}
		return text, true
	}
	return nil, false
}
