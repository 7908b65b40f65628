package artifact

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// maxGroups bounds the supplementary groups in a row.
const maxGroups = 128

// Status is what /proc/PID/status adds to a process's row.
// Source: linux/fs/proc/array.c, proc_pid_status.
type Status struct {
	UID             uint32   `json:"uid"`
	EUID            uint32   `json:"euid"`
	SUID            uint32   `json:"suid"`
	FSUID           uint32   `json:"fsuid"`
	GID             uint32   `json:"gid"`
	EGID            uint32   `json:"egid"`
	SGID            uint32   `json:"sgid"`
	FSGID           uint32   `json:"fsgid"`
	Groups          []uint32 `json:"groups,omitempty"` // 128 at most
	GroupsTruncated bool     `json:"groups_truncated,omitempty"`
	NSPID           []int    `json:"nspid,omitempty"` // its number in each PID namespace, the outermost first
	TracerPID       int      `json:"tracer_pid"`      // the process that traces it, or 0
	NoNewPrivs      bool     `json:"no_new_privs"`
	Seccomp         int      `json:"seccomp"` // 0 off, 1 strict, 2 filter
	SeccompFilters  int      `json:"seccomp_filters,omitempty"`
	Umask           string   `json:"umask,omitempty"`      // in octal
	VMBytes         uint64   `json:"vm_bytes,omitempty"`   // of address space
	SwapBytes       uint64   `json:"swap_bytes,omitempty"` // of it in swap, where no image of RAM has it
	// Signals, as 16 hex digits, bit 0 for signal 1: which wait, which are
	// held back, ignored and caught. A set of none is left out.
	SigPending string `json:"sig_pending,omitempty"` // of the process, not of its first thread
	SigBlocked string `json:"sig_blocked,omitempty"`
	SigIgnored string `json:"sig_ignored,omitempty"`
	SigCaught  string `json:"sig_caught,omitempty"`
	// The capability sets, as 16 hex digits. Source: linux/capability.h.
	CapInheritable string `json:"cap_inheritable,omitempty"`
	CapPermitted   string `json:"cap_permitted,omitempty"`
	CapEffective   string `json:"cap_effective,omitempty"`
	CapBounding    string `json:"cap_bounding,omitempty"`
	CapAmbient     string `json:"cap_ambient,omitempty"`
}

// parseStatus reads /proc/PID/status into p. A line that does not have the
// expected form is left out; of a repeated key the last line counts, as the
// process can choose only the first, its name.
func parseStatus(data []byte, p *Process) {
	p.Groups = nil
	for line := range bytes.SplitSeq(data, []byte{'\n'}) {
		key, value, found := strings.Cut(string(line), ":")
		if !found {
			continue
		}
		value = strings.TrimSpace(value)
		switch key {
		case "Tgid":
			setInt(&p.TGID, value)
		case "TracerPid":
			setInt(&p.TracerPID, value)
		case "Threads":
			setInt(&p.Threads, value)
		case "Seccomp":
			setInt(&p.Seccomp, value)
		case "NoNewPrivs":
			p.NoNewPrivs = value == "1"
		case "Uid":
			setIDs(value, &p.UID, &p.EUID, &p.SUID, &p.FSUID)
		case "Gid":
			setIDs(value, &p.GID, &p.EGID, &p.SGID, &p.FSGID)
		case "Groups":
			p.Groups, p.GroupsTruncated = parseIDs(value, maxGroups)
		case "NSpid":
			p.NSPID = parsePIDs(value)
		case "Seccomp_filters":
			setInt(&p.SeccompFilters, value)
		case "Umask":
			if len(value) <= 4 && strings.Trim(value, "01234567") == "" {
				p.Umask = value
			}
		case "VmRSS":
			setKiB(&p.RSSBytes, value)
		case "VmSize":
			setKiB(&p.VMBytes, value)
		case "VmSwap":
			setKiB(&p.SwapBytes, value)
		case "ShdPnd":
			p.SigPending = signals(value)
		case "SigBlk":
			p.SigBlocked = signals(value)
		case "SigIgn":
			p.SigIgnored = signals(value)
		case "SigCgt":
			p.SigCaught = signals(value)
		case "CapInh":
			p.CapInheritable = hexSet(value)
		case "CapPrm":
			p.CapPermitted = hexSet(value)
		case "CapEff":
			p.CapEffective = hexSet(value)
		case "CapBnd":
			p.CapBounding = hexSet(value)
		case "CapAmb":
			p.CapAmbient = hexSet(value)
		}
	}
}

