package memory

import (
	"context"
	"errors"
	"os"
	"strings"

	"github.com/quicklime-ir/quicklime/proto/iomem"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

// kcorePath is an ELF core file of the running kernel.
const kcorePath = "/proc/kcore"

// kcore reads memory through /proc/kcore. Source: fs/proc/kcore.c.
type kcore struct {
	path     string
	alloc    func() ([]byte, func())
	flags    *pageFlags
	ranges   []lime.Range
	kernel   []lime.Range // where the kernel itself lies
	segments []segment    // ascending, disjoint
}

func probeKcore(o Options) error {
	k, err := newKcore(kcorePath, hostLayout, o)
	if err != nil {
		return err
	}
	return k.Close()
}

func openKcore(_ context.Context, o Options) (Source, error) {
	k, err := newKcore(kcorePath, hostLayout, o)
	if err != nil {
		return nil, err
	}
	return k, nil
}

// newKcore reads the headers. Where RAM is, /proc/iomem tells to the byte;
// without it, headers with physical addresses tell it to the page.
func newKcore(path string, layout func() (layout, error), o Options) (*kcore, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, kcoreRefusal(err, lockdownState())
	}
	defer f.Close()
	loads, err := parseKcore(f)
	if err != nil {
		return nil, err
	}
	where, err := layout()
	hidden := errors.Is(err, iomem.ErrHidden)
	if err != nil && !hidden {
		return nil, refuse("kcore", Failed, "%v", err)
	}
	var segments []segment
	switch {
	case !untold(loads):
		segments = told(loads)
	case hidden:
		return nil, refuse("kcore", OldKernel, "no header has a physical address, as before Linux 4.11, and where RAM is cannot be told: %v", err)
	default:
		if segments, err = directMap(loads, where.ram, o.page()); err != nil {
			return nil, err
		}
	}
	if hidden {
		for _, s := range segments {
			where.ram = append(where.ram, s.Range)
		}
		where.ram = lime.Merge(where.ram)
	}
	k := &kcore{path: path, ranges: where.ram, kernel: where.kernel, alloc: o.alloc}
	k.segments = within(segments, k.ranges)
	if len(k.segments) == 0 {
		return nil, refuse("kcore", Malformed, "none of its %d segments lies in System RAM", len(segments))
	}
	k.flags = openPageFlags(o.flagsPath(), o.page())
	return k, nil
}

// kcoreRefusal says why the file cannot be opened. A kernel locked down to
// integrity, as after Secure Boot, still gives it: only confidentiality does
// not. Source: security/lockdown, LOCKDOWN_KCORE.
func kcoreRefusal(err error, lockdown string) error {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return refuse("kcore", NoKcore, "%s does not exist: the kernel is built without CONFIG_PROC_KCORE", kcorePath)
	case errors.Is(err, os.ErrPermission):
		if strings.Contains(lockdown, "[confidentiality]") {
			return refuse("kcore", Lockdown, "the kernel is locked down to confidentiality, which forbids %s", kcorePath)
		}
		return refuse("kcore", NoCapability, "CAP_SYS_RAWIO is needed: %v", err)
	}
	return refuse("kcore", Failed, "%v", err)
}

// lockdownState is the line of the lockdown module, "" where there is none.
// Source: security/lockdown/lockdown.c.
func lockdownState() string { return oneLine("/sys/kernel/security/lockdown") }

func (k *kcore) Name() string         { return "kcore" }
func (k *kcore) Ranges() []lime.Range { return k.ranges }
func (k *kcore) Readers() int         { return 0 }
func (k *kcore) PageFlags() string    { return k.flags.state() }
func (k *kcore) Close() error         { return k.flags.close() }

// Order gives those parts first that hold the kernel itself, then by how much
// of a part is page tables and slab.
func (k *kcore) Order(ctx context.Context, parts [][]lime.Range) []int {
	return order(ctx, parts, k.kernel, k.flags)
}

// Open opens a handle of its own: the kernel copies through a buffer that
// belongs to the open file, so two readers of one handle would mix pages.
func (k *kcore) Open() (Reader, error) {
	file, err := newPatient(func() (handle, error) { return os.Open(k.path) }, k.alloc, readLimit)
	if err != nil {
		return nil, kcoreRefusal(err, lockdownState())
	}
	return &kcoreReader{segments: k.segments, file: file, flags: k.flags.reader()}, nil
}
