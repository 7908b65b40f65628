// Package fleet holds the agents: it sends them orders, follows their
// progress, and records what they ask to store.
//
// An agent is whom its certificate names. It is believed about nothing else:
// every length and number in its messages is bounded, and what it may store
// is decided by its order, not by its words.
//
// An agent hangs on one node of the collector, and its case may be run by
// another. So an order is a key of the store, and so is all that comes of it:
// the node that runs the case writes the order, the node that has the agent's
// stream sends it and writes down how far it has come, and how it ended. An
// agent that moves to another node in the midst of a capture is ordered to go
// on with it, which it does anyway.
package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/quicklime-ir/quicklime/collector/ledger"
	"github.com/quicklime-ir/quicklime/collector/locker"
	"github.com/quicklime-ir/quicklime/collector/store"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/identity"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// Why a capture ended without a result.
var (
	ErrAbsent  = errors.New("no agent answers on the instance")
	ErrStalled = errors.New("the capture makes no progress")
	ErrEnded   = errors.New("ended by an operator")
)

const (
	lookEvery = 500 * time.Millisecond // at a capture that runs
	endLimit  = 10 * time.Second       // for writing down that one has ended
	// tries bounds how often a change is made anew because another came first.
	tries = 20
)

// Ledger records what may be stored; package ledger has it.
type Ledger interface {
	Open(ctx context.Context, caseID, instance string, item evidence.Item) (ledger.Opened, error)
	Grant(ctx context.Context, caseID, itemID string, part evidence.Part) (grant locker.Grant, stored bool, err error)
	Close(ctx context.Context, caseID, itemID string, parts int32, reason string) (evidence.Item, error)
}

// Capture is an order for one agent.
type Capture struct {
	ID           string // CASE/KIND, the same when it is sent again
	Case         string
	Instance     evidence.Instance
	Kind         evidence.Kind
	MemorySource wire.MemorySource
	Compression  wire.Compression
	Limits       *wire.Limits // of memory, to begin with; nil: none

	Definitions   []*wire.DefinitionFile // of live: what to take beside the agent's own
	ProcessMemory []int32                // of live: the processes whose memory to take as well

	// Asked is what operators have asked of the capture since it was first
	// ordered, where it is taken up again; nil: nothing.
	Asked *wire.ControlCaptureRequest

	// Absent is how long to wait for an agent that is not attached, Away how
	// long for one that was and is no more, and Stall for one that makes no
	// progress, though it should: one that is paused may stand still, and one
	// that has limits may be slow.
	Absent, Away, Stall time.Duration
}

// ErrNotOrdered says that the store did not take a capture's order. It may take
// it later.
var ErrNotOrdered = errors.New("cannot order capture")

// Result is how a capture ended, as the agent says.
type Result struct {
	Outcome wire.Outcome
	Error   string
	Source  string
	Refused []*wire.SourceVerdict
	Agent   evidence.Agent
}

// Config is what a fleet needs.
type Config struct {
	Store       store.Store
	Node        string // this node's name
	Several     bool   // there may be other nodes, to which agents can go
	Ledger      Ledger
	TrustDomain string
	// Alert tells people of hosts whose memory cannot be captured; nil: they
	// are only logged.
	Alert func(ctx context.Context, hosts []*wire.AttachedAgent) error
	Log   *slog.Logger
}

// Fleet is the agents that are attached to this node, and the captures of all
// nodes. It implements wire.AgentServiceServer.
type Fleet struct {
	wire.UnimplementedAgentServiceServer

	cfg  Config
	log  *slog.Logger
	life string // names this process among all that had the node's name

	began time.Time

	untold chan struct{} // holds a token when the store does not know of an agent that came or left

	mu       sync.Mutex
	agents   map[agentKey]*attached // owned by mu
	captures map[string]*capture    // by order id, as the store has them; owned by mu
	left     map[agentKey]*attached // of these the store does not know that they left; owned by mu
	traces   map[agentKey]trace     // of those that are here, and of some that were; owned by mu
	cutOff   bool                   // the other nodes are not heard; owned by mu
}

