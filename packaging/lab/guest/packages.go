package guest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
)

// ErrNotRoot is wrapped by Install's error when the caller cannot install.
var ErrNotRoot = errors.New("installing packages needs root")

// Packages names the Debian 12 packages that the lab needs on its host: the
// emulator and what goes into the guest, then what an out-of-tree module build
// needs (Debian's headers name gcc-12; their modpost and objtool link to libelf
// and libssl).
func Packages() []string {
	return []string{
		"qemu-system-x86", "busybox-static",
		"make", "gcc-12", "binutils", "libelf1", "libssl3",
	}
}

// Missing is the part of Packages that is not installed. Where dpkg itself is
// missing, all of them are.
func Missing() []string {
	var missing []string
	for _, name := range Packages() {
		out, err := exec.Command("dpkg-query", "-W", "-f", "${db:Status-Status}\n", name).Output()
		if err != nil || !slices.Contains(strings.Fields(string(out)), "installed") {
			missing = append(missing, name)
		}
	}
	return missing
}

// Install installs the missing packages when the caller is root, and otherwise
// fails with the one line to run. It refreshes apt's lists only when they do not
// serve.
func Install(ctx context.Context, log *slog.Logger) error {
	missing := Missing()
	if len(missing) == 0 {
		return nil
	}
	args := append([]string{"install", "-y", "--no-install-recommends"}, missing...)
	if os.Geteuid() != 0 {
		return fmt.Errorf("cannot install what the lab needs: %w; run: sudo apt-get update && sudo apt-get %s", ErrNotRoot, strings.Join(args, " "))
	}
	log.Info("installing packages", "packages", strings.Join(missing, " "))
	return withLists(ctx, log, func() error { return aptGet(ctx, "", args...) })
}

// withLists runs act; if it fails, it refreshes apt's lists (as root) and runs
// it once more. Lists may be absent, as in a fresh container, or name versions
// that the mirror has replaced.
func withLists(ctx context.Context, log *slog.Logger, act func() error) error {
	first := act()
	if first == nil || ctx.Err() != nil {
		return first
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w; if the package lists are old, run: sudo apt-get update", first)
	}
	log.Info("refreshing the package lists", "because", firstLine(first))
	if err := aptGet(ctx, "", "update"); err != nil {
		return errors.Join(err, first)
	}
	return act()
}

// aptGet runs apt-get without questions. An empty dir is the current folder.
func aptGet(ctx context.Context, dir string, args ...string) error {
	_, err := output(ctx, dir, "apt-get", append([]string{"-q", "-o", "APT::Sandbox::User=root", "-o", "DPkg::Lock::Timeout=120"}, args...)...)
	return err
}

// output runs a program in dir and returns its standard output. The error holds
// the last 2 KiB of what it wrote to its standard error, or failing that, output.
func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(slices.DeleteFunc(os.Environ(), fromMake), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	// A group of its own, so that cancelling ends make's and apt's children too.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	var out, complaint strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		said := complaint.String()
		if strings.TrimSpace(said) == "" {
			said = out.String()
		}
		return "", fmt.Errorf("cannot run %s %s: %w: %s", name, strings.Join(args, " "), err, lastBytes(strings.TrimSpace(said), 2048))
	}
	return out.String(), nil
}

// fromMake tells the variables that a make above us would pass to a make below.
func fromMake(variable string) bool {
	for _, prefix := range []string{"MAKEFLAGS=", "MFLAGS=", "MAKELEVEL=", "MAKEOVERRIDES=", "ARCH=", "CROSS_COMPILE="} {
		if strings.HasPrefix(variable, prefix) {
			return true
		}
	}
	return false
}

func lastBytes(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return "… " + s[len(s)-n:]
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}
