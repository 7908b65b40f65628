package artifact

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// preloads are the variables that have the loader put libraries into a program.
// Source: ld.so(8).
var preloads = []string{"LD_PRELOAD", "LD_AUDIT"}

// checkEachProcess looks at each process for the guise of a kernel thread, and
// for libraries that its environment loads.
func (h *Host) checkEachProcess(d *differ) error {
	pids, err := h.pids()
	if err != nil {
		d.s.failed("/proc", err)
		return nil
	}
	r := &processReader{h: h, s: d.s}
	for _, pid := range pids {
		if err := d.s.ctx.Err(); err != nil {
			return err
		}
		p, err := r.brief(pid)
		if err != nil {
			continue // gone, or odd, which the table processes tells
		}
		if guise(p) != "" {
			if err := pause(d.s.ctx, lookAgain); err != nil {
				return err
			}
			// A process that is just starting a program has no arguments yet.
			if p, err = r.brief(pid); err != nil {
				continue
			}
		}
		if err := d.lookAt(p); err != nil {
			return err
		}
	}
	return nil
}

// brief reads of a process what checkEachProcess needs.
func (r *processReader) brief(pid int) (*Process, error) {
	dir, err := r.h.openProc(strconv.Itoa(pid))
	if err != nil {
		return nil, err
	}
	defer dir.close()
	p, err := r.readStat(dir, pid)
	if err != nil {
		return nil, err
	}
	if target, err := dir.link("exe"); err == nil {
		p.Exe = Text(target)
	}
	r.readMemory(dir, p)
	if p.Unread["cmdline"] != "" {
		return nil, fmt.Errorf("cannot read cmdline of %d: %s", pid, p.Unread["cmdline"])
	}
	return p, nil
}

// guise says how a process differs from what it looks like, or "".
func guise(p *Process) string {
	bracketed := len(p.Cmdline) > 0 && strings.HasPrefix(string(p.Cmdline[0]), "[") && strings.Contains(string(p.Cmdline[0]), "]")
	switch {
	case p.KernelThread && p.Exe != "":
		return "PF_KTHREAD is set, and it runs an executable"
	case p.KernelThread || p.State == "Z" || p.State == "X":
		return ""
	case bracketed:
		return "its arguments are written as ps writes a kernel thread, and PF_KTHREAD is not set"
	case len(p.Cmdline) == 0 && p.Exe != "":
		return "it has no arguments, so ps shows it as a kernel thread, and PF_KTHREAD is not set"
	}
	return ""
}

func (d *differ) lookAt(p *Process) error {
	subject := fmt.Sprintf("pid %d", p.PID)
	if detail := guise(p); detail != "" {
		views := map[string]Text{"comm": p.Name, "exe": p.Exe, "kernel_thread": yes(p.KernelThread), "cmdline": joined(p.Cmdline)}
		if err := d.tell(CheckThreadName, subject, views, detail); err != nil {
			return err
		}
	}
	for _, variable := range p.Environ {
		name, value, _ := strings.Cut(string(variable), "=")
		for _, preload := range preloads {
			if name != preload || value == "" {
				continue
			}
			views := map[string]Text{"environ": clip(string(variable), maxPath), "exe": p.Exe}
			if err := d.tell(CheckPreload, subject, views, "comm "+string(p.Name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// joined writes arguments as one text, parted by spaces.
func joined(args []Text) Text {
	var b strings.Builder
	for i, arg := range args {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(string(arg))
	}
	return clip(b.String(), maxPath)
}

// checkPreloadFile tells of /etc/ld.so.preload, which few hosts have.
func (h *Host) checkPreloadFile(d *differ) error {
	data, err := readSmall(h.path("etc/ld.so.preload"), maxPath)
	if err != nil {
		if !gone(err) {
			d.s.failed("/etc/ld.so.preload", err)
		}
		return nil
	}
	views := map[string]Text{"content": Text(bytes.TrimSuffix(data, []byte("\n")))}
	return d.tell(CheckPreload, "/etc/ld.so.preload", views, "the loader puts these into every program")
}