type agentKey struct{ account, region, instance string }

func keyOf(id identity.AgentID) agentKey { return agentKey{id.Account, id.Region, id.Instance} }

// New returns a fleet without agents.
func New(cfg Config) *Fleet {
	return &Fleet{cfg: cfg, log: cfg.Log, life: newLife(), began: time.Now(), untold: make(chan struct{}, 1),
		agents: map[agentKey]*attached{}, left: map[agentKey]*attached{}, traces: map[agentKey]trace{}, captures: map[string]*capture{}}
}

// Run follows the captures of all nodes, and tells the others of this node's
// agents, until ctx ends or the store cannot go on.
func (f *Fleet) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return f.cfg.Store.Watch(ctx, capturePrefix, f.see) })
	group.Go(func() error { return f.live(ctx) })
	group.Go(func() error { return f.tell(ctx) })
	group.Go(func() error { return f.tellAgents(ctx) })
	return group.Wait()
}

// Capture has an agent carry out an order, and waits for its result. An order
// that was given before, by this node or another, is not given again, and one
// that has its result gives that. With an error the agent is told to stop, and
// is granted nothing more for the order; but where ctx was cancelled, it goes
// on, for whoever takes the case up.
func (f *Fleet) Capture(ctx context.Context, c Capture) (Result, error) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return Result{}, fmt.Errorf("cannot order capture %s: it has no deadline", c.ID)
	}
	revision, ended, err := f.order(ctx, c, deadline)
	if err != nil {
		return Result{}, err
	}
	if ended != nil {
		return *ended, nil
	}
	result, err := f.await(ctx, c, revision)
	if errors.Is(ctx.Err(), context.Canceled) {
		return result, context.Cause(ctx)
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), endLimit)
	defer cancel()
	if err != nil {
		result.Agent = f.agentOf(last, c.Instance)
	}
	if errors.Is(err, ErrAbsent) {
		f.gone(last, c.Instance)
	}
	if unended := f.end(last, c.ID, err); unended != nil {
		f.log.Error("cannot write down that a capture has ended, sealing will try again", "case", c.Case, "instance", c.Instance.ID, "order", c.ID, "error", unended)
	}
	return result, err
}

// order writes an order down, with what was asked of it before, unless it is
// there, and gives its revision, or the result of one that has ended.
func (f *Fleet) order(ctx context.Context, c Capture, deadline time.Time) (revision int64, ended *Result, err error) {
	raw, err := proto.Marshal(orderOf(c))
	if err != nil {
		return 0, nil, fmt.Errorf("cannot order capture %s: %w", c.ID, err)
	}
	value, err := json.Marshal(orderDoc{Instance: c.Instance, Case: c.Case, Kind: c.Kind, Deadline: deadline.UTC(), Order: raw})
	if err != nil {
		return 0, nil, err
	}
	changes := []store.Change{store.Set(orderKey(c.ID), value, 0), store.Same(outcomeKey(c.ID), 0)}
	if state, asked := controlOf(c); asked {
		changes = append(changes, store.Set(partKey(c.ID, controlPart), state.encode(), 0))
	}
	revision, err = f.cfg.Store.Commit(ctx, changes...)
	if errors.Is(err, store.ErrConflict) {
		ended, err = f.ended(ctx, c.ID)
		if err == nil && ended == nil {
			_, revision, err = f.cfg.Store.Get(ctx, orderKey(c.ID))
		}
	}
	if err != nil {
		return 0, nil, fmt.Errorf("%w: %s: %w", ErrNotOrdered, c.ID, err)
	}
	return revision, ended, nil
}

// ended gives the result of an order that has ended, nil where it has not.
func (f *Fleet) ended(ctx context.Context, id string) (*Result, error) {
	value, _, err := f.cfg.Store.Get(ctx, outcomeKey(id))
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	result := &Result{}
	return result, json.Unmarshal(value, result)
}

