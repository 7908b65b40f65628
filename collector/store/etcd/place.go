package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// tend makes voters of those that have learned what the others know, until the
// store is closed. The leader's does it.
func (s *Store) tend() {
	tick := time.NewTicker(retry)
	defer tick.Stop()
	for {
		select {
		case <-s.fault.Done():
			return
		case <-tick.C:
			s.promote()
		}
	}
}

func (s *Store) promote() {
	if !s.Leads() {
		return
	}
	for _, m := range s.member.Server.Cluster().Members() {
		if !m.IsLearner || !m.IsStarted() {
			continue
		}
		err := s.call(s.fault, func(ctx context.Context) error {
			_, err := s.client.MemberPromote(ctx, uint64(m.ID))
			return err
		})
		switch {
		case err == nil:
			s.log.Info("node has learned what the others know, and votes now", "node", m.Name)
		case errors.Is(err, rpctypes.ErrMemberLearnerNotReady):
			s.log.Debug("node is still learning", "node", m.Name)
		case s.fault.Err() == nil:
			s.log.Warn("cannot make a voter of a node yet", "node", m.Name, "error", err)
		}
	}
}

// heed says why the member has stopped by itself. It does so for one reason
// only: it was removed.
func (s *Store) heed() {
	select {
	case <-s.member.Server.StopNotify():
		s.fault.end(s.fault.removed())
	case <-s.fault.Done():
	}
}

// awaitPlace waits until the member votes, and has an answer of the majority.
// etcd tells that by itself, but for a member that has just joined it may tell
// it some seconds late.
func (s *Store) awaitPlace(ctx context.Context) error {
	wait := startPatience
	if s.learns() {
		s.log.Info("this node learns what the others know", "node", s.cfg.Name)
		wait = learnPatience
	}
	ctx, cancel := context.WithTimeoutCause(ctx, wait, errNotReady)
	defer cancel()
	tick := time.NewTicker(retry)
	defer tick.Stop()
	ready := s.member.Server.ReadyNotify()
	for {
		select {
		case <-ready:
			ready = nil
		case <-tick.C:
		case <-s.fault.Done():
			return s.fault.Err()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if !s.learns() && (ready == nil || s.reads(ctx)) {
			return nil
		}
	}
}

// learns says whether the member has no vote, as far as it knows.
func (s *Store) learns() bool {
	server := s.member.Server
	m := server.Cluster().Member(server.MemberID())
	return m == nil || m.IsLearner
}

// reads says whether the majority answers at once.
func (s *Store) reads(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, retry)
	defer cancel()
	_, err := s.client.Get(ctx, keyspace, clientv3.WithCountOnly())
	return err == nil
}

// checkPlace refuses a member of several that was started as if it were alone.
func (s *Store) checkPlace() error {
	if n := len(s.member.Server.Cluster().Members()); n > 1 && s.cfg.Peer == nil {
		return fmt.Errorf("this node is one of %d: start it with its address and certificates for other nodes", n)
	}
	return nil
}

// takePlace tells the others where this node is from now on.
func (s *Store) takePlace(ctx context.Context) error {
	server := s.member.Server
	m := server.Cluster().Member(server.MemberID())
	if s.cfg.Peer == nil || m == nil || slices.Equal(m.PeerURLs, []string{s.cfg.Peer.URL}) {
		return nil
	}
	s.log.Info("this node has a new address", "was", m.PeerURLs, "is", s.cfg.Peer.URL)
	return s.call(ctx, func(ctx context.Context) error {
		_, err := s.client.MemberUpdate(ctx, uint64(m.ID), []string{s.cfg.Peer.URL})
		return explainMembers(err)
	})
}
