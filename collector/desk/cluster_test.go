package desk

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// pair is a cluster of two nodes, of which b is away.
type pair struct{ removed string }

func (*pair) Nodes(context.Context) *wire.ListNodesReply {
	return &wire.ListNodesReply{Nodes: []*wire.Node{{Id: "1", Name: "a", Self: true, Voter: true, Leader: true, Started: true, Answers: true},
		{Id: "2", Name: "b\x1b", Url: "https://b:1", Voter: true, Started: true}},
		Snapshot: &wire.Snapshot{Key: "state/a/20261126T183000Z.db", Taken: timestamppb.New(noon), Bytes: 2048}, NoSnapshot: "the bucket is\naway"}
}

var noon = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

func (*pair) Join(_ context.Context, name, url string) ([]byte, error) {
	if name == "a" {
		return nil, errors.New("cannot let it join")
	}
	return []byte(name + " joins at " + url), nil
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
	all, err := c.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := PrintNodes(&out, all, noon.Add(4*time.Hour)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"a     ", "leader  this node  -", `b\x1b  voter   NO`, "There is no majority",
		"The last snapshot is state/a/20261126T183000Z.db, 2.0 KiB, taken 4h0m0s ago.\n", `SNAPSHOTS FAIL: the bucket is\naway`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
	raw, err := c.JoinNode(t.Context(), "c", "https://c:1")
	if err != nil {
		t.Fatal(err)
	}
	if string(raw) != "c joins at https://c:1" {
		t.Errorf("it joins by %s", raw)
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
		if err := PrintNodes(&out, &wire.ListNodesReply{Nodes: tt.nodes}, noon); err != nil || strings.Contains(out.String(), "napshot") || !strings.Contains(out.String(), tt.want) {
			t.Errorf("%d nodes: %v, want %q in\n%s", len(tt.nodes), err, tt.want, out.String())
		}
	}
}
