package etcd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

const (
	// quota bounds the member's file, in bytes. A case of a 1 TiB image has
	// some 5 MB here.
	quota = 8 << 30
	// maxRequest has room for the largest value and its key, in bytes.
	maxRequest = 65 << 20
	// history is how long an old value is kept; nobody asks for one.
	history = "1h"
	// startPatience is how long a member may take to read what it has.
	startPatience = 2 * time.Minute
	// learnPatience is how long a new member may take to learn what the others
	// know.
	learnPatience = 10 * time.Minute
	// tick and election, in milliseconds, are those of a member alone: it has
	// no network to be patient with, and answers so much sooner.
	tick, election = 20, 100
)

// selfURL is that of a member that is alone: a name only, as there is no
// listener.
var selfURL = url.URL{Scheme: "http", Host: "127.0.0.1:0"}

// config is a member's. What begins a cluster has a number that no other has, so that
// two never take each other's members for their own.
func (s *Store) config() (*embed.Config, error) {
	c := embed.NewConfig()
	c.Name, c.Dir = s.cfg.Name, s.cfg.Dir
	c.ListenClientUrls, c.ListenPeerUrls = nil, nil
	c.AdvertiseClientUrls, c.AdvertisePeerUrls = nil, []url.URL{selfURL}
	c.TickMs, c.ElectionMs = tick, election
	c.AutoCompactionMode, c.AutoCompactionRetention = embed.CompactorModePeriodic, history
	c.QuotaBackendBytes, c.MaxRequestBytes = s.quota, maxRequest
	c.EnableGRPCGateway = false
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(&core{log: s.log},
		zap.WithFatalHook(s.fault), zap.WithPanicHook(s.fault)))
	if s.cfg.Peer != nil {
		if err := s.cfg.Peer.into(c); err != nil {
			return nil, err
		}
	}
	c.InitialCluster, c.InitialClusterToken = c.InitialClusterFromName(c.Name), rand.Text()
	if s.cfg.Join != nil {
		c.InitialCluster, c.ClusterState = s.cfg.Join.initial(), embed.ClusterStateFlagExisting
	}
	return c, nil
}

// startMember starts the member in a goroutine of its own, as etcd ends the
// goroutine, if not the process, where a folder cannot be used. That goroutine
// ends unless the member is at fault; see fault.
func (s *Store) startMember() (*embed.Etcd, error) {
	type answer struct {
		member *embed.Etcd
		err    error
	}
	answers := make(chan answer, 1)
	go func() {
		defer func() {
			if r := recover(); r != nil {
				answers <- answer{err: s.fault.damaged(fmt.Errorf("%v", r))}
			}
		}()
		member, err := s.startEtcd()
		answers <- answer{member, err}
	}()
	select {
	case a := <-answers:
		return a.member, a.err
	case <-s.fault.Done():
		return nil, s.fault.Err()
	}
}

// startEtcd starts it, and cleans up after a member that was never begun, so
// that the next start is as good as the first.
func (s *Store) startEtcd() (*embed.Etcd, error) {
	begins := !HasMember(s.cfg.Dir)
	config, err := s.config()
	if err != nil {
		return nil, err
	}
	member, err := embed.StartEtcd(config)
	if err == nil {
		return member, nil
	}
	if begins && !hasLog(s.cfg.Dir) {
		clear := os.RemoveAll(filepath.Join(s.cfg.Dir, "member"))
		return nil, errors.Join(s.cfg.explainBegin(err), clear)
	}
	if told := s.cfg.Peer.explainListen(err); told != nil {
		return nil, told
	}
	return nil, s.fault.explain(err)
}

// HasMember says whether a folder holds a member, or what is left of one.
func HasMember(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, "member"))
	return !errors.Is(err, fs.ErrNotExist)
}

func hasLog(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, "member", "wal"))
	return !errors.Is(err, fs.ErrNotExist)
}

// checkMember refuses a folder that has lost a part of its member: etcd would
// begin a new, empty one over what is left.
func (s *Store) checkMember() error {
	if !HasMember(s.cfg.Dir) {
		return nil
	}
	member := filepath.Join(s.cfg.Dir, "member")
	for _, part := range []string{filepath.Join("snap", "db"), "wal"} {
		if _, err := os.Lstat(filepath.Join(member, part)); err == nil {
			continue
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return s.fault.damaged(fmt.Errorf("%s is missing", filepath.Join(member, part)))
	}
	return nil
}

// makeRoom takes back the alarm of a full quota, if there is room once what is
// old is dropped. etcd refuses every write from the alarm on, for good.
func (s *Store) makeRoom(ctx context.Context) error {
	alarms, err := s.client.AlarmList(ctx)
	if err != nil {
		return explain(err)
	}
	for _, alarm := range alarms.Alarms {
		if alarm.GetAlarm() == etcdserverpb.AlarmType_CORRUPT {
			return s.fault.damaged(errors.New("etcd found that its members differ"))
		}
		if alarm.GetAlarm() == etcdserverpb.AlarmType_NOSPACE {
			return s.dropOld(ctx)
		}
	}
	return nil
}

// dropOld drops what is old, gives its room back to the disk, and takes the
// alarm back where enough of the quota is free.
func (s *Store) dropOld(ctx context.Context) error {
	now, err := s.client.Get(ctx, keyspace, clientv3.WithCountOnly())
	if err != nil {
		return explain(err)
	}
	if _, err := s.client.Compact(ctx, now.Header.Revision, clientv3.WithCompactPhysical()); err != nil && !isCompacted(err) {
		return explain(err)
	}
	backend := s.member.Server.Backend()
	if err := backend.Defrag(); err != nil {
		return s.fault.explain(err)
	}
	if backend.Size() > s.quota/10*9 {
		s.log.Error("store is full: no case can be opened or go on", "dir", s.cfg.Dir, "bytes", backend.Size(), "quota", s.quota)
		return nil // what is there can be read
	}
	_, err = s.client.AlarmDisarm(ctx, &clientv3.AlarmMember{})
	return explain(err)
}
