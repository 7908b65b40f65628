// Package fleet holds the attached agents: it sends them orders, follows
// their progress, and records what they ask to store.
//
// An agent is whom its certificate names. It is believed about nothing else:
// every length and number in its messages is bounded, and what it may store
// is decided by its order, not by its words.
package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/quicklime-ir/quicklime/collector/ledger"
	"github.com/quicklime-ir/quicklime/collector/locker"
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

// Ledger records what may be stored; package ledger has it.
type Ledger interface {
	Open(ctx context.Context, caseID, instance string, item evidence.Item) (ledger.Opened, error)
	Grant(ctx context.Context, caseID, itemID string, part evidence.Part) (grant locker.Grant, stored bool, err error)
	Close(ctx context.Context, caseID, itemID string, parts int32, reason string) (evidence.Item, error)
}

// Capture is an order for one agent.
type Capture struct {
	ID           string // the same when it is sent again
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

	// Absent is how long to wait for an agent that is not attached, and
	// Stall how long for one that makes no progress, though it should: one
	// that is paused may stand still, and one that has limits may be slow.
	Absent, Stall time.Duration
}

// Result is how a capture ended, as the agent says.
type Result struct {
	Outcome wire.Outcome
	Error   string
	Source  string
	Refused []*wire.SourceVerdict
	Agent   evidence.Agent
}

// Fleet is all attached agents. It implements wire.AgentServiceServer.
type Fleet struct {
	wire.UnimplementedAgentServiceServer

	ledger      Ledger
	trustDomain string
	log         *slog.Logger
	started     time.Time

	mu       sync.Mutex
	agents   map[agentKey]*attached // owned by mu
	captures map[string]*capture    // by order id; owned by mu
	ended    map[string]bool        // orders that ended in the first startGrace; owned by mu
}

type agentKey struct{ account, region, instance string }

func keyOf(id identity.AgentID) agentKey { return agentKey{id.Account, id.Region, id.Instance} }

// capture is an order that runs; its fields are owned by Fleet.mu.
type capture struct {
	Capture
	agent    agentKey
	order    *wire.Order
	control  *wire.Control // how it is to go on; nil: as ordered. Never changed, but replaced
	cancel   chan string   // why it is to end now; holds one
	progress *wire.Progress
	moved    time.Time // when it last made progress
	seen     time.Time // when its agent was last attached
	result   chan Result
}

// New returns a fleet without agents.
func New(l Ledger, trustDomain string, log *slog.Logger) *Fleet {
	return &Fleet{ledger: l, trustDomain: trustDomain, log: log, started: time.Now(),
		agents: map[agentKey]*attached{}, captures: map[string]*capture{}, ended: map[string]bool{}}
}

// Capture has an agent carry out an order, and waits for its result. The
// order is sent again whenever the agent attaches anew; the agent knows it by
// its id. With an error the agent is told to stop, and is granted nothing
// more for the order.
func (f *Fleet) Capture(ctx context.Context, c Capture) (Result, error) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return Result{}, fmt.Errorf("cannot order capture %s: it has no deadline", c.ID)
	}
	run := &capture{Capture: c, agent: agentKey{c.Instance.Account, c.Instance.Region, c.Instance.ID},
		moved: time.Now(), seen: time.Now(), result: make(chan Result, 1), cancel: make(chan string, 1)}
	run.order = orderOf(c, time.Until(deadline))
	run.ask(c.Asked)
	f.mu.Lock()
	if f.captures[c.ID] != nil {
		f.mu.Unlock()
		return Result{}, fmt.Errorf("cannot order capture %s: it runs already", c.ID)
	}
	f.captures[c.ID] = run
	if a := f.agents[run.agent]; a != nil {
		run.send(a)
	}
	f.mu.Unlock()

	result, err := f.await(ctx, run)
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.captures, c.ID)
	if time.Since(f.started) < startGrace {
		f.ended[c.ID] = true
	}
	if a := f.agents[run.agent]; a != nil {
		result.Agent = a.describe()
		if err != nil && ctx.Err() != context.Canceled {
			a.send(&wire.CollectorMessage{Body: &wire.CollectorMessage_Cancel{Cancel: &wire.CancelOrder{OrderId: c.ID, Reason: err.Error()}}})
		}
	}
	return result, err
}

// await waits for the result, while the agent is there and moves.
func (f *Fleet) await(ctx context.Context, run *capture) (Result, error) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case r := <-run.result:
			return r, nil
		case <-ctx.Done():
			return Result{}, context.Cause(ctx)
		case why := <-run.cancel:
			return Result{}, fmt.Errorf("%w: %s", ErrEnded, text(why))
		case <-tick.C:
			if err := f.check(run, time.Now()); err != nil {
				return Result{}, err
			}
		}
	}
}

// check says whether a capture must be given up.
func (f *Fleet) check(run *capture, now time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.agents[run.agent] != nil {
		run.seen = now
	} else if now.Sub(run.seen) >= run.Absent {
		return fmt.Errorf("%w %s for %v", ErrAbsent, run.Instance.ID, now.Sub(run.seen).Round(time.Second))
	}
	if run.paused() {
		run.moved = now
	}
	if now.Sub(run.moved) >= run.patience() {
		return fmt.Errorf("%w for %v", ErrStalled, now.Sub(run.moved).Round(time.Second))
	}
	return nil
}

// Agents gives the attached agents.
func (f *Fleet) Agents() []*wire.AttachedAgent {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*wire.AttachedAgent
	for _, a := range f.agents {
		out = append(out, a.wire())
	}
	return out
}

func orderOf(c Capture, limit time.Duration) *wire.Order {
	o := &wire.Order{Id: c.ID, CaseId: c.Case, InstanceId: c.Instance.ID, TimeLimit: durationpb.New(limit)}
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
