package etcd

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/zap"

	"github.com/quicklime-ir/quicklime/collector/store"
	"github.com/quicklime-ir/quicklime/collector/store/storetest"
)

func open(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(t.Context(), dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return open(t, t.TempDir()) })
}

// TestItOutlivesTheProcess: what was written is there after a restart, a large
// value too, and no revision comes again.
func TestItOutlivesTheProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	s := open(t, dir)
	large := strings.Repeat("0123456789abcdef", 1<<20)
	at, err := s.Put(t.Context(), "case/1", []byte(large), 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Health(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := Open(t.Context(), dir, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d has it", os.Getpid())) {
		t.Errorf("second owner: %v", err)
	}
	s.Close()
	s = open(t, dir)
	if got, now, err := s.Get(t.Context(), "case/1"); err != nil || string(got) != large || now != at {
		t.Errorf("after a restart it has %d bytes at %d (%v), want %d at %d", len(got), now, err, len(large), at)
	}
	if next, err := s.Put(t.Context(), "case/2", nil, 0); err != nil || next <= at {
		t.Errorf("revision %d follows %d (%v)", next, at, err)
	}
}

// TestALostPartIsTold: a member without its log, or without its file, is not
// begun anew.
func TestALostPartIsTold(t *testing.T) {
	for _, part := range []string{"wal", "snap/db"} {
		dir := t.TempDir()
		open(t, dir).Close()
		if err := os.RemoveAll(filepath.Join(dir, "member", part)); err != nil {
			t.Fatal(err)
		}
		_, err := Open(t.Context(), dir, slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), part+" is missing") || !strings.Contains(err.Error(), "restore") {
			t.Errorf("%s: %v", part, err)
		}
	}
}

// TestDamageIsTold: what a member cannot read is said, and the process lives.
func TestDamageIsTold(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	if _, err := s.Put(t.Context(), "case/1", []byte("value"), 0); err != nil {
		t.Fatal(err)
	}
	s.Close()
	logs, err := filepath.Glob(filepath.Join(dir, "member", "wal", "*.wal"))
	if err != nil || len(logs) == 0 {
		t.Fatal(logs, err)
	}
	raw, err := os.ReadFile(logs[0])
	if err != nil {
		t.Fatal(err)
	}
	for i := range 64 {
		raw[20+i] ^= 0xff
	}
	if err := os.WriteFile(logs[0], raw, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), dir, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "is damaged") || !strings.Contains(err.Error(), dir) {
		t.Errorf("%v", err)
	}
}

// TestAFaultEndsTheStore: where etcd would exit the process, every call says
// why from then on, and what to do.
func TestAFaultEndsTheStore(t *testing.T) {
	for cause, remedy := range map[error]string{
		syscall.ENOSPC:    "make room on it",
		syscall.EROFS:     "make its disk writable",
		syscall.EIO:       "look at it",
		errors.New("crc"): "restore a copy",
		&os.PathError{Op: "write", Path: "0.wal", Err: syscall.EDQUOT}: "make room on it",
	} {
		s := open(t, t.TempDir())
		log := zap.New(&core{log: s.log}, zap.WithFatalHook(s.fault))
		go log.Fatal("failed to save Raft hard state and entries", zap.Error(cause))
		<-s.Failed()
		_, err := s.Put(t.Context(), "case/1", nil, 0)
		for _, err := range []error{err, s.Health(t.Context())} {
			if !errors.Is(err, cause) || !strings.Contains(err.Error(), remedy) || !strings.Contains(err.Error(), s.dir) {
				t.Errorf("%v: %v", cause, err)
			}
		}
		s.member.Close() // it is well: only its log is not
	}
}

// The writer of the crash test is this test binary, told so by its
// environment.
const writerDir = "ETCD_TEST_WRITER_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(writerDir); dir != "" {
		fmt.Fprintln(os.Stderr, writeForever(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}
