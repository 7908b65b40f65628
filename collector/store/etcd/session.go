package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/quicklime-ir/quicklime/collector/store"
)

// claimLife is how long what a node has claimed outlives it, in seconds. A
// node that hangs for longer loses it, and so does its work: shorter, and a
// slow disk would do that.
const claimLife = 10

// farewell bounds how long Close tries to give back what the node has claimed.
const farewell = 2 * time.Second

// sessions stands before the keys that say which lease is a node's. They lie
// beside the store's own keys.
const sessions = "session/"

// session is the lease behind what this node has claimed.
type session struct {
	lease clientv3.LeaseID
	lost  chan struct{} // closed when the lease is over
	stop  context.CancelFunc
}

// Claim makes a key that ends with this node.
func (s *Store) Claim(ctx context.Context, key string, value []byte) (store.Claim, error) {
	for again := false; ; again = true {
		at, err := s.currentSession(ctx)
		if err != nil {
			return store.Claim{}, fmt.Errorf("cannot claim key %q: %w", key, err)
		}
		revision, err := s.commit(ctx, []store.Change{store.Set(key, value, 0)}, at.lease)
		if errors.Is(err, rpctypes.ErrLeaseNotFound) && !again {
			s.drop(at) // it ended and we have not heard of it yet
			continue
		}
		if errors.Is(err, store.ErrConflict) {
			revision, err = s.claimed(ctx, key, at.lease, err)
		}
		if err != nil {
			return store.Claim{}, err
		}
		return store.Claim{Key: key, Revision: revision, Lost: at.lost}, nil
	}
}

// claimed gives the revision of a key that ends with a lease, or else refused.
// It asks for the value too: etcd 3.7 leaves out the lease of a key alone.
func (s *Store) claimed(ctx context.Context, key string, lease clientv3.LeaseID, refused error) (revision int64, err error) {
	err = s.call(ctx, func(ctx context.Context) error {
		got, err := s.client.Get(ctx, keyspace+key)
		if err != nil {
			return err
		}
		if len(got.Kvs) == 0 || got.Kvs[0].Lease != int64(lease) {
			return refused
		}
		revision = got.Kvs[0].ModRevision
		return nil
	})
	return revision, err
}

// currentSession gives the session, and begins one where there is none.
func (s *Store) currentSession(ctx context.Context) (*session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.session != nil {
		select {
		case <-s.session.lost:
		default:
			return s.session, nil
		}
	}
	var err error
	s.session, err = s.beginSession(ctx)
	return s.session, err
}

// beginSession takes a lease, writes down that it is this node's, and keeps
// it alive until the session is dropped.
func (s *Store) beginSession(ctx context.Context) (*session, error) {
	fresh := &session{lost: make(chan struct{})}
	err := s.call(ctx, func(ctx context.Context) error {
		granted, err := s.client.Grant(ctx, claimLife)
		if err != nil {
			return err
		}
		fresh.lease = granted.ID
		_, err = s.client.Put(ctx, sessions+s.cfg.Name, "", clientv3.WithLease(fresh.lease))
		return err
	})
	if err != nil {
		return nil, err
	}
	keep, stop := context.WithCancel(s.fault)
	fresh.stop = stop
	alive, err := s.client.KeepAlive(keep, fresh.lease)
	if err != nil {
		stop()
		return nil, explain(err)
	}
	s.keepers.Go(func() {
		defer close(fresh.lost)
		for range alive { // it ends with the lease, or with keep
		}
	})
	return fresh, nil
}

// drop forgets a session.
func (s *Store) drop(old *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old.stop()
	if s.session == old {
		s.session = nil
	}
}

// endLastSession ends what this node had claimed when it died. The folder is
// ours alone, so that nobody is doing it any more.
func (s *Store) endLastSession(ctx context.Context) error {
	return s.call(ctx, func(ctx context.Context) error {
		last, err := s.client.Get(ctx, sessions+s.cfg.Name)
		if err != nil || len(last.Kvs) == 0 || last.Kvs[0].Lease == 0 {
			return err
		}
		_, err = s.client.Revoke(ctx, clientv3.LeaseID(last.Kvs[0].Lease))
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return nil
		}
		return err
	})
}

// endSession gives back what this node has claimed, so that others need not
// wait for it to expire.
func (s *Store) endSession() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.session == nil {
		return
	}
	s.session.stop()
	ctx, cancel := context.WithTimeout(context.Background(), farewell)
	defer cancel()
	if _, err := s.client.Revoke(ctx, s.session.lease); err != nil {
		s.log.Warn("cannot give back what this node has claimed; it expires", "seconds", claimLife, "error", err)
	}
}
