package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"

	"github.com/quicklime-ir/quicklime/collector/store"
	"github.com/quicklime-ir/quicklime/proto/identity"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// slate is a store that counts commits, fails while it is down, does all and
// fails while it is mute, and lets somebody else write first.
type slate struct {
	store.Store
	down bool
	mute bool

	mu      sync.Mutex
	commits int    // owned by mu
	first   func() // called once, before the next commit; owned by mu
}

func (s *slate) Commit(ctx context.Context, changes ...store.Change) (int64, error) {
	s.mu.Lock()
	s.commits++
	first := s.first
	s.first = nil
	s.mu.Unlock()
	if s.down {
		return 0, errors.New("no leader")
	}
	if first != nil {
		first()
	}
	revision, err := s.Store.Commit(ctx, changes...)
	if s.mute {
		return 0, errors.New("no answer")
	}
	return revision, err
}

// desk is a node that writes down what it is told to, when it is told to.
type desk struct {
	*Fleet
	state *slate
	t     *testing.T
}

func newDesk(t *testing.T, name string, state *store.MemoryStore) *desk {
	s := &slate{Store: state}
	return &desk{New(Config{Node: name, Store: s, Log: slog.New(slog.DiscardHandler)}), s, t}
}

func (d *desk) comes(id identity.AgentID) *attached {
	a := attachedHere(id)
	d.enter(a)
	return a
}

// muted tells, and hears nothing of it.
func (d *desk) muted() {
	d.state.mute = true
	d.tell()
	d.state.mute = false
}

func (d *desk) tell() { d.tellNews(d.t.Context()) }

// says gives what the store says of an agent.
func (d *desk) says(id identity.AgentID) string {
	a, _, err := d.lastSeen(d.t.Context(), keyOf(id).key())
	switch {
	case err != nil:
		return err.Error()
	case a == nil:
		return "nothing"
	case a.GetLeft() != nil:
		return "left"
	}
	return "at " + a.GetNode()
}

func (d *desk) want(id identity.AgentID, want string) {
	d.t.Helper()
	if got := d.says(id); got != want {
		d.t.Errorf("of the agent the store says %q, want %q", got, want)
	}
	if left := len(d.left); left != 0 {
		d.t.Errorf("%d are still to be said to have left", left)
	}
}

func hostNo(n int) identity.AgentID {
	id := victim
	id.Instance = fmt.Sprintf("i-%017x", n)
	return id
}

// TestManyAreWrittenTogether when they come, and when they leave; and of who
// does both between two looks nothing is written but that it is here.
func TestManyAreWrittenTogether(t *testing.T) {
	const many, commits = 200, 4 // of 64 each
	d := newDesk(t, "first", store.Memory())
	var all []*attached
	for n := range many {
		all = append(all, d.comes(hostNo(n)))
	}
	d.tell()
	if d.state.commits != commits {
		t.Errorf("%d agents that came took %d commits, want %d", many, d.state.commits, commits)
	}
	d.state.commits = 0
	d.tell()
	if d.state.commits != 0 {
		t.Errorf("nothing new took %d commits", d.state.commits)
	}
	for _, a := range all {
		d.leave(a)
	}
	for n := range many / 2 {
		d.comes(hostNo(n))
	}
	d.tell()
	if d.state.commits != commits {
		t.Errorf("%d agents that left, half of whom are back, took %d commits, want %d", many, d.state.commits, commits)
	}
	d.want(hostNo(0), "at first")
	d.want(hostNo(many-1), "left")
}

