package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/quicklime-ir/quicklime/collector/store"
)

// rewatch is how long a watch that broke waits until it begins anew.
const rewatch = time.Second

// Watch tells of the keys under a prefix.
func (s *Store) Watch(ctx context.Context, prefix string, see func(all bool, entries []store.Entry)) error {
	if err := store.CheckPrefix(prefix); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.fault, func() { cancel(s.fault.Err()) })()
	for {
		err := s.watch(ctx, prefix, see)
		if ctx.Err() != nil {
			return fmt.Errorf("cannot watch keys under %q: %w", prefix, context.Cause(ctx))
		}
		s.log.Warn("watch of the store broke, it begins anew", "prefix", prefix, "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(rewatch):
		}
	}
}

// watch tells all, and then what changes, until that cannot be told without a
// gap.
func (s *Store) watch(ctx context.Context, prefix string, see func(all bool, entries []store.Entry)) error {
	var from int64
	var entries []store.Entry
	err := s.call(ctx, func(ctx context.Context) error {
		got, err := s.client.Get(ctx, keyspace+prefix, clientv3.WithPrefix())
		if err != nil {
			return err
		}
		for _, kv := range got.Kvs {
			entries = append(entries, entryOf(kv))
		}
		from = got.Header.Revision + 1
		return nil
	})
	if err != nil {
		return err
	}
	see(true, entries)
	watched := s.client.Watch(ctx, keyspace+prefix, clientv3.WithPrefix(), clientv3.WithRev(from))
	for {
		select {
		case <-ctx.Done(): // a member that is stuck would never close the channel
			return context.Cause(ctx)
		case changes, ok := <-watched:
			if !ok {
				return errors.New("the member ended it")
			}
			if err := changes.Err(); err != nil {
				return explain(err)
			}
			if entries := entriesOf(changes.Events); len(entries) > 0 {
				see(false, entries)
			}
		}
	}
}

func entriesOf(events []*clientv3.Event) (out []store.Entry) {
	for _, e := range events {
		entry := entryOf(e.Kv)
		if e.Type == mvccpb.DELETE {
			entry.Revision = 0
		}
		out = append(out, entry)
	}
	return out
}

func entryOf(kv *mvccpb.KeyValue) store.Entry {
	return store.Entry{Key: string(kv.Key[len(keyspace):]), Value: kv.Value, Revision: kv.ModRevision}
}
