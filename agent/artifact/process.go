package artifact

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Bounds of a process's row, in bytes as read.
const (
	maxCmdline = 8 << 10
	maxEnviron = 16 << 10
	maxStatus  = 1 << 20 // 65,536 supplementary groups fit
	maxCgroup  = 16 << 10
	memoryWait = time.Second // for cmdline and environ, which are read from the process's memory
	exeWait    = 30 * time.Second
)

// Process is a row of the table processes.
type Process struct {
	PID     int    `json:"pid"`
	TGID    int    `json:"tgid"`
	PPID    int    `json:"ppid"`
	PGRP    int    `json:"pgrp"`
	Session int    `json:"session"`
	Name    Text   `json:"name"`  // comm, 15 bytes at most, chosen by the process
	State   string `json:"state"` // R, S, D, Z, T … as in proc_pid_stat(5)
	TTY     string `json:"tty,omitempty"`
	// KernelThread is the kernel's own flag, PF_KTHREAD, not the look of
	// the name.
	KernelThread bool `json:"kernel_thread"`

	// StartTicks counts from boot in hundredths of a second, and with the
	// host's boot_id names the process for ever; Started is the same by the
	// wall clock as it is now set.
	StartTicks uint64    `json:"start_ticks"`
	Started    time.Time `json:"started"`
	UserTicks  uint64    `json:"user_ticks"`   // CPU time in user mode, in hundredths of a second
	KernTicks  uint64    `json:"system_ticks"` // and in the kernel
	RSSBytes   uint64    `json:"rss_bytes"`
	Threads    int       `json:"threads"`

	Status

	Cmdline          []Text `json:"cmdline"` // argv, empty elements too; the process may rewrite it
	CmdlineTruncated bool   `json:"cmdline_truncated,omitempty"`
	Environ          []Text `json:"environ"` // as at exec; the process may rewrite it
	EnvironTruncated bool   `json:"environ_truncated,omitempty"`
	CWD              Text   `json:"cwd,omitempty"`
	Root             Text   `json:"root,omitempty"`

	Executable

	Cgroup     []Text            `json:"cgroup,omitempty"`     // the lines of /proc/PID/cgroup
	Container  string            `json:"container,omitempty"`  // ID of its container, 64 hex digits, as the cgroup's path has it
	Namespaces map[string]uint64 `json:"namespaces,omitempty"` // inode by kind: net, mnt, pid …
	LoginUID   *uint32           `json:"loginuid,omitempty"`   // who logged in; absent for services
	SessionID  *uint32           `json:"sessionid,omitempty"`  // audit session; absent for services

	OOMScoreAdj int    `json:"oom_score_adj,omitempty"` // -1000 is never killed for memory
	WChan       string `json:"wchan,omitempty"`         // the kernel function it sleeps in

	// Vanished says that the process ended while it was read, so fields may
	// be missing.
	Vanished bool `json:"vanished,omitempty"`
	// Unread says which fields could not be read, and why, as the kernel's
	// code or in words.
	Unread map[string]string `json:"unread,omitempty"`
}

// processReader reads one process after another.
type processReader struct {
	h      *Host
	s      *sheet
	booted time.Time
	exes   *exeHasher
	buf    []byte // for what cannot hang
	memory []byte // for what can: nil after a read was given up
}

// fillProcesses writes the table processes. It reads /proc itself: gopsutil
// reads the same files once per field, drops empty arguments, gives start
// times in whole seconds, and cannot tell a deleted executable.
func fillProcesses(h *Host, s *sheet) error {
	pids, err := h.pids()
	if err != nil {
		s.failed("/proc", err)
		return nil
	}
	booted, err := h.booted()
	if err != nil {
		s.failed("/proc/uptime", err)
	}
	r := &processReader{h: h, s: s, booted: booted, exes: newExeHasher(h)}
	for _, pid := range pids {
		p, err := r.read(pid)
		if s.ctx.Err() != nil {
			return s.ctx.Err()
		}
		if err != nil {
			s.failed(fmt.Sprintf("/proc/%d", pid), err)
			continue
		}
		if err := s.put(p); err != nil {
			return err
		}
	}
	return nil
}

// read reads one process. It fails only when the process itself cannot be
// read; a field that cannot is listed in the row.
func (r *processReader) read(pid int) (*Process, error) {
	dir, err := r.h.openProc(strconv.Itoa(pid))
	if err != nil {
		return nil, err
	}
	defer dir.close()
	p, err := r.readStat(dir, pid)
	if err != nil {
		return nil, err
	}
	p.Started = p.startedSince(r.booted)
	r.readStatus(dir, p)
	r.readLinks(dir, p)
	r.readMemory(dir, p)
	r.readExe(dir, p)
	r.readName(dir, p)
	return p, nil
}

// readStat begins a row.
func (r *processReader) readStat(dir procDir, pid int) (p *Process, err error) {
	if r.buf, _, err = dir.read("stat", r.buf, maxPath); err != nil {
		return nil, err
	}
	p = &Process{PID: pid}
	return p, parseStat(r.buf, p)
}

