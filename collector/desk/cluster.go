package desk

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quicklime-ir/quicklime/collector/store/etcd"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// Cluster is the collector's nodes.
type Cluster interface {
	Members(ctx context.Context) []etcd.Member
	Join(ctx context.Context, name, url string) (etcd.Join, error)
	Remove(ctx context.Context, name string) error
}

// ListNodes implements wire.OperatorServiceServer.
func (d *Desk) ListNodes(ctx context.Context, _ *wire.ListNodesRequest) (*wire.ListNodesReply, error) {
	reply := &wire.ListNodesReply{}
	for _, m := range d.Cluster.Members(ctx) {
		reply.Nodes = append(reply.Nodes, &wire.Node{Id: m.ID, Name: m.Name, Url: m.URL, Self: m.Self,
			Voter: m.Voter, Leader: m.Leader, Started: m.Started, Answers: m.Answers})
	}
	return reply, nil
}

// JoinNode implements wire.OperatorServiceServer.
func (d *Desk) JoinNode(ctx context.Context, q *wire.JoinNodeRequest) (*wire.JoinNodeReply, error) {
	j, err := d.Cluster.Join(ctx, q.GetName(), q.GetUrl())
	if err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	raw, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	d.Log.Info("node let in by an operator", "node", j.Name, "url", j.URL)
	return &wire.JoinNodeReply{Join: append(raw, '\n')}, nil
}

// RemoveNode implements wire.OperatorServiceServer.
func (d *Desk) RemoveNode(ctx context.Context, q *wire.RemoveNodeRequest) (*wire.RemoveNodeReply, error) {
	if err := d.Cluster.Remove(ctx, q.GetName()); err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	d.Log.Info("node removed by an operator", "node", q.GetName())
	return &wire.RemoveNodeReply{}, nil
}

// Nodes gives the collector's nodes, as the one that is asked sees them.
func (c *Client) Nodes(ctx context.Context) ([]*wire.Node, error) {
	reply, err := c.api.ListNodes(ctx, &wire.ListNodesRequest{})
	return reply.GetNodes(), said(err)
}

// JoinNode lets a node in, and gives the document by which it joins.
func (c *Client) JoinNode(ctx context.Context, name, url string) ([]byte, error) {
	reply, err := c.api.JoinNode(ctx, &wire.JoinNodeRequest{Name: name, Url: url})
	return reply.GetJoin(), said(err)
}

// RemoveNode takes a node out for good.
func (c *Client) RemoveNode(ctx context.Context, name string) error {
	_, err := c.api.RemoveNode(ctx, &wire.RemoveNodeRequest{Name: name})
	return said(err)
}

// PrintNodes writes one line for each node, and how many more may be lost.
func PrintNodes(w io.Writer, nodes []*wire.Node) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tROLE\tANSWERS\tADDRESS")
	voters, there := 0, 0
	for _, n := range nodes {
		if n.GetVoter() {
			voters++
		}
		if n.GetVoter() && n.GetAnswers() {
			there++
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", Plain(or(n.GetName(), n.GetId())), role(n), answers(n), Plain(or(n.GetUrl(), "-")))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w, outlook(there-(voters/2+1)))
	return err
}

func role(n *wire.Node) string {
	switch {
	case n.GetLeader():
		return "leader"
	case n.GetVoter():
		return "voter"
	}
	return "learns"
}

func answers(n *wire.Node) string {
	switch {
	case n.GetSelf():
		return "this node"
	case n.GetAnswers():
		return "yes"
	case !n.GetStarted():
		return "not started yet"
	}
	return "NO"
}

// outlook says what the loss of a node would mean, where so many voters may
// still be lost.
func outlook(spare int) string {
	switch {
	case spare < 0:
		return "There is no majority: nothing is written until more nodes answer."
	case spare == 0:
		return "No node may be lost: without one more, nothing is written."
	case spare == 1:
		return "One node may be lost."
	}
	return fmt.Sprintf("%d nodes may be lost.", spare)
}
