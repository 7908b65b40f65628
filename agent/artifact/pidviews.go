package artifact

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of what is asked for hidden processes.
const (
	maxPID     = 4 << 20  // PID_MAX_LIMIT of linux/threads.h
	probeBatch = 16 << 10 // PIDs that are asked for before a rest as long as it took
	probeTime  = 10 * time.Second
	maxCgroups = 64 << 10
	cgroupRead = 1 << 20 // of one cgroup.procs
	tgidWithin = 256     // bytes of status: Tgid follows name, umask and state
)

// checkProcesses compares three views of which processes there are. A process
// that the kernel answers for, or a cgroup holds, must be listed in /proc; one
// that is listed must be answered for. What comes or goes between the views is
// looked at again, and is told only if each look finds the same.
//
// A process that is listed and in no cgroup is not told: zombies, and the
// processes of cgroups that a container does not see, are in none.
func (h *Host) checkProcesses(d *differ) error {
	if !h.allProcesses(d.s) {
		return nil
	}
	cgroups, err := h.cgroupPIDs(d.s)
	if err != nil {
		return err
	}
	listed, err := h.listed(d.s)
	if err != nil || listed == nil {
		return err
	}
	suspects, err := h.unlisted(d.s, listed, cgroups)
	if err != nil || len(suspects) == 0 {
		return err
	}
	return h.lookAgain(d, suspects)
}

// allProcesses reports whether /proc lists every process to this one, and is
// that of the PID namespace it lives in; else the views differ by right.
func (h *Host) allProcesses(s *sheet) bool {
	if hidden := h.hidePID(); hidden != "" && os.Geteuid() != 0 {
		s.note("/proc", NoteNone, "processes are not compared: mounted with "+hidden)
		return false
	}
	return true
}

// hidePID gives the option of the mount of /proc that hides processes, or "".
func (h *Host) hidePID() (option string) {
	data, _ := readSmall(h.path("proc/self/mountinfo"), 1<<20)
	for line := range strings.Lines(string(data)) {
		m := parseMount([]byte(strings.TrimSuffix(line, "\n")))
		if m == nil || m.Point != "/proc" || m.Type != "proc" {
			continue
		}
		option = ""
		for o := range strings.SplitSeq(string(m.SuperOptions), ",") {
			if strings.HasPrefix(o, "hidepid=") && o != "hidepid=0" && o != "hidepid=off" {
				option = o
			}
		}
	}
	return option
}

func (h *Host) listed(s *sheet) (map[int]bool, error) {
	pids, err := h.pids()
	if err != nil {
		s.failed("/proc", err)
		return nil, nil
	}
	listed := make(map[int]bool, len(pids))
	for _, pid := range pids {
		listed[pid] = true
	}
	return listed, s.ctx.Err()
}

// canProbe reports whether the kernel that runs this process is the one that
// h's /proc tells of, in the same PID namespace.
func (h *Host) canProbe() bool {
	self, err := os.Readlink(h.path("proc/self"))
	return err == nil && self == strconv.Itoa(os.Getpid())
}

// exists asks the kernel for a process or thread. getpgid(2) sends nothing and
// needs no privilege; any answer but ESRCH says that it is there.
func exists(pid int) bool {
	_, err := unix.Getpgid(pid)
	return err != unix.ESRCH
}

// unlisted gives the numbers for which the first views differ.
func (h *Host) unlisted(s *sheet, listed map[int]bool, cgroups map[int]string) ([]int, error) {
	var suspects []int
	suspect := func(pid int) {
		if len(suspects) < maxSuspects {
			suspects = append(suspects, pid)
		} else if len(suspects) == maxSuspects {
			s.note("/proc", NoteCut, fmt.Sprintf("more than %d processes to look at again", maxSuspects))
			suspects = append(suspects, 0)
		}
	}
	for pid := range cgroups {
		if !listed[pid] {
			suspect(pid)
		}
	}
	if !h.canProbe() {
		s.note("/proc/self", NoteNone, "processes are not asked for by number: /proc is not this process's own")
	} else if err := h.probe(s, listed, suspect); err != nil {
		return nil, err
	}
	slices.Sort(suspects)
	suspects = slices.Compact(suspects)
	if len(suspects) > 0 && suspects[0] == 0 {
		suspects = suspects[1:]
	}
	return suspects, nil
}

// probe asks for every number up to pid_max, at half of one processor's time.
// Systemd sets pid_max to 4,194,304, which are a second or two; where system
// calls are slow it is given up, with the highest numbers left.
func (h *Host) probe(s *sheet, listed map[int]bool, suspect func(pid int)) error {
	limit := maxPID
	setInt(&limit, string(s.text(h.path("proc/sys/kernel/pid_max"), maxWord)))
	limit = min(limit, maxPID)
	began := time.Now()
	started := began
	for pid := 1; pid < limit; pid++ {
		if there := exists(pid); there != listed[pid] && !(there && h.isThread(pid)) {
			suspect(pid)
		}
		if pid%probeBatch == 0 {
			if err := pause(s.ctx, time.Since(started)); err != nil {
				return err
			}
			started = time.Now()
			if started.Sub(began) > probeTime && pid+1 < limit {
				s.note("/proc", NoteCut, fmt.Sprintf("processes are asked for by number up to %d, not to %d, as it took %v", pid, limit-1, probeTime))
				break
			}
		}
	}
	return s.ctx.Err()
}

