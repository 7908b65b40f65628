package proof

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// Folder is a copy of the bucket on disk, each object a file named by its
// key. No key can lead out of it.
type Folder struct{ root *os.Root }

// OpenFolder opens a copy.
func OpenFolder(dir string) (*Folder, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot open folder of evidence: %w", err)
	}
	return &Folder{root}, nil
}

// Close closes the folder.
func (f *Folder) Close() error { return f.root.Close() }

// Open implements evidence.Objects.
func (f *Folder) Open(_ context.Context, key string) (io.ReadCloser, error) {
	file, err := f.root.Open(key)
	if err != nil {
		return nil, fmt.Errorf("cannot open object: %w", err)
	}
	return file, nil
}

// OpenRange implements evidence.Objects.
func (f *Folder) OpenRange(_ context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	file, err := f.root.Open(key)
	if err != nil {
		return nil, fmt.Errorf("cannot open object: %w", err)
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(file, offset, length), file}, nil
}

// Keys implements Objects.
func (f *Folder) Keys(ctx context.Context, prefix string) ([]string, error) {
	var keys []string
	err := fs.WalkDir(f.root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.Type().IsRegular() && strings.HasPrefix(name, prefix) {
			keys = append(keys, name)
		}
		return ctx.Err()
	})
	slices.Sort(keys)
	return keys, err
}
