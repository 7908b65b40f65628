// Package backup puts snapshots of the collector's state into the evidence
// bucket, on a schedule.
//
// A majority of nodes that is lost for good takes the state with it. The
// evidence and each case's journal are in the bucket all the same; a snapshot
// gives back the cases themselves, as they were when it was taken.
package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/quicklime-ir/quicklime/collector/locker"
	"github.com/quicklime-ir/quicklime/collector/store"
)

// last is the key that says when the last snapshot was taken, by whichever
// node.
const last = "backup/last"

const (
	// look is how often a node looks whether a snapshot is due.
	look = 10 * time.Second
	// leastPause and mostPause are between tries after a failure; they double.
	leastPause, mostPause = 30 * time.Second, 15 * time.Minute
	// limit bounds one try.
	limit = 30 * time.Minute
	// overdue is how many periods without a snapshot make an error of Health.
	overdue = 3
)

// State is what snapshots are taken of.
type State interface {
	Leads() bool // it is this node that takes them
	Snapshot(ctx context.Context) (io.ReadCloser, error)
	Get(ctx context.Context, key string) (value []byte, revision int64, err error)
	Put(ctx context.Context, key string, value []byte, revision int64) (newRevision int64, err error)
}

// Bucket is where they go.
type Bucket interface {
	PutStream(ctx context.Context, key string, r io.Reader) (locker.Object, error)
}

// Backup takes snapshots. New makes it.
type Backup struct {
	cfg     Config
	started time.Time

	mu     sync.Mutex
	seen   Taken // the last snapshot, by whichever node
	failed error // the last try of this node; nil: it was good, or there was none
}

// Config says what a Backup is made of.
type Config struct {
	State  State
	Bucket Bucket
	Node   string        // this node's name
	Every  time.Duration // 0: never
	Log    *slog.Logger
	Now    func() time.Time
}

// Taken is a snapshot that is in the bucket.
type Taken struct {
	Key  string    `json:"key"`
	Time time.Time `json:"time"`
	Size uint64    `json:"size"` // bytes
}

// New makes a backup.
func New(cfg Config) *Backup { return &Backup{cfg: cfg, started: cfg.Now()} }

// Run takes a snapshot whenever one is due, as long as this node leads, until
// ctx ends. What fails is tried again; nothing else waits for it.
func (b *Backup) Run(ctx context.Context) error {
	pause := leastPause
	for {
		wait := look
		if err := b.take(ctx); err != nil && ctx.Err() == nil {
			wait, pause = pause, min(2*pause, mostPause)
			b.cfg.Log.Error("no snapshot of the state was taken; it will be tried again", "in", wait.String(), "error", err)
		} else {
			pause = leastPause
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// take takes a snapshot if one is due, and it is this node's to take it.
func (b *Backup) take(ctx context.Context) error {
	if b.cfg.Every == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	before, revision, err := b.last(ctx)
	if !b.cfg.State.Leads() {
		b.note(before, nil)
		return nil
	}
	if err != nil {
		return b.note(before, err)
	}
	now := b.cfg.Now()
	if age := now.Sub(before.Time); age >= 0 && age < b.cfg.Every {
		return b.note(before, nil)
	}
	done, err := b.store(ctx, now)
	if err != nil {
		return b.note(before, err)
	}
	b.cfg.Log.Info("snapshot of the state taken", "key", done.Key, "bytes", done.Size, "took", b.cfg.Now().Sub(now).String())
	raw, err := json.Marshal(done)
	if err != nil {
		return b.note(before, err)
	}
	_, err = b.cfg.State.Put(ctx, last, raw, revision)
	if errors.Is(err, store.ErrConflict) {
		err = nil // another node leads now, and has taken one
	}
	return b.note(done, err)
}

func (b *Backup) store(ctx context.Context, now time.Time) (Taken, error) {
	r, err := b.cfg.State.Snapshot(ctx)
	if err != nil {
		return Taken{}, err
	}
	defer r.Close()
	key := locker.StateKey(b.cfg.Node, now)
	object, err := b.cfg.Bucket.PutStream(ctx, key, r)
	if err != nil {
		return Taken{}, fmt.Errorf("cannot store a snapshot of the state: %w", err)
	}
	return Taken{Key: key, Time: now.UTC(), Size: object.Size}, nil
}

// note remembers the last snapshot that is known, and how the last try ended.
func (b *Backup) note(seen Taken, err error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if seen.Key != "" {
		b.seen = seen
	}
	b.failed = err
	return err
}

// last gives the last snapshot that is in the bucket, by whichever node, and
// the revision at which that is written down; none and 0 where there is none.
func (b *Backup) last(ctx context.Context) (Taken, int64, error) {
	raw, revision, err := b.cfg.State.Get(ctx, last)
	if errors.Is(err, store.ErrNotFound) {
		return Taken{}, 0, nil
	}
	if err != nil {
		return Taken{}, 0, err
	}
	var t Taken
	if err := json.Unmarshal(raw, &t); err != nil {
		return Taken{}, 0, fmt.Errorf("cannot read when the last snapshot was taken, key %s: %w", last, err)
	}
	return t, revision, nil
}

// Last gives the last snapshot that is known, by whichever node; its key is
// empty where there is none.
func (b *Backup) Last() Taken {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.seen
}

// Health gives nil as long as the last snapshot is not much older than it
// should be, whichever node took it; else how old it is, and why.
func (b *Backup) Health() error {
	if b.cfg.Every == 0 {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	before, since := b.seen, b.started
	if before.Time.After(since) {
		since = before.Time
	}
	if b.cfg.Now().Sub(since) < overdue*b.cfg.Every {
		return nil
	}
	text := "there is no snapshot of the state"
	if !before.Time.IsZero() {
		text = fmt.Sprintf("the last snapshot of the state is %v old", b.cfg.Now().Sub(before.Time).Round(time.Second))
	}
	if b.failed != nil {
		return fmt.Errorf("%s, want one each %v: %w", text, b.cfg.Every, b.failed)
	}
	return fmt.Errorf("%s, want one each %v: see the log of the node that leads", text, b.cfg.Every)
}
