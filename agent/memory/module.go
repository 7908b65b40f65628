package memory

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"
)

// defaultModuleDir holds prebuilt LiME modules as RELEASE/lime.ko.
const defaultModuleDir = "/usr/lib/quicklime/modules"

// Bounds of a module, in bytes.
const (
	maxModule  = 64 << 20 // of one that is packed, once it is unpacked
	maxModinfo = 1 << 20  // of its .modinfo section
)

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

// module is a LiME module for this kernel.
type module struct {
	path   string
	image  []byte // of one that is compressed; nil: the file itself is loaded
	signed bool
	magic  string // its vermagic, whole
}

// packings are the endings of compressed modules, and how they are opened.
// Source: the kernel's scripts/Makefile.modinst.
var packings = []struct {
	ending string
	open   func(io.Reader) (io.Reader, error)
}{
	{"", nil},
	{".zst", func(r io.Reader) (io.Reader, error) {
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxModule))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}},
	{".gz", func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) }},
	{".xz", func(r io.Reader) (io.Reader, error) { return xz.NewReader(r) }},
}

// findModule gives the LiME module for exactly this kernel: prebuilt, else
// built by DKMS, each as it is or compressed.
func findModule(o Options) (*module, error) {
	release, err := kernelRelease()
	if err != nil {
		return nil, refuse("lime", Failed, "%v", err)
	}
	places := []string{filepath.Join(cmp.Or(o.ModuleDir, defaultModuleDir), release, "lime.ko"), filepath.Join("/lib/modules", release, "updates/dkms/lime.ko")}
	for _, path := range places {
		for _, packing := range packings {
			if _, err := os.Stat(path + packing.ending); err == nil {
				return readModule(path+packing.ending, packing.open, release)
			}
		}
	}
	return nil, refuse("lime", NoModule, "no module for kernel %s: looked for %s, also as .zst, .gz and .xz", release, strings.Join(places, " and "))
}

// readModule reads what a module tells of itself, and refuses one of another
// kernel. open unpacks it; nil where it is not packed.
func readModule(path string, open func(io.Reader) (io.Reader, error), release string) (*module, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, refuse("lime", Failed, "cannot open module: %v", err)
	}
	defer f.Close()
	m := &module{path: path}
	content, size := io.ReaderAt(f), int64(0)
	if open == nil {
		if size, err = f.Seek(0, io.SeekEnd); err != nil {
			return nil, refuse("lime", Failed, "cannot learn the size of %s: %v", path, err)
		}
	} else {
		if m.image, err = unpack(f, open); err != nil {
			return nil, refuse("lime", Malformed, "cannot unpack %s: %v", path, err)
		}
		content, size = bytes.NewReader(m.image), int64(len(m.image))
	}
	if m.signed, err = isSigned(content, size); err != nil {
		return nil, refuse("lime", Failed, "cannot read module: %v", err)
	}
	if m.magic, err = checkModule(content, path, release); err != nil {
		return nil, err
	}
	return m, nil
}

// unpack gives all of a packed module, at most maxModule bytes.
func unpack(r io.Reader, open func(io.Reader) (io.Reader, error)) ([]byte, error) {
	unpacked, err := open(r)
	if err != nil {
		return nil, err
	}
	if c, ok := unpacked.(io.Closer); ok {
		defer c.Close()
	}
	image, err := io.ReadAll(io.LimitReader(unpacked, maxModule+1))
	if err == nil && len(image) > maxModule {
		err = fmt.Errorf("it is larger than %d bytes", maxModule)
	}
	return image, err
}

// checkModule gives a module's vermagic. It refuses a module of another
// kernel, by the release that it itself names.
func checkModule(content io.ReaderAt, path, release string) (string, error) {
	file, err := elf.NewFile(content)
	if err != nil {
		return "", refuse("lime", Malformed, "%s is no kernel module: %v", path, err)
	}
	section := file.Section(".modinfo")
	if section == nil || section.Size > maxModinfo {
		return "", refuse("lime", Malformed, "%s has no readable .modinfo", path)
	}
	info, err := section.Data()
	if err != nil {
		return "", refuse("lime", Malformed, "%s has no readable .modinfo: %v", path, err)
	}
	magic := vermagic(info)
	if built, _, _ := strings.Cut(magic, " "); built != release {
		return "", refuse("lime", ModuleMismatch, "%s is built for kernel %.80q, this is %s", path, built, release)
	}
	return magic, nil
}

