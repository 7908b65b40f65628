package etcd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/types"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
)

const (
	// invited stands before the URLs of nodes that were let in; the value is
	// the node's name, which etcd knows only once it has started.
	invited = "invited/"
	// settling is how long a change of the members waits for the cluster to be
	// sure of those that it has: etcd counts one as connected after 5 s.
	settling = 15 * time.Second
	// retry is how long one waits between two tries.
	retry = time.Second
)

// Member is a node of the cluster, as this node sees it.
type Member struct {
	ID      string // etcd's
	Name    string
	URL     string // by which the others reach it; empty for one that listens for none
	Self    bool   // it is this node
	Voter   bool   // false: it still learns what the others know
	Leader  bool
	Started bool // false: it was let in, and has not been seen yet
	Answers bool // to this node, now
}

// Members gives the nodes of the cluster as far as this node knows, which
// needs no majority, by their names.
func (s *Store) Members(ctx context.Context) []Member {
	names := s.invitations(ctx)
	var out []Member
	leader := s.member.Server.Leader()
	for _, m := range s.member.Server.Cluster().Members() {
		out = append(out, Member{ID: m.ID.String(), Name: nameOf(m, names), URL: addressOf(m.PeerURLs),
			Self: m.ID == s.member.Server.MemberID(), Voter: !m.IsLearner, Leader: m.ID == leader, Started: m.IsStarted()})
	}
	s.askAll(ctx, out)
	slices.SortFunc(out, func(a, b Member) int { return strings.Compare(a.Name+a.ID, b.Name+b.ID) })
	return out
}

// invitations gives the names of the nodes that were let in, by their URLs. It
// reads what this node has, as the majority may be away.
func (s *Store) invitations(ctx context.Context) map[string]string {
	names := map[string]string{}
	err := s.call(ctx, func(ctx context.Context) error {
		got, err := s.client.Get(ctx, invited, clientv3.WithPrefix(), clientv3.WithSerializable())
		if err != nil {
			return err
		}
		for _, kv := range got.Kvs {
			names[string(kv.Key[len(invited):])] = string(kv.Value)
		}
		return nil
	})
	if err != nil {
		s.log.Warn("cannot read the names of the nodes that were let in", "error", err)
	}
	return names
}

func nameOf(m *membership.Member, names map[string]string) string {
	if m.IsStarted() || len(m.PeerURLs) == 0 {
		return m.Name
	}
	return names[m.PeerURLs[0]]
}

// addressOf gives the URL by which a member is reached; etcd would have it have
// several.
func addressOf(urls []string) string {
	if slices.Equal(urls, []string{selfURL.String()}) {
		return ""
	}
	return strings.Join(urls, ",")
}

// askAll asks each other node whether it is there.
func (s *Store) askAll(ctx context.Context, members []Member) {
	var all sync.WaitGroup
	defer all.Wait()
	for i := range members {
		m := &members[i]
		switch {
		case m.Self:
			m.Answers = s.fault.Err() == nil
		case s.cfg.Peer != nil:
			all.Go(func() { m.Answers = s.cfg.Peer.ask(ctx, m.URL) == nil })
		}
	}
}

// absent names the other nodes that do not answer, however little time the
// caller has left.
func (s *Store) absent(ctx context.Context) (names []string) {
	if s.fault.Err() != nil {
		return nil
	}
	for _, m := range s.Members(context.WithoutCancel(ctx)) {
		if !m.Answers {
			names = append(names, m.Name+" at "+m.URL)
		}
	}
	return names
}

// Join lets a node into the cluster, as one that learns; it becomes a voter by
// itself when it knows what the others know. What it gives is for that node's
// Config. Asked again for a node that has not started yet, it gives the same.
func (s *Store) Join(ctx context.Context, name, url string) (Join, error) {
	j, err := s.join(ctx, name, url)
	if err != nil {
		return Join{}, fmt.Errorf("cannot let node %.80q join: %w", name, err)
	}
	return j, nil
}

func (s *Store) join(ctx context.Context, name, url string) (Join, error) {
	if s.cfg.Peer == nil {
		return Join{}, errors.New("this node is alone and listens for no other: start it with an address and certificates for other nodes first (--peer-listen, --peer-url, --peer-cert, --peer-key, --peer-ca)")
	}
	if err := CheckName(name); err != nil {
		return Join{}, err
	}
	if _, err := parseURL(url); err != nil {
		return Join{}, err
	}
	members, err := s.agreed(ctx)
	if err != nil {
		return Join{}, err
	}
	again, err := taken(members, name, url)
	if err != nil || again {
		return document(members, name, url), err
	}
	if members, err = s.invite(ctx, name, url); err != nil {
		return Join{}, err
	}
	s.log.Info("node let into the cluster; it learns now", "node", name, "url", url)
	return document(members, name, url), nil
}

