package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// write makes a file durable under its name, or leaves what was there.
func (f *files) write(name string, content []byte) error {
	if err := f.makeFolder(path.Dir(name)); err != nil {
		return err
	}
	temp := path.Join(tempName, "file")
	if err := f.writeTemp(temp, content); err != nil {
		return err
	}
	if err := f.root.Rename(temp, name); err != nil {
		return err
	}
	return f.syncFolder(path.Dir(name))
}

// writeTemp makes a file whose content is on the disk. The store writes one
// file at a time, so one name is enough.
func (f *files) writeTemp(name string, content []byte) error {
	file, err := f.root.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	if err == nil {
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}

// makeFolder makes a folder and those above it. Each one's name is synced
// once in the life of the process, also where the folder was there already:
// whoever made it may have died before its name was on the disk.
func (f *files) makeFolder(dir string) error {
	if dir == "." || f.synced[dir] {
		return nil
	}
	parent := path.Dir(dir)
	if err := f.makeFolder(parent); err != nil {
		return err
	}
	if err := f.root.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := f.syncFolder(parent); err != nil {
		return err
	}
	f.synced[dir] = true
	return nil
}

// syncFolder makes the names in a folder durable. Where that fails, what is
// seen may not be what is on the disk, and the kernel does not tell twice:
// nothing more is done until the store is opened again.
func (f *files) syncFolder(dir string) error {
	d, err := f.root.Open(dir)
	if err == nil {
		err = errors.Join(d.Sync(), d.Close())
	}
	if err != nil {
		f.broken = fmt.Errorf("the store's disk failed, look at it and restart the collector: %w", err)
		return f.broken
	}
	return nil
}

// syncParent makes the name of the store's own folder durable.
func syncParent(dir string) error {
	d, err := os.Open(filepath.Dir(filepath.Clean(dir)))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// TakeLock makes this process the only one with the store in a folder; the
// error names the one that has it. The lock ends with the file, or with the
// process, however that ends. See flock(2).
func TakeLock(root *os.Root, dir string) (*os.File, error) {
	file, err := root.OpenFile(lockName, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot lock store: %w", err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer file.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("cannot open store in %s: process %s has it; stop that one, or give this one another folder", dir, holder(file))
		}
		return nil, fmt.Errorf("cannot lock %s: %w", filepath.Join(dir, lockName), err)
	}
	if err := errors.Join(file.Truncate(0), note(file)); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot lock %s: %w", filepath.Join(dir, lockName), err), file.Close())
	}
	return file, nil
}

// note tells the others who has the store.
func note(file *os.File) error {
	_, err := file.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	return err
}

// holder reads what note wrote.
func holder(file *os.File) string {
	text, err := io.ReadAll(io.LimitReader(file, 20))
	pid := strings.TrimSpace(string(text))
	if err != nil || pid == "" || strings.Trim(pid, "0123456789") != "" {
		return "(unknown)"
	}
	return pid
}
