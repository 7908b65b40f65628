// Package swarm attaches thousands of agents to a real collector, cuts their
// connections all at once, and measures what that costs.
//
// An agent of the swarm is the real one's session with a certificate of its
// own; it captures nothing. A sample of them is in this process, is left
// attached in the storm, and gets orders of real cases meanwhile; the others
// are in a process that takes what the rest leaves it of the processors, as
// in the field each computes on a host of its own.
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
	calmEvery  = 250 * time.Millisecond // a finding for the next agent of the sample
	stormEvery = time.Second            // the same in the storm, all of which it is to last
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
	s := &swarm{o: o, w: w}
	if r.EmptyCPU, err = share(ctx, w.Node(0).Pid(), o.Settle); err != nil {
		return r, err
	}
	if r.EmptyRSS, err = rss(w.Node(0).Pid()); err != nil {
		return r, err
	}
	stop, err := s.start(ctx, dir)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	if err := s.measure(ctx, &r); err != nil {
		now, _ := s.status()
		return r, fmt.Errorf("%w; the agents say %q; the collector's log ends:\n%s", err, now.Said, w.LogTail())
	}
	return r, r.print(o.Out)
}

// swarm is a running one.
type swarm struct {
	o      Options
	w      *world.World
	sample *herd   // in this process
	rest   *remote // in one of its own
}

// start attaches all agents, until stop.
func (s *swarm) start(ctx context.Context, dir string) (stop func() error, err error) {
	specs := [2]Spec{{Collector: s.w.CollectorAddr()}, {Collector: s.w.CollectorAddr()}}
	for i := range s.o.Agents {
		m := Member{Instance: s.w.Host(i)}
		spec := &specs[min(i/s.o.Sample, 1)]
		if m.Pair, spec.Authority, err = s.w.AgentPair(m.Instance); err != nil {
			return nil, err
		}
		spec.Agents = append(spec.Agents, m)
	}
	if s.sample, err = newHerd(specs[0]); err != nil {
		return nil, err
	}
	if s.rest, err = startRemote(ctx, s.o.Binaries.Lab, dir, specs[1], s.o.Logs); err != nil {
		return nil, err
	}
	end := s.sample.start(ctx)
	return func() error { return errors.Join(end(), s.rest.close()) }, nil
}

// status is that of all agents.
func (s *swarm) status() (Status, error) {
	all, err := s.rest.status()
	if err != nil {
		return all, fmt.Errorf("cannot ask the agents' process: %w", err)
	}
	some := s.sample.status()
	all.Missing += some.Missing
	all.Shed += some.Shed
	all.Errors += some.Errors
	all.Said = append(all.Said, some.Said...)
	return all, nil
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
	if err := s.find(ctx, 0, half, calmEvery, ctx.Done()); err != nil {
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
	finder.Go(func() { found = s.find(ctx, from, s.o.Sample, stormEvery, over) })
	err := sleep(ctx, stormEvery/2) // for the first cases to order
	before, asked := s.status()
	cut := time.Now()
	var cutting error
	r.Cut, cutting = s.rest.cut()
	var failed error
	r.Storm, failed = s.await(ctx, cut)
	close(over)
	finder.Wait()
	if err := errors.Join(err, asked, cutting, failed, found); err != nil {
		return err
	}
	if r.Stormy, err = s.latencies(ctx, cut, cut.Add(r.Storm)); err != nil {
		return err
	}
	after, err := s.status()
	r.Shed, r.Errors, r.Said = after.Shed-before.Shed, after.Errors, after.Said
	return err
}

// await waits until all agents are attached, as the collector says too, and
// gives how long that took since a time.
func (s *swarm) await(ctx context.Context, since time.Time) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, attachWait)
	defer cancel()
	for {
		now, err := s.status()
		if err != nil {
			return 0, err
		}
		if now.Missing == 0 {
			took := time.Since(since)
			if all, err := s.present(ctx); all || err != nil {
				return took, err
			}
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return 0, fmt.Errorf("cannot attach all: %d of %d are not: %w", now.Missing, s.o.Agents, err)
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
	if present == s.o.Agents {
		return true, nil
	}
	return false, sleep(ctx, time.Second)
}

// find opens a case for each of some agents, one after the other, until stop.
func (s *swarm) find(ctx context.Context, from, to int, every time.Duration, stop <-chan struct{}) error {
	for i := from; i < to; i++ {
		if err := s.w.Find(world.Compromised(s.sample.agents[i].instance)); err != nil {
			return err
		}
		select {
		case <-time.After(every):
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
	s.sample.counts.mu.Lock()
	defer s.sample.counts.mu.Unlock()
	var out []time.Duration
	for _, got := range s.sample.counts.orders {
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
