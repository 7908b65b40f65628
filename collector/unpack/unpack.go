// Package unpack gives the tables and files of a case as an analyst's tools
// want them: in a folder, or as one tar.gz that UAC's tools and dissect open.
//
// Both have UAC's layout: uac.log, [root]/ with the host's files, bodyfile/ and
// live_response/. Evidence is hostile: no name leads out of the folder, no
// link is made that could, and nothing in it can be run. What is read has the
// hash that the manifest says before it is used.
package unpack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/quicklime-ir/quicklime/collector/proof"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// Names of the layout. Source: UAC, its output's folders.
const (
	responses    = "live_response"
	bodyfileName = "bodyfile/bodyfile.txt"
	filesItem    = "files"    // the tar with uac.log and [root]/
	bodyfileItem = "bodyfile" // the one text
)

// Bounds of one member.
const (
	maxName   = 4096     // bytes of a path: PATH_MAX of linux/limits.h
	maxWord   = 255      // and of one element: NAME_MAX
	maxMember = 64 << 30 // bytes; a larger one is all holes, or is read from the tar itself
)

// Result is what was unpacked.
type Result struct {
	Members int      // files, folders and tables
	Left    int      // members that are left out, only told of, or not as they were
	First   string   // of those, and why
	Faulty  []string // items that could not be had, or not to their end, and why
}

// left counts a member that is not as it was.
func (r *Result) left(name, why string) {
	if r.Left++; r.Left == 1 {
		r.First = evidence.Plain(name) + ": " + evidence.Plain(why)
	}
}

// Lacks says in what the output is less than what was collected; "" where it
// is not.
func (r Result) Lacks() string { return strings.Join(r.Faulty, "; ") }

// out takes what is unpacked.
type out interface {
	// table takes an item that is one file, of so many bytes.
	table(name string, size int64, item evidence.Item, r io.Reader) error
	// archive takes an item that is a tar, whose members have the layout's
	// names. It may be read again.
	archive(item evidence.Item, r io.Reader, again func() (io.ReadCloser, error)) error
}

// errOutput marks an error of the output, which ends the unpacking; one of an
// item ends that item.
var errOutput = errors.New("cannot write")

// each gives the items to o: first the tar of files, which begins the layout.
func each(ctx context.Context, objects proof.Objects, m evidence.Manifest, o out) (faulty []string, err error) {
	for _, first := range []bool{true, false} {
		for _, item := range m.Items {
			if (item.Name == filesItem && item.Format == evidence.Tar) != first || item.Kind != evidence.Volatile && item.Kind != evidence.Live {
				continue
			}
			err := one(ctx, objects, item, o)
			switch {
			case ctx.Err() != nil:
				return faulty, context.Cause(ctx)
			case errors.Is(err, errOutput):
				return faulty, err
			}
			var why []string
			if item.Status != evidence.Whole {
				why = append(why, "it was not taken to its end: "+evidence.Plain(item.Error))
			}
			if err != nil {
				why = append(why, evidence.Plain(err.Error()))
			}
			if len(why) > 0 {
				faulty = append(faulty, evidence.Plain(item.Key)+": "+strings.Join(why, ", "))
			}
		}
	}
	return faulty, nil
}

// one gives one item to o.
func one(ctx context.Context, objects proof.Objects, item evidence.Item, o out) error {
	name := tableName(item)
	if !safe(name) || strings.Contains(item.Name, "/") {
		return fmt.Errorf("%w: its name %.80q is none", proof.ErrNotProven, item.Name)
	}
	r, err := proof.NewReader(ctx, objects, item)
	if err != nil {
		return err
	}
	defer r.Close()
	switch item.Format {
	case evidence.JSONL, evidence.Text:
		return o.table(name, rawSize(item), item, r)
	case evidence.Tar:
		again := func() (io.ReadCloser, error) { return proof.NewReader(ctx, objects, item) }
		return o.archive(item, r, again)
	}
	return fmt.Errorf("its format %.40q is none that can be unpacked", string(item.Format))
}

// rawSize is how many bytes the reader of an item gives.
func rawSize(item evidence.Item) (n int64) {
	for i, p := range item.Parts {
		if int(p.Number) != i+1 {
			break
		}
		n += int64(p.RawSize)
	}
	return n
}

// safe reports whether a name stays below the folder that it is in, and can be
// made there.
func safe(name string) bool {
	if name == "" || len(name) > maxName || strings.HasPrefix(name, "/") || strings.IndexByte(name, 0) >= 0 {
		return false
	}
	for element := range strings.SplitSeq(name, "/") {
		if element == "" || element == "." || element == ".." || len(element) > maxWord {
			return false
		}
	}
	return true
}

// members gives each member of a tar to do, until that fails. A tar that ends
// before its end, as that of a capture which was cut off, has an error, and so
// has one with bytes after its end, as no reader sees them.
func members(r io.Reader, do func(*tar.Header, io.Reader) error) error {
	archive := tar.NewReader(r)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) { // names are looked at by do
			return fmt.Errorf("cannot read on in the tar: %w", err)
		}
		if err := do(header, archive); err != nil {
			return err
		}
	}
	n, err := io.Copy(io.Discard, r)
	if err == nil && n > 0 {
		err = fmt.Errorf("%d bytes follow the end of the tar, and are not unpacked", n)
	}
	return err
}

// kinds of members. Source: archive/tar.
var kinds = map[byte]string{
	tar.TypeReg: "file", tar.TypeGNUSparse: "file", tar.TypeDir: "folder", tar.TypeSymlink: "symlink", tar.TypeLink: "hardlink",
	tar.TypeChar: "character device", tar.TypeBlock: "block device", tar.TypeFifo: "fifo",
}

// whyNot says why a member is not to be had in a folder or an archive, whatever
// its kind; "" is no reason. taken are the names of tables: a tar that has one
// too would stand in for it.
func whyNot(h *tar.Header, taken map[string]bool) string {
	name := strings.TrimSuffix(h.Name, "/")
	switch {
	case !safe(name):
		return "its name leads elsewhere, or is too long"
	case taken[name]:
		return "its name is that of a table, or of the list"
	case h.Typeflag == tar.TypeLink && !safe(h.Linkname):
		return "its target leads elsewhere"
	}
	return ""
}

// tableNames are the names that tables have in the layout.
func tableNames(m evidence.Manifest) map[string]bool {
	names := map[string]bool{listName: true}
	for _, item := range m.Items {
		names[tableName(item)] = true
	}
	return names
}

// tableName is that of an item that is one file.
func tableName(item evidence.Item) string {
	name := path.Join(responses, string(item.Kind), item.Name)
	switch {
	case item.Format == evidence.JSONL:
		return name + ".jsonl"
	case item.Name == bodyfileItem:
		return bodyfileName
	}
	return name + ".txt"
}

// reading marks the errors of what is read, so that those of a copy can be
// told apart.
type reading struct {
	io.Reader
	err error
}

// Read implements io.Reader.
func (r *reading) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}

// drain copies, and marks an error of w.
func drain(w io.Writer, r io.Reader) (int64, error) {
	from := &reading{Reader: r}
	n, err := io.Copy(w, from)
	if err != nil && from.err == nil {
		err = fmt.Errorf("%w: %w", errOutput, err)
	}
	return n, err
}
