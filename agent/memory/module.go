package memory

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
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

// signatureMark ends a module that is signed. Source:
// include/linux/module_signature.h.
const signatureMark = "~Module signature appended~\n"

// mayLoad refuses a module that the kernel would not take, as far as can be
// told without asking it.
func mayLoad(path string) error {
	if !capable(unix.CAP_SYS_MODULE) {
		return refuse("lime", NoCapability, "CAP_SYS_MODULE is needed")
	}
	if b, err := os.ReadFile("/proc/sys/kernel/modules_disabled"); err == nil && strings.TrimSpace(string(b)) == "1" {
		return refuse("lime", NoCapability, "kernel.modules_disabled is 1: no module can be loaded until the next boot")
	}
	signed, err := isSigned(path)
	if err != nil {
		return refuse("lime", Failed, "cannot read module: %v", err)
	}
	if signed { // by whom, only the kernel can tell
		return nil
	}
	if state := lockdownState(); locked(state) {
		return refuse("lime", Lockdown, "the kernel's lockdown is %s, and %s is not signed", state, path)
	}
	if b, err := os.ReadFile("/sys/module/module/parameters/sig_enforce"); err == nil && strings.TrimSpace(string(b)) == "Y" {
		return refuse("lime", ModuleSignature, "the kernel wants signed modules, and %s is not", path)
	}
	return nil
}

// locked says whether the kernel is locked down to any degree.
func locked(state string) bool { return state != "" && !strings.Contains(state, "[none]") }

func isSigned(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil || size < int64(len(signatureMark)) {
		return false, err
	}
	end := make([]byte, len(signatureMark))
	_, err = f.ReadAt(end, size-int64(len(end)))
	return string(end) == signatureMark, err
}

// capable says whether this process has a capability in effect.
func capable(capability int) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return false
	}
	return sets[capability/32].Effective&(1<<(capability%32)) != 0
}

// loadModule blocks until the module's init has returned. LiME's returns
// when the image has been sent, and its status says nothing of the image.
//
// A signal to the thread that loads would make the module leave a range
// unfinished, so that thread takes none. It ends with its goroutine, which
// stays locked to it: call loadModule as the last thing of one of its own.
func loadModule(path, parameters string) error {
	runtime.LockOSThread()
	var all unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &all, nil); err != nil {
		return fmt.Errorf("cannot hold signals back: %w", err)
	}
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
		if state := lockdownState(); locked(state) {
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
