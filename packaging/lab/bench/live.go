package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/quicklime-ir/quicklime/packaging/lab/crowd"
)

// CrowdVerb and HoldVerb are the hidden commands of the lab that make a crowd.
const (
	CrowdVerb = "crowd"
	HoldVerb  = "hold"
)

// busy is the host that live response is measured on.
var busy = crowd.Size{Processes: 10_000, Sockets: 100_000, Files: 1_000_000}

// liveRounds is how often each way is run; the median counts.
const liveRounds = 3

// way is one way to get the evidence.
type way struct {
	name string
	argv []string // its output is read and dropped
}

// cost is what a way took.
type cost struct {
	Name   string
	Wall   time.Duration
	RSSMiB float64 // of the largest process
}

// live measures live response on a busy host.
func live(ctx context.Context, o Options) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := crowd.Command(ctx, self, CrowdVerb, busy, o.Binaries.Agent)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("cannot make a busy host: %w; it takes root", err)
	}
	var costs []cost
	err = json.NewDecoder(out).Decode(&costs)
	if err := errors.Join(err, cmd.Wait()); err != nil {
		return fmt.Errorf("cannot measure on a busy host: %w", err)
	}
	return o.compare(costs)
}

// compare prints each way's figures, and the ratios.
func (o Options) compare(costs []cost) error {
	by := map[string]cost{}
	for _, c := range costs {
		by[c.Name] = c
		if err := errors.Join(o.figure("live_"+c.Name, c.Wall.Seconds(), "s"), o.figure("live_"+c.Name+"_rss", c.RSSMiB, "MiB")); err != nil {
			return err
		}
	}
	seconds := func(names ...string) (sum float64) {
		for _, name := range names {
			sum += by[name].Wall.Seconds()
		}
		return sum
	}
	return errors.Join(
		o.figure("live_volatile_vs_lsof", seconds("lsof")/seconds("volatile"), "x"),
		o.figure("live_volatile_vs_ps_ss_lsof", seconds("ps", "ss", "lsof")/seconds("volatile"), "x"))
}

// AmongCrowd runs each way and writes what it cost to out, as JSON. It is
// called within the crowd.
func AmongCrowd(ctx context.Context, agent string, out io.Writer) error {
	dir, err := os.MkdirTemp("/dev/shm", "crowd-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var costs []cost
	for _, w := range []way{
		{"ps", []string{"ps", "auxe"}},
		{"ss", []string{"ss", "-tanp"}},
		{"lsof", []string{"lsof", "-n"}},
		{"volatile", []string{agent, "capture", "--kind", "volatile", "--to"}},
	} {
		var walls []float64
		c := cost{Name: w.name}
		for n := range liveRounds {
			argv := w.argv
			if w.name == "volatile" {
				argv = append(argv[:len(argv):len(argv)], filepath.Join(dir, fmt.Sprint(n)))
			}
			wall, rss, err := timed(ctx, argv)
			if err != nil {
				return err
			}
			walls, c.RSSMiB = append(walls, wall.Seconds()), max(c.RSSMiB, rss)
		}
		c.Wall = time.Duration(median(walls) * float64(time.Second))
		costs = append(costs, c)
	}
	return json.NewEncoder(out).Encode(costs)
}

// timed runs a program whose output goes nowhere.
func timed(ctx context.Context, argv []string) (wall time.Duration, rssMiB float64, err error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	began := time.Now()
	err = cmd.Run()
	wall = time.Since(began)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 {
		err = nil // lsof's, where some process could not be read
	}
	if err != nil {
		return 0, 0, fmt.Errorf("cannot run %v: %w", argv, err)
	}
	return wall, float64(cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss) / 1024, nil
}
