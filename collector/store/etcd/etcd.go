// Package etcd keeps the collector's state in an etcd member that runs inside
// the collector.
//
// A member alone needs nobody: it listens on no address and no socket, so no
// agent can reach it, and is called in the process. It keeps what is written
// in DIR/member, and a write is on the disk when it returns. The rules of
// package store are etcd's own: a key's revision is its mod_revision, and
// every change is one transaction that compares it.
//
// Where one node is not enough, others join it while it works: three can lose
// one. They listen for each other alone, with certificates on both sides. A
// write is then on the disks of the majority when it returns.
package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"github.com/quicklime-ir/quicklime/collector/store"
)

// keyspace stands before every key of the store, so that what is kept for the
// cluster itself can lie beside it.
const keyspace = "store/"

// patience is how long a call waits for the member, and for the majority of
// its cluster, whatever its context allows.
const patience = 15 * time.Second

// Store is a store.Store, and the member under it.
type Store struct {
	cfg    Config
	quota  int64 // of the member's file, bytes
	log    *slog.Logger
	lock   *os.File
	member *embed.Etcd
	client *clientv3.Client
	fault  *fault // how it ended, once it has
	once   sync.Once

	mu      sync.Mutex
	session *session // what is claimed is claimed by it; nil: nothing yet

	keepers sync.WaitGroup // of the sessions
}

// Config says which member to start.
type Config struct {
	Dir  string // its folder, made where there is none
	Name string // of this node, unlike that of every other node
	Peer *Peer  // nil: it is alone, and listens nowhere
	Join *Join  // of a cluster; nothing to a folder that has a member. nil: it begins one
	Log  *slog.Logger

	patience time.Duration // 0: as it should be
}

var _ store.Store = (*Store)(nil)

// Open starts the member in a folder, which it makes, and waits until it
// answers. A folder has one at a time. The error of a folder that cannot be
// used says why, and what to do.
func Open(ctx context.Context, cfg Config) (*Store, error) { return open(ctx, cfg, quota) }

func open(ctx context.Context, cfg Config, quota int64) (*Store, error) {
	cfg.patience = cmp.Or(cfg.patience, patience)
	s := &Store{cfg: cfg, quota: quota, log: cfg.Log, fault: newFault(cfg.Dir, cfg.Peer != nil)}
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("cannot open store in %s: %w", cfg.Dir, err)
	}
	var err error
	if s.lock, err = lockFolder(cfg.Dir); err != nil {
		return nil, s.fault.ofDisk(err)
	}
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot open store in %s: %w", cfg.Dir, err), s.Close())
	}
	return s, nil
}

// lockFolder makes the folder, and takes it. The member would wait for another
// one for ever.
func lockFolder(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot open store: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot open store: %w", err)
	}
	defer root.Close()
	return store.TakeLock(root, dir)
}

// start starts the member and waits for it to answer.
func (s *Store) start(ctx context.Context) error {
	if err := s.checkMember(); err != nil {
		return err
	}
	member, err := s.startMember()
	if err != nil {
		return err
	}
	s.member, s.client = member, v3client.New(member.Server)
	s.keepers.Go(s.heed)
	if err := s.checkPlace(); err != nil {
		return err
	}
	if err := s.awaitPlace(ctx); err != nil {
		return err
	}
	if err := s.takePlace(ctx); err != nil {
		return err
	}
	s.keepers.Go(s.tend)
	if err := s.makeRoom(ctx); err != nil {
		return err
	}
	return s.endLastSession(ctx)
}

// Failed is closed when the member cannot go on, and then Health says why. It
// does not recover inside this process: the collector is to end, and to be
// started again. It is closed by Close as well.
func (s *Store) Failed() <-chan struct{} { return s.fault.Done() }

// call makes one call of the member, bounded in time, that ends with it.
func (s *Store) call(ctx context.Context, f func(ctx context.Context) error) error {
	if err := s.fault.Err(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, s.cfg.patience)
	defer cancel()
	defer context.AfterFunc(s.fault, cancel)()
	err := f(bounded)
	switch {
	case err == nil:
		return nil
	case s.fault.Err() != nil:
		return s.fault.Err()
	case ctx.Err() != nil:
		return ctx.Err()
	default:
		return explain(err)
	}
}

