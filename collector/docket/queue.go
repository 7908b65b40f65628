package docket

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/store"
)

// Every case whose steps are not all taken has a place in the queue, at
// queue/CASE/place, and the node that takes them an own key beside it, at
// queue/CASE/owner, which goes with the node.
const queue = "queue/"

func queueKey(id string) string { return queue + id + "/place" }
func ownerKey(id string) string { return queue + id + "/owner" }

// placeOf gives what the queue holds of a case.
func placeOf(c casefile.Case) []byte {
	value, err := json.Marshal(casefile.Place{Opened: c.Opened, Severity: c.Severity(), Account: c.Instance.Account, Region: c.Instance.Region})
	if err != nil {
		panic(err) // a time beyond the year 9999
	}
	return value
}

// Queue gives the cases that run or wait to be run, oldest first.
func (d *Docket) Queue(ctx context.Context) ([]casefile.Place, error) {
	entries, err := d.cfg.Store.List(ctx, queue)
	if err != nil {
		return nil, err
	}
	var out []casefile.Place
	owner := map[string]string{}
	for _, e := range entries { // an owner stands before its place
		id, what, _ := strings.Cut(strings.TrimPrefix(e.Key, queue), "/")
		if what == "owner" {
			owner[id] = string(e.Value)
			continue
		}
		p := casefile.Place{ID: id, Owner: owner[id], Ours: owner[id] == d.cfg.Node}
		if err := json.Unmarshal(e.Value, &p); err != nil {
			return nil, fmt.Errorf("cannot read place of case %s in the queue: %w", id, err)
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b casefile.Place) int {
		return cmp.Or(a.Opened.Compare(b.Opened), strings.Compare(a.ID, b.ID))
	})
	return out, nil
}

// Own makes this node the one that runs a case; store.ErrConflict says that
// another is.
func (d *Docket) Own(ctx context.Context, id string) (store.Claim, error) {
	return d.cfg.Store.Claim(ctx, ownerKey(id), []byte(d.cfg.Node))
}

// Disown ends that, unless it was lost before.
func (d *Docket) Disown(ctx context.Context, claim store.Claim) error {
	return store.Drop(ctx, d.cfg.Store, claim.Key, claim.Revision)
}

// Changed yields a token when there may be a case to run.
func (d *Docket) Changed() <-chan struct{} { return d.changed }

// Run follows the queue, and sends what the bucket lacks, until ctx ends.
func (d *Docket) Run(ctx context.Context) error {
	watched := make(chan error, 1)
	go func() {
		watched <- d.cfg.Store.Watch(ctx, queue, func(bool, []store.Entry) { nudge(d.changed) })
	}()
	resend := time.NewTicker(resendEvery)
	defer resend.Stop()
	d.sendAll(ctx)
	for {
		select {
		case err := <-watched:
			return err
		case <-d.sent.news:
		case <-d.unsent:
			d.sendAll(ctx)
		case <-resend.C:
			d.sendAll(ctx)
		}
		d.clear(ctx)
	}
}

// requeue gives the changes of the queue that go with a change of a case: whose
// steps are all taken leaves it, and whose findings got worse moves up.
func (d *Docket) requeue(ctx context.Context, before, after casefile.Case) ([]store.Change, error) {
	ended := after.State != casefile.Running
	if before.State != casefile.Running || !ended && before.Severity() == after.Severity() {
		return nil, nil
	}
	_, revision, err := d.cfg.Store.Get(ctx, queueKey(after.ID))
	if errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("case %s has left the queue since it was read: %w", after.ID, store.ErrConflict)
	}
	if err != nil {
		return nil, err
	}
	if ended {
		return []store.Change{store.Remove(queueKey(after.ID), revision)}, nil
	}
	return []store.Change{store.Set(queueKey(after.ID), placeOf(after), revision)}, nil
}
