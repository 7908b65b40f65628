package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// lockName is the file by which a process has a folder. It begins with "=" so
// that nothing else is called so.
const lockName = "=lock"

// TakeLock makes this process the only one with a store's folder. The lock
// ends with the process, however that ends. See flock(2).
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
