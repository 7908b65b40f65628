package guest

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// kernelPackage is Debian's EC2 kernel; it depends on the newest real one.
const kernelPackage = "linux-image-cloud-amd64"

// dependency matches that dependency: the package, its release, its version.
var dependency = regexp.MustCompile(`(?m)^Depends: .*\blinux-image-([0-9][0-9a-z.+-]*-cloud-amd64) \(= ([0-9A-Za-z.+:~-]+)\)`)

// fill makes a kit in dir, apart from its stamp's hashes.
func fill(ctx context.Context, dir string, log *slog.Logger) (stamp, error) {
	var s stamp
	work := filepath.Join(dir, "work")
	if err := os.Mkdir(work, 0o755); err != nil {
		return s, err
	}
	err := withLists(ctx, log, func() (err error) {
		s, err = download(ctx, work, log)
		return err
	})
	if err != nil {
		return s, err
	}
	root := filepath.Join(work, "root")
	if err := unpack(ctx, work, root); err != nil {
		return s, err
	}
	log.Info("building lime.ko", "kernel", s.Release)
	module, err := buildLime(ctx, root, work, s.Release)
	if err != nil {
		return s, err
	}
	for from, to := range map[string]string{
		module: limePath,
		filepath.Join(root, kernelPath(s.Release)): kernelPath(s.Release),
		filepath.Join(root, moduleDir(s.Release)):  moduleDir(s.Release),
	} {
		if err := move(from, filepath.Join(dir, to)); err != nil {
			return s, err
		}
	}
	return s, os.RemoveAll(work)
}

// download finds the newest cloud kernel and fetches its packages into dir.
func download(ctx context.Context, dir string, log *slog.Logger) (stamp, error) {
	record, err := output(ctx, "", "apt-cache", "show", "--no-all-versions", kernelPackage)
	if err != nil {
		return stamp{}, err
	}
	s, err := newestKernel(record)
	if err != nil {
		return stamp{}, err
	}
	names, err := kernelPackages(ctx, s)
	if err != nil {
		return stamp{}, err
	}
	log.Info("downloading Debian packages", "kernel", s.Release, "version", s.Version)
	return s, aptGet(ctx, dir, append([]string{"download"}, names...)...)
}

// newestKernel reads the kernel's release and version from apt's record of
// kernelPackage.
func newestKernel(record string) (stamp, error) {
	m := dependency.FindStringSubmatch(record)
	if m == nil {
		return stamp{}, fmt.Errorf("cannot find the kernel that %s depends on in apt's record of it", kernelPackage)
	}
	return stamp{Release: m[1], Version: m[2]}, nil
}

// kernelPackages names the kernel and everything that building a module for it
// takes, each in the kernel's own version. The flavour's headers name the rest.
func kernelPackages(ctx context.Context, s stamp) ([]string, error) {
	headers := "linux-headers-" + s.Release
	record, err := output(ctx, "", "apt-cache", "show", headers+"="+s.Version)
	if err != nil {
		return nil, err
	}
	kbuild := regexp.MustCompile(`linux-kbuild-[0-9.]+`).FindString(record)
	common := regexp.MustCompile(`linux-headers-[0-9a-z.+-]+-common`).FindString(record)
	if kbuild == "" || common == "" {
		return nil, fmt.Errorf("cannot find linux-kbuild and the common headers in apt's record of %s", headers)
	}
	names := []string{"lime-forensics-dkms"}
	for _, name := range []string{"linux-image-" + s.Release, headers, common, kbuild} {
		names = append(names, name+"="+s.Version)
	}
	return names, nil
}

// unpack extracts every package in dir into root; no script of theirs runs.
func unpack(ctx context.Context, dir, root string) error {
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return err
	}
	if len(debs) == 0 {
		return errors.New("cannot find the downloaded packages")
	}
	for _, deb := range debs {
		if _, err := output(ctx, "", "dpkg-deb", "-x", deb, root); err != nil {
			return err
		}
	}
	return nil
}

// move renames, after making the folder that to lies in.
func move(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.Rename(from, to)
}

// staticBusybox finds the host's busybox and refuses a dynamic one, which could
// not run in the guest.
func staticBusybox() (string, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return "", fmt.Errorf("cannot find busybox: %w; install busybox-static", err)
	}
	if err := isStatic(path); err != nil {
		return "", fmt.Errorf("%w; install busybox-static", err)
	}
	return path, nil
}

// isStatic refuses a program that is no amd64 ELF file or asks for a loader.
func isStatic(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("cannot read the program %s: %w", path, err)
	}
	defer f.Close()
	if f.Machine != elf.EM_X86_64 {
		return fmt.Errorf("cannot run %s in the guest: it is for %s, want x86-64", path, f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("cannot run %s in the guest: it is linked dynamically", path)
		}
	}
	return nil
}

func oneMatch(pattern string) (string, error) {
	found, err := filepath.Glob(pattern)
	if err != nil {
		return "", err
	}
	if len(found) != 1 {
		return "", fmt.Errorf("cannot choose from %d matches of %s: %s", len(found), pattern, strings.Join(found, ", "))
	}
	return found[0], nil
}