func TestWhatIsWrittenOfAnAgent(t *testing.T) {
	for name, story := range map[string]func(d, other *desk){
		"it comes": func(d, other *desk) {
			d.comes(victim)
			d.tell()
			d.want(victim, "at first")
		},
		"it leaves before anybody was told of it": func(d, other *desk) {
			d.leave(d.comes(victim))
			d.tell()
			d.want(victim, "nothing")
		},
		"it leaves while it is written that it is here": func(d, other *desk) {
			a := d.comes(victim)
			d.state.first = func() { d.leave(a) }
			d.tell()
			d.tell()
			d.want(victim, "left")
		},
		"it comes anew before it is written that it left": func(d, other *desk) {
			a := d.comes(victim)
			d.tell()
			d.leave(a)
			d.comes(victim)
			d.tell()
			d.want(victim, "at first")
		},
		"it moves to another node, which is first to say so": func(d, other *desk) {
			a := d.comes(victim)
			d.tell()
			d.leave(a)
			other.comes(victim)
			other.tell()
			d.tell()
			d.want(victim, "at second")
		},
		"it moves, and the node that it left is first": func(d, other *desk) {
			a := d.comes(victim)
			d.tell()
			other.comes(victim)
			d.leave(a)
			other.state.first = d.tell
			other.tell()
			d.want(victim, "left")
			other.tell()
			d.want(victim, "at second")
		},
		"it goes away and comes back, and its node knows no better": func(d, other *desk) {
			a := d.comes(victim)
			d.tell()
			d.leave(a)
			b := other.comes(victim)
			other.tell()
			other.leave(b)
			d.comes(victim) // at a revision that is not the last
			d.tell()
			d.tell()
			other.tell()
			d.want(victim, "at first")
			other.want(victim, "at first")
		},
		"one of many was written by another node": func(d, other *desk) {
			for n := range 10 {
				d.comes(hostNo(n))
			}
			d.comes(victim)
			d.state.first = func() { other.comes(victim); other.tell() }
			d.tell()
			for n := range 10 {
				d.want(hostNo(n), "at first")
			}
			d.want(victim, "at second")
			d.tell() // it is here now
			d.want(victim, "at first")
		},
		"it leaves while it is written that its host was told of": func(d, other *desk) {
			a := attachedHere(victim)
			a.hello.MemorySources = []*wire.SourceVerdict{{Source: "kcore", Reason: "lockdown"}}
			d.enter(a)
			d.tell()
			now, told := d.here(a), a.told
			d.leave(a)
			d.state.first = func() {
				if _, err := d.putAgent(d.t.Context(), now, keyOf(victim), told); err != nil {
					d.t.Error(err)
				}
			}
			d.tell()
			d.tell()
			d.want(victim, "left")
		},
		"the answer is lost that it is here, and it stays": func(d, other *desk) {
			d.comes(victim)
			d.muted()
			d.tell()
			d.tell()
			d.want(victim, "at first")
		},
		"the answer is lost that it is here, and it leaves": func(d, other *desk) {
			a := d.comes(victim)
			d.muted()
			d.leave(a)
			d.tell()
			d.tell()
			d.want(victim, "left")
		},
		"it leaves, and then the answer is lost that it is here": func(d, other *desk) {
			a := d.comes(victim)
			d.state.first = func() { d.leave(a) }
			d.muted()
			d.tell()
			d.tell()
			d.want(victim, "left")
		},
		"the answer is lost that it is here, and it moves": func(d, other *desk) {
			a := d.comes(victim)
			d.muted()
			d.leave(a)
			other.comes(victim)
			other.tell()
			d.tell()
			d.want(victim, "at second")
		},
		"the answer is lost that it left": func(d, other *desk) {
			a := d.comes(victim)
			d.tell()
			d.leave(a)
			d.muted()
			d.tell()
			d.tell()
			d.want(victim, "left")
		},
		"the answer is lost that it left, and it comes to another node": func(d, other *desk) {
			a := d.comes(victim)
			d.tell()
			d.leave(a)
			d.muted()
			other.comes(victim)
			other.tell()
			d.tell()
			d.tell()
			d.want(victim, "at second")
		},
		"the store is away": func(d, other *desk) {
			a := d.comes(victim)
			d.state.down = true
			d.tell()
			d.state.down = false
			d.tell()
			d.want(victim, "at first")
			d.leave(a)
			d.state.down = true
			d.tell()
			d.state.down = false
			d.tell()
			d.want(victim, "left")
		},
	} {
		t.Run(name, func(t *testing.T) {
			state := store.Memory()
			story(newDesk(t, "first", state), newDesk(t, "second", state.Another()))
		})
	}
}
