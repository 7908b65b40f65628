// Package swarm attaches thousands of agents to a real collector, cuts their
// connections all at once, and measures what that costs.
//
// An agent of the swarm is the real one's session with a certificate of its
// own; it captures nothing. All are in this process, and the collector is one
// of its own. A sample of the agents is left attached in the storm and gets
// orders of real cases meanwhile.
package swarm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/quicklime-ir/quicklime/packaging/lab/world"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// Options say what to measure.
type Options struct {
	Binaries world.Binaries
	Agents   int
	Sample   int           // of these: agents that get orders, half of them before the storm
	Settle   time.Duration // how long the collector is left alone before it is watched
	Idle     time.Duration // how long the idle collector is watched
	Out      io.Writer     // gets the figures
	Logs     io.Writer     // gets the collector's log
}

const (
	startRate  = 400                    // agents a second begin to attach: hosts do not boot all at once
	caseEvery  = 250 * time.Millisecond // a finding for the next agent of the sample
	attachWait = 8 * time.Minute        // for all to be attached
)

// Result is what was seen.
type Result struct {
	Attached      int
	Attach, Storm time.Duration // until all were attached, at first and after the cut
	Cut           time.Duration // how long it took to cut all but the sample
	EmptyRSS, RSS uint64        // of the collector without agents, and with all of them idle
	EmptyCPU      float64       // processors that it takes without agents
	IdleCPU       float64       // and with all of them idle
	Shed          int           // tries that were sent away in the storm
	Errors        int           // connections that ended otherwise, in all
	Said          []string      // the first of these
	Calm, Stormy  []time.Duration
}

// Run measures, and prints a line for each figure: name value unit.
func Run(ctx context.Context, o Options) (r Result, err error) {
	dir, err := os.MkdirTemp("", "quicklime-swarm-")
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	w, err := world.Start(ctx, world.Config{Dir: dir, Binaries: o.Binaries, Log: o.Logs, Hosts: o.Sample})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	s := &swarm{o: o, w: w, counts: &counts{}}
	if r.EmptyCPU, err = share(ctx, w.Node(0).Pid(), o.Settle); err != nil {
		return r, err
	}
	if r.EmptyRSS, err = rss(w.Node(0).Pid()); err != nil {
		return r, err
	}
	if s.agents, err = newAgents(ctx, s); err != nil {
		return r, err
	}
	stop := s.start(ctx)
	defer func() { err = errors.Join(err, stop()) }()
	if err := s.measure(ctx, &r); err != nil {
		_, _, said := s.counts.seen()
		return r, fmt.Errorf("%w; the agents say %q; the collector's log ends:\n%s", err, said, w.LogTail())
	}
	return r, r.print(o.Out)
}

// swarm is a running one.
type swarm struct {
	o       Options
	w       *world.World
	counts  *counts
	agents  []*agent
	cutting sync.RWMutex // held while connections are cut, and for reading by who dials
}

// start runs all agents, which begin one after the other, until stop.
func (s *swarm) start(ctx context.Context) (stop func() error) {
	ctx, cancel := context.WithCancel(ctx)
	var group errgroup.Group
	for i, a := range s.agents {
		group.Go(func() error {
			if err := sleep(ctx, time.Duration(i)*time.Second/startRate); err != nil {
				return err
			}
			return a.run(ctx)
		})
	}
	return func() error {
		cancel()
		if err := group.Wait(); !errors.Is(err, context.Canceled) {
			return err
		}
		return nil
	}
}

func (s *swarm) measure(ctx context.Context, r *Result) (err error) {
	if r.Attach, err = s.await(ctx, time.Now()); err != nil {
		return err
	}
	r.Attached = s.o.Agents
	if err := sleep(ctx, s.o.Settle); err != nil {
		return err
	}
	if r.IdleCPU, err = share(ctx, s.w.Node(0).Pid(), s.o.Idle); err != nil {
		return err
	}
	if r.RSS, err = rss(s.w.Node(0).Pid()); err != nil {
		return err
	}
	half := s.o.Sample / 2
	if err := s.find(ctx, 0, half, ctx.Done()); err != nil {
		return err
	}
	if r.Calm, err = s.latencies(ctx, time.Time{}, time.Now().Add(time.Hour)); err != nil {
		return err
	}
	return s.storm(ctx, half, r)
}

// storm cuts all agents but the sample, and orders captures from that while
// the others come back.
func (s *swarm) storm(ctx context.Context, from int, r *Result) error {
	over := make(chan struct{})
	var found error
	var finder sync.WaitGroup
	finder.Go(func() { found = s.find(ctx, from, s.o.Sample, over) })
	err := sleep(ctx, 2*caseEvery) // for the first cases to order
	before, _, _ := s.counts.seen()
	s.cutting.Lock() // else those who are cut first would dial before the last is cut
	cut := time.Now()
	for _, a := range s.agents[s.o.Sample:] {
		a.cut()
	}
	r.Cut = time.Since(cut)
	s.cutting.Unlock()
	var failed error
	r.Storm, failed = s.await(ctx, cut)
	close(over)
	finder.Wait()
	if err := errors.Join(err, failed, found); err != nil {
		return err
	}
	if r.Stormy, err = s.latencies(ctx, cut, cut.Add(r.Storm)); err != nil {
		return err
	}
	r.Shed, r.Errors, r.Said = s.counts.seen()
	r.Shed -= before
	return nil
}

