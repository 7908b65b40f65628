package artifact

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Mount is a row of the table mounts: a line of /proc/PID/mountinfo.
// Source: proc_pid_mountinfo(5).
type Mount struct {
	MntNS        uint64 `json:"mntns"` // inode of the mount namespace
	ID           int    `json:"id"`
	Parent       int    `json:"parent"`
	Device       string `json:"device"`  // major:minor
	Root         Text   `json:"root"`    // what of the file system is mounted
	Point        Text   `json:"point"`   // where
	Options      Text   `json:"options"` // of the mount
	Propagation  Text   `json:"propagation,omitempty"`
	Type         Text   `json:"type"`
	Source       Text   `json:"source"`
	SuperOptions Text   `json:"super_options"` // of the file system
}

// fillMounts writes the table mounts.
func fillMounts(h *Host, s *sheet) error {
	spaces, err := h.namespaces(s, "mnt")
	if err != nil {
		return err
	}
	for _, ns := range spaces {
		err := h.throughNamespace(s, ns, "mountinfo", func(line []byte) error {
			row := parseMount(line)
			if row == nil {
				s.note("mountinfo", NoteOdd, string(clip(line, maxWord)))
				return nil
			}
			row.MntNS = ns.id
			return s.put(row)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// parseMount reads a line of mountinfo.
func parseMount(line []byte) *Mount {
	before, after, found := strings.Cut(string(line), " - ")
	f, g := strings.Split(before, " "), strings.Split(after, " ")
	if !found || len(f) < 6 || len(g) < 3 {
		return nil
	}
	id, err1 := strconv.Atoi(f[0])
	parent, err2 := strconv.Atoi(f[1])
	if _, ok := parseDevice(f[2]); !ok || err1 != nil || err2 != nil {
		return nil
	}
	return &Mount{
		ID: id, Parent: parent, Device: f[2],
		Root: unescapeOctal(f[3]), Point: unescapeOctal(f[4]), Options: unescapeOctal(f[5]),
		Propagation: clip(strings.Join(f[6:], " "), maxPath),
		Type:        unescapeOctal(g[0]), Source: unescapeOctal(g[1]), SuperOptions: unescapeOctal(g[2]),
	}
}

// parseDevice reads major:minor.
func parseDevice(word string) (dev uint64, ok bool) {
	major, minor, found := strings.Cut(word, ":")
	a, err1 := strconv.ParseUint(major, 10, 32)
	b, err2 := strconv.ParseUint(minor, 10, 32)
	return unix.Mkdev(uint32(a), uint32(b)), found && err1 == nil && err2 == nil
}

// unescapeOctal undoes the kernel's writing of white space and backslashes in
// mountinfo, \040 for a space.
func unescapeOctal(word string) Text {
	var out strings.Builder
	for i := 0; i < len(word); i++ {
		if word[i] == '\\' && i+4 <= len(word) {
			if b, err := strconv.ParseUint(word[i+1:i+4], 8, 8); err == nil {
				out.WriteByte(byte(b))
				i += 3
				continue
			}
		}
		out.WriteByte(word[i])
	}
	return clip(out.String(), maxPath)
}
