package etcd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync/atomic"
	"syscall"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap/zapcore"

	"github.com/quicklime-ir/quicklime/collector/store"
)

// fault is why a member ended. It is a context that is done from then on.
//
// etcd knows one answer to a disk that fails: it logs, and exits the process.
// A collector has to say first what is the matter, so fault stands in for the
// exit: it keeps the reason and holds the goroutine for ever, because what
// follows in it is written for a process that is gone. The collector ends soon
// after.
type fault struct {
	context.Context
	stop   context.CancelCauseFunc
	dir    string
	others bool        // the node is, or may be, one of several
	stuck  atomic.Bool // the member cannot even be stopped
}

func newFault(dir string, others bool) *fault {
	ctx, stop := context.WithCancelCause(context.Background())
	return &fault{Context: ctx, stop: stop, dir: dir, others: others}
}

// end ends the member for a reason, the first of which counts.
func (f *fault) end(why error) { f.stop(why) }

// Err gives the reason, nil as long as the member works.
func (f *fault) Err() error { return context.Cause(f.Context) }

// OnWrite is called when etcd wants the process to exit.
func (f *fault) OnWrite(entry *zapcore.CheckedEntry, fields []zapcore.Field) {
	f.stuck.Store(true)
	f.end(f.explain(reason(entry.Message, fields)))
	select {}
}

// reason is what etcd says in an entry of its log.
func reason(message string, fields []zapcore.Field) error {
	for _, field := range fields {
		if err, ok := field.Interface.(error); ok && field.Type == zapcore.ErrorType {
			return fmt.Errorf("%s: %w", message, err)
		}
	}
	return errors.New(message)
}

// explain says what to do about an error of the folder. One that is not the
// disk's is the member's.
func (f *fault) explain(err error) error {
	if known := f.ofDisk(err); known != err {
		return known
	}
	return f.damaged(err)
}

// ofDisk says what to do about an error of the disk, and gives others as they
// are.
func (f *fault) ofDisk(err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("the disk of %s is full: make room on it and start the collector again: %w", f.dir, err)
	case errors.Is(err, syscall.EROFS), errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s cannot be written: make its disk writable by the collector and start it again: %w", f.dir, err)
	case errors.Is(err, syscall.EIO):
		return fmt.Errorf("the disk of %s fails: look at it and start the collector again: %w", f.dir, err)
	}
	return err
}

// errNotReady says that a member did not answer in startPatience.
var errNotReady = errors.New("its etcd member gave no answer in time: look at the load of the disk, see that the majority of the nodes run and reach each other, and start the collector again")

// damaged says what to do about a member's folder that is not whole.
func (f *fault) damaged(err error) error {
	if f.others {
		return fmt.Errorf("the etcd member in %s is damaged: move the folder away; on another node, use 'cluster remove' and 'cluster join' for this one, and start it with --join; where there is no other node, restore a snapshot: %w", f.dir, err)
	}
	return fmt.Errorf("the etcd member in %s is damaged: move the folder away and restore a snapshot: %w", f.dir, err)
}

// removed says what to do about a node that was removed from its cluster.
func (f *fault) removed() error {
	return fmt.Errorf("this node was removed from its cluster: to have it join again, move %s away, use 'cluster join' on another node, and start this one with --join", f.dir)
}

// explain says what to do about an error of a call.
func explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, rpctypes.ErrNoSpace):
		return passing{fmt.Errorf("the store is full: close cases and start the collector again, which drops what is old: %w", err)}
	case errors.Is(err, rpctypes.ErrCorrupt):
		return fmt.Errorf("the members of the store differ: restore one of them: %w", err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, rpctypes.ErrTimeout), errors.Is(err, rpctypes.ErrNoLeader),
		errors.Is(err, rpctypes.ErrLeaderChanged), errors.Is(err, rpctypes.ErrTimeoutDueToLeaderFail), errors.Is(err, rpctypes.ErrTimeoutDueToConnectionLost):
		return passing{fmt.Errorf("the store gives no answer: its disk is overloaded, or the majority of its members is not there: %w", err)}
	}
	return err
}

// passing is an error that is over when its cause is.
type passing struct{ error }

func (p passing) Unwrap() error { return p.error }

func (passing) Is(kind error) bool { return kind == store.ErrUnavailable }

func isCompacted(err error) bool { return errors.Is(err, rpctypes.ErrCompacted) }

// Health gives nil as long as the store takes writes, and why it does not.
func (s *Store) Health(ctx context.Context) error {
	err := s.call(ctx, func(ctx context.Context) error {
		if _, err := s.client.Get(ctx, keyspace); err != nil { // wants the majority
			return err
		}
		alarms, err := s.client.AlarmList(ctx)
		if err != nil {
			return err
		}
		for _, alarm := range alarms.Alarms {
			switch alarm.GetAlarm() {
			case etcdserverpb.AlarmType_NOSPACE:
				return rpctypes.ErrNoSpace
			case etcdserverpb.AlarmType_CORRUPT:
				return rpctypes.ErrCorrupt
			}
		}
		return nil
	})
	if err == nil {
		return nil
	}
	if gone := s.absent(ctx); len(gone) > 0 {
		return fmt.Errorf("cannot keep state in %s; of its nodes, %s do not answer: %w", s.cfg.Dir, strings.Join(gone, " and "), err)
	}
	return fmt.Errorf("cannot keep state in %s: %w", s.cfg.Dir, err)
}
