package etcd

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"

	"github.com/quicklime-ir/quicklime/collector/store"
	"github.com/quicklime-ir/quicklime/collector/store/storetest"
)

func alone(dir string) Config {
	return Config{Dir: dir, Name: "alone", Log: slog.New(slog.DiscardHandler)}
}

func begin(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(t.Context(), alone(dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return begin(t, t.TempDir()) })
}

// TestItOutlivesTheProcess: what was written is there after a restart, a large
// value too, and no revision comes again.
func TestItOutlivesTheProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	s := begin(t, dir)
	large := strings.Repeat("0123456789abcdef", 1<<20)
	at, err := s.Put(t.Context(), "case/1", []byte(large), 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Health(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := Open(t.Context(), alone(dir)); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d has it", os.Getpid())) {
		t.Errorf("second owner: %v", err)
	}
	s.Close()
	s = begin(t, dir)
	if got, now, err := s.Get(t.Context(), "case/1"); err != nil || string(got) != large || now != at {
		t.Errorf("after a restart it has %d bytes at %d (%v), want %d at %d", len(got), now, err, len(large), at)
	}
	if next, err := s.Put(t.Context(), "case/2", nil, 0); err != nil || next <= at {
		t.Errorf("revision %d follows %d (%v)", next, at, err)
	}
}

// TestADeadNodeHasNothingClaimed: what a node had claimed when it died is free
// as soon as it starts again.
func TestADeadNodeHasNothingClaimed(t *testing.T) {
	dir := t.TempDir()
	s := begin(t, dir)
	if _, err := s.Claim(t.Context(), "own/1", nil); err != nil {
		t.Fatal(err)
	}
	s.session = nil // so that Close does not give it back, as death does not
	s.Close()
	s = begin(t, dir)
	if _, err := s.Claim(t.Context(), "own/1", nil); err != nil {
		t.Error(err)
	}
}

// TestAClaimEndsWithItsLease: a node that hangs for too long has lost what it
// claimed, and knows; what it claims next it has.
func TestAClaimEndsWithItsLease(t *testing.T) {
	s := begin(t, t.TempDir())
	claim, err := s.Claim(t.Context(), "own/1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.Revoke(t.Context(), s.session.lease); err != nil {
		t.Fatal(err)
	}
	again, err := s.Claim(t.Context(), "own/1", nil)
	if err != nil {
		t.Fatal(err)
	}
	<-claim.Lost
	if _, err := s.Put(store.While(t.Context(), claim.Key, claim.Revision), "case/1", nil, 0); !errors.Is(err, store.ErrLost) {
		t.Errorf("with the claim from before: %v", err)
	}
	if _, err := s.Put(store.While(t.Context(), again.Key, again.Revision), "case/1", nil, 0); err != nil {
		t.Error(err)
	}
}

// TestALostPartIsTold: a member without its log, or without its file, is not
// begun anew.
func TestALostPartIsTold(t *testing.T) {
	for _, part := range []string{"wal", "snap/db"} {
		dir := t.TempDir()
		begin(t, dir).Close()
		if err := os.RemoveAll(filepath.Join(dir, "member", part)); err != nil {
			t.Fatal(err)
		}
		_, err := Open(t.Context(), alone(dir))
		if err == nil || !strings.Contains(err.Error(), part+" is missing") || !strings.Contains(err.Error(), "restore") {
			t.Errorf("%s: %v", part, err)
		}
	}
}

// TestDamageIsTold: what a member cannot read is said, and the process lives.
func TestDamageIsTold(t *testing.T) {
	dir := t.TempDir()
	s := begin(t, dir)
	if _, err := s.Put(t.Context(), "case/1", []byte("value"), 0); err != nil {
		t.Fatal(err)
	}
	s.Close()
	bad := damage(t, dir)
	_, err := Open(t.Context(), alone(bad))
	if err == nil || !strings.Contains(err.Error(), "is damaged") || !strings.Contains(err.Error(), bad) {
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
		errors.New("crc"): "restore a snapshot",
		&os.PathError{Op: "write", Path: "0.wal", Err: syscall.EDQUOT}: "make room on it",
	} {
		s := begin(t, t.TempDir())
		log := zap.New(&core{log: s.log}, zap.WithFatalHook(s.fault))
		go log.Fatal("failed to save Raft hard state and entries", zap.Error(cause))
		<-s.Failed()
		_, err := s.Put(t.Context(), "case/1", nil, 0)
		for _, err := range []error{err, s.Health(t.Context())} {
			if !errors.Is(err, cause) || !strings.Contains(err.Error(), remedy) || !strings.Contains(err.Error(), s.cfg.Dir) {
				t.Errorf("%v: %v", cause, err)
			}
		}
		s.member.Close() // it is well: only its log is not
	}
}

// TestAFullStoreRecovers: a member whose quota is full refuses writes, says so,
// and still reads; after the next start there is room, as old values are
// dropped.
func TestAFullStoreRecovers(t *testing.T) {
	const small = 4 << 20
	dir := t.TempDir()
	start := func() *Store {
		s, err := open(t.Context(), alone(dir), small)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	s := start()
	value, at := make([]byte, 1<<20), int64(0)
	var err error
	for range 100 { // the same key: all but the last are old
		var next int64
		if next, err = s.Put(t.Context(), "case/1", value, at); err != nil {
			break
		}
		at = next
	}
	if !errors.Is(err, rpctypes.ErrNoSpace) || !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "store is full") {
		t.Fatalf("writing more than the quota: %v", err)
	}
	if err := s.Health(t.Context()); !errors.Is(err, rpctypes.ErrNoSpace) {
		t.Errorf("health of a full store: %v", err)
	}
	s.Close()
	s = start()
	if err := s.Health(t.Context()); err != nil {
		t.Error(err)
	}
	_, now, err := s.Get(t.Context(), "case/1")
	if err != nil || now != at && now != at+1 { // etcd may have made the change for which it said there was no room
		t.Errorf("the value is at %d, want %d or one more (%v)", now, at, err)
	}
	if _, err := s.Put(t.Context(), "case/1", value, now); err != nil {
		t.Error(err)
	}
}

// BenchmarkPut is one durable change of a small value after the other.
func BenchmarkPut(b *testing.B) {
	s := begin(b, b.TempDir())
	value, at := make([]byte, 500), int64(0)
	for b.Loop() {
		var err error
		if at, err = s.Put(b.Context(), "case/1", value, at); err != nil {
			b.Fatal(err)
		}
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
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil { // tests of several members mostly wait: see settling
		panic(err)
	}
	os.Exit(m.Run())
}
