package fleet

import (
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quicklime-ir/quicklime/collector/store"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// What this node writes down for the others is written in few and large
// commits, as orders wait for the same log: many agents come and go at once.
const (
	tellPause   = 250 * time.Millisecond // between what is written of agents, and what is next
	tellEvery   = 2 * time.Second        // how far captures are, and what could not be written of agents
	tellMost    = 64                     // agents in one commit
	tellers     = 64                     // keys that are read, or written alone, at a time
	alertEvery  = 30 * time.Second
	forgetAfter = 30 * 24 * time.Hour // an agent that left
	forgetEvery = time.Hour
)

// tell writes down how far captures are, alerts, and forgets, until ctx ends.
func (f *Fleet) tell(ctx context.Context) error {
	progress, alert, forget := time.NewTicker(tellEvery), time.NewTicker(alertEvery), time.NewTicker(forgetEvery)
	defer progress.Stop()
	defer alert.Stop()
	defer forget.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-progress.C:
			f.tellCaptures(ctx)
		case <-alert.C:
			f.alert(ctx)
		case <-forget.C:
			f.forgetOld(ctx)
		}
	}
}

func (f *Fleet) tellCaptures(ctx context.Context) {
	var group errgroup.Group
	group.SetLimit(tellers)
	for id, p := range f.progressed() {
		group.Go(func() error { f.tellProgress(ctx, id, p); return nil })
	}
	_ = group.Wait() // none fails: each says itself what went wrong
}

// trace is what this node last wrote of an agent, or read.
type trace struct {
	revision int64
	// fine says that its host could be captured, or that nobody was told yet
	// that it cannot be.
	fine bool
}

// news is an agent that has come, or has left, of which the store does not know.
type news struct {
	of    *attached
	key   agentKey
	left  bool
	doc   *wire.AttachedAgent
	trace trace
}

// tellAgents writes down which agents have come and which have left, soon
// after it happened, until ctx ends.
func (f *Fleet) tellAgents(ctx context.Context) error {
	again := time.NewTicker(tellEvery)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-f.untold:
		case <-again.C:
		}
		f.tellNews(ctx)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(tellPause): // more may come, to be written together
		}
	}
}

// tellNews writes down what there is to tell. What cannot be written stays.
func (f *Fleet) tellNews(ctx context.Context) {
	all, strangers := f.news()
	known, err := f.meet(ctx, strangers)
	for batch := range slices.Chunk(append(all, known...), tellMost) {
		err = errors.Join(err, f.write(ctx, batch))
	}
	if err != nil && ctx.Err() == nil {
		f.log.Warn("cannot tell the other nodes which agents came and left, will try again", "agents", len(all)+len(strangers), "error", err)
	}
}

// news gives what the store does not know; strangers are agents of which this
// node does not know what the store says.
func (f *Fleet) news() (all, strangers []*news) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for key, a := range f.agents {
		if a.told != 0 {
			continue
		}
		n := &news{of: a, key: key, doc: f.here(a)}
		if known, ok := f.traces[key]; ok {
			n.trace = known
			all = append(all, n)
		} else {
			strangers = append(strangers, n)
		}
	}
	for key, a := range f.left {
		n := &news{of: a, key: key, left: true, doc: a.wire(), trace: f.traces[key]}
		n.doc.Unable, n.doc.Left = a.alert, timestamppb.New(a.ended)
		if n.trace.revision != a.told && !a.unsure { // somebody else wrote of it since
			delete(f.left, key)
			continue
		}
		all = append(all, n)
	}
	return all, strangers
}

// here gives an agent as one that is attached to this node; the caller holds
// mu.
func (f *Fleet) here(a *attached) *wire.AttachedAgent {
	now := a.wire()
	now.Node, now.Life = f.cfg.Node, f.life
	return now
}

// meet reads what the store says of strangers, and gives those of which it
// could be read.
func (f *Fleet) meet(ctx context.Context, strangers []*news) ([]*news, error) {
	var group errgroup.Group
	group.SetLimit(tellers)
	met := make([]*news, len(strangers))
	for i, n := range strangers {
		group.Go(func() error {
			before, revision, err := f.lastSeen(ctx, n.key.key())
			if err != nil {
				return err
			}
			n.trace = trace{revision: revision, fine: before == nil || before.GetUnable() || wire.Capturable(before.GetHello())}
			met[i] = n
			return nil
		})
	}
	err := group.Wait()
	return slices.DeleteFunc(met, func(n *news) bool { return n == nil }), err
}

