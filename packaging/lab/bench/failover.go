package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/packaging/lab/bucket"
	"github.com/quicklime-ir/quicklime/packaging/lab/world"
)

// What is measured of a node's death: so many cases run on three nodes, and
// who has owned one is not looked for longer than this after the death. A case
// is looked at so often.
const (
	failoverCases  = 24
	failoverLimit  = time.Minute
	failoverLook   = 20 * time.Millisecond
	failoverMemory = 16 << 20 // bytes of a host
)

// failover kills one of three nodes while it runs cases, and measures how long
// it takes until the others have begun again the steps that it was taking, and
// until one that is left writes again.
func failover(ctx context.Context, o Options) (err error) {
	dir, err := os.MkdirTemp("", "quicklime-failover-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	w, stop, err := threeNodes(ctx, o, dir)
	defer func() { err = errors.Join(err, stop()) }()
	if err != nil {
		return err
	}
	w.S3.Inject(bucket.Fault{Kind: bucket.SlowDown, Match: bucket.PartUpload, Times: 1 << 30}) // so that each case stays at its first capture
	for n := range failoverCases {
		if err := w.Find(world.Compromised(w.Host(n))); err != nil {
			return err
		}
	}
	before, err := allAtWork(ctx, w)
	if err != nil {
		return err
	}
	died := time.Now()
	if err := w.Node(0).Kill(); err != nil {
		return err
	}
	writes, again, err := o.watch(ctx, w.Node(1), before, died)
	if err != nil {
		return err
	}
	if len(again) == 0 {
		return fmt.Errorf("the node that was killed ran none of %d cases", failoverCases)
	}
	slices.Sort(again)
	return errors.Join(
		o.figure("failover_cases", float64(len(again)), "cases"),
		o.figure("failover_answers", writes.Seconds(), "s"),
		o.figure("failover_first", again[0], "s"),
		o.figure("failover_median", median(again), "s"),
		o.figure("failover_last", again[len(again)-1], "s"))
}

// threeNodes gives three nodes and an agent for each host.
func threeNodes(ctx context.Context, o Options, dir string) (w *world.World, stop func() error, err error) {
	var agents []*world.Agent
	stop = func() error {
		var all errgroup.Group
		for _, a := range agents { // each takes a while, as it tries to say how its capture ended
			all.Go(a.Stop)
		}
		err := all.Wait()
		if w != nil {
			err = errors.Join(err, w.Close())
		}
		return err
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return w, stop, err
	}
	if w, err = world.Start(ctx, world.Config{Dir: dir, Binaries: o.Binaries, Log: log, Hosts: failoverCases, Nodes: 3,
		Collector: []string{"--stall", "10m"}}); err != nil {
		return w, stop, err
	}
	for _, n := range w.Nodes()[1:] {
		if err := n.Join(ctx, w.Node(0)); err != nil {
			return w, stop, err
		}
	}
	image, root, err := world.MakeHost(dir, failoverMemory)
	for n := 0; n < failoverCases && err == nil; n++ {
		var a *world.Agent
		if a, err = w.StartAgent(w.Host(n), image, root); err == nil {
			agents = append(agents, a)
		}
	}
	return w, stop, err
}

// capturing is the step at which the cases stay.
const capturing = "volatile"

func tries(c casefile.Case) int {
	s, _ := c.StepNamed(capturing)
	return s.Tries
}

// allAtWork waits until each case is at its first capture, and gives how often
// that was begun.
func allAtWork(ctx context.Context, w *world.World) (map[string]int, error) {
	for limit := time.Now().Add(2 * time.Minute); ; {
		cases, err := w.Node(1).Cases(ctx)
		begun := map[string]int{}
		for _, c := range cases {
			if n := tries(c); n > 0 {
				begun[c.ID] = n
			}
		}
		if len(begun) == failoverCases {
			return begun, err
		}
		if time.Now().After(limit) {
			return nil, fmt.Errorf("%d of %d cases are at their first capture (%w)", len(begun), failoverCases, err)
		}
		if err := sleep(ctx, failoverLook); err != nil {
			return nil, err
		}
	}
}

// watch gives how long after the death the node answered, and when each case
// whose step was begun again was so, in seconds.
func (o Options) watch(ctx context.Context, n *world.Node, before map[string]int, died time.Time) (answers time.Duration, again []float64, err error) {
	for last := died; time.Since(last) < failoverLimit/2 && time.Since(died) < failoverLimit; {
		cases, err := n.Cases(ctx)
		if err == nil && answers == 0 {
			answers = time.Since(died)
		}
		for _, c := range cases {
			if known, ok := before[c.ID]; ok && tries(c) > known {
				last = time.Now()
				again = append(again, last.Sub(died).Seconds())
				delete(before, c.ID)
			}
		}
		if err := sleep(ctx, failoverLook); err != nil {
			return 0, nil, err
		}
	}
	return answers, again, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