func setInt(field *int, value string) {
	if n, err := strconv.Atoi(value); err == nil {
		*field = n
	}
}

// setKiB reads a number of KiB, as "12 kB", into bytes.
func setKiB(field *uint64, value string) {
	kib, _, _ := strings.Cut(value, " ")
	if n, err := strconv.ParseUint(kib, 10, 50); err == nil {
		*field = n << 10
	}
}

func setIDs(value string, fields ...*uint32) {
	ids, _ := parseIDs(value, len(fields))
	for i, id := range ids {
		*fields[i] = id
	}
}

// parseIDs reads numbers parted by white space, at most limit of them.
func parseIDs(value string, limit int) (ids []uint32, more bool) {
	for word := range strings.FieldsSeq(value) {
		id, err := strconv.ParseUint(word, 10, 32)
		if err != nil {
			continue
		}
		if len(ids) == limit {
			return ids, true
		}
		ids = append(ids, uint32(id))
	}
	return ids, false
}

// parsePIDs reads the numbers of NSpid: PID namespaces nest 32 deep.
func parsePIDs(value string) []int {
	ids, _ := parseIDs(value, 33)
	var pids []int
	for _, id := range ids {
		pids = append(pids, int(id))
	}
	return pids
}

// signals reads a set of signals; the empty set is "".
func signals(value string) string {
	if set := hexSet(value); strings.Trim(set, "0") != "" {
		return set
	}
	return ""
}

func hexSet(value string) string {
	if len(value) > 16 || strings.Trim(value, "0123456789abcdef") != "" {
		return ""
	}
	return value
}

// parseAuditID reads loginuid or sessionid; nil is the unset value, all ones.
func parseAuditID(data []byte) *uint32 {
	n, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 32)
	if err != nil || n == 1<<32-1 {
		return nil
	}
	id := uint32(n)
	return &id
}

const flagKernelThread = 0x00200000 // PF_KTHREAD of linux/sched.h

// parseStat reads /proc/PID/stat into p. The name in it may hold anything,
// spaces and parentheses too, so the fields are counted from its last ')'.
// Source: proc_pid_stat(5).
func parseStat(data []byte, p *Process) error {
	open, end := bytes.IndexByte(data, '('), bytes.LastIndexByte(data, ')')
	if open < 0 || end < open {
		return fmt.Errorf("cannot read stat %.80q: no name in parentheses", data)
	}
	p.Name = clip(data[open+1:end], maxWord)
	fields := strings.Fields(string(data[end+1:]))
	if len(fields) < 20 {
		return fmt.Errorf("cannot read stat %.80q: want 20 fields after the name, got %d", data, len(fields))
	}
	var err error
	number := func(i int) uint64 {
		n, e := strconv.ParseInt(fields[i], 10, 64)
		if e != nil && err == nil {
			err = fmt.Errorf("cannot read field %d of stat: %w", i+3, e)
		}
		return uint64(n)
	}
	p.State = fields[0][:1]
	p.PPID, p.PGRP, p.Session = int(number(1)), int(number(2)), int(number(3))
	if tty := uint32(number(4)); tty != 0 {
		p.TTY = fmt.Sprintf("%d:%d", tty>>8&0xfff, tty&0xff|tty>>12&0xfff00)
	}
	p.KernelThread = number(6)&flagKernelThread != 0
	p.UserTicks, p.KernTicks = number(11), number(12)
	p.Threads = int(number(17))
	p.StartTicks = number(19)
	return err
}
