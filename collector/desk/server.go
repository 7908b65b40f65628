// Package desk is where operators work: the service behind the command line
// and what its commands print.
//
// It listens on a Unix socket that only the collector's own user may open,
// apart from the agents' listener, so that nothing an agent sends can reach
// an operator's call.
package desk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/docket"
	"github.com/quicklime-ir/quicklime/collector/finding"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// maxEvent bounds a finding that an operator hands in, and maxReply what the
// desk answers, in bytes.
const (
	maxEvent = 1 << 20
	maxReply = 256 << 20
)

// maxReason bounds an operator's reason, in bytes. leastBandwidth is the
// lowest limit of a capture, in bytes a second: with less, S3 would take the
// connections of the parts that share it for dead.
const (
	maxReason      = 1000
	leastBandwidth = 256 << 10
)

// Fleet tells of agents and of what they do now, and has it done otherwise.
type Fleet interface {
	Agents(ctx context.Context) ([]*wire.AttachedAgent, error)
	Progress(caseID string) []*wire.Progress
	// Running names the orders that run for a case.
	Running(caseID string) []string
	// Control applies to what runs for a case, and names those orders.
	Control(ctx context.Context, q *wire.ControlCaptureRequest) ([]string, error)
}

// Desk serves operators. It implements wire.OperatorServiceServer.
type Desk struct {
	wire.UnimplementedOperatorServiceServer

	Docket  *docket.Docket
	Fleet   Fleet
	Cluster Cluster
	Log     *slog.Logger
}

// SocketPath is where the desk of a collector with this data folder listens.
func SocketPath(data string) string { return filepath.Join(data, "operator.sock") }

