// Command quicklime-lab is the lab: everything that Quicklime meets in the
// field, on loopback, with a real kernel, a real LiME module and a real S3
// server.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"github.com/quicklime-ir/quicklime/packaging/lab/bench"
	"github.com/quicklime-ir/quicklime/packaging/lab/bucket"
	"github.com/quicklime-ir/quicklime/packaging/lab/chaos"
	"github.com/quicklime-ir/quicklime/packaging/lab/crowd"
	"github.com/quicklime-ir/quicklime/packaging/lab/demo"
	"github.com/quicklime-ir/quicklime/packaging/lab/guest"
	"github.com/quicklime-ir/quicklime/packaging/lab/swarm"
	"github.com/quicklime-ir/quicklime/packaging/lab/wires"
	"github.com/quicklime-ir/quicklime/packaging/lab/world"
)

type cli struct {
	Demo    demoCmd    `cmd:"" help:"Run the main job, from a finding to a sealed case, and check it."`
	Bench   benchCmd   `cmd:"" help:"Measure a capture, a line for each figure: name value unit."`
	Swarm   swarmCmd   `cmd:"" help:"Attach thousands of agents to a collector, and measure, a line for each figure: name value unit."`
	Chaos   chaosCmd   `cmd:"" help:"Torment collectors while they work, and judge whether a case was lost or a step done twice."`
	Prepare prepareCmd `cmd:"" help:"Install and download what the lab needs, once."`
	Crowd   crowdCmd   `cmd:"" name:"crowd" help:"Make a busy host in this process's namespaces, and measure on it; bench starts it." hidden:""`
	Herd    herdCmd    `cmd:"" name:"herd" help:"Be the agents of a swarm; swarm starts it." hidden:""`
	Hold    holdCmd    `cmd:"" name:"hold" help:"Hold sockets for a busy host." hidden:""`
	S3      s3Cmd      `cmd:"" name:"s3" help:"Serve S3 in this process; the lab starts it by itself." hidden:""`
}

func main() { os.Exit(run()) }

// run gives the exit code: 0 for done, 1 for an error, 2 for a wrong call.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	var c cli
	parser := kong.Must(&c, kong.Name("quicklime-lab"), kong.Description("Runs Quicklime's main job on loopback."),
		kong.BindTo(ctx, (*context.Context)(nil)))
	call, err := parser.Parse(os.Args[1:])
	if err != nil {
		fmt.Fprintf(os.Stderr, "quicklime-lab: %v\nRun 'quicklime-lab --help' for what it can do.\n", err)
		return 2
	}
	if err := call.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "quicklime-lab:", err)
		return 1
	}
	return 0
}

type demoCmd struct {
	Bin    string `help:"Folder with what 'make build' has built." type:"path" default:"bin"`
	Memory string `help:"Memory source: ${enum}." enum:"auto,kcore,lime" default:"auto"`
	Keep   string `help:"Folder that keeps the bucket, the public key, the logs and the image." type:"path"`
}

func (c *demoCmd) Run(ctx context.Context) error {
	binaries, err := world.BinariesIn(c.Bin)
	if err != nil {
		return err
	}
	kit, err := prepare(ctx)
	if err != nil {
		return err
	}
	if err := demo.Run(ctx, demo.Options{Binaries: binaries, Kit: kit, Memory: c.Memory, Keep: c.Keep, Out: os.Stdout}); err != nil {
		return err
	}
	fmt.Println("every check held")
	return nil
}

type benchCmd struct {
	Bin    string   `help:"Folder with what 'make build' has built." type:"path" default:"bin"`
	Source string   `help:"The repository, whose benchmarks are run." type:"path" default:"."`
	Rounds int      `help:"Readings of /proc/kcore, of which the median counts." default:"5"`
	Part   []string `help:"What to measure: ${enum}; all of it by default." enum:"kcore,object,encode,live,walk,fleet,failover"`
}

// fleet is the part that needs no kernel: the swarm.
const fleet = "fleet"

