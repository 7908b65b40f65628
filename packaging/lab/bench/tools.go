package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/quicklime-ir/quicklime/packaging/lab/guest"
)

// toolsVersion numbers the way the disk is made; another is made anew.
const toolsVersion = 1

// slack is the room that a file system takes beyond its files, at least.
const slack = 64 << 20

// toolsDisk gives an ext4 image with Debian's AWS CLI and all that it needs,
// to be mounted read-only. It is made once, with apt-get, dpkg-deb and mke2fs
// and without running the packages' scripts, and kept in a folder.
func toolsDisk(ctx context.Context, cache string, log *slog.Logger) (string, error) {
	disk := filepath.Join(cache, fmt.Sprintf("awscli-%d.img", toolsVersion))
	if _, err := os.Stat(disk); err == nil {
		return disk, nil
	}
	log.Info("making a disk with Debian's AWS CLI", "file", disk)
	work, err := os.MkdirTemp(cache, "awscli.new-")
	if err != nil {
		return "", fmt.Errorf("cannot make the AWS CLI's disk: %w", err)
	}
	err = fillTools(ctx, work)
	if err == nil {
		err = os.Rename(filepath.Join(work, "disk.img"), disk)
	}
	if err := errors.Join(err, os.RemoveAll(work)); err != nil {
		return "", fmt.Errorf("cannot make the AWS CLI's disk: %w", err)
	}
	return disk, nil
}

// fillTools makes disk.img in a folder of its own.
func fillTools(ctx context.Context, work string) error {
	root, archives, nothing := filepath.Join(work, "root"), filepath.Join(work, "archives"), filepath.Join(work, "nothing-installed")
	for _, dir := range []string{filepath.Join(archives, "partial"), root} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(nothing, nil, 0o644); err != nil {
		return err
	}
	// With nothing installed, apt-get fetches every dependency, the C library
	// included.
	_, err := command(ctx, work, []string{"DEBIAN_FRONTEND=noninteractive"}, "apt-get", "-q", "-y", "--download-only", "--no-install-recommends",
		"-o", "Dir::State::status="+nothing, "-o", "Dir::Cache::archives="+archives, "-o", "APT::Sandbox::User=root",
		"-o", "DPkg::Lock::Timeout=120", "install", "awscli")
	if err != nil {
		return err
	}
	packages, err := filepath.Glob(filepath.Join(archives, "*.deb"))
	if err != nil || len(packages) == 0 {
		return errors.Join(errors.New("apt-get fetched nothing"), err)
	}
	for _, deb := range packages {
		if _, err := command(ctx, work, nil, "dpkg-deb", "-x", deb, root); err != nil {
			return err
		}
	}
	if err := compileTools(ctx, root); err != nil {
		return err
	}
	for _, dir := range []string{"dev", "mnt", "proc", "tmp", "root"} { // to be mounted on
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	size, err := guest.TreeSize(root)
	if err != nil {
		return err
	}
	return guest.MakeDisk(ctx, filepath.Join(work, "disk.img"), size+size/4+slack, "-d", root)
}

// compileTools does what the packages' scripts would have done: without
// compiled modules, each start of the CLI would compile them first.
func compileTools(ctx context.Context, root string) error {
	const libraries = "lib/x86_64-linux-gnu"
	python := []string{"--library-path", filepath.Join(root, libraries) + ":" + filepath.Join(root, "usr", libraries),
		filepath.Join(root, "usr/bin/python3"), "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash", "-s", root}
	found, err := filepath.Glob(filepath.Join(root, "usr/lib/python3*"))
	if err != nil || len(found) == 0 {
		return errors.Join(errors.New("the packages hold no Python"), err)
	}
	_, err = command(ctx, root, []string{"PYTHONHOME=" + filepath.Join(root, "usr")}, filepath.Join(root, "lib64/ld-linux-x86-64.so.2"), append(python, found...)...)
	return err
}