// Get gives a key's value and revision.
func (s *Store) Get(ctx context.Context, key string) (value []byte, revision int64, err error) {
	if err := store.CheckKey(key); err != nil {
		return nil, 0, err
	}
	err = s.call(ctx, func(ctx context.Context) error {
		got, err := s.client.Get(ctx, keyspace+key)
		if err != nil {
			return err
		}
		if len(got.Kvs) == 0 {
			return store.ErrNotFound
		}
		value, revision = got.Kvs[0].Value, got.Kvs[0].ModRevision
		return nil
	})
	if err != nil {
		return nil, 0, fmt.Errorf("cannot get key %q: %w", key, err)
	}
	return value, revision, nil
}

// Put sets a key's value.
func (s *Store) Put(ctx context.Context, key string, value []byte, revision int64) (int64, error) {
	return s.Commit(ctx, store.Set(key, value, revision))
}

// Delete removes a key.
func (s *Store) Delete(ctx context.Context, key string, revision int64) error {
	_, err := s.Commit(ctx, store.Remove(key, revision))
	return err
}

// Commit makes several changes in one transaction.
func (s *Store) Commit(ctx context.Context, changes ...store.Change) (int64, error) {
	return s.commit(ctx, changes, clientv3.NoLease)
}

// commit makes changes; the keys that they set end with a lease, if there is
// one.
func (s *Store) commit(ctx context.Context, changes []store.Change, lease clientv3.LeaseID) (revision int64, err error) {
	if err := store.CheckChanges(changes); err != nil {
		return 0, err
	}
	fences := store.Fences(ctx)
	wanted, then, otherwise := transaction(changes, fences, lease)
	var refused error
	err = s.call(ctx, func(ctx context.Context) error {
		done, err := s.client.Txn(ctx).If(wanted...).Then(then...).Else(otherwise...).Commit()
		if err != nil {
			return err
		}
		if revision = done.Header.Revision; !done.Succeeded {
			refused = store.Refused(changes, fences, revisionsOf(done))
		}
		return nil
	})
	switch {
	case err != nil:
		return 0, fmt.Errorf("cannot %s key %q: %w", changes[0].Verb, changes[0].Key, err)
	case refused != nil:
		return 0, refused
	}
	return revision, nil
}

// transaction puts changes into etcd's words: what must be so, what is done
// then, and what is asked otherwise.
func transaction(changes []store.Change, fences []store.Fence, lease clientv3.LeaseID) (wanted []clientv3.Cmp, then, otherwise []clientv3.Op) {
	want := func(key string, revision int64) {
		wanted = append(wanted, clientv3.Compare(clientv3.ModRevision(keyspace+key), "=", revision))
		otherwise = append(otherwise, clientv3.OpGet(keyspace+key, clientv3.WithKeysOnly()))
	}
	for _, f := range fences {
		want(f.Key, f.Revision)
	}
	for _, c := range changes {
		want(c.Key, c.Revision)
		switch c.Verb {
		case store.Putting:
			then = append(then, clientv3.OpPut(keyspace+c.Key, string(c.Value), clientv3.WithLease(lease)))
		case store.Deleting:
			then = append(then, clientv3.OpDelete(keyspace+c.Key))
		}
	}
	return wanted, then, otherwise
}

// revisionsOf gives the revisions that a refused transaction has asked for, 0
// where there is no such key.
func revisionsOf(refused *clientv3.TxnResponse) func(key string) int64 {
	at := map[string]int64{}
	for _, r := range refused.Responses {
		for _, kv := range r.GetResponseRange().GetKvs() {
			at[string(kv.GetKey())] = kv.GetModRevision()
		}
	}
	return func(key string) int64 { return at[keyspace+key] }
}

// List gives the entries under a prefix, all as they were at one revision.
func (s *Store) List(ctx context.Context, prefix string) ([]store.Entry, error) {
	if err := store.CheckPrefix(prefix); err != nil {
		return nil, err
	}
	var out []store.Entry
	err := s.call(ctx, func(ctx context.Context) error {
		got, err := s.client.Get(ctx, keyspace+prefix, clientv3.WithPrefix())
		if err != nil {
			return err
		}
		for _, kv := range got.Kvs {
			out = append(out, entryOf(kv))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot list keys under %q: %w", prefix, err)
	}
	return out, nil
}

// Close stops the member. One that cannot go on is left as it is, as it would
// not stop either; it ends with the process.
func (s *Store) Close() error {
	s.once.Do(func() {
		if s.client != nil && s.fault.Err() == nil {
			s.endSession()
		}
		s.fault.end(store.ErrClosed)
		if s.member != nil && !s.fault.stuck.Load() {
			s.client.Close()
			s.member.Close()
		}
		s.keepers.Wait()
		s.lock.Close()
	})
	return nil
}
