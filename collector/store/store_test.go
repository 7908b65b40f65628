package store_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/quicklime-ir/quicklime/collector/store"
	"github.com/quicklime-ir/quicklime/collector/store/storetest"
)

func TestMemory(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Store { return store.Memory() })
}

func TestFiles(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return open(t, t.TempDir()) })
}

func open(t *testing.T, dir string) store.Store {
	t.Helper()
	s, err := store.OpenFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func put(t *testing.T, s store.Store, key, value string, revision int64) int64 {
	t.Helper()
	next, err := s.Put(t.Context(), key, []byte(value), revision)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

func TestFilesOutliveTheProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "store")
	s := open(t, dir)
	kept := put(t, s, "case/1", "one", 0)
	gone := put(t, s, "case/2", "two", 0)
	if err := s.Delete(t.Context(), "case/2", gone); err != nil {
		t.Fatal(err)
	}
	s.Close()

	s = open(t, dir)
	if got, at, err := s.Get(t.Context(), "case/1"); err != nil || string(got) != "one" || at != kept {
		t.Errorf("after a restart it is %q at %d (%v)", got, at, err)
	}
	if again := put(t, s, "case/2", "two", 0); again <= gone {
		t.Errorf("revision %d comes again after a restart; %d was used before", again, gone)
	}
}

func TestFilesHaveOneOwner(t *testing.T) {
	dir := t.TempDir()
	first := open(t, dir)
	_, err := store.OpenFiles(dir)
	if err == nil || !strings.Contains(err.Error(), "process "+strconv.Itoa(os.Getpid())+" has it") || !strings.Contains(err.Error(), dir) {
		t.Errorf("second owner: %v", err)
	}
	first.Close()
	open(t, dir)
}

// TestFilesTellDamage changes a file in every way that a crash, a disk or a
// curious hand could, and wants its name in the error.
func TestFilesTellDamage(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	put(t, s, "case/1", "the value", 0)
	other := put(t, s, "case/2", "the value", 0)
	file := filepath.Join(dir, "case", "1=")
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	damaged := map[string][]byte{"emptied": nil, "longer": append(bytes.Clone(whole), 'x')}
	for i := range whole {
		damaged["cut at "+strconv.Itoa(i)] = whole[:i]
		flipped := bytes.Clone(whole)
		flipped[i] ^= 1
		damaged["changed at "+strconv.Itoa(i)] = flipped
	}
	if damaged["another key's"], err = os.ReadFile(filepath.Join(dir, "case", "2=")); err != nil {
		t.Fatal(err)
	}
	for name, content := range damaged {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		_, _, getErr := s.Get(t.Context(), "case/1")
		_, listErr := s.List(t.Context(), "case/")
		_, putErr := s.Put(t.Context(), "case/1", nil, 0)
		for call, err := range map[string]error{"get": getErr, "list": listErr, "put": putErr} {
			if err == nil || !strings.Contains(err.Error(), file) {
				t.Errorf("%s: %s gives %v, want an error that names %s", name, call, err, file)
			}
		}
	}
	if _, at, err := s.Get(t.Context(), "case/2"); err != nil || at != other {
		t.Errorf("the file beside it: %v", err)
	}
}

func TestFilesWantTheirCounter(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	put(t, s, "case/1", "x", 0)
	s.Close()
	counter := filepath.Join(dir, "=revision")
	whole, err := os.ReadFile(counter)
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func() error{
		"missing": func() error { return os.Remove(counter) },
		"torn":    func() error { return os.WriteFile(counter, whole[:20], 0o600) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		if _, err := store.OpenFiles(dir); err == nil || !strings.Contains(err.Error(), "=revision") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.WriteFile(counter, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, dir)
}

// TestFilesLeaveNoWay shows that a link planted in the folder leads nowhere.
func TestFilesLeaveNoWay(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	s := open(t, dir)
	if err := os.Symlink(outside, filepath.Join(dir, "case")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(t.Context(), "case/1", []byte("x"), 0); err == nil {
		t.Error("written through a link")
	}
	if entries, _ := os.ReadDir(outside); len(entries) > 0 {
		t.Errorf("outside the folder lies %v", entries)
	}
}
