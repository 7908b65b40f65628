package artifact

import (
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// maxModules bounds the names that are compared between /proc and /sys.
const maxModules = 16 << 10

// Module is a row of the table modules. A module that hides from one of the
// kernel's lists may still stand in the other, so both are told.
type Module struct {
	Name    Text   `json:"name"`
	InProc  bool   `json:"in_proc"` // listed in /proc/modules
	InSys   bool   `json:"in_sys"`  // in /sys/module as a loaded, not a built-in, module
	Bytes   uint64 `json:"bytes,omitempty"`
	Refs    int64  `json:"refs"`
	UsedBy  []Text `json:"used_by,omitempty"`
	State   string `json:"state,omitempty"`   // Live, Loading, Unloading
	Address string `json:"address,omitempty"` // in hex; zeros without privilege
	// Taint is how it taints the kernel: O out of tree, E unsigned, P
	// proprietary, F forced. Source: linux/kernel/panic.c, taint_flags.
	Taint      Text `json:"taint,omitempty"`
	SrcVersion Text `json:"srcversion,omitempty"`
	Version    Text `json:"version,omitempty"`
}

// fillModules writes the table modules.
func fillModules(h *Host, s *sheet) error {
	inSys := h.sysModules(s)
	err := s.lines(h.path("proc/modules"), func(line []byte) error {
		row := parseModule(line)
		if row == nil {
			s.note("/proc/modules", NoteOdd, string(clip(line, maxWord)))
			return nil
		}
		row.InProc, row.InSys = true, inSys[string(row.Name)]
		delete(inSys, string(row.Name))
		h.describeModule(s, row)
		return s.put(row)
	})
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(inSys)) {
		row := &Module{Name: Text(name), InSys: true}
		h.describeModule(s, row)
		if err := s.put(row); err != nil {
			return err
		}
	}
	return nil
}

// sysModules lists the loaded modules of /sys/module: they have an initstate,
// which built-in ones have not.
func (h *Host) sysModules(s *sheet) map[string]bool {
	found := map[string]bool{}
	dir, err := os.Open(h.path("sys/module"))
	if err != nil {
		s.failed("/sys/module", err)
		return found
	}
	defer dir.Close()
	names, err := dir.Readdirnames(maxModules)
	if err != nil && err != io.EOF {
		s.failed("/sys/module", err)
	}
	for _, name := range names {
		if _, err := os.Lstat(h.path("sys/module", name, "initstate")); err == nil {
			found[name] = true
		}
	}
	return found
}

func (h *Host) describeModule(s *sheet, m *Module) {
	name := string(m.Name)
	if !fs.ValidPath(name) || filepath.Base(name) != name {
		return
	}
	m.SrcVersion = s.text(h.path("sys/module", name, "srcversion"), maxWord)
	m.Version = s.text(h.path("sys/module", name, "version"), maxWord)
	if taint := s.text(h.path("sys/module", name, "taint"), maxWord); taint != "" {
		m.Taint = taint
	}
	if !m.InProc {
		m.State = string(s.text(h.path("sys/module", name, "initstate"), maxWord))
		refs := s.text(h.path("sys/module", name, "refcnt"), maxWord)
		m.Refs, _ = strconv.ParseInt(string(refs), 10, 64)
	}
}

// parseModule reads a line of /proc/modules: name, size, references, users,
// state, address, and a taint in parentheses where there is one.
// Source: linux/kernel/module/procfs.c, m_show.
func parseModule(line []byte) *Module {
	f := strings.Fields(string(line))
	if len(f) < 6 {
		return nil
	}
	bytes, err1 := strconv.ParseUint(f[1], 10, 64)
	refs, err2 := strconv.ParseInt(f[2], 10, 64)
	if f[2] == "-" { // unloading is not compiled in
		refs, err2 = 0, nil
	}
	if err1 != nil || err2 != nil || !strings.HasPrefix(f[5], "0x") {
		return nil
	}
	m := &Module{Name: clip(f[0], maxWord), Bytes: bytes, Refs: refs, State: string(clip(f[4], 16)), Address: string(clip(f[5], 18))}
	for user := range strings.SplitSeq(f[3], ",") {
		if user != "" && user != "-" && len(m.UsedBy) < maxWord {
			m.UsedBy = append(m.UsedBy, clip(user, maxWord))
		}
	}
	if len(f) > 6 {
		m.Taint = clip(strings.Trim(f[6], "()"), maxWord)
	}
	return m
}
