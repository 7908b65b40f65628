// Package docket is the register of cases: it opens them from findings,
// joins later findings to them, and writes each change down before anything
// is done about it.
//
// A change is durable in the store when Record returns, and it is on its way
// to the journal in the evidence bucket, where not even the collector can
// alter it.
package docket

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/custody"
	"github.com/quicklime-ir/quicklime/collector/finding"
	"github.com/quicklime-ir/quicklime/collector/locker"
	"github.com/quicklime-ir/quicklime/collector/store"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// ErrNoCase says that there is no such case.
var ErrNoCase = errors.New("no such case")

// Bucket keeps the journal. Putting the same bytes twice is harmless.
type Bucket interface {
	Put(ctx context.Context, key string, body []byte) (locker.Object, error)
}

// Config is what a docket needs.
type Config struct {
	Store       store.Store
	Node        string // this node's name
	Bucket      Bucket
	Threshold   float64  // findings below this severity are only notified
	Steps       []string // of a case that acts
	RecordSteps []string // of a case that only notifies
	Log         *slog.Logger
	Now         func() time.Time
}

// Docket is the register of cases. Every node of the collector has one over
// the same store.
type Docket struct {
	cfg     Config
	changed chan struct{} // holds a token when there may be a case to run
	unsent  chan struct{} // holds a token when there are entries to send
	sent    *sent

	locks   store.Locks // by case: one change at a time, so that this node's changes seldom meet
	sending store.Locks // by case: its journal entries are sent by one hand at a time
}

// New returns the docket over a store.
func New(cfg Config) *Docket {
	return &Docket{cfg: cfg, changed: make(chan struct{}, 1), unsent: make(chan struct{}, 1), sent: newSent()}
}

// nudge leaves a token where there is none.
func nudge(tokens chan struct{}) {
	select {
	case tokens <- struct{}{}:
	default:
	}
}

