// Command readbench runs in the lab's guest and reads all of its memory the
// way the agent does, to measure that alone: nothing is packed or sent.
//
//	readbench read N   read every range with N readers
//	readbench dd       have busybox's dd read the same bytes, 4 MiB at a time
//	readbench pread    read them in this process, 1 MiB at a time, and do no more
//	readbench flags    read /proc/kpageflags for them, and nothing else
//
// The last two are what the first is made of. All print {"bytes", "missing", "seconds"}: missing are the bytes of the
// ranges that /proc/kcore does not have.
package main

import (
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/quicklime-ir/quicklime/agent/memory"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

// stride is how much of the memory a reader takes at a time, in bytes, as a
// part of an image is.
const stride = 16 << 20

const kcore = "/proc/kcore"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "readbench:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	source, refused, err := memory.Open(context.Background(), memory.Options{Prefer: "kcore"})
	if err != nil {
		return fmt.Errorf("%w: %v", err, refused)
	}
	defer source.Close()
	switch {
	case len(args) == 1 && args[0] == "dd":
		return dd(source.Ranges())
	case len(args) == 1 && args[0] == "pread":
		return pread(source.Ranges())
	case len(args) == 1 && args[0] == "flags":
		return flags(source.Ranges())
	case len(args) == 2 && args[0] == "read":
		readers, err := strconv.Atoi(args[1])
		if err != nil || readers < 1 {
			return fmt.Errorf("cannot read with %q readers: want 1 or more", args[1])
		}
		return read(source, readers)
	}
	return fmt.Errorf("cannot do %q: want read N, dd, pread or flags", args)
}

