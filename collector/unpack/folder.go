package unpack

import (
	"archive/tar"
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/quicklime-ir/quicklime/collector/proof"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// listName is the list of members, beside them.
const listName = "export.jsonl"

// block is the unit of holes, in bytes.
const block = 4096

// Member is a line of export.jsonl: what a member was, and how it is in the
// folder. Strings are as JSON has them, with U+FFFD for bytes that are no UTF-8;
// the file's own name has its bytes.
type Member struct {
	Item     string     `json:"item"` // the object's key
	Name     string     `json:"name"` // in the tar
	Kind     string     `json:"kind"` // file, folder, symlink, hardlink, or what it was else
	Mode     string     `json:"mode,omitempty"`
	UID      int        `json:"uid"`
	GID      int        `json:"gid"`
	Size     int64      `json:"size"`
	Modified *time.Time `json:"modified,omitempty"`
	Target   string     `json:"target,omitempty"`
	Written  string     `json:"written,omitempty"` // its place; "" where it is only told of here
	Why      string     `json:"why,omitempty"`     // it is not as it was
}

// ToFolder unpacks a case into a folder that does not exist yet, or is empty.
// It is named DIR.part until it is complete.
//
// Files are the analyst's, of mode 0600, with the time of their last change;
// folders 0700. Links and whatever is neither file nor folder are not made:
// export.jsonl tells of them, as it does of every member's owner and mode.
func ToFolder(ctx context.Context, objects proof.Objects, m evidence.Manifest, dir string) (Result, error) {
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) { // an empty one
		return Result{}, fmt.Errorf("cannot unpack into %s: it is there already, and not empty; give another name", dir)
	}
	part := dir + ".part"
	if err := os.Mkdir(part, 0o700); err != nil {
		return Result{}, fmt.Errorf("cannot unpack into %s: %w; remove what an earlier one has left", dir, err)
	}
	f, err := newFolder(part)
	if err != nil {
		return Result{}, err
	}
	f.taken = tableNames(m)
	faulty, err := each(ctx, objects, m, f)
	f.result.Faulty = faulty
	if err := errors.Join(err, f.close()); err != nil {
		return f.result, err
	}
	if err := os.Rename(part, dir); err != nil {
		return f.result, fmt.Errorf("cannot name the complete folder: %w", err)
	}
	return f.result, nil
}

// folder is a folder that is being filled. All names are opened below its root
// and cannot leave it.
type folder struct {
	root   *os.Root
	file   *os.File
	list   *bufio.Writer
	json   *json.Encoder
	buf    []byte
	taken  map[string]bool // names of tables
	result Result
}

