package fleet

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quicklime-ir/quicklime/collector/store"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// Where each agent is, and was last, is in the store: agent/ACCOUNT/REGION/INSTANCE
// says what it told of itself, and the process that has its stream. It is
// attached if that process lives, which node/NAME says.
const (
	agentPrefix = "agent/"
	nodePrefix  = "node/"
)

func (k agentKey) key() string {
	return agentPrefix + k.account + "/" + k.region + "/" + k.instance
}

// newLife names a process.
func newLife() string {
	b := make([]byte, 8)
	rand.Read(b) // it never fails, crypto/rand says
	return hex.EncodeToString(b)
}

// live says to the other nodes that this process lives, again whenever they
// may have come to think otherwise. While it cannot, its agents are sent to the
// others, as no order would reach them here.
func (f *Fleet) live(ctx context.Context) error {
	for {
		claim, err := f.cfg.Store.Claim(ctx, nodePrefix+f.cfg.Node, []byte(f.life))
		if err == nil {
			f.alone(false)
			select {
			case <-claim.Lost:
				continue
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !errors.Is(err, store.ErrConflict) { // one that died just now had the name, too
			f.alone(true)
		}
		f.log.Warn("cannot tell the other nodes that this one is here, will try again", "node", f.cfg.Node, "error", err)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
}

// errAlone is what an agent hears then.
var errAlone = errors.New("this node does not hear the others; attach to one of them")

// alone cuts this node's agents off where there are other nodes that it does
// not reach, and lets them in again when it does.
func (f *Fleet) alone(is bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if is && f.cfg.Several && !f.cutOff {
		f.log.Error("this node does not hear the others, so its agents are sent to them", "node", f.cfg.Node, "agents", len(f.agents))
		for _, a := range f.agents {
			a.cancel(errAlone)
		}
	}
	f.cutOff = is && f.cfg.Several
}

func (f *Fleet) putAgent(ctx context.Context, a *wire.AttachedAgent, key agentKey, revision int64) (int64, error) {
	value, err := proto.Marshal(a)
	if err != nil {
		return 0, err
	}
	return f.cfg.Store.Put(ctx, key.key(), value, revision)
}

// lastSeen gives what was known of an agent last, nil where that is nothing.
func (f *Fleet) lastSeen(ctx context.Context, key string) (*wire.AttachedAgent, int64, error) {
	value, revision, err := f.cfg.Store.Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	a := &wire.AttachedAgent{}
	return a, revision, proto.Unmarshal(value, a)
}

// lives gives the processes that have agents now.
func (f *Fleet) lives(ctx context.Context) (map[string]bool, error) {
	entries, err := f.cfg.Store.List(ctx, nodePrefix)
	out := map[string]bool{}
	for _, e := range entries {
		out[string(e.Value)] = true
	}
	return out, err
}

// isHere reports whether an instance's agent is attached to this node.
func (f *Fleet) isHere(i evidence.Instance) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.agents[agentOfInstance(i)] != nil
}

// present reports whether an instance's agent is attached, to whichever node.
// Where that cannot be told, it is.
func (f *Fleet) present(ctx context.Context, i evidence.Instance) bool {
	if f.isHere(i) {
		return true
	}
	last, _, err := f.lastSeen(ctx, agentOfInstance(i).key())
	return err != nil || last != nil && last.GetLeft() == nil && !f.lost(ctx, i, last)
}

// lost reports whether the process is no more that had an instance's agent,
// and the agent was not heard of since.
func (f *Fleet) lost(ctx context.Context, i evidence.Instance, last *wire.AttachedAgent) bool {
	if last.GetLeft() != nil || f.isHere(i) {
		return false
	}
	lives, err := f.lives(ctx)
	return err == nil && !lives[last.GetLife()]
}

// How long an agent takes at most until it tries to attach again: comeback after
// the collector was away for long, and moving where one of several nodes is
// lost, be it that it only hangs.
const (
	comeback = 3 * time.Minute
	moving   = 90 * time.Second
)

// Comeback is how long an instance's agent may still take to be back that was
// here when its node was lost, or that left less than away ago, as it may be
// between two nodes. It is 0 for one that is here, that left before, that was
// given up, or that was never seen.
func (f *Fleet) Comeback(ctx context.Context, i evidence.Instance, away time.Duration) time.Duration {
	last, _, err := f.lastSeen(ctx, agentOfInstance(i).key())
	switch {
	case err != nil:
		return moving // nothing is known of it
	case last == nil:
		return 0
	case last.GetLeft() != nil && !f.isHere(i):
		return min(max(away-time.Since(last.GetLeft().AsTime()), 0), away) // clocks may differ
	case f.lost(ctx, i, last):
		return max(moving, comeback-time.Since(f.began))
	}
	return 0
}

// gone writes down that an agent did not come back, so that it is waited for
// once: it left when it was last heard of.
func (f *Fleet) gone(ctx context.Context, i evidence.Instance) {
	last, revision, err := f.lastSeen(ctx, agentOfInstance(i).key())
	if err == nil && last != nil && f.lost(ctx, i, last) {
		last.Left = last.GetLastSeen()
		_, err = f.putAgent(ctx, last, agentOfInstance(i), revision)
	}
	if err != nil && !errors.Is(err, store.ErrConflict) {
		f.log.Warn("cannot write down that an agent is gone", "instance", i.ID, "error", err)
	}
}

// agentOf gives what is known of an instance's agent, in the words of
// evidence; nothing where that is nothing.
func (f *Fleet) agentOf(ctx context.Context, i evidence.Instance) evidence.Agent {
	f.mu.Lock()
	a := f.agents[agentOfInstance(i)]
	f.mu.Unlock()
	if a != nil {
		return describe(a.hello, a.ahead)
	}
	last, _, err := f.lastSeen(ctx, agentOfInstance(i).key())
	if err != nil || last == nil {
		return evidence.Agent{}
	}
	return describe(last.GetHello(), last.GetHello().GetWallClock().AsTime().Sub(last.GetAttached().AsTime()))
}

// Attached counts the agents that are attached to this node.
func (f *Fleet) Attached() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.agents)
}

// Agents gives the agents of all nodes, by their names, and those that left in
// the last 30 days.
func (f *Fleet) Agents(ctx context.Context) ([]*wire.AttachedAgent, error) {
	lives, err := f.lives(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot list agents: %w", err)
	}
	entries, err := f.cfg.Store.List(ctx, agentPrefix)
	if err != nil {
		return nil, fmt.Errorf("cannot list agents: %w", err)
	}
	known := map[string]*wire.AttachedAgent{}
	for _, e := range entries {
		a := &wire.AttachedAgent{}
		if err := proto.Unmarshal(e.Value, a); err != nil {
			return nil, fmt.Errorf("cannot read what is known of agent %s: %w", e.Key, err)
		}
		a.Present = a.GetLeft() == nil && lives[a.GetLife()]
		known[a.GetId()] = a
	}
	f.mu.Lock()
	for _, a := range f.agents { // of these more is known here
		here := f.here(a)
		here.Present = true
		known[here.GetId()] = here
	}
	f.mu.Unlock()
	var out []*wire.AttachedAgent
	for _, a := range known {
		out = append(out, a)
	}
	slices.SortFunc(out, func(a, b *wire.AttachedAgent) int { return cmp.Compare(a.GetId(), b.GetId()) })
	return out, nil
}
