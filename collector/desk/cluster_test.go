package desk

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/quicklime-ir/quicklime/collector/store/etcd"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// pair is a cluster of two nodes, of which b is away.
type pair struct{ removed string }

func (*pair) Members(context.Context) []etcd.Member {
	return []etcd.Member{{ID: "1", Name: "a", URL: "https://a:1", Self: true, Voter: true, Leader: true, Started: true, Answers: true},
		{ID: "2", Name: "b\x1b", URL: "https://b:1", Voter: true, Started: true}}
}

func (*pair) Join(_ context.Context, name, url string) (etcd.Join, error) {
	if name == "a" {
		return etcd.Join{}, errors.New("cannot let it join")
	}
	return etcd.Join{Name: name, URL: url, Nodes: []etcd.Joined{{Name: "a", URL: "https://a:1"}, {Name: name, URL: url}}}, nil
}

func (p *pair) Remove(_ context.Context, name string) error {
	if name == "a" {
		return errors.New("cannot remove it")
	}
	p.removed = name
	return nil
}

func TestNodes(t *testing.T) {
	cluster := &pair{}
	c := serve(t, &Desk{Cluster: cluster, Log: slog.New(slog.DiscardHandler)})
	nodes, err := c.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := PrintNodes(&out, nodes); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"a     ", "leader  this node", `b\x1b  voter   NO`, "There is no majority"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
	raw, err := c.JoinNode(t.Context(), "c", "https://c:1")
	if err != nil {
		t.Fatal(err)
	}
	if j, err := etcd.ParseJoin(raw); err != nil || j.Name != "c" || len(j.Nodes) != 2 {
		t.Errorf("it joins by %s: %v", raw, err)
	}
	if _, err := c.JoinNode(t.Context(), "a", ""); err == nil || err.Error() != "cannot let it join" {
		t.Errorf("refused: %v", err)
	}
	if err := c.RemoveNode(t.Context(), "a"); err == nil || err.Error() != "cannot remove it" {
		t.Errorf("refused: %v", err)
	}
	if err := c.RemoveNode(t.Context(), "b"); err != nil || cluster.removed != "b" {
		t.Errorf("%q was removed, %v", cluster.removed, err)
	}
}

func TestOutlook(t *testing.T) {
	node := func(voter, answers bool) *wire.Node { return &wire.Node{Voter: voter, Answers: answers} }
	up, down, learner := node(true, true), node(true, false), node(false, true)
	for _, tt := range []struct {
		nodes []*wire.Node
		want  string
	}{
		{[]*wire.Node{up}, "No node may be lost"},
		{[]*wire.Node{up, learner}, "No node may be lost"},
		{[]*wire.Node{up, up}, "No node may be lost"},
		{[]*wire.Node{up, down}, "There is no majority"},
		{[]*wire.Node{up, up, up}, "One node may be lost"},
		{[]*wire.Node{up, up, down}, "No node may be lost"},
		{[]*wire.Node{up, down, down}, "There is no majority"},
		{[]*wire.Node{up, up, up, up, up}, "2 nodes may be lost"},
	} {
		var out bytes.Buffer
		if err := PrintNodes(&out, tt.nodes); err != nil || !strings.Contains(out.String(), tt.want) {
			t.Errorf("%d nodes: %v, want %q in\n%s", len(tt.nodes), err, tt.want, out.String())
		}
	}
}
