package artifact

import (
	"context"
	"fmt"
	"hash/maphash"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of a walk.
const (
	maxSeen   = 1 << 20 // paths that are remembered, so that none is taken twice
	maxNames  = 1 << 20 // names of one folder that are looked at
	maxHomes  = 10_000
	homesBase = "/home"
)

// walker finds the files of definitions and hands each to take.
type walker struct {
	ctx     context.Context
	rec     *Record
	root    int               // handle of the host's root
	refused map[uint64]string // file systems not to enter: type by device
	homes   []string
	take    func(def *Definition, n *node, path string) error

	def     *Definition
	matched int // of def
	seen    map[uint64]struct{}
	seed    maphash.Seed
}

// walk takes the files of one definition. Only take's error and the context's
// return; every other is recorded.
func (w *walker) walk(def *Definition) error {
	w.def, w.matched = def, 0
	for _, text := range def.Paths {
		p, err := parsePattern(text)
		if err != nil {
			return err
		}
		bases := []string{p.base}
		if p.homes {
			bases = w.homes
		}
		for _, base := range bases {
			if err := w.walkBase(base, p.segments); err != nil {
				return err
			}
		}
	}
	if w.matched == 0 {
		w.note("", NoteNone, "")
	}
	return nil
}

func (w *walker) walkBase(base string, segments []segment) error {
	n, linked, err := openBase(w.root, base)
	if err != nil {
		if !gone(err) && unwrapErrno(err) != unix.ENOTDIR {
			w.failed(base, err)
		}
		return nil
	}
	defer n.close()
	if linked && w.first("link:"+base) {
		w.note(base, NoteLink, "")
	}
	return w.descend(n, base, segments)
}

// descend looks for segments in a folder.
func (w *walker) descend(dir *node, at string, segments []segment) error {
	if kind, refused := w.refused[dir.dev()]; refused {
		if w.first("fs:" + at) {
			w.note(at, NoteFileSystem, kind)
		}
		return nil
	}
	if segments[0].literal() {
		return w.visit(dir.fd, segments[0].text, at, segments)
	}
	fd, err := dir.openDir()
	if err != nil {
		w.failed(at, err)
		return nil
	}
	var stop error
	more, err := eachName(fd, at, maxNames, func(name string) error {
		if segments[0].match(name) {
			stop = w.visit(fd, name, at, segments)
		}
		return stop
	})
	if stop != nil {
		return stop
	}
	if err != nil {
		w.failed(at, err)
	}
	if more {
		w.note(at, NoteCut, fmt.Sprintf("more than %d names", maxNames))
	}
	return nil
}

// visit looks at one name that fits segments[0].
func (w *walker) visit(dir int, name, at string, segments []segment) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	at = path.Join(at, name)
	n, err := openNode(dir, name)
	if err != nil {
		if !gone(err) {
			w.failed(at, err)
		}
		return nil
	}
	defer n.close()
	seg, rest := segments[0], segments[1:]
	if len(rest) == 0 {
		w.matched++
		if w.first(at) {
			if err := w.take(w.def, n, at); err != nil {
				return err
			}
		}
	}
	if !n.is(unix.S_IFDIR) {
		return nil
	}
	if len(rest) > 0 {
		if err := w.descend(n, at, rest); err != nil {
			return err
		}
	}
	if seg.depth == 1 {
		w.note(at, NoteCut, "depth")
	}
	if seg.depth > 1 {
		deeper := append([]segment{{text: seg.text, depth: seg.depth - 1}}, rest...)
		return w.descend(n, at, deeper)
	}
	return nil
}

// first reports whether a path is new. Beyond maxSeen paths all are held to
// be new, and a file may be taken twice.
func (w *walker) first(path string) bool {
	key := maphash.String(w.seed, path)
	if _, known := w.seen[key]; known {
		return false
	}
	if len(w.seen) < maxSeen {
		w.seen[key] = struct{}{}
	}
	return true
}

func (w *walker) failed(path string, err error) {
	now := time.Now()
	w.rec.Add(Entry{Source: w.def.Name, Path: clip(path, maxPath), Started: now, Ended: now}.failed(err))
}

func (w *walker) note(path, note, detail string) {
	now := time.Now()
	w.rec.Add(Entry{Source: w.def.Name, Path: clip(path, maxPath), Note: note, Detail: clip(detail, maxPath), Started: now, Ended: now})
}

// refusedTypes are file systems that are not entered: those whose server, in
// the network or a user's process, can make a read hang, and the kernel's own,
// whose files are not files.
var refusedTypes = []string{
	"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "gfs2", "ocfs2", "fuse", "fuseblk", "autofs", "virtiofs", "vboxsf",
	"proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "bpf", "devpts", "mqueue", "configfs", "binfmt_misc", "efivarfs", "pstore",
	"selinuxfs", "smackfs", "fusectl", "rpc_pipefs", "nfsd", "hugetlbfs", "functionfs", "nsfs",
}

func refuse(kind string) bool {
	if strings.HasPrefix(kind, "fuse.") {
		return true
	}
	for _, t := range refusedTypes {
		if kind == t {
			return true
		}
	}
	return false
}

// refusedDevices lists the mounted file systems that are not entered.
func (h *Host) refusedDevices(s *sheet) (map[uint64]string, error) {
	refused := map[uint64]string{}
	err := s.lines(h.path("proc/self/mountinfo"), func(line []byte) error {
		m := parseMount(line)
		if m == nil || !refuse(string(m.Type)) {
			return nil
		}
		if dev, ok := parseDevice(m.Device); ok {
			refused[dev] = string(m.Type)
		}
		return nil
	})
	return refused, err
}
