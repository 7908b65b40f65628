package unpack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/quicklime-ir/quicklime/collector/proof"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// trailer is how a tar ends, in bytes, all zero. Source: POSIX, pax, ustar
// Interchange Format.
const trailer = 1024

// gzipLevel trades some size for speed: logs are most of it.
const gzipLevel = 3

// ToTarGz writes a case as one tar.gz. A stored tar stands in it to the byte,
// PAX records, holes, links and all, where nothing of it has to be left out; of
// any other the members are written anew, and holes become zeros.
func ToTarGz(ctx context.Context, objects proof.Objects, m evidence.Manifest, w io.Writer) (Result, error) {
	zip, err := gzip.NewWriterLevel(w, gzipLevel)
	if err != nil {
		return Result{}, err
	}
	a := &archive{w: zip, tar: tar.NewWriter(zip), made: m.Made, taken: tableNames(m)}
	faulty, err := each(ctx, objects, m, a)
	if err == nil {
		if err = errors.Join(a.tar.Close(), zip.Close()); err != nil {
			err = fmt.Errorf("%w: %w", errOutput, err)
		}
	}
	a.result.Faulty = faulty
	return a.result, err
}

// archive writes a tar.
type archive struct {
	w      io.Writer // that tar writes to
	tar    *tar.Writer
	made   time.Time // of what has no time
	taken  map[string]bool
	result Result
}

func (a *archive) begin(h *tar.Header) error {
	a.result.Members++
	if err := a.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("%w %.200q: %w", errOutput, h.Name, err)
	}
	return nil
}

// table implements out. Where the item ends too soon zeros stand for the rest,
// as its length is written before it.
func (a *archive) table(name string, size int64, _ evidence.Item, r io.Reader) error {
	if err := a.begin(&tar.Header{Format: tar.FormatPAX, Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: size, ModTime: a.made}); err != nil {
		return err
	}
	return a.fill(size, r)
}

func (a *archive) fill(size int64, r io.Reader) error {
	n, err := drain(a.tar, io.LimitReader(r, size))
	if errors.Is(err, errOutput) {
		return err
	}
	if n < size && err == nil {
		err = io.ErrUnexpectedEOF
	}
	if _, zeros := drain(a.tar, io.LimitReader(zeroReader{}, size-n)); zeros != nil {
		return zeros
	}
	return err
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// archive implements out. A tar that is what it should be is copied as it
// stands; of any other each member is looked at, and its holes become zeros.
func (a *archive) archive(item evidence.Item, r io.Reader, again func() (io.ReadCloser, error)) error {
	size := rawSize(item)
	count, clean := a.clean(r, size)
	from, err := again()
	if err != nil {
		return err
	}
	defer from.Close()
	if clean {
		a.result.Members += count
		return a.verbatim(size-trailer, from)
	}
	return members(from, a.member)
}

// clean reports whether a tar of so many bytes has only members that are let
// through, ends where its bytes do, and ends as this package continues it.
func (a *archive) clean(r io.Reader, size int64) (count int, clean bool) {
	counted := &counter{Reader: r}
	archive := tar.NewReader(counted)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return count, counted.n == size && size >= trailer
		}
		if err != nil || whyNot(h, a.taken) != "" || !inArchive[kinds[h.Typeflag]] {
			return count, false
		}
		count++
	}
}

// inArchive are the kinds of members that an archive may have.
var inArchive = map[string]bool{"file": true, "folder": true, "symlink": true, "hardlink": true}

type counter struct {
	io.Reader
	n int64
}

// Read implements io.Reader.
func (c *counter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += int64(n)
	return n, err
}

// verbatim copies a whole tar but its end. The tar's writer is between two
// members, so what it writes next follows.
func (a *archive) verbatim(size int64, r io.Reader) error {
	if err := a.tar.Flush(); err != nil {
		return fmt.Errorf("%w: %w", errOutput, err)
	}
	n, err := drain(a.w, io.LimitReader(r, size))
	if err == nil && n < size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil { // members that follow would be bytes of the one that was cut
		return fmt.Errorf("%w the archive, as a tar that was whole is not any more: %w", errOutput, err)
	}
	return nil
}

// member writes a member of a tar that is not copied as it stands.
func (a *archive) member(h *tar.Header, body io.Reader) error {
	why := whyNot(h, a.taken)
	switch {
	case why != "":
	case !inArchive[kinds[h.Typeflag]]:
		why = "it is of no kind that is let through"
	case h.Size > maxMember:
		why = "it is too large, most of it holes"
	}
	if why != "" {
		a.result.left(h.Name, why)
		return nil
	}
	h.Format = tar.FormatPAX
	h.PAXRecords = maps.Clone(h.PAXRecords)
	maps.DeleteFunc(h.PAXRecords, func(k, _ string) bool { return strings.HasPrefix(k, "GNU.sparse.") }) // its holes are zeros from here on
	if err := a.begin(h); err != nil {
		return err
	}
	return a.fill(h.Size, body)
}