// await waits until all agents are attached, as the collector says too, and
// gives how long that took since a time.
func (s *swarm) await(ctx context.Context, since time.Time) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, attachWait)
	defer cancel()
	for {
		missing := 0
		for _, a := range s.agents {
			if !a.isAttached() {
				missing++
			}
		}
		if missing == 0 {
			took := time.Since(since)
			if all, err := s.present(ctx); all || err != nil {
				return took, err
			}
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return 0, fmt.Errorf("cannot attach all: %d of %d are not: %w", missing, len(s.agents), err)
		}
	}
}

// present asks the collector whether all are there. To list them is work for
// it, so it is not asked often.
func (s *swarm) present(ctx context.Context) (bool, error) {
	listed, err := s.w.Agents(ctx)
	if err != nil {
		return false, err
	}
	present := 0
	for _, a := range listed {
		if a.GetPresent() {
			present++
		}
	}
	if present == len(s.agents) {
		return true, nil
	}
	return false, sleep(ctx, time.Second)
}

// find opens a case for each of some agents, one after the other, until stop.
func (s *swarm) find(ctx context.Context, from, to int, stop <-chan struct{}) error {
	for i := from; i < to; i++ {
		if err := s.w.Find(world.Compromised(s.agents[i].instance)); err != nil {
			return err
		}
		select {
		case <-time.After(caseEvery):
		case <-stop:
			return ctx.Err()
		}
	}
	return nil
}

// latencies gives how long orders took whose steps began between two times:
// from the step's beginning, as the case tells it, to the agent's having the
// order, the shortest first. It waits until every case has ordered all. A
// storm of few agents may be over before a step begins.
func (s *swarm) latencies(ctx context.Context, from, to time.Time) ([]time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	began := map[order]time.Time{}
	for ordered := false; !ordered; {
		cases, err := s.w.Cases(ctx)
		if err != nil {
			return nil, err
		}
		ordered = len(cases) > 0
		for _, c := range cases {
			for _, step := range c.Steps {
				if step.Name == string(evidence.Live) {
					ordered = ordered && !step.Ended.IsZero()
				}
				began[order{caseID: c.ID, kind: evidence.Kind(step.Name)}] = step.Started
			}
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return nil, fmt.Errorf("cannot see %d cases through: %w", len(cases), err)
		}
	}
	s.counts.mu.Lock()
	defer s.counts.mu.Unlock()
	var out []time.Duration
	for _, got := range s.counts.orders {
		at := began[order{caseID: got.caseID, kind: got.kind}]
		if at.IsZero() || at.Before(from) || at.After(to) {
			continue
		}
		out = append(out, got.received.Sub(at))
	}
	slices.Sort(out)
	return out, nil
}

// quantile gives one of sorted values, 0 of none.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

func (r Result) print(out io.Writer) error {
	const mib = 1 << 20
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	for _, f := range []struct {
		name  string
		value float64
		unit  string
	}{
		{"fleet_agents", float64(r.Attached), "agents"},
		{"fleet_attach_all", r.Attach.Seconds(), "s"},
		{"fleet_collector_rss_empty", float64(r.EmptyRSS) / mib, "MiB"},
		{"fleet_collector_rss", float64(r.RSS) / mib, "MiB"},
		{"fleet_rss_per_agent", float64(int64(r.RSS)-int64(r.EmptyRSS)) / 1024 / float64(r.Attached), "KiB"},
		{"fleet_idle_cpu_empty", 100 * r.EmptyCPU, "percent_of_one_core"},
		{"fleet_idle_cpu", 100 * r.IdleCPU, "percent_of_one_core"},
		{"fleet_storm_cut", r.Cut.Seconds(), "s"},
		{"fleet_storm_settled", r.Storm.Seconds(), "s"},
		{"fleet_storm_sent_away", float64(r.Shed), "tries"},
		{"fleet_errors", float64(r.Errors), "connections"},
		{"fleet_order_calm_orders", float64(len(r.Calm)), "orders"},
		{"fleet_order_calm_p50", ms(quantile(r.Calm, 0.50)), "ms"},
		{"fleet_order_calm_p99", ms(quantile(r.Calm, 0.99)), "ms"},
		{"fleet_order_storm_orders", float64(len(r.Stormy)), "orders"},
		{"fleet_order_storm_p50", ms(quantile(r.Stormy, 0.50)), "ms"},
		{"fleet_order_storm_p99", ms(quantile(r.Stormy, 0.99)), "ms"},
	} {
		if _, err := fmt.Fprintf(out, "%s %.3f %s\n", f.name, f.value, f.unit); err != nil {
			return err
		}
	}
	for _, why := range r.Said {
		if _, err := fmt.Fprintf(out, "# error: %s\n", why); err != nil {
			return err
		}
	}
	return nil
}
