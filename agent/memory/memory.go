// Package memory reads the physical memory of the live host, as ranges.
//
// A source knows its ranges before the first read, so the length of an image
// is known before its first byte, and it never passes zeros off as memory:
// what could not be read is named, with the reason.
package memory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

// pageSize is what a range is cut into where a part of it fails, in bytes. The
// kernel's own pages may be larger.
const pageSize = 4096

// MaxRead bounds one read, in bytes: older kernels do not yield the processor
// during it. With 1 MiB a reader in the lab's guest was a third slower than dd
// with 4 MiB, with 4 MiB it is not.
const MaxRead = 4 << 20

// NotInSource is the reason of a gap whose bytes are RAM that the source
// does not offer: the odd bytes at the end of a range, less than a page,
// which /proc/kcore leaves out and LiME writes as zeros.
const NotInSource evidence.Reason = "not_in_source"

// Source is the memory of a host.
type Source interface {
	Name() string // kcore, lime or file
	// Ranges is what there is to read, ascending and disjoint.
	Ranges() []lime.Range
	// Readers is how many readers may be open at a time; 0 is any number.
	// With one, it must be read in ascending order.
	Readers() int
	// PageFlags is "read" where the pages that the kernel hands out as zeros
	// are told apart by /proc/kpageflags, else why they are not, in at most
	// 200 bytes.
	PageFlags() string
	// Order gives the indexes of parts, those first that change most and are
	// worth most to an analyst. A source that must be read in ascending order
	// gives them ascending.
	Order(ctx context.Context, parts [][]lime.Range) []int
	Open() (Reader, error)
	// Close leaves the host as it was found.
	Close() error
}

// Reader is one handle on a source. It is used by one goroutine at a time.
type Reader interface {
	// ReadPhys reads n bytes of memory, at most MaxRead, from addr on; they
	// lie in one range. What cannot be read is zero in b and named in gaps,
	// ascending. b belongs to the reader and holds until its next ReadPhys or
	// Close. Whether a page is real is looked up just before it is read. An error means that this reader can read nothing more.
	ReadPhys(ctx context.Context, addr uint64, n int) (b []byte, gaps []evidence.Gap, err error)
	Close() error
}

// Witness is a source that itself says what it has sent.
type Witness interface {
	// Digest is "sha256 HEX" once all has been read and has that hash, by the
	// source as well as here, else why not. A source that has sent something
	// else fails the read of its last bytes.
	Digest() string
}

// Reason is a code that says why a source cannot be used.
type Reason string

// The reasons.
const (
	NoKcore         Reason = "no_kcore"         // the kernel is built without it, or hides it
	NoCapability    Reason = "no_capability"    // the agent may not
	Lockdown        Reason = "lockdown"         // the kernel's lockdown forbids it
	OldKernel       Reason = "old_kernel"       // its kcore tells no physical addresses
	NoModule        Reason = "no_module"        // no LiME module for this kernel is installed
	ModuleMismatch  Reason = "module_mismatch"  // the module is of another kernel
	ModuleSignature Reason = "module_signature" // the kernel wants a signature it trusts
	InUse           Reason = "in_use"           // a LiME module is loaded already
	Malformed       Reason = "malformed"        // it is not what it should be
	Failed          Reason = "failed"           // it failed in another way
)

// Refusal is a source that could not be used, and why.
type Refusal struct {
	Source string
	Reason Reason
	Detail string
}

// Error implements error.
func (r *Refusal) Error() string { return fmt.Sprintf("%s: %s: %s", r.Source, r.Reason, r.Detail) }

// refuse makes a refusal.
func refuse(source string, reason Reason, format string, args ...any) *Refusal {
	return &Refusal{source, reason, fmt.Sprintf(format, args...)}
}

// ErrNoSource says that no source can be used.
var ErrNoSource = errors.New("no memory source can be used on this host")

// Options say how to read memory. The zero value is this host's.
type Options struct {
	Prefer    string // auto (or ""), kcore, lime or file
	ModuleDir string // prebuilt modules, RELEASE/lime.ko
	File      string // with file: a LiME image that is read as if it were the host
	// NoLimeDigest does without the SHA-256 that LiME makes of what it sends
	// where the kernel has a fast one.
	NoLimeDigest bool
	// Alloc gives n bytes for a reader, and what gives them back; nil takes
	// them from the heap. A reader has one buffer of MaxRead bytes, which it
	// gives back when it is closed, and at most maxHung more that belong to
	// reads that hang, and are given back when these return.
	Alloc func(n int) (b []byte, free func())

	pageFlags string // for tests: in place of /proc/kpageflags
	pageBytes uint64 // for tests: of one of the kernel's pages
}

