package docket

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
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

// clearMost bounds how many entries are taken out of the outbox together.
const clearMost = 64

// The journal entries that the bucket may not have yet lie in the store under
// outbox/CASE/INSTANCE/NUMBER, so that any node can send them.
const outbox = "outbox/"

func outboxOf(id string) string { return outbox + id + "/" }

func outboxKey(id, instance string, seq int) string {
	return fmt.Sprintf("%s%s/%08d", outboxOf(id), instance, seq)
}

// send puts a case's journal entries into the bucket, in order. What it cannot
// send stays. Two nodes may send the same entry: it is the same. That an entry
// was sent is written down later, for many together, as an act waits for this.
func (d *Docket) send(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, journalLimit)
	defer cancel()
	defer d.sending.Lock(id)()
	d.put(ctx, id, d.toSend(ctx, outboxOf(id)))
}

// sendAll does so for all cases but those of which that is being done.
func (d *Docket) sendAll(ctx context.Context) {
	cases := map[string][]store.Entry{}
	for _, e := range d.toSend(ctx, outbox) {
		id, _, _ := strings.Cut(strings.TrimPrefix(e.Key, outbox), "/")
		cases[id] = append(cases[id], e)
	}
	ctx, cancel := context.WithTimeout(ctx, journalLimit)
	defer cancel()
	for id, entries := range cases {
		if unlock, ok := d.sending.TryLock(id); ok {
			d.put(ctx, id, entries)
			unlock()
		}
	}
}

// toSend gives the entries under a prefix that are to be sent, none where they
// cannot be read.
func (d *Docket) toSend(ctx context.Context, prefix string) []store.Entry {
	entries, err := d.unsentOf(ctx, prefix)
	if err != nil && ctx.Err() == nil {
		d.cfg.Log.Error("cannot read journal entries, they follow later", "outbox", prefix, "error", err)
	}
	return entries
}

// unsentOf gives the entries under a prefix that this node has not sent.
func (d *Docket) unsentOf(ctx context.Context, prefix string) ([]store.Entry, error) {
	entries, err := d.cfg.Store.List(ctx, prefix)
	return slices.DeleteFunc(entries, func(e store.Entry) bool { return d.sent.has(e.Key) }), err
}

// put puts a case's entries into the bucket, until one cannot be.
func (d *Docket) put(ctx context.Context, id string, entries []store.Entry) {
	for _, e := range entries {
		key, err := journalKey(e.Key)
		if err == nil && !d.sent.has(e.Key) {
			_, err = d.cfg.Bucket.Put(ctx, key, e.Value)
		}
		if err != nil {
			d.cfg.Log.Error("journal entry not in the bucket yet, it is kept and follows later", "case", id, "entry", e.Key, "error", err)
			return
		}
		d.sent.add(e.Key, e.Revision)
	}
}

// clear takes the entries that were sent out of the outbox. Those that it cannot
// take out stay, and so does what is known of them.
func (d *Docket) clear(ctx context.Context) {
	for batch := range slices.Chunk(d.sent.all(), clearMost) {
		_, err := d.cfg.Store.Commit(ctx, batch...)
		if err == nil {
			d.sent.drop(batch)
			continue
		}
		for _, c := range batch { // another node may have taken one out
			if err = store.Drop(ctx, d.cfg.Store, c.Key, c.Revision); err != nil {
				break
			}
			d.sent.drop([]store.Change{c})
		}
		if err != nil {
			if ctx.Err() == nil {
				d.cfg.Log.Warn("cannot write down that journal entries are in the bucket, will try again", "error", err)
			}
			return
		}
	}
}

// sent are the keys of entries that this node has put into the bucket, and that
// are in the outbox still, with their revisions.
type sent struct {
	mu      sync.Mutex
	entries map[string]int64 // owned by mu
	news    chan struct{}    // holds a token after an entry was added
}

func newSent() *sent { return &sent{entries: map[string]int64{}, news: make(chan struct{}, 1)} }

func (s *sent) has(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.entries[key]
	return ok
}

func (s *sent) add(key string, revision int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries[key] = revision
	nudge(s.news)
}

// all gives what takes them out of the outbox.
func (s *sent) all() (out []store.Change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, revision := range s.entries {
		out = append(out, store.Remove(key, revision))
	}
	return out
}

func (s *sent) drop(batch []store.Change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range batch {
		delete(s.entries, c.Key)
	}
}

// journalKey gives the object that an entry in the outbox becomes.
func journalKey(key string) (string, error) {
	var seq int
	id, rest, _ := strings.Cut(strings.TrimPrefix(key, outbox), "/")
	instance, number, _ := strings.Cut(rest, "/")
	if _, err := fmt.Sscanf(number, "%d", &seq); err != nil {
		return "", fmt.Errorf("cannot read key %q of the outbox: %w", key, err)
	}
	return locker.JournalKey(id, instance, seq), nil
}
