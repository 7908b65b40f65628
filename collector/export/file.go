package export

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// block is the unit of holes in a file, in bytes.
const block = 4096

// checkpointEvery is how much output may be lost when the machine stops.
const checkpointEvery = 1 << 30

// file is a sink that leaves holes where there are zeros. Beyond what was
// written it has nothing, so a hole needs no act but to be left.
type file struct {
	*os.File
	whole bool // no holes: the output's zeros are few
}

func (f file) writeAt(at uint64, p []byte) error {
	for len(p) > 0 {
		n, zero := stretch(at, p)
		if !zero || f.whole {
			if _, err := f.WriteAt(p[:n], int64(at)); err != nil {
				return fmt.Errorf("cannot write: %w", err)
			}
		}
		p, at = p[n:], at+uint64(n)
	}
	return nil
}

// stretch is how much of p, which lies at an offset of the file, is all zero
// blocks, or has none.
func stretch(at uint64, p []byte) (n int, zero bool) {
	for n < len(p) {
		next := min(block-int((at+uint64(n))%block), len(p)-n)
		z := isZero(p[n : n+next])
		if n > 0 && z != zero {
			break
		}
		zero, n = z, n+next
	}
	return n, zero
}

var zeroBlock [block]byte

func isZero(p []byte) bool { return string(p) == string(zeroBlock[:len(p)]) }

func (f file) end(size uint64) error { return f.Truncate(int64(size)) }

// state is what an interrupted export needs to go on, in a file of its own
// beside the output: which export it is, and how far it is on the disk.
type state struct {
	Key    string `json:"key"`
	SHA256 string `json:"sha256Composite"`
	Format Format `json:"format"`
	place
}

// ToFile exports to a file. It is named FILE.part until it is complete, and
// is never written over once it is; an export that was interrupted goes on
// after the last part that is surely on the disk, as FILE.part.json tells.
// Zeros become holes.
func ToFile(ctx context.Context, objects evidence.Objects, item evidence.Item, name string, o Options) (Result, error) {
	return toFile(ctx, objects, item, name, o, checkpointEvery)
}

func toFile(ctx context.Context, objects evidence.Objects, item evidence.Item, name string, o Options, every uint64) (Result, error) {
	j, err := newJob(objects, item, o)
	if err != nil {
		return Result{}, err
	}
	if _, err := os.Lstat(name); err == nil {
		return Result{}, fmt.Errorf("cannot export to %s: it is there already; give another name, or remove it", name)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return Result{}, fmt.Errorf("cannot export: %w", err)
	}
	p := &partial{name: name, state: state{Key: item.Key, SHA256: item.SHA256, Format: o.Format}}
	if err := p.open(); err != nil {
		return Result{}, fmt.Errorf("cannot export to %s: %w", name, err)
	}
	defer p.file.Close()
	from, synced := p.state.place, p.state.Offset
	at, err := j.run(ctx, file{p.file, o.Format == Zst}, from, func(now place) error {
		if now.Offset-synced < every {
			return nil
		}
		synced = now.Offset
		return p.checkpoint(now)
	})
	if err != nil {
		if at.Parts > p.state.Parts {
			err = errors.Join(err, p.checkpoint(at))
		}
		return j.result(at, from.Parts), err
	}
	return j.result(at, from.Parts), p.finish()
}

// partial is an output that is not complete.
type partial struct {
	name  string
	file  *os.File
	state state // as it is on the disk
}

func (p *partial) partName() string  { return p.name + ".part" }
func (p *partial) stateName() string { return p.name + ".part.json" }

// open begins the output, or takes up the one that was begun. One process has
// it at a time.
func (p *partial) open() error {
	f, err := os.OpenFile(p.partName(), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return errors.Join(fmt.Errorf("another export writes %s: %w", p.partName(), err), f.Close())
	}
	p.file = f
	if err := p.resume(); err != nil {
		return errors.Join(err, f.Close())
	}
	return nil
}

// sameFile wants the name to be still that of the file: whoever had it before
// may just have completed it.
func (p *partial) sameFile() (fs.FileInfo, error) {
	mine, err := p.file.Stat()
	if err != nil {
		return nil, err
	}
	named, err := os.Lstat(p.partName())
	if err != nil || !os.SameFile(mine, named) {
		return nil, fmt.Errorf("another export has just ended with %s (%v)", p.partName(), err)
	}
	return mine, nil
}

// resume finds the place where the output can go on, and cuts off what
// follows it.
func (p *partial) resume() error {
	info, err := p.sameFile()
	if err != nil {
		return err
	}
	raw, err := os.ReadFile(p.stateName())
	switch {
	case info.Size() == 0: // new, whatever is told of an older one
		return p.checkpoint(place{})
	case err != nil:
		return fmt.Errorf("cannot go on with %s: %w; remove it to begin anew", p.partName(), err)
	}
	var old state
	if err := json.Unmarshal(raw, &old); err != nil {
		return fmt.Errorf("cannot go on with %s: %s: %w; remove both to begin anew", p.partName(), p.stateName(), err)
	}
	if old.Key != p.state.Key || old.SHA256 != p.state.SHA256 || old.Format != p.state.Format {
		return fmt.Errorf("%s is of another export, of %s with format %s; remove it, or give another name", p.partName(), evidence.Plain(old.Key), evidence.Plain(string(old.Format)))
	}
	if old.Parts < 0 || old.Parts > evidence.MaxParts || uint64(info.Size()) < old.Offset {
		return fmt.Errorf("%s has %d bytes and %s says %d; remove both to begin anew", p.partName(), info.Size(), p.stateName(), old.Offset)
	}
	p.state = old
	return p.file.Truncate(int64(old.Offset))
}

// checkpoint makes durable that the output is written up to a place: first
// its bytes, then the word of it.
func (p *partial) checkpoint(now place) error {
	if err := errors.Join(p.file.Truncate(int64(now.Offset)), p.file.Sync()); err != nil {
		return err
	}
	next := p.state
	next.place = now
	text, err := json.Marshal(next)
	if err != nil {
		return err
	}
	temp := p.stateName() + ".new"
	if err := writeSynced(temp, text); err != nil {
		return err
	}
	if err := os.Rename(temp, p.stateName()); err != nil {
		return err
	}
	p.state = next
	return nil
}

func writeSynced(name string, text []byte) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Sync(), f.Close())
}

// finish gives the complete output its name, which nobody else has taken.
func (p *partial) finish() error {
	if err := p.file.Sync(); err != nil {
		return err
	}
	err := os.Link(p.partName(), p.name)
	switch {
	case err == nil:
		err = os.Remove(p.partName())
	case errors.Is(err, fs.ErrExist):
	default: // a file system without links
		if _, there := os.Lstat(p.name); errors.Is(there, fs.ErrNotExist) {
			err = os.Rename(p.partName(), p.name)
		}
	}
	if err != nil {
		return fmt.Errorf("cannot name the complete export: %w", err)
	}
	if err := os.Remove(p.stateName()); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(p.name))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
