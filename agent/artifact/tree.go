package artifact

import (
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// maxTreeNames bounds the names of one folder that a table looks at.
const maxTreeNames = 20_000

// tree reads files of the host by name, for tables that look into many
// folders. It opens nothing outside of Host.Root, nothing on a file system that
// can hang, and nothing but regular files; what it could not read is on record.
type tree struct {
	s *sheet
	w *walker
}

// openTree gives nil where there is no root.
func (h *Host) openTree(s *sheet) (*tree, error) {
	root, err := unix.Open(h.path(), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/", Err: err}
	}
	w := &walker{ctx: s.ctx, rec: s.rec, root: root}
	if err := w.refuseMounts(h.path("proc/self/mountinfo"), s); err != nil {
		unix.Close(root)
		return nil, err
	}
	return &tree{s, w}, nil
}

func (t *tree) close() { unix.Close(t.w.root) }

// names lists a folder, sorted. A folder that is not there has none.
func (t *tree) names(dir string) []string {
	n := t.w.openHome(t.s, dir)
	if n == nil {
		return nil
	}
	defer n.close()
	fd, err := n.openDir()
	if err != nil {
		t.s.failed(dir, err)
		return nil
	}
	var names []string
	more, err := eachName(fd, dir, maxTreeNames, func(name string) error {
		names = append(names, name)
		return t.s.ctx.Err()
	})
	if err != nil {
		t.s.failed(dir, err)
	}
	if more {
		t.s.note(dir, NoteCut, fmt.Sprintf("more than %d names", maxTreeNames))
	}
	slices.Sort(names)
	return names
}

// treeFile says of a file what rows tell of one.
type treeFile struct {
	FileFacts
	data []byte // at most the limit asked for
	cut  bool   // there was more
}

// FileFacts are what a row tells of the file that it was read from.
type FileFacts struct {
	File     Text      `json:"file"` // its path, as the host names it
	UID      uint32    `json:"file_uid"`
	GID      uint32    `json:"file_gid"`
	Mode     string    `json:"file_mode"` // the permission bits, in octal
	Size     int64     `json:"file_size"`
	Modified time.Time `json:"file_modified"`
	Target   Text      `json:"file_target,omitempty"` // where it is a link: what it names, as it stands
}

func factsOf(n *node, at string) FileFacts {
	return FileFacts{File: clip(at, maxPath), UID: n.stat.Uid, GID: n.stat.Gid, Mode: fmt.Sprintf("%04o", n.stat.Mode&0o7777),
		Size: int64(n.stat.Size), Modified: timeOf(n.stat.Mtime)}
}

// node takes hold of a file, not following a link that it is.
func (t *tree) node(at string) (*node, error) {
	dir, _, err := t.w.open(path.Dir(at))
	if err != nil {
		return nil, err
	}
	defer dir.close()
	if kind, refused := t.w.refused[dir.dev()]; refused {
		return nil, fmt.Errorf("%s: %w", kind, errRefused)
	}
	return openNode(dir.fd, path.Base(at))
}

// follow takes hold of what a link names, within the root alone.
func (t *tree) follow(at string) (*node, error) {
	fd, err := unix.Openat2(t.w.root, at, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: at, Err: err}
	}
	n, err := nodeOf(fd)
	if err != nil {
		return nil, err
	}
	if kind, refused := t.w.refused[n.dev()]; refused {
		n.close()
		return nil, fmt.Errorf("%s: %w", kind, errRefused)
	}
	return n, nil
}

// file reads at most limit bytes of a regular file; nil is no such file, or on
// record. Links are as openLinked has them.
func (t *tree) file(at string, limit int) *treeFile {
	in, facts, found := t.openLinked(at)
	if !found {
		return nil
	}
	f := &treeFile{FileFacts: facts}
	if in == nil {
		return f
	}
	defer in.Close()
	var err error
	f.data, err = io.ReadAll(io.LimitReader(in, int64(limit)+1))
	if err != nil {
		t.s.failed(at, err)
	}
	if len(f.data) > limit {
		f.data, f.cut = f.data[:limit], true
		t.s.note(at, NoteCut, fmt.Sprintf("the first %d bytes are read", limit))
	}
	return f
}

