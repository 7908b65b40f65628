package desk

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// Cluster is the collector's nodes.
type Cluster interface {
	Nodes(ctx context.Context) *wire.ListNodesReply
	// Join lets a node in, and gives the document by which it joins.
	Join(ctx context.Context, name, url string) ([]byte, error)
	Remove(ctx context.Context, name string) error
}

// ListNodes implements wire.OperatorServiceServer.
func (d *Desk) ListNodes(ctx context.Context, _ *wire.ListNodesRequest) (*wire.ListNodesReply, error) {
	return d.Cluster.Nodes(ctx), nil
}

// JoinNode implements wire.OperatorServiceServer.
func (d *Desk) JoinNode(ctx context.Context, q *wire.JoinNodeRequest) (*wire.JoinNodeReply, error) {
	join, err := d.Cluster.Join(ctx, q.GetName(), q.GetUrl())
	if err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	d.Log.Info("node let in by an operator", "node", q.GetName(), "url", q.GetUrl())
	return &wire.JoinNodeReply{Join: join}, nil
}

// RemoveNode implements wire.OperatorServiceServer.
func (d *Desk) RemoveNode(ctx context.Context, q *wire.RemoveNodeRequest) (*wire.RemoveNodeReply, error) {
	if err := d.Cluster.Remove(ctx, q.GetName()); err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	d.Log.Info("node removed by an operator", "node", q.GetName())
	return &wire.RemoveNodeReply{}, nil
}

// Nodes gives the collector's nodes, as the one that is asked sees them, and
// the last snapshot of their state.
func (c *Client) Nodes(ctx context.Context) (*wire.ListNodesReply, error) {
	reply, err := c.api.ListNodes(ctx, &wire.ListNodesRequest{})
	return reply, said(err)
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

// PrintNodes writes one line for each node, how many more may be lost, and how
// old the last snapshot is.
func PrintNodes(w io.Writer, all *wire.ListNodesReply, now time.Time) error {
	nodes := all.GetNodes()
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
	fmt.Fprintln(w, outlook(there-(voters/2+1)))
	if s := all.GetSnapshot(); s != nil {
		fmt.Fprintf(w, "The last snapshot is %s, %s, taken %v ago.\n", Plain(s.GetKey()), Bytes(s.GetBytes()), now.Sub(s.GetTaken().AsTime()).Round(time.Second))
	}
	if why := all.GetNoSnapshot(); why != "" {
		_, err := fmt.Fprintln(w, "SNAPSHOTS FAIL:", Plain(why))
		return err
	}
	return nil
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
