// Command quicklime-collector receives GuardDuty findings, has the agents
// take evidence, and contains the instances.
//
// This file is the door: the commands and their flags. What the service is
// made of is put together in serve.go.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/quicklime-ir/quicklime/collector/custody"
	"github.com/quicklime-ir/quicklime/collector/desk"
	"github.com/quicklime-ir/quicklime/collector/export"
	"github.com/quicklime-ir/quicklime/collector/proof"
)

// version is set by the linker.
var version = "dev"

type cli struct {
	Serve    serveCmd    `cmd:"" help:"Run the service."`
	Case     caseCmd     `cmd:"" help:"List, show and close cases, and control what they capture."`
	Agent    agentCmd    `cmd:"" help:"List agents."`
	Cluster  clusterCmd  `cmd:"" help:"List the nodes of the collector, let one join, take one out."`
	Restore  restoreCmd  `cmd:"" help:"Make a node out of a snapshot of the state, where no node is left."`
	Trigger  triggerCmd  `cmd:"" help:"Hand in a finding as if it had come from the queue."`
	Intake   intakeCmd   `cmd:"" help:"Hand findings in again that could not be read, or were kept in a file."`
	Verify   verifyCmd   `cmd:"" help:"Prove that evidence is whole and unchanged."`
	Export   exportCmd   `cmd:"" help:"Give a case's memory image in the form that a tool wants."`
	Symbols  symbolsCmd  `cmd:"" help:"Make the symbol file by which Volatility 3 reads a case's memory image."`
	Timeline timelineCmd `cmd:"" help:"Write the events of a case as Timesketch imports them."`
	Keygen   keygenCmd   `cmd:"" help:"Make the key that signs manifests."`
	Version  versionCmd  `cmd:"" help:"Print the version."`
}

func main() { os.Exit(run()) }

// run gives the exit code: 0 for done, 1 for an error, 2 for a wrong call,
// 3 for evidence that does not hold or is not whole, and for events that were
// not taken.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var c cli
	parser := kong.Must(&c, kong.Name("quicklime-collector"), kong.DefaultEnvars("QUICKLIME"),
		kong.Description("Freezes the evidence of compromised EC2 instances."),
		kong.BindTo(ctx, (*context.Context)(nil)), kong.BindTo(os.Stdout, (*io.Writer)(nil)))
	call, err := parser.Parse(os.Args[1:])
	if err != nil {
		fmt.Fprintf(os.Stderr, "quicklime-collector: %v\nRun 'quicklime-collector --help' for what it can do.\n", err)
		return 2
	}
	switch err := call.Run(); {
	case err == nil:
		return 0
	case errors.Is(err, proof.ErrNotProven), errors.Is(err, export.ErrFault), errors.Is(err, errLacks), errors.Is(err, errTimelineLacks), errors.Is(err, errLeft):
		fmt.Fprintln(os.Stderr, "quicklime-collector:", err)
		return 3
	default:
		fmt.Fprintln(os.Stderr, "quicklime-collector:", err)
		return 1
	}
}

// dataFlag names the data folder of the service.
type dataFlag struct {
	Data string `help:"Folder that holds the service's state." type:"path" default:"/var/lib/quicklime"`
}

type caseCmd struct {
	List  caseListCmd  `cmd:"" help:"List all cases, newest first."`
	Show  caseShowCmd  `cmd:"" help:"Show one case."`
	Watch caseWatchCmd `cmd:"" help:"Follow a case, a line each second, until its steps have ended."`
	Close caseCloseCmd `cmd:"" help:"Close a case, so that the next finding on its instance opens a new one."`

	Collect caseCollectCmd `cmd:"" help:"Have more taken for a case, before its live capture begins."`
	Pause   casePauseCmd   `cmd:"" help:"Have what is captured now stand still; the step's deadline goes on."`
	Resume  caseResumeCmd  `cmd:"" help:"Have it go on."`
	Limit   caseLimitCmd   `cmd:"" help:"Limit what is captured now: CPU and bandwidth of the host."`
	Cancel  caseCancelCmd  `cmd:"" help:"End what is captured now; what is stored is kept as partial, and the case goes on."`
}

