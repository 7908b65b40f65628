package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/docket"
	"github.com/quicklime-ir/quicklime/collector/ledger"
	"github.com/quicklime-ir/quicklime/collector/locker"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// maxJournalEntry bounds an entry of a journal, in bytes.
const maxJournalEntry = 4 << 20

// journals is where the journals of cases lie: the evidence bucket.
type journals interface {
	List(ctx context.Context, prefix string) ([]locker.Object, error)
	Read(ctx context.Context, key string, limit int64) ([]byte, error)
}

// catchUp brings restored cases to where their journals have come. A snapshot
// is older than the loss, and each case has gone on since: what it did is in
// its journal, which was written before it was done. Only what the ledger knew
// is nowhere else: evidence that was captured meanwhile is stored, but no
// longer accounted for, and the case says so.
type catchUp struct {
	from  journals
	cases *docket.Docket
	book  *ledger.Ledger
}

// run gives the ids of the cases that it brought on. It does what it can, and
// the error says which cases are as they were in the snapshot, and why.
func (u catchUp) run(ctx context.Context) (brought []string, err error) {
	objects, err := u.from.List(ctx, "cases/")
	if err != nil {
		return nil, err
	}
	keys := map[string][]string{} // of each case's entries, ascending
	for _, o := range objects {
		if id, ok := journalOf(o.Key); ok {
			keys[id] = append(keys[id], o.Key)
		}
	}
	var errs []error
	for id, keys := range keys {
		changed, err := u.bring(ctx, id, keys)
		if errs = append(errs, err); changed {
			brought = append(brought, id)
		}
	}
	slices.Sort(brought)
	all, err := u.cases.List(ctx)
	errs = append(errs, err)
	for _, c := range all {
		errs = append(errs, u.account(ctx, c))
	}
	return brought, errors.Join(errs...)
}

// journalOf gives the case of a journal entry's key.
func journalOf(key string) (id string, ok bool) {
	e := strings.Split(key, "/") // cases/CASE/INSTANCE/journal/000001.json
	if len(e) != 5 || e[3] != "journal" {
		return "", false
	}
	return e[1], true
}

func (u catchUp) bring(ctx context.Context, id string, keys []string) (changed bool, err error) {
	c, err := u.cases.Get(ctx, id)
	if err != nil && !errors.Is(err, docket.ErrNoCase) {
		return false, err
	}
	if c.Journal.Entries >= len(keys) {
		return false, nil
	}
	var journal [][]byte
	for _, key := range keys {
		entry, err := u.from.Read(ctx, key, maxJournalEntry)
		if err != nil {
			return false, fmt.Errorf("cannot read the journal of case %s: %w", id, err)
		}
		journal = append(journal, entry)
	}
	_, changed, err = u.cases.Rebuild(ctx, id, journal)
	return changed, err
}

// account writes down which evidence of a case can no longer be accounted for.
// One whose manifest is signed has all in there.
func (u catchUp) account(ctx context.Context, c casefile.Case) error {
	if !c.Act || c.State != casefile.Running || c.Manifest != nil {
		return nil
	}
	lost, err := u.book.Forsake(ctx, c.ID)
	if err != nil {
		return err
	}
	known, err := u.book.Items(ctx, c.ID)
	if err != nil {
		return err
	}
	for _, item := range c.Items {
		if item.Size > 0 && !slices.ContainsFunc(slices.Concat(known, lost), func(k evidence.Item) bool { return k.Kind == item.Kind && k.Name == item.Name }) {
			lost = append(lost, item)
		}
	}
	for _, item := range lost {
		m := evidence.Missing{Kind: item.Kind, Reason: fmt.Sprintf("%s was captured, and the collector's record of it was lost with its state; what is stored lies at %s, unproven", item.FileName(), item.Key)}
		if slices.Contains(c.Missing, m) {
			continue // a restore before this one has said so
		}
		if _, err := u.cases.Record(ctx, c.ID, casefile.Event{Type: casefile.Fact, Missing: &m}); err != nil {
			return err
		}
	}
	return nil
}
