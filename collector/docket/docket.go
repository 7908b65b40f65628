// Package docket is the register of cases: it opens them from findings,
// joins later findings to them, and writes each change down before anything
// is done about it.
//
// A change is durable in the store when Record returns, and it is on its way
// to the journal in the evidence bucket, where not even the collector can
// alter it.
package docket

import (
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

// journalLimit bounds how long an act waits for the bucket to take its
// journal entry. After it the act goes on, as containment must not wait for
// S3; the entry is durable in the store and follows with the next one.
const journalLimit = 10 * time.Second

// ErrNoCase says that there is no such case.
var ErrNoCase = errors.New("no such case")

// Bucket keeps the journal. Putting the same bytes twice is harmless.
type Bucket interface {
	Put(ctx context.Context, key string, body []byte) (locker.Object, error)
}

// Config is what a docket needs.
type Config struct {
	Store       store.Store
	Bucket      Bucket
	Threshold   float64  // findings below this severity are only notified
	Steps       []string // of a case that acts
	RecordSteps []string // of a case that only notifies
	Log         *slog.Logger
	Now         func() time.Time
}

// Docket is the register of cases.
type Docket struct {
	cfg    Config
	opened chan struct{} // holds a token when a case may wait to be run

	locks store.Locks // by case: one change at a time, so that journal entries leave in order
}

// page is a case as the store keeps it: the case, and the journal entries
// that the bucket may not have yet.
type page struct {
	Case    casefile.Case     `json:"case"`
	Unsent  []json.RawMessage `json:"unsent,omitempty"`
	FirstNo int               `json:"firstUnsent"` // sequence number of Unsent[0]
}

// New returns the docket over a store.
func New(cfg Config) *Docket {
	return &Docket{cfg: cfg, opened: make(chan struct{}, 1)}
}

// Opened yields a token after cases were opened.
func (d *Docket) Opened() <-chan struct{} { return d.opened }

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
			key := "open/instance/" + t.Account + "/" + t.Region + "/" + t.InstanceID
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

// openOrJoin brings a finding to the open case of its subject. The subject's
// key is created first and names the case, so a crash between the two writes
// is mended by the event's next delivery.
func (d *Docket) openOrJoin(ctx context.Context, subject string, f *finding.Finding, opening casefile.Opening) (string, error) {
	note := casefile.FindingOf(f, d.cfg.Now())
	fresh := d.cfg.Now().UTC().Format("20060102") + "-" + hash(f.EventID, subject)
	for {
		value, revision, err := d.cfg.Store.Get(ctx, subject)
		if errors.Is(err, store.ErrNotFound) {
			if _, err := d.cfg.Store.Put(ctx, subject, []byte(fresh), 0); err != nil && !errors.Is(err, store.ErrConflict) {
				return "", err
			}
			continue
		}
		if err != nil {
			return "", err
		}
		id := string(value)
		p, _, err := d.load(ctx, id)
		switch {
		case errors.Is(err, ErrNoCase):
			err := d.create(ctx, id, casefile.Event{Type: casefile.CaseOpened, Time: d.cfg.Now().UTC(), Opened: &opening, Finding: &note})
			if errors.Is(err, store.ErrConflict) {
				continue // another finding has just opened it
			}
			return id, err
		case err != nil:
			return "", err
		case p.Case.Known(f.EventID):
			return id, nil
		case p.Case.State == casefile.Closed:
			if err := d.cfg.Store.Delete(ctx, subject, revision); err != nil && !errors.Is(err, store.ErrConflict) {
				return "", err
			}
		default:
			_, err := d.Record(ctx, id, casefile.Event{Type: casefile.FindingJoined, Finding: &note})
			return id, err
		}
	}
}

func (d *Docket) create(ctx context.Context, id string, e casefile.Event) error {
	defer d.locks.Lock(id)()
	c, err := casefile.Open(id, e)
	if err != nil {
		return err
	}
	if err := d.write(ctx, page{Case: c, FirstNo: 1}, e, 0); err != nil {
		return err
	}
	d.cfg.Log.Info("case opened", "case", id, "instance", c.Instance.ID, "act", c.Act, "reason", c.Reason, "finding", e.Finding.Type)
	select {
	case d.opened <- struct{}{}:
	default:
	}
	return nil
}

// Record applies an event to a case and returns the case after it. The
// event's time is set here.
func (d *Docket) Record(ctx context.Context, id string, e casefile.Event) (casefile.Case, error) {
	defer d.locks.Lock(id)()
	p, revision, err := d.load(ctx, id)
	if err != nil {
		return casefile.Case{}, err
	}
	e.Time = d.cfg.Now().UTC()
	if p.Case, err = p.Case.Apply(e); err != nil {
		return casefile.Case{}, err
	}
	return p.Case, d.write(ctx, p, e, revision)
}

// write makes a page durable with its event's journal entry, and then sends
// the entries that the bucket lacks.
func (d *Docket) write(ctx context.Context, p page, e casefile.Event, revision int64) error {
	raw, head, err := custody.Next(p.Case.Journal, e.Time, e)
	if err != nil {
		return err
	}
	p.Case.Journal = head
	if p.Case.Act {
		p.Unsent = append(p.Unsent, raw)
	}
	if revision, err = d.save(ctx, p, revision); err != nil || !p.Case.Act {
		return err
	}
	sent := d.send(ctx, p)
	if sent == 0 {
		return nil
	}
	p.Unsent, p.FirstNo = p.Unsent[sent:], p.FirstNo+sent
	_, err = d.save(ctx, p, revision)
	return err
}

// send puts journal entries into the bucket, in order, and counts them.
func (d *Docket) send(ctx context.Context, p page) int {
	ctx, cancel := context.WithTimeout(ctx, journalLimit)
	defer cancel()
	for i, raw := range p.Unsent {
		key := locker.JournalKey(p.Case.ID, p.Case.Instance.ID, p.FirstNo+i)
		if _, err := d.cfg.Bucket.Put(ctx, key, raw); err != nil {
			d.cfg.Log.Error("journal entry not in the bucket yet, it is kept and follows later", "case", p.Case.ID, "entry", p.FirstNo+i, "error", err)
			return i
		}
	}
	return len(p.Unsent)
}

// Get gives a case.
func (d *Docket) Get(ctx context.Context, id string) (casefile.Case, error) {
	p, _, err := d.load(ctx, id)
	return p.Case, err
}

// List gives all cases, newest first.
func (d *Docket) List(ctx context.Context) ([]casefile.Case, error) {
	entries, err := d.cfg.Store.List(ctx, "case/")
	if err != nil {
		return nil, err
	}
	var out []casefile.Case
	for _, e := range entries {
		var p page
		if err := json.Unmarshal(e.Value, &p); err != nil {
			return nil, fmt.Errorf("cannot read case %s: %w", e.Key, err)
		}
		out = append(out, p.Case)
	}
	slices.SortFunc(out, func(a, b casefile.Case) int {
		if n := b.Opened.Compare(a.Opened); n != 0 {
			return n
		}
		return strings.Compare(a.ID, b.ID)
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

func (d *Docket) load(ctx context.Context, id string) (page, int64, error) {
	value, revision, err := d.cfg.Store.Get(ctx, "case/"+id)
	if errors.Is(err, store.ErrNotFound) {
		return page{}, 0, fmt.Errorf("%w: %.80q", ErrNoCase, id)
	}
	if err != nil {
		return page{}, 0, err
	}
	var p page
	if err := json.Unmarshal(value, &p); err != nil {
		return page{}, 0, fmt.Errorf("cannot read case %s: %w", id, err)
	}
	return p, revision, nil
}

func (d *Docket) save(ctx context.Context, p page, revision int64) (int64, error) {
	value, err := json.Marshal(p)
	if err != nil {
		return 0, err
	}
	return d.cfg.Store.Put(ctx, "case/"+p.Case.ID, value, revision)
}

// hash makes a short name of words of any shape.
func hash(words ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(words, "\x00")))
	return hex.EncodeToString(sum[:6])
}
