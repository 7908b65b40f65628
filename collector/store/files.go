package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// What lies in the folder beside the keys. No segment of a key holds "=", so
// these names can never be a key's.
const (
	lockName    = "=lock"     // flocked by the process that has the store
	counterName = "=revision" // a revision that no key has reached yet
	tempName    = "=new"      // files that are being written
	suffix      = "="         // ends the file of a key, so that "a" and "a/b" can both be
)

// revisionStep is how many revisions are reserved at a time.
const revisionStep = 1 << 20

// files is a store with one file for each key.
type files struct {
	root *os.Root
	lock *os.File

	mu       sync.RWMutex
	revision int64           // of the last change
	reserved int64           // counterName's; revision stays below it
	synced   map[string]bool // folders whose names are durable; as many as there are
	broken   error           // set when the disk may not hold what is seen
}

// OpenFiles opens the store in a folder, which it makes. A folder has one
// store at a time: a second gets an error that names the process. Every
// value is a file, written beside its place, synced, and renamed into it; a
// file that is not what was written is reported by name and never used.
func OpenFiles(dir string) (Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot open store: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot open store: %w", err)
	}
	f := &files{root: root, synced: map[string]bool{}}
	if f.lock, err = TakeLock(root, dir); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	if err := f.prepare(dir); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot open store in %s: %w", dir, err), f.Close())
	}
	return f, nil
}

// prepare clears what a crash left, and takes revisions that were never used.
func (f *files) prepare(dir string) error {
	if err := f.root.RemoveAll(tempName); err != nil {
		return err
	}
	if err := f.root.Mkdir(tempName, 0o700); err != nil {
		return err
	}
	if err := syncParent(dir); err != nil {
		return err
	}
	raw, err := f.read(counterName)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := f.wantEmpty(); err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		if _, f.revision, err = decodeRecord(counterName, raw); err != nil {
			return fmt.Errorf("cannot read file %s: %w", counterName, err)
		}
	}
	return f.reserve()
}

// wantEmpty refuses a folder that has keys but has lost its counter: a
// revision might come to mean two things.
func (f *files) wantEmpty() error {
	entries, err := fs.ReadDir(f.root.FS(), ".")
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "=") {
			return fmt.Errorf("file %s is missing, and there is %s already; restore it from a copy of the folder, or give an empty folder", counterName, e.Name())
		}
	}
	return err
}

// reserve makes the next stretch of revisions durable before any is used.
func (f *files) reserve() error {
	next := f.revision + revisionStep
	if err := f.write(counterName, encodeRecord(counterName, nil, next)); err != nil {
		return err
	}
	f.reserved = next
	return nil
}

// ready says why the store cannot be used. The lock is held.
func (f *files) ready(ctx context.Context) error {
	if f.broken != nil {
		return f.broken
	}
	return ctx.Err()
}

func (f *files) Get(ctx context.Context, key string) ([]byte, int64, error) {
	if err := CheckKey(key); err != nil {
		return nil, 0, err
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	if err := f.ready(ctx); err != nil {
		return nil, 0, fmt.Errorf("cannot get key %q: %w", key, err)
	}
	value, revision, err := f.load(key)
	if err == nil && revision == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return nil, 0, fmt.Errorf("cannot get key %q: %w", key, err)
	}
	return value, revision, nil
}

// load gives a key's value and revision, which is 0 where there is none.
func (f *files) load(key string) (value []byte, revision int64, err error) {
	raw, err := f.read(key + suffix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	if value, revision, err = decodeRecord(key, raw); err != nil {
		return nil, 0, fmt.Errorf("cannot read file %s: %w", filepath.Join(f.root.Name(), key+suffix), err)
	}
	return value, revision, nil
}

func (f *files) read(name string) ([]byte, error) {
	file, err := f.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	const limit = maxHeader + maxValue
	raw, err := io.ReadAll(io.LimitReader(file, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > limit {
		return nil, fmt.Errorf("cannot read file %s: it has over %d bytes: %w", name, limit, errTorn)
	}
	return raw, nil
}

func (f *files) Put(ctx context.Context, key string, value []byte, revision int64) (int64, error) {
	if err := CheckPut(key, value, revision); err != nil {
		return 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.compare(ctx, "put", key, revision); err != nil {
		return 0, err
	}
	if err := f.write(key+suffix, encodeRecord(key, value, f.revision+1)); err != nil {
		return 0, fmt.Errorf("cannot put key %q: %w", key, err)
	}
	f.revision++
	return f.revision, nil
}

// compare allows a change of a key that is at the revision that the writer
// saw. The lock is held.
func (f *files) compare(ctx context.Context, verb, key string, saw int64) error {
	if err := f.ready(ctx); err != nil {
		return fmt.Errorf("cannot %s key %q: %w", verb, key, err)
	}
	_, is, err := f.load(key)
	if err != nil {
		return fmt.Errorf("cannot %s key %q: %w", verb, key, err)
	}
	if is != saw {
		return Conflict(verb, key, saw, is)
	}
	if f.revision+1 >= f.reserved {
		if err := f.reserve(); err != nil {
			return fmt.Errorf("cannot %s key %q: %w", verb, key, err)
		}
	}
	return nil
}

func (f *files) Delete(ctx context.Context, key string, revision int64) error {
	if err := CheckDelete(key, revision); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.compare(ctx, "delete", key, revision); err != nil {
		return err
	}
	if err := f.root.Remove(key + suffix); err != nil {
		return fmt.Errorf("cannot delete key %q: %w", key, err)
	}
	f.revision++
	if err := f.syncFolder(path.Dir(key)); err != nil {
		return fmt.Errorf("cannot delete key %q: %w", key, err)
	}
	return nil
}

func (f *files) List(ctx context.Context, prefix string) ([]Entry, error) {
	if err := CheckPrefix(prefix); err != nil {
		return nil, err
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	if err := f.ready(ctx); err != nil {
		return nil, fmt.Errorf("cannot list keys under %q: %w", prefix, err)
	}
	keys, err := f.keys(ctx, prefix)
	var out []Entry
	for _, key := range keys {
		value, revision, bad := f.load(key)
		err = errors.Join(err, bad)
		out = append(out, Entry{Key: key, Value: value, Revision: revision})
	}
	if err != nil {
		return nil, fmt.Errorf("cannot list keys under %q: %w", prefix, err)
	}
	return out, nil
}

// keys gives the keys that begin with prefix, ascending.
func (f *files) keys(ctx context.Context, prefix string) ([]string, error) {
	top, _ := splitPrefix(prefix)
	if top == "" {
		top = "."
	}
	var keys []string
	err := fs.WalkDir(f.root.FS(), top, func(name string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) && name == top:
			return fs.SkipAll
		case err != nil:
			return err
		case e.IsDir() && name != "." && strings.HasPrefix(e.Name(), "="):
			return fs.SkipDir
		}
		key, isKey := strings.CutSuffix(name, suffix)
		if isKey && !e.IsDir() && strings.HasPrefix(key, prefix) {
			keys = append(keys, key)
		}
		return ctx.Err()
	})
	slices.Sort(keys)
	return keys, err
}

func (f *files) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if errors.Is(f.broken, ErrClosed) {
		return nil
	}
	f.broken = ErrClosed
	return errors.Join(f.lock.Close(), f.root.Close())
}
