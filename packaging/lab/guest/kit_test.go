package guest

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const testRelease = "6.1.0-0-cloud-amd64"

// fakeFill counts its calls and makes a kit of text files.
func fakeFill(calls *atomic.Int32) func(context.Context, string) (stamp, error) {
	return func(_ context.Context, dir string) (stamp, error) {
		calls.Add(1)
		for name, text := range map[string]string{
			kernelPath(testRelease): "kernel", limePath: "module", filepath.Join(moduleDir(testRelease), "modules.builtin"): "",
		} {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
				return stamp{}, err
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				return stamp{}, err
			}
		}
		return stamp{Release: testRelease, Version: "6.1.0-1"}, nil
	}
}

func TestPrepareOnce(t *testing.T) {
	var calls atomic.Int32
	dir := t.TempDir()
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			kit, err := prepare(t.Context(), dir, slog.New(slog.DiscardHandler), fakeFill(&calls))
			if err != nil {
				t.Error(err)
				return
			}
			if data, err := os.ReadFile(kit.Lime); err != nil || string(data) != "module" {
				t.Errorf("lime.ko holds %q, %v", data, err)
			}
		})
	}
	group.Wait()
	if calls.Load() != 1 {
		t.Errorf("the kit was made %d times, want once", calls.Load())
	}
}

// Each damage must lead to a new kit, never to the use of the old one.
func TestPrepareAnew(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, dir string){
		"no stamp":     func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, "kit.json"))) },
		"cut stamp":    func(t *testing.T, dir string) { must(t, os.Truncate(filepath.Join(dir, "kit.json"), 20)) },
		"other recipe": func(t *testing.T, dir string) { edit(t, filepath.Join(dir, "kit.json"), `"recipe": 1`, `"recipe": 0`) },
		"a path as release": func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, "kit.json"), `"release": "`, `"release": "../`)
		},
		"changed module": func(t *testing.T, dir string) { edit(t, filepath.Join(dir, limePath), "module", "nodule") },
		"no module":      func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, limePath))) },
		"cut kernel":     func(t *testing.T, dir string) { must(t, os.Truncate(filepath.Join(dir, kernelPath(testRelease)), 3)) },
	} {
		t.Run(name, func(t *testing.T) {
			var calls atomic.Int32
			cache := t.TempDir()
			for range 2 {
				if _, err := prepare(t.Context(), cache, slog.New(slog.DiscardHandler), fakeFill(&calls)); err != nil {
					t.Fatal(err)
				}
			}
			if calls.Load() != 1 {
				t.Fatalf("the kit was made %d times before the damage, want once", calls.Load())
			}
			damage(t, filepath.Join(cache, "guest"))
			if _, err := prepare(t.Context(), cache, slog.New(slog.DiscardHandler), fakeFill(&calls)); err != nil {
				t.Fatal(err)
			}
			if calls.Load() != 2 {
				t.Errorf("the damaged kit was used")
			}
		})
	}
}

// A crash in the middle leaves a temporary folder: it is never used, and the
// next call removes it.
func TestPrepareAfterCrash(t *testing.T) {
	var calls atomic.Int32
	cache := t.TempDir()
	left := filepath.Join(cache, "guest.new-123")
	must(t, os.Mkdir(left, 0o755))
	if _, err := fakeFill(&calls)(t.Context(), left); err != nil {
		t.Fatal(err)
	}
	failing := func(_ context.Context, dir string) (stamp, error) {
		return stamp{}, errors.Join(errors.New("no network"), os.WriteFile(filepath.Join(dir, limePath), nil, 0o644))
	}
	if _, err := prepare(t.Context(), cache, slog.New(slog.DiscardHandler), failing); err == nil || !strings.Contains(err.Error(), "no network") {
		t.Errorf("got %v, want the reason", err)
	}
	if left, _ := filepath.Glob(filepath.Join(cache, "guest*")); len(left) != 1 {
		t.Errorf("folders are left behind: %v", left)
	}
	if _, err := prepare(t.Context(), cache, slog.New(slog.DiscardHandler), fakeFill(&calls)); err != nil {
		t.Error(err)
	}
}

func TestLockWaitsAndGivesUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := lock(t.Context(), path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := lock(ctx, path, slog.New(slog.DiscardHandler)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second lock gave %v, want a deadline", err)
	}
	unlock()
	again, err := lock(t.Context(), path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	again()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func edit(t *testing.T, path, from, to string) {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	if !strings.Contains(string(data), from) {
		t.Fatalf("%s holds no %q: %s", path, from, data)
	}
	must(t, os.WriteFile(path, []byte(strings.Replace(string(data), from, to, 1)), 0o644))
}