// await waits for the result, while the agent is there and moves.
func (f *Fleet) await(ctx context.Context, c Capture, revision int64) (Result, error) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	w := watcher{Capture: c, seen: time.Now()}
	for {
		run, changed := f.find(c.ID)
		switch {
		case run == nil && w.known:
			return Result{}, fmt.Errorf("cannot go on with capture %s: its order was taken back", c.ID)
		case run != nil && run.revision >= revision:
			w.known = true
			if r, over, err := f.outcome(run); over {
				return r, err
			}
		}
		select {
		case <-ctx.Done():
			return Result{}, context.Cause(ctx)
		case <-changed:
			continue
		case <-tick.C:
		}
		present := f.present(ctx, c.Instance)
		f.mu.Lock()
		err := w.check(run, present, time.Now())
		f.mu.Unlock()
		if err != nil {
			return Result{}, err
		}
	}
}

// find gives a capture, nil where there is none yet, and a channel that yields
// a token after it changed.
func (f *Fleet) find(id string) (*capture, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.captures[id]
	if c == nil {
		return nil, nil
	}
	return c, c.changed
}

// outcome says whether a capture has its result, or was ended by an operator.
func (f *Fleet) outcome(c *capture) (Result, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case c.result != nil:
		return *c.result, true, nil
	case c.control.Cancel != "":
		return Result{}, true, fmt.Errorf("%w: %s", ErrEnded, text(c.control.Cancel))
	}
	return Result{}, false, nil
}

// watcher is who waits for a capture.
type watcher struct {
	Capture
	known bool      // it was seen
	here  bool      // its agent was, since it is waited for
	seen  time.Time // when its agent was last attached
}

// check says whether a capture must be given up; the caller holds mu.
func (w *watcher) check(run *capture, present bool, now time.Time) error {
	patience := w.Absent
	if w.here {
		patience = max(patience, w.Away)
	}
	if present {
		w.seen, w.here = now, true
	} else if now.Sub(w.seen) >= patience {
		return fmt.Errorf("%w %s for %v", ErrAbsent, w.Instance.ID, now.Sub(w.seen).Round(time.Second))
	}
	if run == nil {
		return nil
	}
	if run.control.Paused {
		run.moved = now
	}
	if now.Sub(run.moved) >= run.patience(w.Stall) {
		return fmt.Errorf("%w for %v", ErrStalled, now.Sub(run.moved).Round(time.Second))
	}
	return nil
}

func orderOf(c Capture) *wire.Order {
	o := &wire.Order{Id: c.ID, CaseId: c.Case, InstanceId: c.Instance.ID}
	switch c.Kind {
	case evidence.Memory:
		o.Capture = &wire.Order_Memory{Memory: &wire.MemoryCapture{Source: c.MemorySource, Compression: c.Compression, Limits: c.Limits}}
	case evidence.Volatile:
		o.Capture = &wire.Order_Volatile{Volatile: &wire.ArtifactCapture{Compression: c.Compression}}
	case evidence.Symbols:
		o.Capture = &wire.Order_Symbols{Symbols: &wire.ArtifactCapture{Compression: c.Compression}}
	case evidence.Live:
		o.Capture = &wire.Order_Live{Live: &wire.ArtifactCapture{Compression: c.Compression, Definitions: c.Definitions, ProcessMemory: c.ProcessMemory}}
	}
	return o
}

// leastLimit is what an agent gets in any case: this node's clock may be ahead
// of that of the node which runs the case, and which ends it in time.
const leastLimit = time.Minute

// message is the order as it is sent now.
func (c *capture) message() *wire.CollectorMessage {
	o := proto.CloneOf(c.order)
	o.TimeLimit = durationpb.New(max(time.Until(c.deadline), leastLimit))
	return &wire.CollectorMessage{Body: &wire.CollectorMessage_Order{Order: o}}
}
