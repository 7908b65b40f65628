package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/quicklime-ir/quicklime/packaging/lab/guest/pact"
)

const (
	newRoot     = "/mnt"
	serviceVerb = "serve"
	serviceExe  = "/usr/lib/quicklime-lab/init" // this program, in the guest's own Debian
	systemd     = "/sbin/init"
)

// service runs this program once the machine is up, and ends with it.
const service = `[Unit]
Description=What the lab left to do
After=multi-user.target

[Service]
ExecStart=` + serviceExe + " " + serviceVerb + `
StandardOutput=journal+console
StandardError=journal+console
`

// moveInto makes the disk the root of this machine and its systemd the first
// process, in the place of this one. It returns only an error.
func moveInto(orders pact.Orders) error {
	if err := unix.Mount(orders.Root, newRoot, "ext4", 0, ""); err != nil {
		return fmt.Errorf("cannot mount %s: %w", orders.Root, err)
	}
	for _, path := range orders.Carry {
		to := path
		if path == "/init" {
			to = serviceExe
		}
		if err := carry(path, filepath.Join(newRoot, to)); err != nil {
			return fmt.Errorf("cannot take %s along: %w", path, err)
		}
	}
	if err := arrange(orders); err != nil {
		return fmt.Errorf("cannot arrange the lab's service: %w", err)
	}
	// tmp and shm are systemd's to mount.
	for _, at := range []string{"/sys/kernel/security", "/sys/fs/cgroup", "/dev/shm", "/dev/pts"} {
		if err := unix.Unmount(at, 0); err != nil {
			return fmt.Errorf("cannot unmount %s: %w", at, err)
		}
	}
	for _, at := range []string{"/proc", "/sys", "/dev", "/run"} {
		if err := unix.Mount(at, newRoot+at, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("cannot move %s: %w", at, err)
		}
	}
	err := errors.Join(os.Chdir(newRoot), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), os.Chdir("/"))
	if err != nil {
		return fmt.Errorf("cannot change the root: %w", err)
	}
	return fmt.Errorf("cannot start systemd: %w", unix.Exec(systemd, []string{systemd}, environment))
}

// carry copies a file with owner, mode and times.
func carry(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(from, &st); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(to, data, 0o600); err != nil {
		return err
	}
	return errors.Join(unix.Chown(to, int(st.Uid), int(st.Gid)), unix.Chmod(to, st.Mode&0o7777),
		unix.UtimesNano(to, []unix.Timespec{st.Mtim, st.Mtim}))
}

// arrange leaves the orders and the service in /run, so that nothing of either
// is on the disk.
func arrange(orders pact.Orders) error {
	orders.Root = ""
	data, err := json.Marshal(orders)
	if err != nil {
		return err
	}
	const units = "/run/systemd/system"
	for path, content := range map[string]string{pact.SecondOrders: string(data), units + "/quicklime-lab.service": service} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	wants := units + "/graphical.target.wants"
	return errors.Join(os.MkdirAll(wants, 0o755), os.Symlink("../quicklime-lab.service", wants+"/quicklime-lab.service"),
		os.WriteFile(newRoot+"/etc/hostname", []byte(orders.Hostname+"\n"), 0o644))
}