// Ready says why no case could be opened now.
func (d *Docket) Ready(ctx context.Context) error {
	_, _, err := d.cfg.Store.Get(ctx, "open/none")
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

// Take opens or joins the cases of a raw event. On a nil error all of them
// are durable. A malformed event is finding.ErrMalformed.
func (d *Docket) Take(ctx context.Context, raw []byte) error {
	_, err := d.Open(ctx, raw)
	return err
}

// Open does what Take does and names the cases.
func (d *Docket) Open(ctx context.Context, raw []byte) ([]string, error) {
	f, err := finding.Parse(raw)
	if err != nil {
		return nil, err
	}
	verdict := finding.Triage(f, d.cfg.Threshold)
	subjects := map[string]casefile.Opening{}
	for _, t := range verdict.Targets {
		if verdict.Act {
			key := subjectOf(t.Account, t.Region, t.InstanceID)
			subjects[key] = casefile.Opening{Act: true, Reason: verdict.Reason, Steps: d.cfg.Steps,
				Instance: evidence.Instance{ID: t.InstanceID, Account: t.Account, Region: t.Region}}
		}
	}
	if len(subjects) == 0 {
		subjects["open/finding/"+hash(f.Account, f.ID)] = casefile.Opening{Reason: verdict.Reason, Steps: d.cfg.RecordSteps}
	}
	var ids []string
	for key, opening := range subjects {
		id, err := d.openOrJoin(ctx, key, f, opening)
		if err != nil {
			return nil, fmt.Errorf("cannot record finding %s: %w", f.ID, err)
		}
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids, nil
}

// subjectOf is the key that names the last case of an instance.
func subjectOf(account, region, instance string) string {
	return "open/instance/" + account + "/" + region + "/" + instance
}

// openOrJoin brings a finding to the open case of its subject, whose key names
// that case.
func (d *Docket) openOrJoin(ctx context.Context, subject string, f *finding.Finding, opening casefile.Opening) (string, error) {
	note := casefile.FindingOf(f, d.cfg.Now())
	fresh := d.cfg.Now().UTC().Format("20060102") + "-" + hash(f.EventID, subject)
	for {
		id, revision, err := d.caseOf(ctx, subject)
		if err != nil {
			return "", err
		}
		var c casefile.Case
		if id != "" {
			if c, _, err = d.load(ctx, id); err != nil {
				return "", err
			}
		}
		took, err := d.tookBy(ctx, c, f.EventID)
		if err != nil {
			return "", err
		}
		switch {
		case took != "":
			return took, nil
		case id != "" && c.State != casefile.Closed:
			_, err := d.Record(ctx, id, casefile.Event{Type: casefile.FindingJoined, Finding: &note})
			if errors.Is(err, errIsClosed) {
				continue // since we looked
			}
			return id, err
		}
		opening.Before = id
		err = d.create(ctx, store.Set(subject, []byte(fresh), revision), fresh,
			casefile.Event{Type: casefile.CaseOpened, Time: d.cfg.Now().UTC(), Opened: &opening, Finding: &note})
		if !errors.Is(err, store.ErrConflict) {
			return fresh, err
		}
		if _, _, err := d.load(ctx, fresh); !errors.Is(err, ErrNoCase) {
			return fresh, err // this very event has opened it, long ago or just now
		}
		// Another finding has just opened a case of the subject.
	}
}

// caseOf gives the last case of a subject, "" where there is none.
func (d *Docket) caseOf(ctx context.Context, subject string) (id string, revision int64, err error) {
	value, revision, err := d.cfg.Store.Get(ctx, subject)
	if errors.Is(err, store.ErrNotFound) {
		return "", 0, nil
	}
	return string(value), revision, err
}

// maxBefore bounds how many closed cases of a subject are asked whether they
// know an event.
const maxBefore = 10

// tookBy gives the case that took an event: this one, or one of the same
// subject that was closed before it; "" where none did.
func (d *Docket) tookBy(ctx context.Context, c casefile.Case, eventID string) (string, error) {
	for n := 0; ; n++ {
		if c.Known(eventID) {
			return c.ID, nil
		}
		if c.Before == "" || n == maxBefore {
			return "", nil
		}
		var err error
		if c, _, err = d.load(ctx, c.Before); err != nil {
			return "", err
		}
	}
}

// create opens a case, and makes it the one of its subject.
func (d *Docket) create(ctx context.Context, subject store.Change, id string, e casefile.Event) error {
	c, err := casefile.Open(id, e)
	if err != nil {
		return err
	}
	if _, err := d.write(ctx, c, e, 0, subject); err != nil {
		return err
	}
	d.cfg.Log.Info("case opened", "case", id, "instance", c.Instance.ID, "act", c.Act, "reason", c.Reason, "finding", e.Finding.Type)
	return nil
}

// tries bounds how often a change is made anew because another came first.
const tries = 100

// errIsClosed says that a case takes no more events.
var errIsClosed = errors.New("the case is closed")

// Record applies an event to a case and returns the case after it. The
// event's time is set here. Where another change comes first, the event is
// applied to what that has made.
func (d *Docket) Record(ctx context.Context, id string, e casefile.Event) (casefile.Case, error) {
	defer d.locks.Lock(id)()
	var c casefile.Case
	err := store.Repeat(tries, func() (err error) {
		c, err = d.record(ctx, id, e)
		return err
	})
	return c, err
}

func (d *Docket) record(ctx context.Context, id string, e casefile.Event) (casefile.Case, error) {
	before, revision, err := d.load(ctx, id)
	if err != nil {
		return casefile.Case{}, err
	}
	if e.Type == casefile.FindingJoined && before.Known(e.Finding.EventID) {
		return before, nil // another delivery of the same event came first
	}
	if before.State == casefile.Closed {
		return casefile.Case{}, fmt.Errorf("cannot apply event %q to case %s: %w", e.Type, id, errIsClosed)
	}
	e.Time = d.cfg.Now().UTC()
	after, err := before.Apply(e)
	if err != nil {
		return casefile.Case{}, err
	}
	moved, err := d.requeue(ctx, before, after)
	if err != nil {
		return casefile.Case{}, err
	}
	untold, err := d.announce(ctx, before, after)
	if err != nil {
		return casefile.Case{}, err
	}
	return d.write(ctx, after, e, revision, append(moved, untold...)...)
}

// precedesAct tells the events that something is done upon. What a finding
// brings is written down for the steps that follow, and intake must not wait
// for the bucket.
func precedesAct(e casefile.Event) bool {
	return e.Type != casefile.CaseOpened && e.Type != casefile.FindingJoined
}

// write makes a case durable, together with its event's journal entry. Before
// an act the entries that the bucket lacks are sent; else they follow soon.
// Nothing but the case's own key is compared, unless more changes come with
// it.
func (d *Docket) write(ctx context.Context, c casefile.Case, e casefile.Event, revision int64, more ...store.Change) (casefile.Case, error) {
	entry, head, err := custody.Next(c.Journal, e.Time, e)
	if err != nil {
		return c, err
	}
	c.Journal = head
	value, err := json.Marshal(c)
	if err != nil {
		return c, err
	}
	changes := append(more, store.Set(caseKey(c.ID), value, revision))
	if revision == 0 {
		changes = append(changes, store.Set(queueKey(c.ID), placeOf(c), 0))
	}
	if c.Act {
		changes = append(changes, store.Set(outboxKey(c.ID, c.Instance.ID, head.Entries), entry, 0))
	}
	if _, err := d.cfg.Store.Commit(ctx, changes...); err != nil {
		return c, err
	}
	switch {
	case !c.Act:
	case precedesAct(e):
		d.send(ctx, c.ID)
	default:
		nudge(d.unsent)
	}
	return c, nil
}

// Get gives a case.
func (d *Docket) Get(ctx context.Context, id string) (casefile.Case, error) {
	c, _, err := d.load(ctx, id)
	return c, err
}

// List gives all cases, newest first.
func (d *Docket) List(ctx context.Context) ([]casefile.Case, error) {
	entries, err := d.cfg.Store.List(ctx, "case/")
	if err != nil {
		return nil, err
	}
	var out []casefile.Case
	for _, e := range entries {
		var c casefile.Case
		if err := json.Unmarshal(e.Value, &c); err != nil {
			return nil, fmt.Errorf("cannot read case %s: %w", e.Key, err)
		}
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b casefile.Case) int {
		return cmp.Or(b.Opened.Compare(a.Opened), strings.Compare(a.ID, b.ID))
	})
	return out, nil
}

// Close ends a case, so that the next finding on its instance opens a new
// one. A running case cannot be closed.
func (d *Docket) Close(ctx context.Context, id, reason string) error {
	_, err := d.Record(ctx, id, casefile.Event{Type: casefile.CaseClosed, Detail: reason})
	return err
}

// Control writes down what an operator asks of running captures, before it is
// done.
func (d *Docket) Control(ctx context.Context, id string, c casefile.Control) error {
	_, err := d.Record(ctx, id, casefile.Event{Type: casefile.Controlled, Control: &c})
	return err
}

func (d *Docket) load(ctx context.Context, id string) (casefile.Case, int64, error) {
	value, revision, err := d.cfg.Store.Get(ctx, caseKey(id))
	if errors.Is(err, store.ErrNotFound) {
		return casefile.Case{}, 0, fmt.Errorf("%w: %.80q", ErrNoCase, id)
	}
	if err != nil {
		return casefile.Case{}, 0, err
	}
	var c casefile.Case
	if err := json.Unmarshal(value, &c); err != nil {
		return casefile.Case{}, 0, fmt.Errorf("cannot read case %s: %w", id, err)
	}
	return c, revision, nil
}

func caseKey(id string) string { return "case/" + id }

// hash makes a short name of words of any shape.
func hash(words ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(words, "\x00")))
	return hex.EncodeToString(sum[:6])
}
