package guest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

// debianRecipe numbers the way the root is made; another is made anew.
const debianRecipe = 1

// debianPackages make a root in which systemd, its journal, cron, syslog and
// logins are real.
const debianPackages = "systemd,systemd-sysv,dbus,cron,rsyslog,openssh-server,sudo,iproute2,procps"

// rootSlack is the room that the root has beside its files, in bytes.
const rootSlack = 512 << 20

// Debian gives an ext4 image of a whole Debian 12 in cacheDir, for
// Config.Root. Where there is none it is made with debootstrap, which takes
// root, a minute and the network. Several processes may call at once.
func Debian(ctx context.Context, cacheDir string, log *slog.Logger) (string, error) {
	image := filepath.Join(cacheDir, fmt.Sprintf("debian-%d.img", debianRecipe))
	unlock, err := lock(ctx, filepath.Join(cacheDir, "debian.lock"), log)
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(image); err == nil {
		return image, nil
	}
	log.Info("making a whole Debian", "file", image)
	work, err := os.MkdirTemp(cacheDir, "debian.new-")
	if err == nil {
		err = errors.Join(makeDebian(ctx, work, log), ctx.Err())
		if err == nil {
			err = os.Rename(filepath.Join(work, "image"), image)
		}
		err = errors.Join(err, os.RemoveAll(work))
	}
	if err != nil {
		return "", fmt.Errorf("cannot make a whole Debian: %w", err)
	}
	return image, nil
}

// makeDebian makes the file image in a folder of its own.
func makeDebian(ctx context.Context, work string, log *slog.Logger) error {
	if os.Geteuid() != 0 {
		return ErrNotRoot
	}
	if _, err := output(ctx, work, "debootstrap", "--version"); err != nil {
		if err := withLists(ctx, log, func() error {
			return aptGet(ctx, "", "install", "-y", "--no-install-recommends", "debootstrap", "e2fsprogs")
		}); err != nil {
			return err
		}
	}
	root := filepath.Join(work, "root")
	mirror, err := debianMirror(ctx, log)
	if err != nil {
		return err
	}
	if _, err := output(ctx, work, "debootstrap", "--variant=minbase", "--include="+debianPackages, "bookworm", root, mirror); err != nil {
		return err
	}
	if err := furnish(ctx, root); err != nil {
		return err
	}
	size, err := TreeSize(root)
	if err != nil {
		return err
	}
	return MakeDisk(ctx, filepath.Join(work, "image"), size+rootSlack, "-d", root)
}

// debianMirror is where this host gets its own packages from.
func debianMirror(ctx context.Context, log *slog.Logger) (mirror string, err error) {
	err = withLists(ctx, log, func() error {
		sites, err := output(ctx, "", "apt-get", "indextargets", "--format", "$(SITE)", "Codename: bookworm", "Created-By: Packages")
		if err != nil {
			return err
		}
		if mirror, _, _ = strings.Cut(sites, "\n"); mirror == "" {
			return errors.New("apt knows no mirror of bookworm")
		}
		return nil
	})
	return mirror, err
}

// furnish adds what a server has that was in use: an account, a journal that
// stays, and what an intruder left to come back by.
func furnish(ctx context.Context, root string) error {
	if _, err := output(ctx, root, "chroot", root, "/usr/sbin/useradd", "--create-home", "--uid", "1000", "--groups", "sudo", "--shell", "/bin/bash", "admin"); err != nil {
		return err
	}
	for name, f := range map[string]struct {
		mode fs.FileMode
		text string
	}{
		"var/log/journal/.keep":                {0o644, ""},
		"etc/systemd/system/sys-sync.service":  {0o644, "[Service]\nType=oneshot\nExecStart=/usr/local/sbin/sys-sync --quiet\n"},
		"etc/systemd/system/sys-sync.timer":    {0o644, "[Timer]\nOnBootSec=2\nOnUnitActiveSec=7min\n[Install]\nWantedBy=timers.target\n"},
		"usr/local/sbin/sys-sync":              {0o755, "#!/bin/sh\necho sys-sync ran\n"},
		"usr/local/bin/.tool":                  {0o755 | fs.ModeSetuid, "#!/bin/sh\nexec sh -p\n"},
		"home/admin/.ssh/authorized_keys":      {0o600, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1Qv7cWc0lMfZ0F3o2o0k3q8m1Q3l0b1m5kq4z6tq8P intruder\n"},
		"home/admin/odd\nname\xff":             {0o644, "odd\n"},
		"etc/profile.d/history.sh":             {0o644, "unset HISTFILE\n"},
		"etc/ssh/sshd_config.d/10-tunnel.conf": {0o644, "PermitTunnel yes\n"},
	} {
		at := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(at, []byte(f.text), 0o600); err != nil {
			return err
		}
		if err := os.Chmod(at, f.mode); err != nil {
			return err
		}
	}
	wants := filepath.Join(root, "etc/systemd/system/timers.target.wants")
	return errors.Join(os.MkdirAll(wants, 0o755), os.Symlink("../sys-sync.timer", filepath.Join(wants, "sys-sync.timer")))
}
