package artifact

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
)

// maxHooks bounds the rows of one file of tracing, as thousands of functions
// may be traced at once.
const maxHooks = 64 << 10

// KernelHook is a row of the table tracing: a line of one of the files by which
// the kernel tells what of it is probed or traced.
type KernelHook struct {
	File string `json:"file"` // its name, such as kprobe_events
	Line Text   `json:"line"`
}

// Key is a row of the table keys: a key or keyring that this agent may view.
type Key struct {
	Serial      string `json:"serial"` // in hex
	Flags       string `json:"flags"`  // I instantiated, R revoked, D dead, Q in quota, U under construction, N negative, i invalidated
	Usage       int64  `json:"usage"`
	Timeout     string `json:"timeout"`     // perm, expd, or a time until it expires
	Permissions string `json:"permissions"` // in hex: possessor, user, group, other
	UID         int64  `json:"uid"`
	GID         int64  `json:"gid"` // -1 where it has none
	Type        Text   `json:"type"`
	Description Text   `json:"description"`
}

// fillTracing writes the table tracing. Nothing is mounted for it: where
// neither tracefs nor debugfs is, that is on record.
// Source: linux/Documentation/trace/ftrace.rst, kprobes.rst.
func fillTracing(h *Host, s *sheet) error {
	if err := h.hooksOf(s, "sys/kernel/debug/kprobes/list"); err != nil {
		return err
	}
	folder := "sys/kernel/tracing"
	if _, err := readSmall(h.path(folder, "current_tracer"), maxWord); errors.Is(err, fs.ErrNotExist) {
		folder = "sys/kernel/debug/tracing"
	}
	for _, name := range []string{"current_tracer", "tracing_on", "enabled_functions", "kprobe_events", "uprobe_events", "dynamic_events", "set_event", "set_ftrace_filter"} {
		if err := h.hooksOf(s, filepath.Join(folder, name)); err != nil {
			return err
		}
	}
	return nil
}

// hooksOf writes the lines of one file, without the remarks that the kernel
// puts in place of an empty list.
func (h *Host) hooksOf(s *sheet, name string) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	left := maxHooks
	err := s.lines(h.path(name), func(line []byte) error {
		if len(line) == 0 || strings.HasPrefix(string(line), "####") {
			return nil
		}
		if left--; left < 0 {
			return errEnough
		}
		return s.put(KernelHook{File: filepath.Base(filepath.Dir(name)) + "/" + filepath.Base(name), Line: clip(line, maxPath)})
	})
	if errors.Is(err, errEnough) {
		s.note("/"+name, NoteCut, fmt.Sprintf("more than %d lines", maxHooks))
		return nil
	}
	return err
}

// errEnough ends the reading of a file whose rows are cut.
var errEnough = errors.New("enough")

// fillKeys writes the table keys, of /proc/keys, which lists what the reader may
// view.
func fillKeys(h *Host, s *sheet) error {
	return s.lines(h.path("proc/keys"), func(line []byte) error {
		row := parseKey(string(line))
		if row == nil {
			s.note("/proc/keys", NoteOdd, string(clip(line, maxWord)))
			return nil
		}
		return s.put(row)
	})
}

// parseKey reads a line of /proc/keys.
// Source: linux/security/keys/proc.c, proc_keys_show.
func parseKey(line string) *Key {
	var f [8]string
	rest := line
	for i := range f {
		f[i], rest, _ = strings.Cut(strings.TrimLeft(rest, " "), " ")
	}
	usage, err1 := strconv.ParseInt(f[2], 10, 64)
	uid, err2 := strconv.ParseInt(f[5], 10, 64)
	gid, err3 := strconv.ParseInt(f[6], 10, 64)
	if err1 != nil || err2 != nil || err3 != nil || f[7] == "" || len(f[0]) > 16 || len(f[1]) > 16 || len(f[3]) > 16 || len(f[4]) > 16 {
		return nil
	}
	return &Key{Serial: f[0], Flags: f[1], Usage: usage, Timeout: f[3], Permissions: f[4], UID: uid, GID: gid,
		Type: clip(f[7], maxWord), Description: clip(strings.TrimLeft(rest, " "), maxPath)}
}