func newFolder(dir string) (*folder, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	file, err := root.OpenFile(listName, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	f := &folder{root: root, file: file, list: bufio.NewWriter(file), buf: make([]byte, 256<<10)}
	f.json = json.NewEncoder(f.list)
	f.json.SetEscapeHTML(false)
	return f, nil
}

func (f *folder) close() error {
	return errors.Join(f.list.Flush(), f.file.Close(), f.root.Close())
}

// tell writes a line of the list.
func (f *folder) tell(m Member) error {
	f.result.Members++
	if m.Why != "" || m.Written == "" {
		f.result.left(m.Name, m.Why)
	}
	if err := f.json.Encode(m); err != nil {
		return fmt.Errorf("%w: %w", errOutput, err)
	}
	return nil
}

// table implements out.
func (f *folder) table(name string, _ int64, item evidence.Item, r io.Reader) error {
	m := Member{Item: item.Key, Name: name, Kind: "file"}
	fault := f.write(&m, name, r)
	return errors.Join(fault, f.tell(m))
}

// archive implements out.
func (f *folder) archive(item evidence.Item, r io.Reader, _ func() (io.ReadCloser, error)) error {
	return members(r, func(h *tar.Header, body io.Reader) error {
		m := Member{Item: item.Key, Name: h.Name, Mode: fmt.Sprintf("%04o", h.Mode&0o7777), UID: h.Uid, GID: h.Gid, Size: h.Size, Target: h.Linkname}
		if year := h.ModTime.Year(); year >= 1 && year <= 9999 { // as RFC 3339 can tell it
			m.Modified = &h.ModTime
		}
		err := f.member(&m, strings.TrimSuffix(h.Name, "/"), h, body)
		return errors.Join(err, f.tell(m))
	})
}

// member makes one member, or says in m why it is not made. Its error is of the
// item or of the output, never of the member.
func (f *folder) member(m *Member, name string, h *tar.Header, body io.Reader) error {
	m.Kind = kinds[h.Typeflag]
	switch {
	case m.Kind == "":
		m.Kind, m.Why = fmt.Sprintf("type %q", h.Typeflag), "it is of no kind that is made"
	case whyNot(h, f.taken) != "":
		m.Why = whyNot(h, f.taken)
	case m.Kind == "folder":
		if err := f.root.MkdirAll(name, 0o700); err != nil {
			return f.refused(m, err)
		}
		m.Written = name
	case m.Kind == "hardlink":
		return f.link(m, name)
	case m.Kind != "file":
		m.Why = "it is told of and not made"
	case h.Size > maxMember:
		m.Why = fmt.Sprintf("it is larger than %d bytes, most of them holes; take it from the tar", int64(maxMember))
	default:
		return f.write(m, name, body)
	}
	return nil
}

// link gives a file that is there a second name.
func (f *folder) link(m *Member, name string) error {
	if err := f.root.MkdirAll(path.Dir(name), 0o700); err != nil {
		return f.refused(m, err)
	}
	if err := f.root.Link(m.Target, name); err != nil {
		return f.refused(m, err)
	}
	m.Written = name
	return nil
}

// refused tells an error of the disk, which ends the unpacking, from one that
// a member brought.
func (f *folder) refused(m *Member, err error) error {
	for _, of := range diskErrors {
		if errors.Is(err, of) {
			return fmt.Errorf("%w: %w", errOutput, err)
		}
	}
	m.Why = "it cannot be made: " + err.Error()
	return nil
}

// write makes a file, with holes for blocks of zeros. One whose name is taken,
// as a tar may have two, gets another.
func (f *folder) write(m *Member, name string, r io.Reader) error {
	if err := f.root.MkdirAll(path.Dir(name), 0o700); err != nil {
		return f.refused(m, err)
	}
	file, at, err := f.create(name)
	if err != nil {
		return f.refused(m, err)
	}
	if at != name {
		m.Why = "the name was taken"
	}
	m.Written = at
	n, fault := f.copy(file, r)
	m.Size = max(m.Size, n)
	if fault != nil {
		m.Why = "it ends too soon: " + fault.Error()
	}
	if err := errors.Join(file.Truncate(n), file.Close()); err != nil && !errors.Is(fault, errOutput) {
		return errors.Join(fmt.Errorf("%w: %w", errOutput, err), fault)
	}
	if m.Modified == nil {
		return fault
	}
	if err := f.root.Chtimes(at, *m.Modified, *m.Modified); err != nil {
		return errors.Join(fault, f.refused(m, err))
	}
	return fault
}

// sameName is how many members of one name are made.
const sameName = 100

func (f *folder) create(name string) (file *os.File, at string, err error) {
	at = name
	for n := 2; ; n++ {
		file, err = f.root.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if !errors.Is(err, fs.ErrExist) || n > sameName {
			return file, at, err
		}
		at = fmt.Sprintf("%s~%d", name, n)
	}
}

// copy writes what is read, and leaves holes for blocks of zeros.
func (f *folder) copy(file *os.File, r io.Reader) (n int64, err error) {
	for err == nil {
		read := 0
		for read < len(f.buf) && err == nil {
			var some int
			some, err = r.Read(f.buf[read:])
			read += some
		}
		for at := 0; at < read; at += block {
			piece := f.buf[at:min(at+block, read)]
			if isZero(piece) {
				continue
			}
			if _, err := file.WriteAt(piece, n+int64(at)); err != nil {
				return n, fmt.Errorf("%w: %w", errOutput, err)
			}
		}
		n += int64(read)
	}
	if errors.Is(err, io.EOF) {
		return n, nil
	}
	return n, err
}

var zeroBlock [block]byte

func isZero(p []byte) bool { return string(p) == string(zeroBlock[:len(p)]) }
