// Package symbols takes what an analyst needs to read a memory image: the
// kernel's banner, types, symbols, crash notes and address maps.
//
// Without them an image is bytes. They are small, and the files of the exact
// kernel may be hard to come by later, so they are taken before the image is.
// Everything goes into one tar, a stream, with names of our own; bundle.json at
// its end tells what each member is, and why one is missing.
package symbols

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of a bundle.
const (
	fileBytes    = 64 << 20  // of one member
	modulesBytes = 128 << 20 // of all modules' types
	maxModules   = 2000
	cpuinfoBytes = 16 << 10 // of one processor in /proc/cpuinfo
)

// Host is the host whose kernel is described. The zero value is this one.
type Host struct {
	// Root is the folder that holds the host's proc, sys and boot; "" is "/".
	Root string
}

func (h Host) path(name string) string { return filepath.Join("/", h.Root, name) }

// Index is bundle.json: what the bundle holds, and what it lacks.
type Index struct {
	Format int    `json:"format"` // 1
	Uname  Uname  `json:"uname"`
	Clock  Clock  `json:"clock"`
	Files  []File `json:"files"` // in the order in which they were read
}

// Uname is uname(2).
type Uname struct {
	Sysname  string `json:"sysname"`
	Nodename string `json:"nodename"`
	Release  string `json:"release"`
	Version  string `json:"version"`
	Machine  string `json:"machine"`
}

// Clock is the host's clocks at one moment: those of the kernel lie between
// two readings of the wall clock, Before and After.
type Clock struct {
	Before    time.Time     `json:"before"`
	After     time.Time     `json:"after"`
	Monotonic time.Duration `json:"monotonicNs"` // since boot, without suspended time
	Boottime  time.Duration `json:"boottimeNs"`  // since boot, with suspended time
}

// File is one thing that was tried.
type File struct {
	Name   string `json:"name"`             // of the member
	Source string `json:"source"`           // on the host
	Bytes  int64  `json:"bytes"`            // of the member; 0 without SHA256: there is none
	SHA256 string `json:"sha256,omitempty"` // of the member
	Padded int64  `json:"padded,omitempty"` // of Bytes, zeros at the end, as the source shrank
	Cut    bool   `json:"cut,omitempty"`    // the source has more than the member may have
	Note   string `json:"note,omitempty"`   // what else there is to know
	Error  string `json:"error,omitempty"`  // why it is missing or padded
	Errno  string `json:"errno,omitempty"`  // ENOENT …
}

// release is what may become part of a path in /boot.
var release = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+~-]{0,63}$`)

// WriteBundle writes the tar to w. What cannot be read is named in its
// bundle.json and does not end it; an error means that w failed or ctx ended,
// and that the stream is not whole.
func (h Host) WriteBundle(ctx context.Context, w io.Writer) error {
	b := &bundle{ctx: ctx, host: h, tar: tar.NewWriter(w), limit: fileBytes, buf: make([]byte, chunk)}
	var err error
	if b.index.Uname, err = uname(); err != nil {
		return err
	}
	b.index.Format, b.index.Clock = 1, readClock()
	for _, take := range []func() error{b.small, b.crashNotes, b.tables, b.boot, b.modules, b.end} {
		if err := take(); err != nil {
			return fmt.Errorf("cannot write the symbols' bundle: %w", err)
		}
	}
	return nil
}

// small takes what says which kernel this is, and how it lies in memory.
func (b *bundle) small() error {
	for _, f := range []struct{ name, source string }{
		{"version", "/proc/version"},
		{"cmdline", "/proc/cmdline"},
		{"notes", "/sys/kernel/notes"}, // ELF notes, with the GNU build id
		{"iomem", "/proc/iomem"},
		{"modules", "/proc/modules"},
	} {
		if err := b.file(f.name, f.source); err != nil {
			return err
		}
	}
	return b.cpuinfo()
}

// tables takes the symbols and the types.
func (b *bundle) tables() error {
	if err := b.file("kallsyms", "/proc/kallsyms"); err != nil {
		return err
	}
	return b.file("btf/vmlinux", "/sys/kernel/btf/vmlinux")
}

// boot takes what the distribution lays beside the kernel.
func (b *bundle) boot() error {
	r := b.index.Uname.Release
	if !release.MatchString(r) {
		b.index.Files = append(b.index.Files, File{Name: "System.map", Source: "/boot", Error: fmt.Sprintf("release %.80q cannot be part of a path", r)})
		return b.file("config.gz", "/proc/config.gz")
	}
	if err := b.file("System.map", "/boot/System.map-"+r); err != nil {
		return err
	}
	if err := b.file("config", "/boot/config-"+r); err != nil {
		return err
	}
	if b.last().SHA256 != "" {
		return nil
	}
	return b.file("config.gz", "/proc/config.gz")
}

// end writes bundle.json.
func (b *bundle) end() error {
	body, err := json.MarshalIndent(b.index, "", "  ")
	if err != nil {
		return err
	}
	if err := b.member("bundle.json", append(body, '\n')); err != nil {
		return err
	}
	return b.tar.Close()
}

func uname() (Uname, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Uname{}, fmt.Errorf("cannot learn which kernel runs: %w", err)
	}
	text := unix.ByteSliceToString
	return Uname{text(u.Sysname[:]), text(u.Nodename[:]), text(u.Release[:]), text(u.Version[:]), text(u.Machine[:])}, nil
}

func readClock() Clock {
	c := Clock{Before: time.Now().UTC()}
	c.Monotonic, c.Boottime = read(unix.CLOCK_MONOTONIC), read(unix.CLOCK_BOOTTIME)
	c.After = time.Now().UTC()
	return c
}

// read reads a clock; one that the kernel lacks reads 0.
func read(clock int32) time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(clock, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