// lines gives each line of a file to do, as a sheet's does. A file that is not
// there has none.
func (t *tree) lines(at string, do func(line []byte) error) error {
	in, _, _ := t.openLinked(at)
	if in == nil {
		return nil
	}
	defer in.Close()
	return t.s.linesOf(at, in, do)
}

// openLinked opens a regular file; not found is no such file, a folder, or on
// record. A link is followed within the root, where it leads to a regular file;
// the facts but Target are then those of that file. Where it leads to nothing,
// or to a device as a masked unit's does, there is no file, and the facts are
// those of the link.
func (t *tree) openLinked(at string) (in *os.File, facts FileFacts, found bool) {
	n, err := t.node(at)
	if err != nil {
		if !gone(err) && !isNotDir(err) {
			t.s.failed(at, err)
		}
		return nil, facts, false
	}
	defer n.close()
	facts = factsOf(n, at)
	if n.is(unix.S_IFDIR) {
		return nil, facts, false
	}
	if n.is(unix.S_IFLNK) {
		target, err := n.target()
		if err != nil {
			t.s.failed(at, err)
			return nil, facts, false
		}
		facts.Target = Text(target)
		to, err := t.follow(at)
		if err != nil || !to.is(unix.S_IFREG) {
			if err == nil {
				to.close()
			}
			return nil, facts, true
		}
		defer to.close()
		facts, n = factsOf(to, at), to
		facts.Target = Text(target)
	}
	if !n.is(unix.S_IFREG) {
		t.s.note(at, NoteUnread, n.kindName())
		return nil, facts, false
	}
	fd, err := n.openFile()
	if err != nil {
		t.s.failed(at, err)
		return nil, facts, false
	}
	return os.NewFile(uintptr(fd), at), facts, true
}

// listed takes hold of a file that a folder has just named; nil is on record,
// also where the file is gone.
func (t *tree) listed(at string) *node {
	n, err := t.node(at)
	if err != nil {
		t.s.failed(at, err)
		return nil
	}
	return n
}

// open opens a regular file for reading by offset, no link followed; nil is no
// such file, or on record.
func (t *tree) open(at string) (*os.File, FileFacts) {
	n, err := t.node(at)
	if err != nil {
		if !gone(err) && !isNotDir(err) {
			t.s.failed(at, err)
		}
		return nil, FileFacts{}
	}
	return t.opened(n, at)
}

// opened opens what is held, and lets go of it; nil is on record.
func (t *tree) opened(n *node, at string) (*os.File, FileFacts) {
	defer n.close()
	if !n.is(unix.S_IFREG) {
		t.s.note(at, NoteUnread, n.kindName())
		return nil, FileFacts{}
	}
	fd, err := n.openFile()
	if err != nil {
		t.s.failed(at, err)
		return nil, FileFacts{}
	}
	return os.NewFile(uintptr(fd), at), factsOf(n, at)
}

func isNotDir(err error) bool { return errnoName(err) == "ENOTDIR" }

// account is a line of /etc/passwd with a home.
type account struct {
	user, home Text
	uid        uint32
}

// accounts lists the accounts of /etc/passwd, and homes of /home that belong to
// none of them, which have no user.
func (t *tree) accounts(h *Host) ([]account, error) {
	var all []account
	known := map[string]bool{}
	err := t.s.lines(h.path("etc/passwd"), func(line []byte) error {
		if u, ok := parsePasswd(line); ok && len(all) < maxHomes && path.IsAbs(string(u.Home)) {
			home := path.Clean(string(u.Home))
			known[home] = true
			all = append(all, account{u.Name, Text(home), u.UID})
		}
		return nil
	})
	for _, name := range t.names(homesBase) {
		if home := path.Join(homesBase, name); !known[home] {
			all = append(all, account{home: Text(home)})
		}
	}
	if home := "/root"; !known[home] {
		all = append(all, account{home: Text(home)})
	}
	return all, err
}

// accountHomes lists the accounts that have a home, and of several with one
// home the first.
func (t *tree) accountHomes(h *Host) ([]account, error) {
	all, err := t.accounts(h)
	seen := map[Text]bool{}
	return slices.DeleteFunc(all, func(a account) bool {
		twin := seen[a.home]
		seen[a.home] = true
		return twin
	}), err
}