type caseListCmd struct {
	dataFlag
	JSON bool `help:"Print JSON."`
}

func (c *caseListCmd) Run(ctx context.Context, out io.Writer) error {
	client, err := desk.Dial(c.Data)
	if err != nil {
		return err
	}
	defer client.Close()
	cases, err := client.Cases(ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(out, cases)
	}
	return desk.PrintCases(out, cases)
}

type caseShowCmd struct {
	dataFlag
	ID   string `arg:"" help:"The case's id."`
	JSON bool   `help:"Print JSON."`
}

func (c *caseShowCmd) Run(ctx context.Context, out io.Writer) error {
	client, err := desk.Dial(c.Data)
	if err != nil {
		return err
	}
	defer client.Close()
	one, progress, err := client.Case(ctx, c.ID)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(out, one)
	}
	return desk.PrintCase(out, one, progress)
}

type caseCloseCmd struct {
	dataFlag
	ID     string `arg:"" help:"The case's id."`
	Reason string `help:"Why; it stays in the journal." required:""`
}

func (c *caseCloseCmd) Run(ctx context.Context) error {
	client, err := desk.Dial(c.Data)
	if err != nil {
		return err
	}
	defer client.Close()
	return client.CloseCase(ctx, c.ID, c.Reason)
}

type agentCmd struct {
	List agentListCmd `cmd:"" help:"List agents, where each is, and what it could capture."`
}

type agentListCmd struct {
	dataFlag
	Attached bool   `help:"Only those that are attached now."`
	Gone     bool   `help:"Only those that are not, of the last 30 days."`
	Unable   bool   `help:"Only those whose host's memory could not be captured."`
	OnNode   string `help:"Only those attached to this node." placeholder:"NAME"`
	Version  string `help:"Only those of this version."`
	Kernel   string `help:"Only those whose kernel's release begins so."`
	Instance string `help:"Only the one on this instance."`
	JSON     bool   `help:"Print JSON, an agent a line."`
}

func (c *agentListCmd) Run(ctx context.Context, out io.Writer) error {
	client, err := desk.Dial(c.Data)
	if err != nil {
		return err
	}
	defer client.Close()
	agents, err := client.Agents(ctx)
	if err != nil {
		return err
	}
	agents = desk.AgentChoice{Attached: c.Attached, Gone: c.Gone, Unable: c.Unable, Node: c.OnNode,
		Version: c.Version, Kernel: c.Kernel, Instance: c.Instance}.Of(agents)
	if !c.JSON {
		return desk.PrintAgents(out, agents)
	}
	for _, a := range agents {
		line, err := protojson.Marshal(a)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(out, "%s\n", line); err != nil {
			return err
		}
	}
	return nil
}

type triggerCmd struct {
	dataFlag
	Finding string `arg:"" help:"File with the finding's EventBridge event, - for standard input."`
}

func (c *triggerCmd) Run(ctx context.Context, out io.Writer) error {
	event, err := readAll(c.Finding)
	if err != nil {
		return err
	}
	client, err := desk.Dial(c.Data)
	if err != nil {
		return err
	}
	defer client.Close()
	ids, err := client.Trigger(ctx, event)
	for _, id := range ids {
		fmt.Fprintln(out, id)
	}
	return err
}

func readAll(path string) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(io.LimitReader(os.Stdin, 2<<20))
	}
	return os.ReadFile(path)
}

type keygenCmd struct {
	Key    string `arg:"" help:"File for the private key; it must not exist." type:"path"`
	Public string `arg:"" help:"File for the public key, by which anyone can verify." type:"path"`
}

func (c *keygenCmd) Run() error {
	key, err := custody.NewKey(c.Key)
	if err != nil {
		return err
	}
	return key.WritePublic(c.Public)
}

type versionCmd struct{}

func (versionCmd) Run(out io.Writer) error {
	_, err := fmt.Fprintln(out, "quicklime-collector", version)
	return err
}

func printJSON(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
