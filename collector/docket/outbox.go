package docket

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/quicklime-ir/quicklime/collector/locker"
	"github.com/quicklime-ir/quicklime/collector/store"
)

// journalLimit bounds how long an act waits for the bucket to take its
// journal entry. After it the act goes on, as containment must not wait for
// S3; the entry is durable in the store and follows later.
const journalLimit = 10 * time.Second

// resendEvery is how often entries that the bucket did not take are sent
// again.
const resendEvery = 30 * time.Second

// The journal entries that the bucket may not have yet lie in the store under
// outbox/CASE/INSTANCE/NUMBER, so that any node can send them.
const outbox = "outbox/"

func outboxOf(id string) string { return outbox + id + "/" }

func outboxKey(id, instance string, seq int) string {
	return fmt.Sprintf("%s%s/%08d", outboxOf(id), instance, seq)
}

// send puts the journal entries under a prefix into the bucket, in order. What
// it cannot send stays. Two nodes may send the same entry: it is the same.
func (d *Docket) send(ctx context.Context, prefix string) {
	entries, err := d.cfg.Store.List(ctx, prefix)
	if err != nil {
		d.cfg.Log.Error("cannot read journal entries, they follow later", "outbox", prefix, "error", err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, journalLimit)
	defer cancel()
	failed := "" // the case whose entries have to wait for each other
	for _, e := range entries {
		id, key, err := journalKey(e.Key)
		if err == nil && id == failed {
			continue
		}
		if err == nil {
			_, err = d.cfg.Bucket.Put(ctx, key, e.Value)
		}
		if err == nil {
			err = d.cfg.Store.Delete(ctx, e.Key, e.Revision)
		}
		if err != nil && !errors.Is(err, store.ErrConflict) { // a conflict: another node has sent it
			failed = id
			d.cfg.Log.Error("journal entry not in the bucket yet, it is kept and follows later", "case", id, "entry", e.Key, "error", err)
		}
	}
}

// journalKey gives the case of an entry in the outbox, and the object that it
// becomes.
func journalKey(key string) (id, object string, err error) {
	var seq int
	id, rest, _ := strings.Cut(strings.TrimPrefix(key, outbox), "/")
	instance, number, _ := strings.Cut(rest, "/")
	if _, err := fmt.Sscanf(number, "%d", &seq); err != nil {
		return id, "", fmt.Errorf("cannot read key %q of the outbox: %w", key, err)
	}
	return id, locker.JournalKey(id, instance, seq), nil
}
