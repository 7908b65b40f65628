package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/desk"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// controlFlags name the case whose captures are controlled.
type controlFlags struct {
	dataFlag
	ID string `arg:"" help:"The case's id."`
}

// ask tells the service, and prints what it applies to.
func (f controlFlags) ask(ctx context.Context, out io.Writer, q *wire.ControlCaptureRequest) error {
	client, err := desk.Dial(f.Data)
	if err != nil {
		return err
	}
	defer client.Close()
	q.CaseId = f.ID
	ids, err := client.Control(ctx, q)
	for _, id := range ids {
		fmt.Fprintln(out, id)
	}
	return err
}

type casePauseCmd struct{ controlFlags }

func (c *casePauseCmd) Run(ctx context.Context, out io.Writer) error {
	return c.ask(ctx, out, &wire.ControlCaptureRequest{Paused: proto.Bool(true)})
}

type caseResumeCmd struct{ controlFlags }

func (c *caseResumeCmd) Run(ctx context.Context, out io.Writer) error {
	return c.ask(ctx, out, &wire.ControlCaptureRequest{Paused: proto.Bool(false)})
}

type caseCancelCmd struct {
	controlFlags
	Reason string `help:"Why; it stays in the journal, and beside what is missing." required:""`
}

func (c *caseCancelCmd) Run(ctx context.Context, out io.Writer) error {
	if c.Reason == "" {
		return fmt.Errorf("cannot end a capture without a reason: give one with --reason")
	}
	return c.ask(ctx, out, &wire.ControlCaptureRequest{Cancel: c.Reason})
}

type caseLimitCmd struct {
	controlFlags
	CPU       uint32    `name:"cpu" help:"Percent of all processors together; 0 lifts the limit." required:""`
	Bandwidth bandwidth `help:"Bytes to S3 each second, such as 50MiB; 0 lifts the limit." required:""`
}

func (c *caseLimitCmd) Run(ctx context.Context, out io.Writer) error {
	return c.ask(ctx, out, &wire.ControlCaptureRequest{Limits: &wire.Limits{CpuPercent: c.CPU, BytesPerSecond: uint64(c.Bandwidth)}})
}

type caseCollectCmd struct {
	controlFlags
	ProcessMemory []int32 `help:"Process whose memory to take, as an ELF core; may be given several times, 64 in all." placeholder:"PID" required:""`
}

func (c *caseCollectCmd) Run(ctx context.Context, out io.Writer) error {
	return c.ask(ctx, out, &wire.ControlCaptureRequest{ProcessMemory: c.ProcessMemory})
}

type caseWatchCmd struct{ controlFlags }

// Run prints what the case does, each second, until its steps have ended.
func (c *caseWatchCmd) Run(ctx context.Context, out io.Writer) error {
	client, err := desk.Dial(c.Data)
	if err != nil {
		return err
	}
	defer client.Close()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		one, progress, err := client.Case(ctx, c.ID)
		if err != nil {
			return err
		}
		if one.State != casefile.Running {
			_, err := fmt.Fprintln(out, desk.Plain(one.Summary()))
			return err
		}
		step, _ := one.Next()
		lines := []string{step}
		for _, p := range progress {
			lines = append(lines, desk.PrintProgress(p))
		}
		if _, err := fmt.Fprintf(out, "%s  %s\n", time.Now().Format(time.TimeOnly), strings.Join(lines, "  ")); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// bandwidth is bytes each second, written as a number with or without a
// unit: 1048576, 1024KiB, 1MiB.
type bandwidth uint64

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *bandwidth) UnmarshalText(text []byte) error {
	number, unit := string(text), uint64(1)
	for suffix, size := range map[string]uint64{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30} {
		if rest, ok := strings.CutSuffix(number, suffix); ok {
			number, unit = rest, size
			break
		}
	}
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil || n > 1<<40/unit {
		return fmt.Errorf("cannot read bandwidth %.40q: want bytes each second, such as 50MiB, and 1024GiB at most", text)
	}
	*b = bandwidth(n * unit)
	return nil
}