// write writes some down together. Where another node was first with one of
// them, each is written alone.
func (f *Fleet) write(ctx context.Context, batch []*news) error {
	changes := make([]store.Change, len(batch))
	for i, n := range batch {
		if !n.left {
			n.doc.Unable = n.trace.fine && !wire.Capturable(n.of.hello)
		}
		value, err := proto.Marshal(n.doc)
		if err != nil {
			return err
		}
		changes[i] = store.Set(n.key.key(), value, n.trace.revision)
	}
	revision, err := f.cfg.Store.Commit(ctx, changes...)
	switch {
	case err == nil:
		f.told(batch, revision)
		return nil
	case !errors.Is(err, store.ErrConflict):
		f.doubt(batch)
		return err
	case len(batch) == 1:
		return f.outrun(ctx, batch[0])
	}
	var group errgroup.Group
	group.SetLimit(tellers)
	for i := range batch {
		group.Go(func() error { return f.write(ctx, batch[i:i+1]) })
	}
	return group.Wait()
}

// doubt takes that news may be written down. Who leaves meanwhile must be said
// to have left, or all would think that it is here.
func (f *Fleet) doubt(batch []*news) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range batch {
		if n.of.unsure = true; !n.left && f.agents[n.key] == nil {
			f.left[n.key] = n.of
		}
	}
}

// told takes that news are written down. An agent that left meanwhile is news
// again.
func (f *Fleet) told(batch []*news, revision int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range batch {
		f.traces[n.key] = trace{revision: revision, fine: n.doc.GetUnable() || wire.Capturable(n.of.hello)}
		if n.left {
			if f.left[n.key] == n.of {
				delete(f.left, n.key)
			}
			continue
		}
		n.of.told, n.of.alert, n.of.unsure = revision, n.doc.GetUnable(), false
		if f.agents[n.key] == nil {
			f.left[n.key] = n.of
			nudge(f.untold)
		}
	}
}

// outrun takes that somebody else wrote of an agent first. Of one that is here
// the store is asked again; one that left is on another node, unless what was
// written is that its host was told of.
func (f *Fleet) outrun(ctx context.Context, n *news) error {
	last, revision, err := f.lastSeen(ctx, n.key.key())
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.traces, n.key)
	if !n.left {
		nudge(f.untold)
		return nil
	}
	if f.left[n.key] != n.of {
		return nil
	}
	if last.GetLife() != f.life || !last.GetAttached().AsTime().Equal(n.of.since) {
		delete(f.left, n.key)
		return nil
	}
	n.of.told, n.of.unsure, f.traces[n.key] = revision, false, trace{revision: revision, fine: last.GetUnable() || wire.Capturable(last.GetHello())}
	nudge(f.untold)
	return nil
}

// forgetOld drops what is known of agents that left long ago, and here of all
// that are not here.
func (f *Fleet) forgetOld(ctx context.Context) {
	entries, err := f.cfg.Store.List(ctx, agentPrefix)
	for _, e := range entries {
		a := &wire.AttachedAgent{}
		if bad := proto.Unmarshal(e.Value, a); bad != nil || a.GetLeft() == nil || time.Since(a.GetLeft().AsTime()) < forgetAfter {
			continue
		}
		err = errors.Join(err, store.Drop(ctx, f.cfg.Store, e.Key, e.Revision))
	}
	f.mu.Lock()
	for key := range f.traces {
		if f.agents[key] == nil && f.left[key] == nil {
			delete(f.traces, key)
		}
	}
	f.mu.Unlock()
	if err != nil && ctx.Err() == nil {
		f.log.Warn("cannot forget agents that left long ago, will try again", "error", err)
	}
}

// alert tells, once for each time that it comes to be so, which hosts' memory
// cannot be captured. They are told together, as a bad image makes many.
func (f *Fleet) alert(ctx context.Context) {
	f.mu.Lock()
	var hosts []*attached
	var names []*wire.AttachedAgent
	for _, a := range f.agents {
		if a.alert {
			hosts, names = append(hosts, a), append(names, a.wire())
		}
	}
	f.mu.Unlock()
	if len(hosts) == 0 {
		return
	}
	for _, a := range names {
		f.log.Warn("this host's memory could not be captured", "agent", a.GetId(), "host", a.GetHello().GetHostname(), "sources", wire.Verdicts(a.GetHello()))
	}
	if f.cfg.Alert != nil {
		if err := f.cfg.Alert(ctx, names); err != nil {
			f.log.Error("cannot tell of hosts that cannot be captured, will try again", "hosts", len(names), "error", err)
			return
		}
	}
	for _, a := range hosts {
		f.alerted(ctx, a)
	}
}

// alerted writes down that an agent's host was told of.
func (f *Fleet) alerted(ctx context.Context, a *attached) {
	f.mu.Lock()
	now, told := f.here(a), a.told
	f.mu.Unlock()
	revision, err := f.putAgent(ctx, now, keyOf(a.id), told)
	if err != nil && !errors.Is(err, store.ErrConflict) {
		f.log.Warn("cannot write down that a host was told of, it will be told again", "agent", a.id.String(), "error", err)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	a.alert = false
	if err == nil {
		a.told, f.traces[keyOf(a.id)] = revision, trace{revision: revision, fine: wire.Capturable(a.hello)}
	}
}