// Verdict says whether a source could be used.
type Verdict struct {
	Source string `json:"source"`
	Usable bool   `json:"usable"`
	Reason Reason `json:"reason,omitempty"`
	Detail string `json:"detail,omitempty"`
}

// candidate is a source that may be tried.
type candidate struct {
	name  string
	probe func(Options) error // without effect on the host
	open  func(context.Context, Options) (Source, error)
}

// candidates gives the sources in the order in which they are tried. kcore is
// first: it puts nothing into the kernel of a host that was broken into, is
// read by many readers, goes on after an interruption, takes the most volatile
// parts first, and leaves alone what a read could hang or break on. LiME is for
// kernels without it.
func candidates(prefer string) ([]candidate, error) {
	lime := candidate{"lime", probeLime, openLime}
	kcore := candidate{"kcore", probeKcore, openKcore}
	switch prefer {
	case "", "auto":
		return []candidate{kcore, lime}, nil
	case "lime":
		return []candidate{lime}, nil
	case "kcore":
		return []candidate{kcore}, nil
	case "file":
		return []candidate{{"file", probeFile, openFile}}, nil
	}
	return nil, fmt.Errorf("cannot read memory from %q: want auto, kcore, lime or file", prefer)
}

// Open opens the first source that can be used, and tells which were
// refused before it.
func Open(ctx context.Context, o Options) (Source, []Refusal, error) {
	list, err := candidates(o.Prefer)
	if err != nil {
		return nil, nil, err
	}
	var refused []Refusal
	for _, c := range list {
		source, err := c.open(ctx, o)
		if err == nil {
			return source, refused, nil
		}
		if ctx.Err() != nil {
			return nil, refused, context.Cause(ctx)
		}
		refused = append(refused, asRefusal(c.name, err))
	}
	return nil, refused, ErrNoSource
}

// Probe says of each source whether it could be used, and changes nothing.
func Probe(_ context.Context, o Options) []Verdict {
	list, err := candidates(o.Prefer)
	if err != nil {
		return []Verdict{{Source: o.Prefer, Reason: Failed, Detail: err.Error()}}
	}
	var out []Verdict
	for _, c := range list {
		v := Verdict{Source: c.name, Usable: true}
		if err := c.probe(o); err != nil {
			r := asRefusal(c.name, err)
			v = Verdict{Source: c.name, Reason: r.Reason, Detail: r.Detail}
		}
		out = append(out, v)
	}
	return out
}

// alloc gives a reader its buffer, from the caller's hook or from the heap.
func (o Options) alloc() ([]byte, func()) {
	if o.Alloc != nil {
		return o.Alloc(MaxRead)
	}
	return make([]byte, MaxRead), func() {}
}

// flagsPath is the file of the kernel's page flags.
func (o Options) flagsPath() string { return cmp.Or(o.pageFlags, flagsPath) }

// page is the size of the kernel's pages, in bytes.
func (o Options) page() uint64 { return cmp.Or(o.pageBytes, uint64(os.Getpagesize())) }

// checkRead refuses a read of a length that no reader gives.
func checkRead(addr uint64, n int) error {
	if n < 0 || n > MaxRead {
		return fmt.Errorf("cannot read %d bytes at %08x: at most %d at a time", n, addr, MaxRead)
	}
	return nil
}

// Bound gives gaps, ascending, in at most evidence.MaxGaps: those beyond
// become one, Mixed, which reaches over what lies between them.
func Bound(gaps []evidence.Gap) []evidence.Gap {
	if len(gaps) <= evidence.MaxGaps {
		return gaps
	}
	rest := gaps[evidence.MaxGaps-1:]
	mixed := evidence.Gap{Range: lime.Range{Start: rest[0].Range.Start, End: rest[len(rest)-1].Range.End}, Reason: evidence.Mixed}
	return append(gaps[:evidence.MaxGaps-1:evidence.MaxGaps-1], mixed)
}

func asRefusal(source string, err error) Refusal {
	var r *Refusal
	if errors.As(err, &r) {
		return *r
	}
	return Refusal{source, Failed, err.Error()}
}
