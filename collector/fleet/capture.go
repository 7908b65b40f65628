package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quicklime-ir/quicklime/collector/store"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// A capture lies in the store under its order's id, CASE/KIND, as long as it
// runs. The order itself never changes, so that its revision is what every
// record of its evidence can depend on; what changes lies below it. What came of
// it lies beside it until its case is over, as who ordered it may die before the
// case knows.
const (
	capturePrefix = "capture/"
	outcomePrefix = "outcome/"

	controlPart  = "control"  // by whoever operates it
	progressPart = "progress" // by the node that has the agent
	resultPart   = "result"   // the same, once
)

func orderKey(id string) string { return capturePrefix + id }

func outcomeKey(id string) string { return outcomePrefix + id }

func partKey(id, part string) string { return orderKey(id) + "/" + part }

// captureID gives the order of a key, and which part of it the key is, "" for
// the order itself.
func captureID(key string) (id, part string) {
	words := strings.SplitN(strings.TrimPrefix(key, capturePrefix), "/", 3)
	if len(words) < 2 {
		return "", ""
	}
	if len(words) == 3 {
		part = words[2]
	}
	return words[0] + "/" + words[1], part
}

// orderDoc is an order as the store has it.
type orderDoc struct {
	Instance evidence.Instance `json:"instance"`
	Case     string            `json:"case"`
	Kind     evidence.Kind     `json:"kind"`
	Deadline time.Time         `json:"deadline"`
	Order    []byte            `json:"order"` // wire.Order, without its time limit
}

// capture is an order that runs, as this node has heard of it; its fields are
// owned by Fleet.mu.
type capture struct {
	id       string
	caseID   string
	instance evidence.Instance
	kind     evidence.Kind
	agent    agentKey
	order    *wire.Order
	deadline time.Time
	revision int64 // of the order's key

	control    control
	progress   *wire.Progress
	progressAt int64     // revision of the progress's key
	moved      time.Time // when it last made progress
	result     *Result
	changed    chan struct{} // holds a token after a change
}

// see takes what the store tells of captures.
func (f *Fleet) see(all bool, entries []store.Entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if all {
		f.drop(entries)
	}
	for _, e := range entries { // an order stands before its parts
		id, part := captureID(e.Key)
		if err := f.hearOf(id, part, e); err != nil {
			f.log.Error("cannot read a capture in the store", "key", e.Key, "error", err)
		}
		if c := f.captures[id]; c != nil {
			c.wake()
		}
	}
}

// drop forgets the captures that are not among all entries; the caller holds
// mu.
func (f *Fleet) drop(entries []store.Entry) {
	there := map[string]bool{}
	for _, e := range entries {
		there[e.Key] = true
	}
	for id, c := range f.captures {
		if !there[orderKey(id)] {
			f.forget(c)
		}
	}
}

// hearOf takes one key; the caller holds mu.
func (f *Fleet) hearOf(id, part string, e store.Entry) error {
	c := f.captures[id]
	switch {
	case part == "" && e.Revision == 0:
		if c != nil {
			f.forget(c)
		}
		return nil
	case part == "":
		if c != nil && c.revision == e.Revision {
			return nil
		}
		fresh, err := readCapture(id, e)
		if err != nil {
			return err
		}
		f.captures[id] = fresh
		if a := f.agents[fresh.agent]; a != nil {
			a.send(fresh.message())
		}
		return nil
	case c == nil || e.Revision == 0:
		return nil // of an order that has ended
	}
	switch part {
	case controlPart:
		return f.controlled(c, e.Value)
	case progressPart:
		c.progressAt = e.Revision
		if f.agents[c.agent] != nil {
			return nil // we wrote it, and know more by now
		}
		p := &wire.Progress{}
		if err := proto.Unmarshal(e.Value, p); err != nil {
			return err
		}
		c.advance(p)
	case resultPart:
		c.result = &Result{}
		return json.Unmarshal(e.Value, c.result)
	}
	return nil
}

func readCapture(id string, e store.Entry) (*capture, error) {
	var doc orderDoc
	if err := json.Unmarshal(e.Value, &doc); err != nil {
		return nil, err
	}
	c := &capture{id: id, caseID: doc.Case, instance: doc.Instance, kind: doc.Kind, deadline: doc.Deadline, revision: e.Revision,
		agent: agentOfInstance(doc.Instance), order: &wire.Order{}, moved: time.Now(), changed: make(chan struct{}, 1)}
	return c, proto.Unmarshal(doc.Order, c.order)
}

