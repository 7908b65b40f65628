package memory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

// file reads a LiME image as if it were the host: for tests, and for a lab
// without a kernel.
type file struct {
	path     string
	alloc    func() ([]byte, func())
	segments []segment
}

func probeFile(o Options) error {
	_, err := openFile(context.Background(), o)
	return err
}

func openFile(_ context.Context, o Options) (Source, error) {
	f, err := os.Open(o.File)
	if err != nil {
		return nil, refuse("file", Failed, "%v", err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, refuse("file", Failed, "cannot learn the size of %s: %v", o.File, err)
	}
	source := &file{path: o.File, alloc: o.alloc}
	var lastEnd uint64
	var header [lime.HeaderSize]byte
	for offset := int64(0); ; {
		if _, err := f.ReadAt(header[:], offset); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, refuse("file", Failed, "%v", err)
		}
		r, err := lime.ParseHeader(header[:])
		if err != nil {
			return nil, refuse("file", Malformed, "%s at offset %d: %v", o.File, offset, err)
		}
		if len(source.segments) > 0 && r.Start <= lastEnd {
			return nil, refuse("file", Malformed, "%s at offset %d: record %v does not come after address %08x", o.File, offset, r, lastEnd)
		}
		offset += lime.HeaderSize
		if r.Len() > uint64(max(0, size-offset)) {
			return nil, refuse("file", Malformed, "%s at offset %d: record %v reaches beyond the file's end", o.File, offset, r)
		}
		source.segments = append(source.segments, segment{r, offset})
		lastEnd, offset = r.End, offset+int64(r.Len())
	}
	return source, nil
}

func (f *file) Name() string { return "file" }
func (f *file) Readers() int { return 0 }
func (f *file) Close() error { return nil }

// PageFlags says that an image tells nothing of them.
func (f *file) PageFlags() string { return "an image file has none" }

func (f *file) Order(_ context.Context, parts [][]lime.Range) []int { return ascending(parts) }

func (f *file) Ranges() []lime.Range {
	var out []lime.Range
	for _, s := range f.segments {
		out = append(out, s.Range)
	}
	return lime.Merge(out)
}

func (f *file) Open() (Reader, error) {
	open, err := os.Open(f.path)
	if err != nil {
		return nil, fmt.Errorf("cannot open image: %w", err)
	}
	buffer, free := f.alloc()
	return &fileReader{open, f.segments, buffer, free}, nil
}

type fileReader struct {
	image    *os.File
	segments []segment
	buffer   []byte
	free     func()
}

func (r *fileReader) Close() error {
	r.free()
	return r.image.Close()
}

func (r *fileReader) ReadPhys(ctx context.Context, addr uint64, n int) ([]byte, []evidence.Gap, error) {
	if err := checkRead(addr, n); err != nil {
		return nil, nil, err
	}
	if err := r.read(ctx, r.buffer[:n], addr); err != nil {
		return nil, nil, err
	}
	return r.buffer[:n], nil, nil
}

func (r *fileReader) read(ctx context.Context, p []byte, addr uint64) error {
	for len(p) > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		i, _ := slices.BinarySearchFunc(r.segments, addr, func(s segment, a uint64) int { return cmp.Compare(s.End, a) })
		if i == len(r.segments) || addr < r.segments[i].Start {
			return fmt.Errorf("cannot read address %08x: the image does not have it", addr)
		}
		s := r.segments[i]
		n := int(min(uint64(len(p)), s.End-addr+1))
		if _, err := r.image.ReadAt(p[:n], s.offset+int64(addr-s.Start)); err != nil {
			return fmt.Errorf("cannot read image at %08x: %w", addr, err)
		}
		p, addr = p[n:], addr+uint64(n)
	}
	return nil
}
