package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/quicklime-ir/quicklime/packaging/lab/guest/pact"
)

// mountAll mounts what a Debian machine has mounted after boot. Mounting hides
// what the initramfs holds there, so /run/utmp is carried over.
func mountAll() error {
	utmp, err := os.ReadFile("/run/utmp")
	if err != nil {
		return fmt.Errorf("cannot read the packed login record: %w", err)
	}
	for _, m := range []struct {
		kind, at string
		flags    uintptr
		data     string
	}{
		{"proc", "/proc", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV, ""},
		{"sysfs", "/sys", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV, ""},
		{"devtmpfs", "/dev", unix.MS_NOSUID, "mode=0755"},
		{"devpts", "/dev/pts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=620,ptmxmode=666"},
		{"tmpfs", "/dev/shm", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"tmpfs", "/run", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
		{"tmpfs", "/tmp", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"cgroup2", "/sys/fs/cgroup", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV, ""},
		{"securityfs", "/sys/kernel/security", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV, ""},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return fmt.Errorf("cannot make %s: %w", m.at, err)
		}
		if err := unix.Mount(m.kind, m.at, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("cannot mount %s on %s: %w", m.kind, m.at, err)
		}
	}
	return os.WriteFile("/run/utmp", utmp, 0o664)
}

// readOrders takes the lab's orders and removes every trace of them.
func readOrders(path string) (pact.Orders, error) {
	var orders pact.Orders
	data, err := os.ReadFile(path)
	if err != nil {
		return orders, fmt.Errorf("cannot read the orders: %w", err)
	}
	if err := json.Unmarshal(data, &orders); err != nil {
		return orders, fmt.Errorf("cannot read the orders: %w", err)
	}
	if len(orders.Seed) != pact.SeedSize {
		return orders, fmt.Errorf("cannot use a seed of %d bytes, want %d", len(orders.Seed), pact.SeedSize)
	}
	if err := os.RemoveAll(filepath.Dir(path)); err != nil {
		return orders, fmt.Errorf("cannot remove the orders: %w", err)
	}
	return orders, nil
}

// loadModules loads each module in the order given; one that is there already
// is no error.
func loadModules(paths []string) error {
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("cannot load a module: %w", err)
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("cannot load the module %s: %w", path, err)
		}
	}
	return nil
}

// bringUpNetwork gives lo and eth0 the addresses of qemu's user networking. It
// runs before anything else is started, so waiting for a child does not race
// with the reaper.
func bringUpNetwork() error {
	for _, args := range []string{
		"link set lo up",
		"addr add " + pact.Address + "/24 dev eth0",
		"link set eth0 up",
		"route add default via " + pact.HostLoopback + " dev eth0",
		"route add unreachable 169.254.169.254", // the metadata of the lab's own host is not the guest's
	} {
		out, err := exec.Command("/bin/busybox", append([]string{"ip"}, strings.Fields(args)...)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("cannot bring up the network: ip %s: %w: %s", args, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}