func (r *processReader) readStatus(dir procDir, p *Process) {
	read := func(name string, limit int, use func(data []byte)) {
		data, more, err := dir.read(name, r.buf, limit)
		if r.missed(p, name, err) {
			return
		}
		r.buf = data
		if more {
			r.missed(p, name, fmt.Errorf("longer than %d bytes", limit))
		}
		use(data)
	}
	read("status", maxStatus, func(data []byte) { parseStatus(data, p) })
	read("cgroup", maxCgroup, func(data []byte) {
		for line := range strings.SplitSeq(strings.TrimSuffix(string(data), "\n"), "\n") {
			p.Cgroup = append(p.Cgroup, Text(line))
		}
		p.Container = containerOf(string(data))
	})
	read("oom_score_adj", maxWord, func(data []byte) { setInt(&p.OOMScoreAdj, strings.TrimSpace(string(data))) })
	read("wchan", maxWord, func(data []byte) {
		if string(data) != "0" { // it runs, or this kernel does not tell
			p.WChan = string(data)
		}
	})
	read("loginuid", maxWord, func(data []byte) { p.LoginUID = parseAuditID(data) })
	read("sessionid", maxWord, func(data []byte) { p.SessionID = parseAuditID(data) })
}

// containerOf finds the container's ID in the lines of /proc/PID/cgroup: the
// last 64 hex digits that stand alone, as in docker/ID, docker-ID.scope,
// cri-containerd-ID.scope, libpod-ID.scope and kubepods/…/ID. "" is none.
func containerOf(cgroup string) (id string) {
	for start, at := 0, 0; at <= len(cgroup); at++ {
		if at < len(cgroup) && (isDigit(cgroup[at]) || cgroup[at] >= 'a' && cgroup[at] <= 'z') {
			continue
		}
		if word := cgroup[start:at]; len(word) == 64 && strings.Trim(word, "0123456789abcdef") == "" {
			id = word
		}
		start = at + 1
	}
	return id
}

func isDigit(b byte) bool { return b >= '0' && b <= '9' }

// readName reads comm, which gives the exact name where stat and status escape
// it or do not, depending on the kernel. As it is there for as long as the
// process is, it also tells whether the process outlived its reading.
func (r *processReader) readName(dir procDir, p *Process) {
	data, _, err := dir.read("comm", r.buf, maxWord)
	if p.Vanished = gone(err); p.Vanished {
		r.s.note(fmt.Sprintf("/proc/%d", p.PID), NoteVanished, "while it was read")
	}
	if !r.missed(p, "comm", err) {
		p.Name = Text(strings.TrimSuffix(string(data), "\n"))
	}
}

func (r *processReader) readLinks(dir procDir, p *Process) {
	for name, field := range map[string]*Text{"cwd": &p.CWD, "root": &p.Root} {
		target, err := dir.link(name)
		if !r.missed(p, name, err) {
			*field = Text(target)
		}
	}
	p.Namespaces = make(map[string]uint64, 8)
	for _, kind := range []string{"cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"} {
		target, err := dir.link("ns/" + kind)
		if r.missed(p, "ns/"+kind, err) || target == "" {
			continue
		}
		if id, err := parseTag(target, kind); !r.missed(p, "ns/"+kind, err) {
			p.Namespaces[kind] = id
		}
	}
}

// memoryRead is what was read from a process's memory.
type memoryRead struct {
	cmdline, environ         []Text
	cmdlineMore, environMore bool
	cmdlineErr, environErr   error
	buf                      []byte
}

func (r *processReader) readMemory(dir procDir, p *Process) {
	buf := r.memory
	r.memory = nil
	own, err := dir.dup()
	if r.missed(p, "cmdline", err) {
		return
	}
	got, err := patiently(r.s.ctx, r.h, memoryWait, func(context.Context) (m memoryRead) {
		defer own.close() // not dir: its owner may have closed it by now
		var data []byte
		if data, m.cmdlineMore, m.cmdlineErr = own.read("cmdline", buf, maxCmdline); m.cmdlineErr == nil {
			m.cmdline, buf = splitNUL(data), data
		}
		if data, m.environMore, m.environErr = own.read("environ", buf, maxEnviron); m.environErr == nil {
			m.environ, buf = splitNUL(data), data
		}
		m.buf = buf
		return m
	})
	if err == errTooHung { // it was not called
		own.close()
	}
	if err != nil {
		r.missed(p, "cmdline", err)
		r.missed(p, "environ", err)
		return
	}
	r.memory = got.buf
	p.Cmdline, p.CmdlineTruncated = got.cmdline, got.cmdlineMore
	p.Environ, p.EnvironTruncated = got.environ, got.environMore
	r.missed(p, "cmdline", got.cmdlineErr)
	r.missed(p, "environ", got.environErr)
}

// missed notes in the row, and in the record, that a field could not be read,
// and reports whether it could not. A field that does not exist, as a kernel
// thread's exe, is no failure.
func (r *processReader) missed(p *Process, field string, err error) bool {
	if err == nil || gone(err) {
		return err != nil
	}
	if p.Unread == nil {
		p.Unread = map[string]string{}
	}
	why := errnoName(err)
	if why == "" {
		why = err.Error()
	}
	p.Unread[field] = why
	r.s.failed(filepath.Join("/proc", fmt.Sprint(p.PID), field), err)
	return true
}