// read reads every range once.
func read(source memory.Source, readers int) error {
	work := make(chan []lime.Range)
	group, ctx := errgroup.WithContext(context.Background())
	var read, missing atomic.Uint64
	began := time.Now()
	group.Go(func() error {
		defer close(work)
		for _, part := range lime.Plan(source.Ranges(), stride) {
			select {
			case work <- part:
			case <-ctx.Done():
				return nil
			}
		}
		return nil
	})
	for range readers {
		group.Go(func() error {
			r, err := source.Open()
			if err != nil {
				return err
			}
			defer r.Close()
			for part := range work {
				if err := readPart(ctx, r, part, &read, &missing); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return report(read.Load(), missing.Load(), time.Since(began))
}

func report(bytes, missing uint64, took time.Duration) error {
	return json.NewEncoder(os.Stdout).Encode(map[string]any{"bytes": bytes, "missing": missing, "seconds": took.Seconds()})
}

func readPart(ctx context.Context, r memory.Reader, part []lime.Range, read, missing *atomic.Uint64) error {
	for _, rng := range part {
		for left := rng.Len(); left > 0; {
			n := min(left, memory.MaxRead)
			_, gaps, err := r.ReadPhys(ctx, rng.End-left+1, int(n))
			if err != nil {
				return err
			}
			for _, g := range gaps {
				switch g.Reason {
				case memory.NotInSource:
					missing.Add(g.Range.Len())
				case evidence.ReadError, evidence.TimedOut:
					return fmt.Errorf("cannot read %v: %s %s", g.Range, g.Reason, g.Errno)
				}
			}
			left -= n
			read.Add(n)
		}
	}
	return nil
}

// dd has dd read the ranges. What its starts take, as one that reads nothing
// tells, is not counted.
func dd(ranges []lime.Range) error {
	parts, err := inFile(ranges)
	if err != nil {
		return err
	}
	start, err := ddOne(stretch{})
	if err != nil {
		return err
	}
	var took time.Duration
	var bytes uint64
	for _, s := range parts {
		one, err := ddOne(s)
		if err != nil {
			return err
		}
		took += max(0, one-start)
		bytes += s.length
	}
	if took == 0 {
		return errors.New("cannot tell what dd takes: no longer than its start")
	}
	return report(size(ranges), size(ranges)-bytes, took)
}

// pread reads the ranges with one system call for each MiB.
func pread(ranges []lime.Range) error {
	parts, err := inFile(ranges)
	if err != nil {
		return err
	}
	f, err := os.Open(kcore)
	if err != nil {
		return err
	}
	defer f.Close()
	buffer := make([]byte, memory.MaxRead)
	var bytes uint64
	began := time.Now()
	for _, s := range parts {
		for at := uint64(0); at < s.length; {
			n, err := f.ReadAt(buffer[:min(s.length-at, memory.MaxRead)], int64(s.offset+at))
			if err != nil {
				return err
			}
			at += uint64(n)
		}
		bytes += s.length
	}
	return report(size(ranges), size(ranges)-bytes, time.Since(began))
}

// flags reads the flags of the ranges' pages, those of a MiB at a time.
// Source: fs/proc/page.c, eight bytes for each page.
func flags(ranges []lime.Range) error {
	f, err := os.Open("/proc/kpageflags")
	if err != nil {
		return err
	}
	defer f.Close()
	const page = 4096
	words := make([]byte, 8*memory.MaxRead/page)
	began := time.Now()
	for _, r := range ranges {
		for at := r.Start / page; at <= r.End/page; at += memory.MaxRead / page {
			n := min(r.End/page-at+1, memory.MaxRead/page)
			if _, err := f.ReadAt(words[:8*n], int64(8*at)); err != nil {
				return err
			}
		}
	}
	return report(size(ranges), 0, time.Since(began))
}

// inFile gives where /proc/kcore has the ranges.
func inFile(ranges []lime.Range) ([]stretch, error) {
	f, err := elf.Open(kcore)
	if err != nil {
		return nil, fmt.Errorf("cannot read the headers of %s: %w", kcore, err)
	}
	defer f.Close()
	var progs []elf.ProgHeader
	for _, p := range f.Progs {
		progs = append(progs, p.ProgHeader)
	}
	return stretches(progs, ranges), nil
}

func size(ranges []lime.Range) uint64 {
	var n uint64
	for _, r := range ranges {
		n += r.Len()
	}
	return n
}

// ddOne copies a stretch to nowhere, and checks by the records that it was
// copied whole.
func ddOne(s stretch) (time.Duration, error) {
	const block = 4 << 20
	cmd := exec.Command("/usr/bin/busybox", "dd", "if="+kcore, "of=/dev/null", "bs=4M", "iflag=skip_bytes,count_bytes",
		fmt.Sprint("skip=", s.offset), fmt.Sprint("count=", s.length))
	began := time.Now()
	said, err := cmd.CombinedOutput()
	took := time.Since(began)
	if err != nil {
		return 0, fmt.Errorf("cannot read with dd: %w: %s", err, said)
	}
	want := fmt.Sprintf("%d+%d records out\n", s.length/block, min(1, s.length%block))
	if !strings.Contains(string(said), want) {
		return 0, fmt.Errorf("dd did not copy %d bytes whole: %q, want %q", s.length, said, want)
	}
	return took, nil
}

// stretch is a run of bytes in a file.
type stretch struct{ offset, length uint64 }

// stretches says where the file has the ranges. Of headers that overlap, as
// the kernel's text does its RAM, the first that holds a range's next byte
// counts. What none holds is left out. Source: fs/proc/kcore.c, which gives
// what is not RAM the physical address of all ones.
func stretches(progs []elf.ProgHeader, ranges []lime.Range) []stretch {
	var out []stretch
	for _, r := range ranges {
		for at := r.Start; at <= r.End; {
			next := r.End + 1
			for _, p := range progs {
				if p.Type != elf.PT_LOAD || p.Paddr == ^uint64(0) || p.Filesz == 0 {
					continue
				}
				if p.Paddr > at {
					next = min(next, p.Paddr)
				} else if at-p.Paddr < p.Filesz {
					n := min(p.Filesz-(at-p.Paddr), r.End-at+1)
					out = append(out, stretch{p.Off + (at - p.Paddr), n})
					next = at + n
					break
				}
			}
			at = next
		}
	}
	return out
}
