package artifact

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quicklime-ir/quicklime/proto/definition"
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
	root    int               // handle of the host's root, or of a container's
	place   string            // "" for the host, the container's folder in the tar
	refused map[uint64]string // file systems not to enter: type by device
	points  map[string]string // and by where they are mounted
	homes   []string
	take    func(def *Definition, n *node, path string) error

	def     *Definition
	locate  bool // what is found is only looked at
	matched int  // of def
	again   int  // of these, handed on before
	seen    map[uint64]struct{}
	seed    maphash.Seed
}

// walk takes the files of one definition. Only take's error and the context's
// return; every other is recorded.
func (w *walker) walk(def *Definition) error {
	w.def, w.matched, w.again = def, 0, 0
	if err := errors.Join(w.walkAll(def.Paths, false), w.walkAll(def.Locations, true)); err != nil {
		return err
	}
	if w.matched == 0 && len(def.Paths)+len(def.Locations) > 0 {
		w.note("", NoteNone, "")
	}
	if w.again > 0 {
		w.note("", NoteAgain, fmt.Sprint(w.again))
	}
	return nil
}

// walkAll looks for patterns.
func (w *walker) walkAll(patterns []string, locate bool) error {
	w.locate = locate
	for _, text := range patterns {
		p, err := definition.ParsePattern(text)
		if err != nil {
			return err
		}
		bases := []string{p.Base}
		if p.Homes {
			bases = w.homes
		}
		for _, base := range bases {
			if err := w.walkBase(base, p.Segments); err != nil {
				return err
			}
		}
	}
	return nil
}

// found hands a node on, unless that was done before.
func (w *walker) found(n *node, at string) error {
	w.matched++
	key := at
	if w.locate {
		key = "at:" + at
	}
	switch {
	case !w.first(key):
		w.again++
	case w.locate:
		w.note(at, NoteLocation, n.describe())
	default:
		return w.take(w.def, n, at)
	}
	return nil
}

func (w *walker) walkBase(base string, segments []definition.Segment) error {
	n, linked, err := w.open(base)
	if errors.Is(err, errRefused) {
		if w.first("fs:" + base) {
			w.note(base, NoteFileSystem, err.Error())
		}
		return nil
	}
	if err != nil {
		if !gone(err) && !errors.Is(err, unix.ENOTDIR) {
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

var errRefused = errors.New("a file system that is not entered")

// open takes hold of a folder by its path, unless the path leads into a file
// system that is not entered: to look a name up in it may already hang.
func (w *walker) open(base string) (n *node, linked bool, err error) {
	for at := base; at != "/"; at = path.Dir(at) {
		if kind, refused := w.points[at]; refused {
			return nil, false, fmt.Errorf("%s: %w", kind, errRefused)
		}
	}
	return openBase(w.root, base)
}

// descend looks for segments in a folder.
func (w *walker) descend(dir *node, at string, segments []definition.Segment) error {
	if kind, refused := w.refused[dir.dev()]; refused {
		if w.first("fs:" + at) {
			w.note(at, NoteFileSystem, kind)
		}
		return nil
	}
	if segments[0].Literal() {
		return w.visit(dir.fd, segments[0].Text, at, segments)
	}
	fd, err := dir.openDir()
	if err != nil {
		w.failed(at, err)
		return nil
	}
	var stop error
	more, err := eachName(fd, at, maxNames, func(name string) error {
		if segments[0].Match(name) {
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
func (w *walker) visit(dir int, name, at string, segments []definition.Segment) error {
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
		if err := w.found(n, at); err != nil {
			return err
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
	if seg.Depth == 1 {
		w.note(at, NoteCut, "depth")
	}
	if seg.Depth > 1 {
		deeper := append([]definition.Segment{{Text: seg.Text, Depth: seg.Depth - 1}}, rest...)
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
	w.rec.Add(Entry{Source: w.def.Name, Path: clip(w.place+path, maxPath), Started: now, Ended: now}.failed(err))
}

func (w *walker) note(path, note, detail string) {
	now := time.Now()
	w.rec.Add(Entry{Source: w.def.Name, Path: clip(w.place+path, maxPath), Note: note, Detail: clip(detail, maxPath), Started: now, Ended: now})
}
