package artifact

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// findHomes gives each home once: those that accounts name, and those of /home
// that no account names any more. Two names of one folder, as by a link, count
// as one. A home that is not there, as of many a service, is no home; one
// that cannot be opened is recorded.
func (w *walker) findHomes(s *sheet, named []string) []string {
	named = append(named, w.namesOf(s, homesBase)...)
	var homes []string
	seen := map[[2]uint64]bool{}
	for _, home := range named {
		if !strings.HasPrefix(home, "/") || len(home) > maxPath {
			continue
		}
		home = path.Clean(home)
		n := w.openHome(s, home)
		if n == nil {
			continue
		}
		id := [2]uint64{n.dev(), n.stat.Ino}
		n.close()
		if seen[id] {
			continue
		}
		if len(homes) == maxHomes {
			s.note(homesBase, NoteCut, fmt.Sprintf("more than %d homes", maxHomes))
			break
		}
		seen[id] = true
		homes = append(homes, home)
	}
	return homes
}

// openHome gives nil where there is none.
func (w *walker) openHome(s *sheet, home string) *node {
	n, _, err := w.open(home)
	switch {
	case err == nil:
		return n
	case errors.Is(err, errRefused):
		s.note(home, NoteFileSystem, err.Error())
	case !gone(err) && !errors.Is(err, unix.ENOTDIR):
		s.failed(home, err)
	}
	return nil
}

// namesOf gives the paths of what lies in a folder.
func (w *walker) namesOf(s *sheet, base string) []string {
	n := w.openHome(s, base)
	if n == nil {
		return nil
	}
	defer n.close()
	fd, err := n.openDir()
	if err != nil {
		s.failed(base, err)
		return nil
	}
	var paths []string
	_, err = eachName(fd, base, maxHomes, func(name string) error {
		paths = append(paths, path.Join(base, name))
		return nil
	})
	if err != nil {
		s.failed(base, err)
	}
	return paths
}
