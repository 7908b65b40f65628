package guest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// recipe numbers the way a kit is made. A kit made another way is made anew.
const recipe = 1

// Kit is what every guest is made of. All paths are absolute.
type Kit struct {
	Release   string // the kernel's release, such as 6.1.0-56-cloud-amd64
	Version   string // the Debian version of kernel and headers
	Kernel    string // the compressed kernel image
	ModuleDir string // lib/modules/RELEASE, whole
	Lime      string // lime.ko built for exactly this release
	Busybox   string // the host's static busybox
}

// stamp is kit.json: the last file written into a kit, and the only one that
// makes it a kit.
type stamp struct {
	Recipe  int               `json:"recipe"`
	Release string            `json:"release"`
	Version string            `json:"version"`
	SHA256  map[string]string `json:"sha256"` // by path inside the kit
}

func kernelPath(release string) string { return filepath.Join("boot", "vmlinuz-"+release) }
func moduleDir(release string) string  { return filepath.Join("lib", "modules", release) }

const limePath = "lime.ko"

// Prepare returns the kit in cacheDir, and makes it first where there is none:
// it downloads Debian's cloud kernel, its headers and lime-forensics-dkms with
// apt-get, unpacks them without running their scripts, and builds lime.ko. The
// host's own folders are not touched. A kit that is there is used as it is, after
// its hashes were checked, even when Debian has a newer kernel; remove the folder
// to get that. Several processes may call at once: one works, the others wait.
func Prepare(ctx context.Context, cacheDir string, log *slog.Logger) (*Kit, error) {
	busybox, err := staticBusybox()
	if err != nil {
		return nil, err
	}
	kit, err := prepare(ctx, cacheDir, log, func(ctx context.Context, dir string) (stamp, error) {
		return fill(ctx, dir, log)
	})
	if err != nil {
		return nil, fmt.Errorf("cannot prepare the guest: %w", err)
	}
	kit.Busybox = busybox
	return kit, nil
}

// prepare is Prepare with the work left to fill, which gets an empty folder on
// the cache's file system and returns a stamp without hashes.
func prepare(ctx context.Context, cacheDir string, log *slog.Logger, fill func(context.Context, string) (stamp, error)) (*Kit, error) {
	cacheDir, err := filepath.Abs(cacheDir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cacheDir, 0o755); err != nil {
		return nil, err
	}
	unlock, err := lock(ctx, filepath.Join(cacheDir, "guest.lock"), log)
	if err != nil {
		return nil, err
	}
	defer unlock()
	dir := filepath.Join(cacheDir, "guest")
	kit, err := load(dir)
	if err == nil {
		return kit, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		log.Warn("the cached kit is not used; making it anew", "folder", dir, "because", err)
	}
	if err := remake(ctx, dir, fill); err != nil {
		return nil, err
	}
	return load(dir)
}

// remake fills a temporary folder and renames it to dir. The caller holds the
// lock, so every temporary folder found is a dead process's.
func remake(ctx context.Context, dir string, fill func(context.Context, string) (stamp, error)) (err error) {
	stale, err := filepath.Glob(dir + ".new-*")
	if err != nil {
		return err
	}
	for _, path := range append(stale, dir) {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	fresh, err := os.MkdirTemp(filepath.Dir(dir), filepath.Base(dir)+".new-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(fresh))
		}
	}()
	s, err := fill(ctx, fresh)
	if err != nil {
		return err
	}
	if err := seal(fresh, s); err != nil {
		return err
	}
	return os.Rename(fresh, dir)
}

// seal hashes the kit's two programs and writes the stamp.
func seal(dir string, s stamp) error {
	s.Recipe, s.SHA256 = recipe, map[string]string{}
	for _, path := range []string{kernelPath(s.Release), limePath} {
		sum, err := hashFile(filepath.Join(dir, path))
		if err != nil {
			return err
		}
		s.SHA256[path] = sum
	}
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "kit.json"), data, 0o644)
}

// load reads and checks the kit in dir. A missing kit is fs.ErrNotExist.
func load(dir string) (*Kit, error) {
	data, err := os.ReadFile(filepath.Join(dir, "kit.json"))
	if err != nil {
		return nil, err
	}
	var s stamp
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("cannot read kit.json: %w", err)
	}
	if s.Recipe != recipe {
		return nil, fmt.Errorf("cannot use recipe %d, want %d", s.Recipe, recipe)
	}
	if s.Release == "" || s.Release != filepath.Base(s.Release) {
		return nil, fmt.Errorf("cannot use the release %q", s.Release)
	}
	for _, path := range []string{kernelPath(s.Release), limePath} {
		sum, err := hashFile(filepath.Join(dir, path))
		if err != nil {
			return nil, fmt.Errorf("cannot check the kit: %v", err)
		}
		if sum != s.SHA256[path] {
			return nil, fmt.Errorf("cannot use %s: its SHA-256 is %s, want %s", path, sum, s.SHA256[path])
		}
	}
	return &Kit{
		Release: s.Release, Version: s.Version,
		Kernel:    filepath.Join(dir, kernelPath(s.Release)),
		ModuleDir: filepath.Join(dir, moduleDir(s.Release)),
		Lime:      filepath.Join(dir, limePath),
	}, nil
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// lock takes an exclusive flock on path, trying ten times a second until ctx
// ends. The kernel gives the lock up when its holder dies.
func lock(ctx context.Context, path string, log *slog.Logger) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for said := false; ; said = true {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, fmt.Errorf("cannot lock %s: %w", path, err)
		}
		if !said {
			log.Info("waiting for another process to prepare the guest", "lock", path)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("cannot lock %s: %w", path, context.Cause(ctx))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// CacheDir is the folder that the lab and its tests give to Prepare:
// QUICKLIME_CACHE, or quicklime in the user's cache folder.
func CacheDir() (string, error) {
	if dir := os.Getenv("QUICKLIME_CACHE"); dir != "" {
		return dir, nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("cannot find a cache folder: %w; set QUICKLIME_CACHE", err)
	}
	return filepath.Join(dir, "quicklime"), nil
}