// isThread reports whether a number that the kernel answers for is that of a
// thread, which /proc has a folder for and does not list.
func (h *Host) isThread(pid int) bool {
	tgid, err := h.tgid(pid)
	return err == nil && tgid != pid
}

// tgid gives the process that a number belongs to, itself or a thread's.
func (h *Host) tgid(pid int) (int, error) {
	dir, err := h.openProc(strconv.Itoa(pid))
	if err != nil {
		return 0, err
	}
	defer dir.close()
	data, _, err := dir.read("status", make([]byte, 0, tgidWithin+1), tgidWithin)
	if err != nil {
		return 0, err
	}
	var p Process
	if parseStatus(data, &p); p.TGID == 0 {
		return 0, fmt.Errorf("cannot tell the process of %d: no Tgid in its status", pid)
	}
	return p.TGID, nil
}

// lookAgain looks at each suspect several times, and tells of those that
// every look finds the same. A look asks for a number before and after it reads
// the other views, so that one which comes or goes meanwhile is no difference.
func (h *Host) lookAgain(d *differ, suspects []int) error {
	probing := h.canProbe()
	var cgroups map[int]string
	for range looks {
		err := pause(d.s.ctx, lookAgain)
		if err != nil {
			return err
		}
		before := existing(suspects, probing)
		if cgroups, err = h.cgroupPIDs(d.s); err != nil {
			return err
		}
		listed, err := h.listed(d.s)
		if err != nil {
			return err
		}
		after := existing(suspects, probing)
		suspects = slices.DeleteFunc(suspects, func(pid int) bool {
			there := before[pid]
			if there != after[pid] || there && h.isThread(pid) {
				return true
			}
			differs := probing && there != listed[pid] || cgroups[pid] != "" && !listed[pid]
			return !differs
		})
	}
	for _, pid := range suspects {
		if err := h.tellProcess(d, pid, cgroups, probing); err != nil {
			return err
		}
	}
	return nil
}

func existing(pids []int, probing bool) map[int]bool {
	there := map[int]bool{}
	for _, pid := range pids {
		there[pid] = probing && exists(pid)
	}
	return there
}

func (h *Host) tellProcess(d *differ, pid int, cgroups map[int]string, probing bool) error {
	views := map[string]Text{"cgroup.procs": clip(cgroups[pid], maxPath)}
	if cgroups[pid] == "" {
		views["cgroup.procs"] = "no"
	}
	listed, err := h.listed(d.s)
	if err != nil {
		return err
	}
	views["getdents"] = yes(listed[pid])
	if probing {
		views["getpgid"], views["kill"] = yes(exists(pid)), yes(unix.Kill(pid, 0) != unix.ESRCH)
	}
	detail := ""
	views["status"] = "no"
	if tgid, err := h.tgid(pid); err == nil {
		views["status"] = Text(fmt.Sprintf("process %d", tgid))
		detail = "comm " + string(d.s.text(h.path("proc", strconv.Itoa(pid), "comm"), maxWord))
	}
	return d.tell(CheckProcess, fmt.Sprintf("pid %d", pid), views, detail)
}

// cgroupPIDs reads cgroup.procs of every cgroup below /sys/fs/cgroup, of both
// versions, and gives one cgroup's path for each process.
func (h *Host) cgroupPIDs(s *sheet) (map[int]string, error) {
	root := h.path("sys/fs/cgroup")
	found := map[int]string{}
	count := 0
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			if path == root || !gone(err) {
				s.failed("/sys/fs/cgroup"+strings.TrimPrefix(path, root), err)
			}
			return s.ctx.Err()
		}
		if !entry.IsDir() {
			return nil
		}
		if count++; count > maxCgroups {
			s.note("/sys/fs/cgroup", NoteCut, fmt.Sprintf("more than %d cgroups", maxCgroups))
			return fs.SkipAll
		}
		data, err := readSmall(filepath.Join(path, "cgroup.procs"), cgroupRead)
		if err != nil { // a threaded cgroup does not tell, its parent does
			return s.ctx.Err()
		}
		name := "/sys/fs/cgroup" + strings.TrimPrefix(path, root)
		for word := range strings.FieldsSeq(string(data)) {
			// A process outside of the reader's PID namespace is written as 0.
			if pid, err := strconv.Atoi(word); err == nil && pid > 0 && len(found) < maxPID {
				found[pid] = name
			}
		}
		return s.ctx.Err()
	})
	return found, err
}
