package artifact

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of the table threads.
const (
	maxThreadsOf = 8 << 10 // threads of a process that get a row
	maxThreads   = 1 << 20 // and of all
)

// Thread is a row of the table threads. The first thread of a process is the
// process's own row, and has none here.
type Thread struct {
	PID   int    `json:"pid"` // the process it is of
	TID   int    `json:"tid"`
	Name  Text   `json:"name"`  // comm, 15 bytes at most, chosen by the process
	State string `json:"state"` // R, S, D, Z, T … as in proc_pid_stat(5)
	// NameDiffers says that it bears another name than its process did at the
	// same moment: many programs name their threads, injected code may too.
	NameDiffers bool      `json:"name_differs"`
	StartTicks  uint64    `json:"start_ticks"` // as Process.StartTicks
	Started     time.Time `json:"started"`
	UserTicks   uint64    `json:"user_ticks"`
	KernTicks   uint64    `json:"system_ticks"`
}

// threadReader reads the threads of one process after another.
type threadReader struct {
	h      *Host
	s      *sheet
	booted time.Time
	buf    []byte
	rows   int
}

// fillThreads writes the table threads.
func fillThreads(h *Host, s *sheet) error {
	pids, err := h.pids()
	if err != nil {
		s.failed("/proc", err)
		return nil
	}
	r := &threadReader{h: h, s: s}
	if r.booted, err = h.booted(); err != nil {
		s.failed("/proc/uptime", err)
	}
	for _, pid := range pids {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		if r.rows >= maxThreads {
			s.note("/proc/*/task", NoteCut, fmt.Sprintf("threads beyond %d, from process %d on", maxThreads, pid))
			return nil
		}
		if err := r.process(pid); err != nil {
			return err
		}
	}
	return nil
}

// process writes the threads of one process. Only what ends the table is an
// error.
func (r *threadReader) process(pid int) error {
	shown := fmt.Sprintf("/proc/%d/task", pid)
	dir, err := r.h.openProc(strconv.Itoa(pid))
	if err != nil {
		r.s.failed(shown, err)
		return nil
	}
	defer dir.close()
	if alone(dir) {
		return nil
	}
	var first Process
	if err := r.stat(dir, "stat", &first); err != nil {
		r.s.failed(shown, err)
		return nil
	}
	var stop error
	more, err := dir.readNames("task", maxThreadsOf, func(name string) error {
		stop = r.thread(dir, pid, name, first.Name)
		return stop
	})
	if stop != nil {
		return stop
	}
	if err != nil {
		r.s.failed(shown, err)
	}
	if more {
		r.s.note(shown, NoteCut, fmt.Sprintf("more than %d threads", maxThreadsOf))
	}
	return nil
}

// alone reports whether a process has one thread: the folder task has two
// links and one more for each. Source: linux/fs/proc/base.c, proc_task_getattr.
func alone(dir procDir) bool {
	var stat unix.Stat_t
	return unix.Fstatat(dir.fd, "task", &stat, unix.AT_SYMLINK_NOFOLLOW) == nil && stat.Nlink == 3
}

func (r *threadReader) thread(dir procDir, pid int, name string, first Text) error {
	tid, err := strconv.Atoi(name)
	if err != nil || tid == pid {
		return nil
	}
	var p Process
	if err := r.stat(dir, "task/"+name+"/stat", &p); err != nil {
		if !gone(err) { // threads come and go
			r.s.failed(fmt.Sprintf("/proc/%d/task/%d", pid, tid), err)
		}
		return r.s.ctx.Err()
	}
	row := Thread{PID: pid, TID: tid, Name: p.Name, State: p.State, NameDiffers: p.Name != first,
		StartTicks: p.StartTicks, Started: p.startedSince(r.booted), UserTicks: p.UserTicks, KernTicks: p.KernTicks}
	r.rows++
	return r.s.put(&row)
}

func (r *threadReader) stat(dir procDir, name string, p *Process) error {
	data, _, err := dir.read(name, r.buf, maxPath)
	if err != nil {
		return err
	}
	r.buf = data
	return parseStat(data, p)
}

// startedSince gives the start by the wall clock, or zero where the boot's is
// not known.
func (p *Process) startedSince(booted time.Time) time.Time {
	if booted.IsZero() {
		return time.Time{}
	}
	return booted.Add(time.Duration(p.StartTicks) * (time.Second / ticksPerSecond)).UTC()
}

// memfdMark begins the kernel's name of a file of memfd_create(2).
// Source: linux/mm/memfd.c, MFD_NAME_PREFIX, below the root of its mount.
const memfdMark = "/memfd:"

func isMemfd(target string) bool { return strings.HasPrefix(target, memfdMark) }
