package etcd

import (
	"context"
	"fmt"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Status is the state of the member.
type Status struct {
	Revision  int64
	Bytes     int64 // its file on the disk
	Used      int64 // of it
	Quota     int64 // size of its file from which on it refuses writes
	HasLeader bool
	Leads     bool
	Full      bool // it refuses writes, see Health
	Differs   bool // the members have not the same
}

// Status asks this member alone: it is answered, without its alarms, also
// where the majority is away.
func (s *Store) Status(ctx context.Context) (Status, error) {
	var out Status
	err := s.call(ctx, func(ctx context.Context) error {
		got, err := s.client.Status(ctx, "")
		if err != nil {
			return err
		}
		out = Status{Revision: got.Header.GetRevision(), Bytes: got.DbSize, Used: got.DbSizeInUse, Quota: got.DbSizeQuota,
			HasLeader: got.Leader != 0, Leads: got.Leader == got.Header.GetMemberId()}
		for _, alarm := range s.member.Server.Alarms() {
			out.Full = out.Full || alarm.GetAlarm() == etcdserverpb.AlarmType_NOSPACE
			out.Differs = out.Differs || alarm.GetAlarm() == etcdserverpb.AlarmType_CORRUPT
		}
		return nil
	})
	if err != nil {
		return out, fmt.Errorf("cannot tell the state of the store in %s: %w", s.cfg.Dir, err)
	}
	return out, nil
}
