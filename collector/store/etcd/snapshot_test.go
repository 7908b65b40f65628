package etcd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/quicklime-ir/quicklime/collector/store"
)

// takeSnapshot gives the file of a snapshot.
func takeSnapshot(t *testing.T, s *Store) string {
	t.Helper()
	r, err := s.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	all, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "20261126T183000Z.db")
	if err := os.WriteFile(path, all, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestRestore: a store that was lost is there again as it was in the snapshot,
// under revisions that only grow. What a lost node had claimed is not held for
// ever: its lease goes on, and ends.
func TestRestore(t *testing.T) {
	ctx := t.Context()
	s := begin(t, t.TempDir())
	at, err := s.Put(ctx, "case/1", bytes.Repeat([]byte("value"), 1000), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(ctx, "case/2", nil, 0); err != nil {
		t.Fatal(err)
	}
	lease, err := s.client.Grant(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.Put(ctx, keyspace+"own/1", "another node", clientv3.WithLease(lease.ID)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Claim(ctx, "own/2", []byte("this node")); err != nil {
		t.Fatal(err)
	}
	path := takeSnapshot(t, s)
	late, err := s.Put(ctx, "case/3", []byte("after the snapshot"), 0)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()

	dir := filepath.Join(t.TempDir(), "new")
	if err := Restore(path, dir, "alone", slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "restore-*")); err != nil || len(left) > 0 {
		t.Errorf("%v were left behind, %v", left, err)
	}
	refuse(t, Restore(path, dir, "alone", s.log), "a member in it already")
	s = begin(t, dir)
	value, now, err := s.Get(ctx, "case/1")
	if err != nil || len(value) != 5000 || now != at {
		t.Errorf("case/1 has %d bytes at %d (%v), want 5000 at %d", len(value), now, err, at)
	}
	if _, _, err := s.Get(ctx, "case/3"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("what was written after the snapshot: %v", err)
	}
	if next, err := s.Put(ctx, "case/3", nil, 0); err != nil || next <= late {
		t.Errorf("revision %d comes after the restore, %d was before it (%v)", next, late, err)
	}
	if _, err := s.Claim(ctx, "own/2", nil); err != nil {
		t.Errorf("what this node had claimed: %v", err)
	}
	for limit := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		_, err := s.Claim(ctx, "own/1", nil)
		if err == nil {
			break
		}
		if !errors.Is(err, store.ErrConflict) || time.Now().After(limit) {
			t.Fatalf("what a lost node had claimed: %v", err)
		}
	}
	if err := s.Health(ctx); err != nil {
		t.Error(err)
	}
}

// TestATornSnapshotIsRefused: whatever was done to it, no folder is begun.
func TestATornSnapshotIsRefused(t *testing.T) {
	s := begin(t, t.TempDir())
	if _, err := s.Put(t.Context(), "case/1", []byte("value"), 0); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(takeSnapshot(t, s))
	if err != nil {
		t.Fatal(err)
	}
	flip := func(at int) []byte {
		b := bytes.Clone(whole)
		b[at] ^= 1
		return b
	}
	for name, content := range map[string][]byte{
		"empty":                {},
		"cut":                  whole[:len(whole)-1],
		"cut by a page":        whole[:len(whole)-4096],
		"without its hash":     whole[:len(whole)-32],
		"longer":               append(bytes.Clone(whole), 0),
		"a bit of the content": flip(len(whole) / 2),
		"a bit of the hash":    flip(len(whole) - 1),
		"its first bit":        flip(0),
	} {
		path, dir := filepath.Join(t.TempDir(), "x.db"), t.TempDir()
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		err := Restore(path, dir, "alone", s.log)
		if !errors.Is(err, errTorn) || HasMember(dir) {
			t.Errorf("%s: %v", name, err)
		}
	}
	refuse(t, Restore(filepath.Join(t.TempDir(), "none.db"), t.TempDir(), "alone", s.log), "no such file")
}

// TestASnapshotEndsWithItsContext: one that nobody reads to its end holds
// nothing up.
func TestASnapshotEndsWithItsContext(t *testing.T) {
	s := begin(t, t.TempDir())
	if _, err := s.Put(t.Context(), "case/1", make([]byte, 8<<20), 0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r, err := s.Snapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := io.Copy(io.Discard, r); err == nil {
		t.Error("it was read to its end")
	}
	r.Close()
	s.Close()
	if _, err := s.Snapshot(t.Context()); !errors.Is(err, store.ErrClosed) {
		t.Errorf("of a closed store: %v", err)
	}
}

// FuzzCheckSnapshot: bytes with their hash after them are a snapshot, in
// whatever pieces they come, and nothing else is.
func FuzzCheckSnapshot(f *testing.F) {
	f.Add([]byte("x"), 1, 0)
	f.Add(make([]byte, 100), 33, 110)
	f.Fuzz(func(t *testing.T, content []byte, piece, flip int) {
		check := func(b []byte) error {
			h, buffer := newHashed(bytes.NewReader(b)), make([]byte, 1+uint(piece)%100)
			for {
				if _, err := h.Read(buffer); errors.Is(err, io.EOF) {
					return nil
				} else if err != nil {
					return err
				}
			}
		}
		sum := sha256.Sum256(content)
		whole := append(bytes.Clone(content), sum[:]...)
		if err := check(whole); err != nil {
			t.Fatal(err)
		}
		whole[uint(flip)%uint(len(whole))] ^= 1
		if err := check(whole); !errors.Is(err, errTorn) {
			t.Fatalf("with a bit changed: %v", err)
		}
		if err := check(whole[:len(whole)-1]); !errors.Is(err, errTorn) {
			t.Fatalf("cut: %v", err)
		}
	})
}
