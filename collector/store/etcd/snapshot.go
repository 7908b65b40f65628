package etcd

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"
)

// Leads says whether this node leads the cluster now. What one of all is to
// do, it does.
func (s *Store) Leads() bool {
	return s.fault.Err() == nil && s.member.Server.Leader() == s.member.Server.MemberID()
}

// Snapshot gives all that is kept, as it was at one moment, as a file for
// Restore. A reader that is slow costs the member room. The caller closes it.
func (s *Store) Snapshot(ctx context.Context) (io.ReadCloser, error) {
	if err := s.fault.Err(); err != nil {
		return nil, fmt.Errorf("cannot take a snapshot of the store: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.fault, func() { cancel(s.fault.Err()) })
	end := func() { stop(); cancel(nil) }
	r, err := s.client.Snapshot(ctx)
	if err != nil {
		end()
		return nil, fmt.Errorf("cannot take a snapshot of the store: %w", explain(err))
	}
	return &snapshotReader{hashed: newHashed(r), close: func() error { end(); return r.Close() }}, nil
}

type snapshotReader struct {
	*hashed
	close func() error
}

func (r *snapshotReader) Close() error { return r.close() }

// errTorn says that a snapshot is not what the member gave.
var errTorn = errors.New("the snapshot is torn or was changed: its bytes have not the SHA-256 at its end; take another one")

// hashed reads a snapshot, the last bytes of which are the SHA-256 of those
// before, and gives errTorn for its end where they are not.
type hashed struct {
	r    io.Reader
	sum  hash.Hash
	tail []byte // the last bytes, which may be the hash
}

func newHashed(r io.Reader) *hashed { return &hashed{r: r, sum: sha256.New()} }

func (h *hashed) Read(p []byte) (n int, err error) {
	n, err = h.r.Read(p)
	h.tail = append(h.tail, p[:n]...)
	if more := len(h.tail) - sha256.Size; more > 0 {
		h.sum.Write(h.tail[:more])
		h.tail = append(h.tail[:0], h.tail[more:]...)
	}
	if errors.Is(err, io.EOF) && !bytes.Equal(h.sum.Sum(nil), h.tail) {
		err = errTorn
	}
	return n, err
}

// CheckSnapshot reads a snapshot to its end, and refuses one that is not
// whole.
func CheckSnapshot(r io.Reader) error {
	_, err := io.Copy(io.Discard, newHashed(r))
	return err
}

// leap is added to the revision of what is restored, so that none that was
// seen before the loss comes again for something else. etcd advises as much
// for a snapshot of a week.
const leap = 1_000_000_000

// Restore makes a member out of a snapshot, in a folder that has none: a
// cluster of its own with everything that the snapshot has. The folder has the
// whole member afterwards, or none.
func Restore(path, dir, name string, log *slog.Logger) error {
	if err := restore(path, dir, name, log); err != nil {
		return fmt.Errorf("cannot restore %s to %s: %w", path, dir, err)
	}
	return nil
}

func restore(path, dir, name string, log *slog.Logger) error {
	if err := CheckName(name); err != nil {
		return err
	}
	lock, err := lockFolder(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if HasMember(dir) {
		return fmt.Errorf("there is a member in it already: move %s away if it is lost, or name another folder", filepath.Join(dir, "member"))
	}
	if err := checkFile(path); err != nil {
		return err
	}
	work, err := os.MkdirTemp(dir, "restore-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	err = snapshot.NewV3(zap.New(&core{log: log})).Restore(snapshot.RestoreConfig{
		SnapshotPath: path, OutputDataDir: work, Name: name, PeerURLs: []string{selfURL.String()},
		InitialCluster: name + "=" + selfURL.String(), InitialClusterToken: rand.Text(),
		RevisionBump: leap, MarkCompacted: true,
	})
	if err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(work, "member"), filepath.Join(dir, "member")); err != nil {
		return err
	}
	return syncFolder(dir)
}

func checkFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return CheckSnapshot(f)
}

// syncFolder makes a name in a folder as durable as what it names.
func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
