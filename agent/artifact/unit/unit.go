// Package unit reads the unit files of systemd, as bytes alone.
package unit

import "strings"

// Bounds of a unit file.
const (
	MaxSettings = 1024    // of a file
	MaxValue    = 8 << 10 // bytes of a value, its continuation lines joined
)

// Setting is one assignment, as it stands: an empty value takes back what was
// assigned before.
type Setting struct {
	Section, Key, Value string
	Line                int // where it starts, from 1
}

// Parse reads a unit file; more says that a bound cut something off. A line
// that has no form is left out.
// Source: systemd.syntax(7).
func Parse(data []byte) (all []Setting, more bool) {
	section, joined, first := "", "", 0
	number := 0
	for line := range strings.Lines(string(data)) {
		number++
		line = strings.TrimRight(line, "\r\n")
		trimmed := strings.TrimLeft(line, " \t")
		if trimmed != "" && (trimmed[0] == '#' || trimmed[0] == ';') {
			continue // also between the lines of one setting
		}
		if first == 0 {
			first = number
		}
		if part, ok := strings.CutSuffix(line, `\`); ok {
			if len(joined)+len(part) < MaxValue {
				joined += part + " "
			} else {
				more = true
			}
			continue
		}
		whole := strings.TrimSpace(joined + line)
		at := first
		joined, first = "", 0
		if name, ok := strings.CutPrefix(whole, "["); ok {
			if name, ok = strings.CutSuffix(name, "]"); ok {
				section = cut(name, 64)
			}
			continue
		}
		key, value, ok := strings.Cut(whole, "=")
		if !ok {
			continue
		}
		if len(all) == MaxSettings {
			return all, true
		}
		value = strings.TrimSpace(value)
		more = more || len(value) > MaxValue
		all = append(all, Setting{section, cut(strings.TrimSpace(key), 64), cut(value, MaxValue), at})
	}
	return all, more
}

func cut(s string, n int) string { return s[:min(len(s), n)] }

// kinds are the suffixes of unit names. Source: systemd.unit(5).
var kinds = map[string]bool{"service": true, "socket": true, "device": true, "mount": true, "automount": true, "swap": true,
	"target": true, "path": true, "timer": true, "slice": true, "scope": true}

// Kind gives the suffix of a unit's name; "" is no unit.
func Kind(name string) string {
	dot := strings.LastIndexByte(name, '.')
	if dot <= 0 || !kinds[name[dot+1:]] {
		return ""
	}
	return name[dot+1:]
}

// Template gives the name of the file that an instance is made from:
// a@b.service is from a@.service. Other names are their own.
func Template(name string) string {
	at, dot := strings.IndexByte(name, '@'), strings.LastIndexByte(name, '.')
	if at < 0 || dot < at {
		return name
	}
	return name[:at+1] + name[dot:]
}

// DropInFolders lists the folders whose files add to a unit: NAME.d, the
// template's, those of the dashes in the name, and the kind's own.
// Source: systemd.unit(5).
func DropInFolders(name string) []string {
	kind := Kind(name)
	if kind == "" {
		return nil
	}
	folders := []string{name + ".d"}
	if t := Template(name); t != name {
		folders = append(folders, t+".d")
	}
	stem := name[:len(name)-len(kind)-1]
	for n := 0; n < 16; n++ {
		dash := strings.LastIndexByte(strings.TrimSuffix(stem, "-"), '-')
		if dash <= 0 {
			break
		}
		stem = stem[:dash+1]
		folders = append(folders, stem+"."+kind+".d")
	}
	return append(folders, kind+".d")
}

// OfCgroup gives the unit that a process's control group is of, by the path in
// /proc/PID/cgroup, and the user whose own manager runs it, "" for the
// system's.
func OfCgroup(path string) (name, user string) {
	for part := range strings.SplitSeq(path, "/") {
		kind := Kind(part)
		if kind != "service" && kind != "scope" {
			continue
		}
		if uid, ok := strings.CutPrefix(name, "user@"); ok {
			user = strings.TrimSuffix(uid, ".service")
		} else if name != "" {
			break // deeper groups are of what the unit runs, as containers
		}
		name = part
	}
	return name, user
}