// taken says whether a node has been let in already. Another one of its name,
// or at its address, is refused.
func taken(members []Member, name, url string) (again bool, err error) {
	for _, m := range members {
		switch {
		case m.Name == name && m.URL == url && !m.Started:
			return true, nil
		case m.Name == name:
			return false, fmt.Errorf("the cluster has a node of this name at %s: remove that one first, or choose another name", m.URL)
		case m.URL == url:
			return false, fmt.Errorf("node %s is at %s already: remove that one first, or choose another address", m.Name, url)
		case !m.Voter:
			return false, fmt.Errorf("node %s is joining: wait until it is a voter ('cluster list' shows it), or remove it", m.Name)
		}
	}
	if len(members) >= maxNodes {
		return false, fmt.Errorf("the cluster has %d nodes, which is the most", len(members))
	}
	return false, nil
}

// invite writes the node's name down, and adds it.
func (s *Store) invite(ctx context.Context, name, url string) (members []Member, err error) {
	err = s.call(ctx, func(ctx context.Context) error {
		_, err := s.client.Put(ctx, invited+url, name)
		return err
	})
	if err != nil {
		return nil, err
	}
	err = s.reshape(ctx, func(ctx context.Context) error {
		_, err := s.client.MemberAddAsLearner(ctx, []string{url})
		return err
	})
	if err != nil {
		return nil, err
	}
	return s.agreed(ctx)
}

// reshape changes the members, as soon as the cluster is sure of those that it
// has. Where one does not answer at all, it does not wait for that.
func (s *Store) reshape(ctx context.Context, change func(ctx context.Context) error) error {
	limit := time.Now().Add(settling)
	for {
		err := s.call(ctx, change)
		if !errors.Is(err, rpctypes.ErrUnhealthy) || time.Now().After(limit) || !s.allAnswer(ctx) {
			return explainMembers(err)
		}
		select {
		case <-time.After(retry):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (s *Store) allAnswer(ctx context.Context) bool {
	return !slices.ContainsFunc(s.Members(ctx), func(m Member) bool { return m.Voter && !m.Answers })
}

// agreed gives the members as the majority has them.
func (s *Store) agreed(ctx context.Context) (out []Member, err error) {
	var list []*etcdserverpb.Member
	err = s.call(ctx, func(ctx context.Context) error {
		got, err := s.client.MemberList(ctx)
		if err == nil {
			list = got.Members
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	names := s.invitations(ctx)
	for _, m := range list {
		one := Member{ID: types.ID(m.GetID()).String(), Name: m.GetName(), URL: addressOf(m.GetPeerURLs()), Voter: !m.GetIsLearner(), Started: m.GetName() != "",
			Self: types.ID(m.GetID()) == s.member.Server.MemberID()}
		if !one.Started {
			one.Name = names[one.URL]
		}
		out = append(out, one)
	}
	return out, nil
}

func document(members []Member, name, url string) Join {
	j := Join{Name: name, URL: url}
	for _, m := range members {
		j.Nodes = append(j.Nodes, Joined{m.Name, m.URL})
	}
	return j
}

// Remove takes a node out of the cluster, for good: it stops, and says why.
// Where it was lost, that is how its place becomes free.
func (s *Store) Remove(ctx context.Context, name string) error {
	if err := s.remove(ctx, name); err != nil {
		return fmt.Errorf("cannot remove node %.80q: %w", name, err)
	}
	s.log.Info("node removed from the cluster", "node", name)
	return nil
}

func (s *Store) remove(ctx context.Context, name string) error {
	members, err := s.agreed(ctx)
	if err != nil {
		return err
	}
	known, voters := map[string]Member{}, 0
	for _, m := range members {
		known[m.Name] = m
		if m.Voter {
			voters++
		}
	}
	gone, ok := known[name]
	if !ok {
		return fmt.Errorf("there is none of this name: the cluster has %s", strings.Join(slices.Sorted(maps.Keys(known)), ", "))
	}
	if gone.Voter && voters == 1 {
		return errors.New("it is the last one that votes: let another one join first")
	}
	id, err := types.IDFromString(gone.ID)
	if err != nil {
		return err
	}
	err = s.reshape(ctx, func(ctx context.Context) error {
		_, err := s.client.MemberRemove(ctx, uint64(id))
		return err
	})
	if err != nil {
		return err
	}
	return s.call(ctx, func(ctx context.Context) error {
		_, err := s.client.Delete(ctx, invited+gone.URL)
		return err
	})
}

// explainMembers says what to do where etcd refuses a change of the members.
func explainMembers(err error) error {
	switch {
	case errors.Is(err, rpctypes.ErrMemberNotEnoughStarted), errors.Is(err, rpctypes.ErrUnhealthy):
		return fmt.Errorf("the cluster would be left without a majority: first start the nodes that do not answer ('cluster list'), or remove them: %w", err)
	case errors.Is(err, rpctypes.ErrTooManyLearners):
		return fmt.Errorf("another node is joining: wait until it is a voter, or remove it: %w", err)
	case errors.Is(err, rpctypes.ErrPeerURLExist), errors.Is(err, rpctypes.ErrMemberExist):
		return fmt.Errorf("a node is at this address already: %w", err)
	case errors.Is(err, rpctypes.ErrMemberNotFound):
		return fmt.Errorf("somebody else has removed it: %w", err)
	}
	return err
}
