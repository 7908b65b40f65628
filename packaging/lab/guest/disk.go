package guest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// TreeSize adds up the files below a folder, each in whole blocks.
func TreeSize(root string) (int64, error) {
	const block = 4096
	var size int64
	err := filepath.WalkDir(root, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		size += (info.Size() + block) / block * block
		return nil
	})
	return size, err
}

// MakeDisk makes a file system in a sparse file of so many bytes; options are
// mke2fs's.
func MakeDisk(ctx context.Context, path string, size int64, options ...string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	_, err = output(ctx, "", "mke2fs", append(append([]string{"-q", "-t", "ext4", "-F"}, options...), path)...)
	if err != nil && strings.Contains(err.Error(), "not found") {
		err = fmt.Errorf("%w; install e2fsprogs", err)
	}
	return err
}
