package acquire

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/quicklime-ir/quicklime/agent/pack"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/seekable"
)

// Folder is a place on a disk, for a responder without a collector. Each
// item is a file KIND/NAME; items.json beside them has every part's hash.
type Folder struct {
	Dir string

	mu    sync.Mutex
	items []evidence.Item // closed; owned by mu
}

// Open implements Place. A file that exists is never written to.
func (f *Folder) Open(_ context.Context, item evidence.Item) (Slot, error) {
	item.Key = filepath.Join(string(item.Kind), item.FileName())
	path := filepath.Join(f.Dir, item.Key)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("cannot make folder for %s: %w", item.Key, err)
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("cannot store %s: the file exists; name an empty folder", path)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot store item: %w", err)
	}
	return &orderedSlot{item: item, out: file, next: 1, done: func(item evidence.Item, err error) error {
		if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
			return fmt.Errorf("cannot store %s: %w", path, err)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.items = append(f.items, item)
		return nil
	}}, nil
}

// Close writes items.json.
func (f *Folder) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	body, err := json.MarshalIndent(f.items, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(f.Dir, "items.json")
	if err := os.WriteFile(path, append(body, '\n'), 0o600); err != nil {
		return fmt.Errorf("cannot write list of items: %w", err)
	}
	return nil
}

// Stream is a place that takes a single item, in one go: a pipe.
type Stream struct {
	Out io.Writer

	mu   sync.Mutex
	used bool // owned by mu
}

// Open implements Place.
func (s *Stream) Open(_ context.Context, item evidence.Item) (Slot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used {
		return nil, fmt.Errorf("cannot stream %s: the stream has an item already", item.FileName())
	}
	s.used = true
	return &orderedSlot{item: item, out: s.Out, next: 1, done: func(_ evidence.Item, err error) error { return err }}, nil
}

// orderedSlot writes parts one after the other, whatever order they come in:
// a part waits until those before it are written.
type orderedSlot struct {
	done func(evidence.Item, error) error

	mu    sync.Mutex
	out   io.Writer     // owned by mu
	item  evidence.Item // owned by mu
	next  int32         // owned by mu
	err   error         // of a write; owned by mu
	moved sync.Cond     // next or err has changed; L is mu
}

func (s *orderedSlot) inOrder() {}

func (s *orderedSlot) Closed() bool { return false }

func (s *orderedSlot) Has(int32) bool { return false }

func (s *orderedSlot) Put(ctx context.Context, p pack.Part) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.moved.L == nil {
		s.moved.L = &s.mu
	}
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.moved.Broadcast()
	})
	defer stop()
	for s.next < p.Number && s.err == nil && ctx.Err() == nil {
		s.moved.Wait()
	}
	if err := errors.Join(s.err, ctx.Err()); err != nil {
		return err
	}
	defer s.moved.Broadcast()
	if _, s.err = s.out.Write(p.Bytes); s.err != nil {
		return s.err
	}
	s.next++
	s.item.Size += uint64(len(p.Bytes))
	s.item.Parts = append(s.item.Parts, evidence.Part{Number: p.Number, Size: uint64(len(p.Bytes)), SHA256: p.SHA256, RawSize: p.RawSize,
		Frames: p.Frames, Ranges: p.Ranges, Gaps: p.Gaps, Started: p.Started, Ended: p.Ended, Monotonic: p.Monotonic})
	return nil
}

func (s *orderedSlot) Close(_ context.Context, parts int32, why error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.item.Status = evidence.Whole
	if why == nil && int(parts) != len(s.item.Parts) {
		why = fmt.Errorf("%d of %d parts are stored", len(s.item.Parts), parts)
	}
	if why != nil {
		s.item.Status, s.item.Error = evidence.Partial, why.Error()
	}
	if s.err == nil && s.item.Kind == evidence.Memory && s.item.Compression == evidence.Zstd {
		s.err = s.index(parts + 1)
	}
	s.item.SHA256 = evidence.Composite(s.item.Parts)
	item := s.item
	item.Parts = slices.Clone(item.Parts)
	return s.done(item, s.err)
}

// index ends an image with its seek table, as a part of its own.
func (s *orderedSlot) index(number int32) error {
	var frames []seekable.Frame
	for i := range s.item.Parts {
		frames = append(frames, s.item.Parts[i].Frames...)
		s.item.Parts[i].Frames = nil // the table has them
	}
	if len(frames) == 0 {
		return nil
	}
	table, err := seekable.AppendTable(nil, frames)
	if err != nil {
		return err
	}
	if _, err := s.out.Write(table); err != nil {
		return err
	}
	now := time.Now()
	s.item.Size += uint64(len(table))
	s.item.Parts = append(s.item.Parts, evidence.Part{Number: number, Size: uint64(len(table)), SHA256: sha256.Sum256(table), Started: now, Ended: now})
	return nil
}
