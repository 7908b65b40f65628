package docket

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/custody"
	"github.com/quicklime-ir/quicklime/collector/store"
)

// Rebuild brings a case to where its journal has come, where the store knows
// less of it: after the loss of the state, the journal in the bucket is ahead
// of the last snapshot. The journal is that of one case, from its first entry
// on; what of it the store has must be the same. It gives the case, and
// whether it was changed.
func (d *Docket) Rebuild(ctx context.Context, id string, journal [][]byte) (casefile.Case, bool, error) {
	c, changed, err := d.rebuild(ctx, id, journal)
	if err != nil {
		return casefile.Case{}, false, fmt.Errorf("cannot bring case %.80s to where its journal has come: %w", id, err)
	}
	return c, changed, nil
}

func (d *Docket) rebuild(ctx context.Context, id string, journal [][]byte) (casefile.Case, bool, error) {
	defer d.locks.Lock(id)()
	before, revision, err := d.load(ctx, id)
	if err != nil && !errors.Is(err, ErrNoCase) {
		return casefile.Case{}, false, err
	}
	known := before.Journal.Entries
	if known >= len(journal) {
		return before, false, nil
	}
	if known > 0 && custody.Hash(journal[known-1]) != before.Journal.SHA256 {
		return casefile.Case{}, false, fmt.Errorf("its entry %d is not the one that the store has", known)
	}
	c, err := replay(id, journal)
	if err != nil {
		return casefile.Case{}, false, err
	}
	value, err := json.Marshal(c)
	if err != nil {
		return casefile.Case{}, false, err
	}
	changes, err := d.replace(ctx, c)
	if err != nil {
		return casefile.Case{}, false, err
	}
	_, err = d.cfg.Store.Commit(ctx, append(changes, store.Set(caseKey(id), value, revision))...)
	return c, err == nil, err
}

// replay makes a case of its journal.
func replay(id string, journal [][]byte) (c casefile.Case, err error) {
	head, err := custody.VerifyChain(journal)
	if err != nil {
		return c, err
	}
	for i, raw := range journal {
		var entry custody.Entry
		var e casefile.Event
		if err := json.Unmarshal(raw, &entry); err != nil {
			return c, err
		}
		if err := json.Unmarshal(entry.Event, &e); err != nil {
			return c, fmt.Errorf("its entry %d is no event of a case: %w", i+1, err)
		}
		if i == 0 {
			c, err = casefile.Open(id, e)
		} else {
			c, err = c.Apply(e)
		}
		if err != nil {
			return c, err
		}
	}
	c.Journal = head
	return c, nil
}

// replace gives the changes of what else the store says of a case: its place in
// the queue, and that it is the one of its instance, unless a later one is.
func (d *Docket) replace(ctx context.Context, c casefile.Case) (changes []store.Change, err error) {
	at, err := d.revisionOf(ctx, queueKey(c.ID))
	if err != nil {
		return nil, err
	}
	switch {
	case c.State == casefile.Running:
		changes = append(changes, store.Set(queueKey(c.ID), placeOf(c), at))
	case at > 0:
		changes = append(changes, store.Remove(queueKey(c.ID), at))
	}
	subject := subjectOf(c.Instance.Account, c.Instance.Region, c.Instance.ID)
	id, revision, err := d.caseOf(ctx, subject)
	if err != nil || !c.Act || id == c.ID {
		return changes, err
	}
	if id != "" {
		other, _, err := d.load(ctx, id)
		if err != nil || other.Opened.After(c.Opened) {
			return changes, err
		}
	}
	return append(changes, store.Set(subject, []byte(c.ID), revision)), nil
}

// revisionOf gives the revision of a key, 0 where there is none.
func (d *Docket) revisionOf(ctx context.Context, key string) (int64, error) {
	_, revision, err := d.cfg.Store.Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return 0, nil
	}
	return revision, err
}
