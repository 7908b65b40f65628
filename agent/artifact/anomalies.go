package artifact

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// Anomaly is a row of the table anomalies: something that two views of the
// host tell differently, or a hook that shows. It is a fact and no verdict:
// each has honest causes too.
type Anomaly struct {
	Check   string          `json:"check"`   // which, one of the names below
	Subject Text            `json:"subject"` // what it is about: "pid 7", "module x", a path
	Views   map[string]Text `json:"views"`   // what each view says, by the view's name
	Detail  Text            `json:"detail,omitempty"`
}

// The checks.
const (
	CheckProcess    = "process_views" // getdents of /proc, asking for each PID, and cgroup.procs differ
	CheckOverMount  = "proc_mount"    // something is mounted over a process's folder in /proc
	CheckThreadName = "kernel_thread" // looks like a kernel thread and is none, or the other way round
	CheckPreload    = "preload"       // ld.so.preload, or LD_PRELOAD or LD_AUDIT of a process
	CheckModule     = "module_views"  // /proc/modules, /sys/module and kallsyms differ
	CheckSocket     = "socket_views"  // sock_diag and /proc/net differ
	CheckTaint      = "kernel_taint"  // the kernel calls itself tainted
	CheckTracing    = "tracing"       // functions that ftrace changes, and kprobes
	CheckHelper     = "kernel_helper" // programs that the kernel starts: core_pattern, modprobe, binfmt_misc
)

// Bounds of the table anomalies.
const (
	maxAnomalies = 4096 // of a check
	maxSuspects  = 4096 // that are looked at again before they are told
	looks        = 3    // that all must agree on a difference of views
	lookAgain    = 20 * time.Millisecond
)

// checks are what fillAnomalies runs, in this order. A check fails only when
// the table's place or context does.
var checks = []func(*Host, *differ) error{
	(*Host).checkOverMounts,
	(*Host).checkProcesses,
	(*Host).checkEachProcess,
	(*Host).checkPreloadFile,
	(*Host).checkModules,
	(*Host).checkSockets,
	(*Host).checkTaint,
	(*Host).checkTracing,
	(*Host).checkHelpers,
}

// fillAnomalies writes the table anomalies.
func fillAnomalies(h *Host, s *sheet) error {
	for _, check := range checks {
		if err := check(h, &differ{s: s}); err != nil {
			return err
		}
	}
	return s.ctx.Err()
}

// differ writes what one check finds.
type differ struct {
	s    *sheet
	rows int
}

func (d *differ) tell(check, subject string, views map[string]Text, detail string) error {
	if d.rows++; d.rows > maxAnomalies {
		if d.rows == maxAnomalies+1 {
			d.s.note(check, NoteCut, fmt.Sprintf("more than %d anomalies", maxAnomalies))
		}
		return d.s.ctx.Err()
	}
	return d.s.put(Anomaly{Check: check, Subject: clip(subject, maxPath), Views: views, Detail: clip(detail, maxPath)})
}

// pause waits, or ends with ctx.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// yes writes what a view says of a thing.
func yes(there bool) Text {
	if there {
		return "yes"
	}
	return "no"
}

// checkOverMounts finds mounts over folders of processes in /proc, a way to
// show another process's, or none, in its place. It looks into every mount
// namespace, at every place where one has proc mounted.
func (h *Host) checkOverMounts(d *differ) error {
	spaces, err := h.namespaces(d.s, "mnt")
	if err != nil {
		return err
	}
	for _, ns := range spaces {
		var procs []string
		var over []*Mount
		err := h.throughNamespace(d.s, ns, "mountinfo", func(line []byte) error {
			m := parseMount(line)
			switch {
			case m == nil || !strings.HasPrefix(string(m.Point), "/"):
			case overProcess(string(m.Point)) != "" && len(over) < maxSuspects:
				m.MntNS = ns.id
				over = append(over, m)
			case m.Type == "proc" && len(procs) < maxSuspects:
				procs = append(procs, string(m.Point))
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, m := range over {
			if err := d.overMount(m, ns.pids[0], procs); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *differ) overMount(m *Mount, witness int, procs []string) error {
	proc := overProcess(string(m.Point))
	for _, p := range procs {
		if p == proc {
			return d.tell(CheckOverMount, string(m.Point), map[string]Text{
				"mountinfo": clip(fmt.Sprintf("%s of %s (%s, device %s)", m.Root, m.Source, m.Type, m.Device), maxPath),
			}, fmt.Sprintf("in mount namespace %d, as process %d sees it", m.MntNS, witness))
		}
	}
	return nil
}

// overProcess gives what comes before the number in …/NUMBER or …/NUMBER/…,
// which is a process's folder where proc is mounted there, or "".
func overProcess(point string) string {
	for at := 0; ; {
		i := strings.IndexByte(point[at:], '/')
		if i < 0 {
			return ""
		}
		at += i + 1
		name, _, _ := strings.Cut(point[at:], "/")
		if at > 1 && name != "" && strings.Trim(name, "0123456789") == "" {
			return point[:at-1]
		}
	}
}