// vermagic gives the kernel release and, after a blank each, the flags of a
// .modinfo section, which is a list of NAME=VALUE, each ended by a NUL. Source:
// include/linux/vermagic.h.
func vermagic(modinfo []byte) string {
	for entry := range strings.SplitSeq(string(modinfo), "\x00") {
		if value, ok := strings.CutPrefix(entry, "vermagic="); ok {
			return value
		}
	}
	return ""
}

// signatureMark ends a module that is signed. Source:
// include/linux/module_signature.h.
const signatureMark = "~Module signature appended~\n"

// standing is what the running kernel says of loading modules.
type standing struct {
	capable  bool   // of CAP_SYS_MODULE
	disabled bool   // no module can be loaded until the next boot
	lockdown string // as lockdownState gives it
	enforced bool   // modules must be signed
}

func hostStanding() standing {
	return standing{
		capable:  capable(unix.CAP_SYS_MODULE),
		disabled: oneLine("/proc/sys/kernel/modules_disabled") == "1",
		lockdown: lockdownState(),
		enforced: oneLine("/sys/module/module/parameters/sig_enforce") == "Y",
	}
}

// oneLine is what a file of one line says, "" where it cannot be read.
func oneLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// mayLoad refuses a module that the kernel would not take, as far as can be
// told without asking it. By whom a module must be signed, only the kernel can
// tell.
func (s standing) mayLoad(m *module) error {
	switch {
	case !s.capable:
		return refuse("lime", NoCapability, "CAP_SYS_MODULE is needed")
	case s.disabled:
		return refuse("lime", NoCapability, "kernel.modules_disabled is 1: no module can be loaded until the next boot")
	case m.signed:
		return nil
	case locked(s.lockdown):
		return refuse("lime", Lockdown, "the kernel's lockdown is %s, and %s is not signed", s.lockdown, m.path)
	case s.enforced:
		return refuse("lime", ModuleSignature, "the kernel wants signed modules, and %s is not", m.path)
	}
	return nil
}

// locked says whether the kernel is locked down to any degree.
func locked(state string) bool { return state != "" && !strings.Contains(state, "[none]") }

func isSigned(content io.ReaderAt, size int64) (bool, error) {
	if size < int64(len(signatureMark)) {
		return false, nil
	}
	end := make([]byte, len(signatureMark))
	_, err := content.ReadAt(end, size-int64(len(end)))
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

// abortSignal is the one signal that reaches a thread that loads a module:
// nobody sends the last of the real-time signals but abort.
const abortSignal = unix.Signal(64)

// loader loads and removes a module of this kernel.
type loader struct {
	module *module
	thread atomic.Int32 // that loads; 0 is none
}

// load blocks until the module's init has returned. LiME's returns when the
// image has been sent, and its status says nothing of the image.
//
// A signal to the thread that loads would make the module leave a range
// unfinished, so that thread takes none but abort's. It ends with its
// goroutine, which stays locked to it: call load as the last thing of one of
// its own.
func (l *loader) load(parameters string) error {
	runtime.LockOSThread()
	var most unix.Sigset_t
	for i := range most.Val {
		most.Val[i] = ^most.Val[i]
	}
	most.Val[0] &^= 1 << (abortSignal - 1)
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &most, nil); err != nil {
		return fmt.Errorf("cannot hold signals back: %w", err)
	}
	l.thread.Store(int32(unix.Gettid()))
	defer l.thread.Store(0)
	if l.module.image != nil {
		if err := unix.InitModule(l.module.image, parameters); err != nil {
			return l.failure(err)
		}
		return nil
	}
	f, err := os.Open(l.module.path)
	if err != nil {
		return fmt.Errorf("cannot open module: %w", err)
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), parameters, 0); err != nil {
		return l.failure(err)
	}
	return nil
}

func (l *loader) failure(err error) error {
	if errors.Is(err, unix.ENOEXEC) { // the flags after the release may be at fault
		return fmt.Errorf("cannot load module %s, whose vermagic is %.200q: %w", l.module.path, l.module.magic, err)
	}
	return fmt.Errorf("cannot load module %s: %w", l.module.path, err)
}

// abort makes a module that is sending its image fail at its next write.
// Nothing else ends one whose client neither reads nor leaves.
func (l *loader) abort() {
	if thread := l.thread.Load(); thread != 0 {
		_ = unix.Tgkill(unix.Getpid(), int(thread), abortSignal)
	}
}

// unload removes the module; one that is not there is fine.
func (l *loader) unload() error {
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