func agentOfInstance(i evidence.Instance) agentKey { return agentKey{i.Account, i.Region, i.ID} }

// advance takes how far a capture has come; the caller holds mu. An agent that
// was started again begins to count anew.
func (c *capture) advance(p *wire.Progress) {
	old := c.progress
	if old == nil || p.GetBytesRead() > old.GetBytesRead() || p.GetBytesStored() > old.GetBytesStored() || p.GetPartsStored() > old.GetPartsStored() {
		c.moved = time.Now()
	}
	c.progress = p
}

// wake tells who waits for the capture that it changed.
func (c *capture) wake() { nudge(c.changed) }

// nudge leaves a token where there is none.
func nudge(tokens chan struct{}) {
	select {
	case tokens <- struct{}{}:
	default:
	}
}

// forget ends what this node knows of a capture. An agent of this node that
// has not ended it is told to stop; the caller holds mu.
func (f *Fleet) forget(c *capture) {
	delete(f.captures, c.id)
	c.wake()
	a := f.agents[c.agent]
	if a == nil || c.result != nil {
		return
	}
	why := c.control.Over
	if why == "" {
		why = "its order was taken back"
	}
	a.send(&wire.CollectorMessage{Body: &wire.CollectorMessage_Cancel{Cancel: &wire.CancelOrder{OrderId: c.id, Reason: why}}})
}

// end takes an order back, and keeps its result. Where its capture was given
// up there is none, and the agent is told why.
func (f *Fleet) end(ctx context.Context, id string, why error) error {
	if why != nil {
		if err := f.change(ctx, id, func(c *control) { c.Over = text(why.Error()) }); err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
	}
	return store.Repeat(tries, func() error { return f.remove(ctx, id, why == nil) })
}

// remove takes an order back; its result becomes its outcome where it is to be
// kept.
func (f *Fleet) remove(ctx context.Context, id string, keep bool) error {
	entries, err := f.cfg.Store.List(ctx, orderKey(id))
	if err != nil {
		return err
	}
	var changes []store.Change
	for _, e := range entries {
		of, part := captureID(e.Key)
		if of != id {
			continue
		}
		changes = append(changes, store.Remove(e.Key, e.Revision))
		if keep && part == resultPart {
			changes = append(changes, store.Set(outcomeKey(id), e.Value, 0))
		}
	}
	if len(changes) == 0 {
		return nil
	}
	_, err = f.cfg.Store.Commit(ctx, changes...)
	return err
}

// EndAll takes back whatever orders a case still has, so that nothing more is
// stored for it, and forgets what came of the others.
func (f *Fleet) EndAll(ctx context.Context, caseID string) error {
	entries, err := f.cfg.Store.List(ctx, capturePrefix+caseID+"/")
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if id, part := captureID(e.Key); part == "" {
			errs = append(errs, f.end(ctx, id, errors.New("its case is over")))
		}
	}
	outcomes, err := f.cfg.Store.List(ctx, outcomePrefix+caseID+"/")
	errs = append(errs, err)
	for _, e := range outcomes {
		errs = append(errs, store.Drop(ctx, f.cfg.Store, e.Key, e.Revision))
	}
	return errors.Join(errs...)
}

// lookup gives a capture that this node may not have heard of yet.
func (f *Fleet) lookup(ctx context.Context, id string) (*capture, error) {
	if c, _ := f.find(id); c != nil {
		return c, nil
	}
	if of, part := captureID(orderKey(id)); of != id || part != "" || store.CheckKey(orderKey(id)) != nil {
		return nil, fmt.Errorf("no order is called %.80q: %w", id, store.ErrNotFound)
	}
	value, revision, err := f.cfg.Store.Get(ctx, orderKey(id))
	if err != nil {
		return nil, err
	}
	return readCapture(id, store.Entry{Key: orderKey(id), Value: value, Revision: revision})
}

// while gives a context by which nothing is changed once the order has ended.
func (c *capture) while(ctx context.Context) context.Context {
	return store.While(ctx, orderKey(c.id), c.revision)
}