// Serve answers operators at a Unix socket until ctx ends. The folder's lock
// is the caller's, so a socket that is there is a dead collector's.
func (d *Desk) Serve(ctx context.Context, path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot clear operators' socket: %w", err)
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("cannot listen for operators: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return errors.Join(err, listener.Close())
	}
	server := grpc.NewServer(grpc.MaxRecvMsgSize(maxEvent+4096), grpc.MaxSendMsgSize(maxReply))
	wire.RegisterOperatorServiceServer(server, d)
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	if err := server.Serve(listener); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// Trigger implements wire.OperatorServiceServer.
func (d *Desk) Trigger(ctx context.Context, q *wire.TriggerRequest) (*wire.TriggerReply, error) {
	ids, err := d.Docket.Open(ctx, q.GetEvent())
	if errors.Is(err, finding.ErrMalformed) {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	d.Log.Info("finding handed in by an operator", "cases", ids)
	return &wire.TriggerReply{CaseIds: ids}, nil
}

// ListCases implements wire.OperatorServiceServer. The raw findings are left
// out; GetCase has them.
func (d *Desk) ListCases(ctx context.Context, _ *wire.ListCasesRequest) (*wire.ListCasesReply, error) {
	cases, err := d.Docket.List(ctx)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	reply := &wire.ListCasesReply{}
	for _, c := range cases {
		c.Findings = append([]casefile.Finding(nil), c.Findings...)
		for i := range c.Findings {
			c.Findings[i].Raw = nil
		}
		raw, err := json.Marshal(c)
		if err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
		reply.Cases = append(reply.Cases, raw)
	}
	return reply, nil
}

// GetCase implements wire.OperatorServiceServer.
func (d *Desk) GetCase(ctx context.Context, q *wire.GetCaseRequest) (*wire.GetCaseReply, error) {
	c, err := d.Docket.Get(ctx, q.GetId())
	if err != nil {
		return nil, answer(err)
	}
	raw, err := json.Marshal(c)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &wire.GetCaseReply{Case: raw, Progress: d.Fleet.Progress(c.ID)}, nil
}

// CloseCase implements wire.OperatorServiceServer.
func (d *Desk) CloseCase(ctx context.Context, q *wire.CloseCaseRequest) (*wire.CloseCaseReply, error) {
	if q.GetReason() == "" {
		return nil, status.Error(codes.InvalidArgument, "cannot close a case without a reason: give one, it stays in the journal")
	}
	if err := d.Docket.Close(ctx, q.GetId(), q.GetReason()); err != nil {
		return nil, answer(err)
	}
	return &wire.CloseCaseReply{}, nil
}

// ControlCapture implements wire.OperatorServiceServer. What is asked is in
// the case's journal before it is done.
func (d *Desk) ControlCapture(ctx context.Context, q *wire.ControlCaptureRequest) (*wire.ControlCaptureReply, error) {
	if err := checkControl(q); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	c, err := d.Docket.Get(ctx, q.GetCaseId())
	if err != nil {
		return nil, answer(err)
	}
	if len(q.GetProcessMemory()) > 0 {
		return d.takeMore(ctx, c.ID, q)
	}
	asked := casefile.Control{Orders: d.Fleet.Running(c.ID), Paused: q.Paused, Cancel: q.GetCancel()}
	if len(asked.Orders) == 0 {
		return nil, status.Errorf(codes.FailedPrecondition, "cannot control captures of case %s: none runs now", c.ID)
	}
	if l := q.GetLimits(); l != nil {
		asked.Limits = &casefile.Limits{CPUPercent: l.GetCpuPercent(), BytesPerSecond: l.GetBytesPerSecond()}
	}
	if err := d.Docket.Control(ctx, c.ID, asked); err != nil {
		return nil, answer(err)
	}
	d.Log.Info("captures controlled by an operator", "case", c.ID, "asked", asked.String())
	ids, err := d.Fleet.Control(ctx, q)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &wire.ControlCaptureReply{OrderIds: ids}, nil
}

// takeMore writes down what the live capture is to take besides. The case
// refuses it once that has begun, and the step reads it when it begins.
func (d *Desk) takeMore(ctx context.Context, id string, q *wire.ControlCaptureRequest) (*wire.ControlCaptureReply, error) {
	asked := casefile.Control{Orders: []string{id + "/" + string(evidence.Live)}, ProcessMemory: q.GetProcessMemory()}
	if err := d.Docket.Control(ctx, id, asked); err != nil {
		return nil, answer(err)
	}
	d.Log.Info("more evidence asked for by an operator", "case", id, "asked", asked.String())
	return &wire.ControlCaptureReply{OrderIds: asked.Orders}, nil
}

// checkControl refuses what means nothing.
func checkControl(q *wire.ControlCaptureRequest) error {
	how := q.Paused != nil || q.Limits != nil || q.GetCancel() != ""
	if !how && len(q.GetProcessMemory()) == 0 {
		return errors.New("cannot control a capture: nothing is asked")
	}
	if how && len(q.GetProcessMemory()) > 0 {
		return errors.New("cannot control what runs, and have more taken, in one call")
	}
	for _, pid := range q.GetProcessMemory() {
		if pid <= 0 {
			return fmt.Errorf("cannot take the memory of process %d: want a number from 1", pid)
		}
	}
	if len(q.GetCancel()) > maxReason {
		return fmt.Errorf("cannot end a capture for a reason of %d bytes: want %d at most", len(q.GetCancel()), maxReason)
	}
	return CheckLimits(q.GetLimits())
}

// CheckLimits refuses limits by which a capture could not be told from one
// that has stalled.
func CheckLimits(l *wire.Limits) error {
	if l.GetCpuPercent() > 100 {
		return fmt.Errorf("cannot limit a capture to %d %% of CPU: want 1 to 100, or 0 for no limit", l.GetCpuPercent())
	}
	if n := l.GetBytesPerSecond(); n > 0 && n < leastBandwidth {
		return fmt.Errorf("cannot limit a capture to %d bytes a second: want %s at least, or 0 for no limit; 'pause' stops it", n, Bytes(leastBandwidth))
	}
	return nil
}

// ListAgents implements wire.OperatorServiceServer.
func (d *Desk) ListAgents(ctx context.Context, _ *wire.ListAgentsRequest) (*wire.ListAgentsReply, error) {
	agents, err := d.Fleet.Agents(ctx)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &wire.ListAgentsReply{Agents: agents}, nil
}

func answer(err error) error {
	if errors.Is(err, docket.ErrNoCase) {
		return status.Error(codes.NotFound, err.Error())
	}
	return status.Error(codes.FailedPrecondition, err.Error())
}