func (c *benchCmd) Run(ctx context.Context) error {
	if c.Rounds < 1 {
		return fmt.Errorf("cannot take the median of %d rounds: want 1 or more", c.Rounds)
	}
	parts := c.Part
	if len(parts) == 0 {
		parts = append([]string{fleet}, bench.Parts...)
	}
	if i := slices.Index(parts, fleet); i >= 0 {
		if err := swarmDefaults(c.Bin).Run(ctx); err != nil {
			return err
		}
		if parts = slices.Delete(parts, i, i+1); len(parts) == 0 {
			return nil
		}
	}
	binaries, err := world.BinariesIn(c.Bin)
	if err != nil {
		return err
	}
	kit, err := prepare(ctx)
	if err != nil {
		return err
	}
	cache, err := guest.CacheDir()
	if err != nil {
		return err
	}
	return bench.Run(ctx, bench.Options{Binaries: binaries, Kit: kit, Cache: cache, Source: c.Source, Rounds: c.Rounds, Parts: parts,
		Out: os.Stdout, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
}

// settle is how long a collector is left alone before it counts as idle.
const settle = 10 * time.Second

type swarmCmd struct {
	Bin    string        `help:"Folder with what 'make build' has built." type:"path" default:"bin"`
	Agents int           `help:"How many agents." default:"10000"`
	Sample int           `help:"Of these: agents that get orders, half of them while the others come back." default:"200"`
	Idle   time.Duration `help:"How long the idle collector is watched." default:"30s"`
	Log    string        `help:"File for the collector's log." type:"path" default:"/dev/null"`
}

// swarmDefaults are what the flags' defaults say.
func swarmDefaults(bin string) *swarmCmd {
	return &swarmCmd{Bin: bin, Agents: 10_000, Sample: 200, Idle: 30 * time.Second, Log: os.DevNull}
}

func (c *swarmCmd) Run(ctx context.Context) (err error) {
	if c.Sample < 2 || c.Agents <= c.Sample {
		return fmt.Errorf("cannot make a swarm of %d agents with a sample of %d: want more agents than that, and a sample of 2 or more", c.Agents, c.Sample)
	}
	binaries, err := world.BinariesIn(c.Bin)
	if err != nil {
		return err
	}
	logs, err := os.Create(c.Log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, logs.Close()) }()
	debug.SetGCPercent(400) // what the agents cost is not measured, and takes the processors from what is
	_, err = swarm.Run(ctx, swarm.Options{Binaries: binaries, Agents: c.Agents, Sample: c.Sample, Settle: settle, Idle: c.Idle, Out: os.Stdout, Logs: logs})
	return err
}

type herdCmd struct {
	Spec   string `arg:"" type:"path"`
	Socket string `arg:"" type:"path"`
}

func (c *herdCmd) Run(ctx context.Context) error { return swarm.ServeHerd(ctx, c.Spec, c.Socket) }

type chaosCmd struct {
	Bin      string        `help:"Folder with what 'make build' has built." type:"path" default:"bin"`
	Duration time.Duration `help:"How long the torments last; the cases then have time to end." default:"1m"`
	Nodes    int           `help:"Nodes of the collector; several are in network namespaces, whose wires are cut, too, which takes root." default:"3"`
	Grow     bool          `help:"Begin with one node, let the others join while cases run, then kill the first for good."`
	Seed     uint64        `help:"What the torments are drawn from; 0 draws it."`
	Keep     string        `help:"Folder that keeps the bucket and the logs." type:"path"`
	Inside   bool          `help:"This process is in namespaces of its own." hidden:""`
}

func (c *chaosCmd) Run(ctx context.Context) error {
	binaries, err := world.BinariesIn(c.Bin)
	if err != nil {
		return err
	}
	if c.Seed == 0 {
		c.Seed = rand.Uint64()
	}
	if c.Nodes > 1 && !c.Inside {
		return inside(ctx, append(os.Args[1:], "--inside", "--seed", strconv.FormatUint(c.Seed, 10))...)
	}
	verdict, err := chaos.Run(ctx, chaos.Options{Binaries: binaries, Duration: c.Duration, Nodes: c.Nodes, Grow: c.Grow, Seed: c.Seed, Keep: c.Keep, Out: os.Stdout})
	if err != nil {
		return err
	}
	if err := verdict.WriteText(os.Stdout); err != nil {
		return err
	}
	if !verdict.OK() {
		return errors.New("the collectors did not stand it")
	}
	return nil
}

// inside runs this program again in namespaces of its own.
func inside(ctx context.Context, args ...string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	runtime.LockOSThread() // the child ends with its thread
	defer runtime.UnlockOSThread()
	cmd := wires.Command(ctx, self, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}

type crowdCmd struct {
	Processes, Sockets, Files int    `arg:""`
	Agent                     string `arg:"" type:"path"`
}

func (c *crowdCmd) Run(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return crowd.Run(ctx, self, bench.HoldVerb, crowd.Size{Processes: c.Processes, Sockets: c.Sockets, Files: c.Files},
		func(ctx context.Context) error { return bench.AmongCrowd(ctx, c.Agent, os.Stdout) })
}

type holdCmd struct {
	Sockets int `arg:""`
}

func (c *holdCmd) Run(ctx context.Context) error { return crowd.Hold(ctx, c.Sockets) }

type prepareCmd struct{}

func (prepareCmd) Run(ctx context.Context) error {
	_, err := prepare(ctx)
	return err
}

// prepare brings the Debian packages and the kernel's kit to this host.
func prepare(ctx context.Context) (*guest.Kit, error) {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := guest.Install(ctx, log); err != nil {
		return nil, err
	}
	dir, err := guest.CacheDir()
	if err != nil {
		return nil, err
	}
	return guest.Prepare(ctx, dir, log)
}

// s3Cmd takes its keys from the environment, where other users cannot read
// them.
type s3Cmd struct {
	Root   string `required:""`
	Addr   string `required:""`
	Region string `required:""`
}

func (c *s3Cmd) Run(ctx context.Context) error {
	return bucket.Serve(ctx, bucket.Config{Root: c.Root, Addr: c.Addr, Region: c.Region,
		AccessKey: os.Getenv("AWS_ACCESS_KEY_ID"), SecretKey: os.Getenv("AWS_SECRET_ACCESS_KEY")})
}
