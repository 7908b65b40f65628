package artifact

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Bounds of what is read of the kernel's hooks.
const (
	maxHookLines = 64 // that an anomaly shows
	maxFormats   = 1024
)

// moduleViews says where a module is listed; kallsyms is set where it was read.
type moduleViews struct{ proc, sys, kallsyms bool }

// checkModules compares the modules of /proc/modules, /sys/module and the tags
// of symbols in /proc/kallsyms. A module that is being loaded or unloaded
// stands in some and not yet, or no longer, in the others, so what differs is
// looked at again.
func (h *Host) checkModules(d *differ) error {
	var odd map[string]moduleViews
	var tagged bool
	for look := range looks {
		if look > 0 {
			if err := pause(d.s.ctx, lookAgain); err != nil {
				return err
			}
		}
		now, tags, err := h.oddModules(d.s)
		if err != nil {
			return err
		}
		if look > 0 {
			maps.DeleteFunc(now, func(name string, v moduleViews) bool { return odd[name] != v })
		}
		if odd, tagged = now, tags; len(odd) == 0 {
			return nil
		}
	}
	for _, name := range slices.Sorted(maps.Keys(odd)) {
		v := odd[name]
		views := map[string]Text{"/proc/modules": yes(v.proc), "/sys/module": yes(v.sys), "/proc/kallsyms": "not read"}
		if tagged {
			views["/proc/kallsyms"] = yes(v.kallsyms)
		}
		if err := d.tell(CheckModule, "module "+name, views, ""); err != nil {
			return err
		}
	}
	return nil
}

// oddModules gives the modules that not all views have, and whether kallsyms
// is one of them.
func (h *Host) oddModules(s *sheet) (odd map[string]moduleViews, tagged bool, err error) {
	all := map[string]moduleViews{}
	for name := range h.sysModules(s) {
		all[name] = moduleViews{sys: true}
	}
	err = s.lines(h.path("proc/modules"), func(line []byte) error {
		if m := parseModule(line); m != nil && len(all) < maxModules {
			v := all[string(m.Name)]
			v.proc = true
			all[string(m.Name)] = v
		}
		return nil
	})
	if err != nil {
		return nil, false, err
	}
	symbols := 0
	err = s.lines(h.path("proc/kallsyms"), func(line []byte) error {
		symbols++
		if tag := moduleTag(line); tag != nil {
			if v, known := all[string(tag)]; !v.kallsyms && (known || len(all) < maxModules) {
				v.kallsyms = true
				all[string(tag)] = v
			}
		}
		return nil
	})
	tagged = symbols > 0
	maps.DeleteFunc(all, func(_ string, v moduleViews) bool { return v.proc && v.sys && (v.kallsyms || !tagged) })
	return all, tagged, err
}

// moduleTag gives the module in a line of kallsyms, address, type, name and
// [module], or nil for the kernel's own symbols and for what it makes at run
// time: [bpf] programs, [__builtin__ftrace] trampolines.
// Source: linux/kernel/kallsyms.c, s_show.
func moduleTag(line []byte) []byte {
	start := bytes.IndexByte(line, '\t')
	if start < 0 || len(line) < start+3 || line[start+1] != '[' || line[len(line)-1] != ']' {
		return nil
	}
	tag := line[start+2 : len(line)-1]
	if len(tag) > maxWord || string(tag) == "bpf" || bytes.HasPrefix(tag, []byte("__builtin__")) {
		return nil
	}
	return tag
}

// taints are the bits of /proc/sys/kernel/tainted, from bit 0 on.
// Source: linux/kernel/panic.c and Documentation/admin-guide/tainted-kernels.rst.
var taints = []string{
	"P: a proprietary module was loaded", "F: a module was loaded by force", "S: out of specification",
	"R: a module was unloaded by force", "M: the processor reported a machine check", "B: a bad page was found",
	"U: a user asked for it", "D: the kernel died before", "A: an ACPI table was overridden", "W: a warning was given",
	"C: a staging driver was loaded", "I: the firmware has a bug that was worked around", "O: a module from outside the kernel's tree was loaded",
	"E: an unsigned module was loaded", "L: a soft lockup came about", "K: the kernel was patched live",
	"X: auxiliary, set by the distribution", "T: built with structure randomisation", "N: an in-kernel test ran",
	"J: a user changed firmware's tables or data through fwctl",
}

