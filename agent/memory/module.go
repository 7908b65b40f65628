package memory

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// defaultModuleDir holds prebuilt LiME modules as RELEASE/lime.ko.
const defaultModuleDir = "/usr/lib/quicklime/modules"

// maxModinfo bounds a module's .modinfo section, in bytes.
const maxModinfo = 1 << 20

var releaseShape = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.+~_-]{0,127}$`)

// kernelRelease is what uname -r prints.
func kernelRelease() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("cannot learn the kernel's release: %w", err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	if !releaseShape.MatchString(release) {
		return "", fmt.Errorf("cannot use kernel release %.80q as a folder's name", release)
	}
	return release, nil
}

// findModule gives the LiME module for exactly this kernel: prebuilt, else
// built by DKMS.
func findModule(o Options) (string, error) {
	release, err := kernelRelease()
	if err != nil {
		return "", refuse("lime", Failed, "%v", err)
	}
	dir := o.ModuleDir
	if dir == "" {
		dir = defaultModuleDir
	}
	places := []string{filepath.Join(dir, release, "lime.ko"), filepath.Join("/lib/modules", release, "updates/dkms/lime.ko")}
	for _, path := range places {
		if _, err := os.Stat(path); err == nil {
			return path, checkModule(path, release)
		}
	}
	return "", refuse("lime", NoModule, "no module for kernel %s: looked for %s", release, strings.Join(places, " and "))
}

// checkModule refuses a module of another kernel, by the release that it
// itself names.
func checkModule(path, release string) error {
	f, err := os.Open(path)
	if err != nil {
		return refuse("lime", Failed, "cannot open module: %v", err)
	}
	defer f.Close()
	file, err := elf.NewFile(f)
	if err != nil {
		return refuse("lime", Malformed, "%s is no kernel module: %v", path, err)
	}
	section := file.Section(".modinfo")
	if section == nil || section.Size > maxModinfo {
		return refuse("lime", Malformed, "%s has no readable .modinfo", path)
	}
	info, err := section.Data()
	if err != nil {
		return refuse("lime", Malformed, "%s has no readable .modinfo: %v", path, err)
	}
	if built := vermagic(info); built != release {
		return refuse("lime", ModuleMismatch, "%s is built for kernel %.80q, this is %s", path, built, release)
	}
	return nil
}

// vermagic is the kernel release in a .modinfo section, which is a list of
// NAME=VALUE, each ended by a NUL. Source: include/linux/vermagic.h.
func vermagic(modinfo []byte) string {
	for entry := range strings.SplitSeq(string(modinfo), "\x00") {
		if value, ok := strings.CutPrefix(entry, "vermagic="); ok {
			release, _, _ := strings.Cut(value, " ")
			return release
		}
	}
	return ""
}

// loadModule blocks until the module's init has returned. LiME's returns
// when the image has been sent, and its status says nothing of the image.
func loadModule(path, parameters string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("cannot open module: %w", err)
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), parameters, 0); err != nil {
		return fmt.Errorf("cannot load module %s: %w", path, err)
	}
	return nil
}

// unloadModule removes the module; one that is not there is fine.
func unloadModule() error {
	err := unix.DeleteModule("lime", unix.O_NONBLOCK)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return fmt.Errorf("cannot remove module lime: %w", err)
}

// loadRefusal sorts what the kernel said to loading. Source: init_module(2).
func loadRefusal(err error) error {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return refuse("lime", Failed, "%v", err)
	}
	switch errno {
	case unix.EKEYREJECTED, unix.ENOKEY, unix.EBADMSG:
		return refuse("lime", ModuleSignature, "%v", err)
	case unix.EPERM:
		if state := lockdownState(); state != "" && !strings.Contains(state, "[none]") {
			return refuse("lime", Lockdown, "the kernel's lockdown is %s: %v", state, err)
		}
		return refuse("lime", NoCapability, "CAP_SYS_MODULE is needed: %v", err)
	case unix.ENOEXEC:
		return refuse("lime", ModuleMismatch, "%v", err)
	case unix.EEXIST:
		return refuse("lime", InUse, "a module of this name is loaded already: %v", err)
	}
	return refuse("lime", Failed, "%v", err)
}
