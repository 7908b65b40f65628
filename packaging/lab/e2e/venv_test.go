package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/quicklime-ir/quicklime/packaging/lab/guest"
)

// venv gives a virtual environment with packages of Python. It is the one in
// the lab's cache, and is filled from PyPI first where there is none. Where that
// cannot be done the test is skipped, not in CI.
func venv(t *testing.T, name string, packages ...string) (dir string) {
	t.Helper()
	dir, err := guest.CacheDir()
	if err == nil {
		dir = filepath.Join(dir, name)
		if _, missing := os.Stat(dir); missing != nil {
			err = makeVenv(t.Context(), dir, packages)
		}
	}
	if err != nil && os.Getenv("CI") == "" {
		t.Skipf("no %s here: %v", name, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// makeVenv fills a folder of its own and renames it, so that the cache never
// holds half of one. Whoever comes second leaves the first's.
func makeVenv(ctx context.Context, dir string, packages []string) error {
	fresh, err := os.MkdirTemp(filepath.Dir(dir), filepath.Base(dir)+".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(fresh)
	if said, err := exec.CommandContext(ctx, "python3", "-m", "venv", fresh).CombinedOutput(); err != nil {
		return fmt.Errorf("cannot make a virtual environment, install python3-venv: %w\n%s", err, said)
	}
	args := append([]string{"-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--only-binary", ":all:"}, packages...)
	if said, err := exec.CommandContext(ctx, filepath.Join(fresh, "bin/python3"), args...).CombinedOutput(); err != nil {
		return fmt.Errorf("cannot install %v from PyPI: %w\n%s", packages, err, said)
	}
	if err := os.Rename(fresh, dir); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}