// decodeTaint names the bits of a taint.
func decodeTaint(value uint64) string {
	var names []string
	for bit := range 64 {
		switch {
		case value>>bit&1 == 0:
		case bit < len(taints):
			names = append(names, taints[bit])
		default:
			names = append(names, fmt.Sprintf("bit %d", bit))
		}
	}
	return strings.Join(names, "; ")
}

// checkTaint tells what taints the kernel.
func (h *Host) checkTaint(d *differ) error {
	const path = "/proc/sys/kernel/tainted"
	text := d.s.text(h.path(path), maxWord)
	value, err := strconv.ParseUint(string(text), 10, 64)
	if err != nil || value == 0 {
		if text != "" && err != nil {
			d.s.note(path, NoteOdd, string(text))
		}
		return nil
	}
	return d.tell(CheckTaint, path, map[string]Text{"value": text}, decodeTaint(value))
}

// tracing are the files that list hooks, a line each. They are read where they
// are mounted; asking below /sys/kernel/debug/tracing would mount.
var tracing = []string{
	"/sys/kernel/tracing/enabled_functions",
	"/sys/kernel/tracing/kprobe_events",
	"/sys/kernel/tracing/uprobe_events",
	"/sys/kernel/debug/kprobes/list",
}

// checkTracing counts the functions that are hooked.
func (h *Host) checkTracing(d *differ) error {
	for _, path := range tracing {
		count := 0
		var shown []string
		if _, err := os.Lstat(h.path(path)); gone(err) {
			d.s.note(path, NoteNone, "not mounted, or not in this kernel")
			continue
		}
		err := d.s.lines(h.path(path), func(line []byte) error {
			if count++; len(shown) < maxHookLines {
				shown = append(shown, string(clip(line, maxWord)))
			}
			return nil
		})
		if err == nil && count > 0 {
			err = d.tell(CheckTracing, path, map[string]Text{"count": Text(strconv.Itoa(count))}, strings.Join(shown, "\n"))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// checkHelpers tells of the programs that the kernel starts as root: for core
// dumps, to load modules, and for the formats of binfmt_misc.
func (h *Host) checkHelpers(d *differ) error {
	const core, modprobe = "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe"
	if value := d.s.text(h.path(core), maxPath); strings.HasPrefix(string(value), "|") {
		if err := d.tell(CheckHelper, core, map[string]Text{"value": value}, "runs for each core dump"); err != nil {
			return err
		}
	}
	switch value := d.s.text(h.path(modprobe), maxPath); value {
	case "", "/sbin/modprobe", "/usr/sbin/modprobe":
	default:
		if err := d.tell(CheckHelper, modprobe, map[string]Text{"value": value}, "runs when the kernel wants a module"); err != nil {
			return err
		}
	}
	return h.checkFormats(d)
}

func (h *Host) checkFormats(d *differ) error {
	const path = "/proc/sys/fs/binfmt_misc"
	// systemd has an automount here, which a look inside would trigger; the
	// mount itself is in the table mounts.
	if !h.isMounted(path, "binfmt_misc") {
		return nil
	}
	dir, err := os.Open(h.path(path))
	if err != nil {
		d.s.failed(path, err)
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(maxFormats)
	slices.Sort(names)
	for _, name := range names {
		if name == "register" || name == "status" {
			continue
		}
		views := map[string]Text{"content": d.s.text(h.path(path, name), maxPath)}
		if err := d.tell(CheckHelper, path+"/"+name, views, "runs for each program of this format"); err != nil {
			return err
		}
	}
	return nil
}

// isMounted reports whether a file system of this type is mounted at point, by
// the host's own mountinfo.
func (h *Host) isMounted(point, kind string) bool {
	data, _ := readSmall(h.path("proc/self/mountinfo"), 1<<20)
	for line := range bytes.Lines(data) {
		if m := parseMount(bytes.TrimSuffix(line, []byte("\n"))); m != nil && string(m.Point) == point && string(m.Type) == kind {
			return true
		}
	}
	return false
}
