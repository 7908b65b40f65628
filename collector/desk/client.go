package desk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// Client is an operator's end of the desk.
type Client struct {
	conn *grpc.ClientConn
	api  wire.OperatorServiceClient
}

// Dial reaches the desk of the collector that runs with a data folder on
// this machine.
func Dial(data string) (*Client, error) {
	path := SocketPath(data)
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("no collector runs with data folder %s: start 'quicklime-collector serve', or name its folder with --data: %w", data, err)
	}
	// The socket's own permissions say who may speak here; bytes on it never
	// leave the machine.
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReply)))
	if err != nil {
		return nil, fmt.Errorf("cannot reach operators' socket %s: %w", path, err)
	}
	return &Client{conn: conn, api: wire.NewOperatorServiceClient(conn)}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Trigger hands in a finding and gives the ids of its cases.
func (c *Client) Trigger(ctx context.Context, event []byte) ([]string, error) {
	if len(event) > maxEvent {
		return nil, fmt.Errorf("cannot hand in a finding of %d bytes: want %d at most", len(event), maxEvent)
	}
	reply, err := c.api.Trigger(ctx, &wire.TriggerRequest{Event: event})
	return reply.GetCaseIds(), said(err)
}

// Cases gives all cases, newest first, without their raw findings.
func (c *Client) Cases(ctx context.Context) ([]casefile.Case, error) {
	reply, err := c.api.ListCases(ctx, &wire.ListCasesRequest{})
	if err != nil {
		return nil, said(err)
	}
	var out []casefile.Case
	for _, raw := range reply.GetCases() {
		var one casefile.Case
		if err := json.Unmarshal(raw, &one); err != nil {
			return nil, fmt.Errorf("cannot read the collector's answer: %w", err)
		}
		out = append(out, one)
	}
	return out, nil
}

// Case gives one case, and how far its running captures have come.
func (c *Client) Case(ctx context.Context, id string) (casefile.Case, []*wire.Progress, error) {
	reply, err := c.api.GetCase(ctx, &wire.GetCaseRequest{Id: id})
	if err != nil {
		return casefile.Case{}, nil, said(err)
	}
	var one casefile.Case
	if err := json.Unmarshal(reply.GetCase(), &one); err != nil {
		return casefile.Case{}, nil, fmt.Errorf("cannot read the collector's answer: %w", err)
	}
	return one, reply.GetProgress(), nil
}

// CloseCase ends a case.
func (c *Client) CloseCase(ctx context.Context, id, reason string) error {
	_, err := c.api.CloseCase(ctx, &wire.CloseCaseRequest{Id: id, Reason: reason})
	return said(err)
}

// Control changes how what runs for a case goes on, and names the orders.
func (c *Client) Control(ctx context.Context, q *wire.ControlCaptureRequest) ([]string, error) {
	reply, err := c.api.ControlCapture(ctx, q)
	return reply.GetOrderIds(), said(err)
}

// Agents gives the attached agents.
func (c *Client) Agents(ctx context.Context) ([]*wire.AttachedAgent, error) {
	reply, err := c.api.ListAgents(ctx, &wire.ListAgentsRequest{})
	return reply.GetAgents(), said(err)
}

// said strips what gRPC adds to the desk's own words.
func said(err error) error {
	if err == nil {
		return nil
	}
	if status.Code(err) == codes.Unavailable {
		return fmt.Errorf("the collector does not answer: %s", status.Convert(err).Message())
	}
	return errors.New(status.Convert(err).Message())
}
