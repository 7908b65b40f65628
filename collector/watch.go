package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quicklime-ir/quicklime/collector/backup"
	"github.com/quicklime-ir/quicklime/collector/docket"
	"github.com/quicklime-ir/quicklime/collector/fleet"
	"github.com/quicklime-ir/quicklime/collector/gate"
	"github.com/quicklime-ir/quicklime/collector/health"
	"github.com/quicklime-ir/quicklime/collector/intake"
	"github.com/quicklime-ir/quicklime/collector/ledger"
	"github.com/quicklime-ir/quicklime/collector/locker"
	"github.com/quicklime-ir/quicklime/collector/metrics"
	"github.com/quicklime-ir/quicklime/collector/store/etcd"
)

// pollPatience is for a queue that is polled again and again: a long poll has
// 20 s, and after failures the queue is left alone for a minute.
const pollPatience = 3 * time.Minute

// watched is the parts of a collector that are looked at; queue is nil where
// there is none.
type watched struct {
	store  *etcd.Store
	bucket *locker.Locker
	queue  *intake.Queue
	docket *docket.Docket
	fleet  *fleet.Fleet
	gate   *gate.Gate
	ledger *ledger.Ledger
	backup *backup.Backup
	agents net.Addr // of their listener
}

// checks are what the collector needs to work.
func (w watched) checks(every time.Duration) []health.Check {
	checks := []health.Check{
		{Name: "store", Every: every, Run: w.storeHolds},
		{Name: "bucket", Every: every, Run: w.bucket.Reachable},
		{Name: "agents", Every: every, Run: health.Accepting(w.agents.String())},
	}
	if w.queue != nil {
		const remedy = "allow the collector's role sqs:ReceiveMessage, and see the log, --queue and the route to SQS"
		polled := func() time.Time { return w.queue.Stats().Polled }
		checks = append(checks, health.Check{Name: "queue", Every: every, Run: health.Recent("the queue of findings was not polled", remedy, polled, pollPatience)})
	}
	return checks
}

// storeHolds says whether the store takes writes; a store that has failed for
// good needs somebody.
func (w watched) storeHolds(ctx context.Context) error {
	err := w.store.Health(ctx)
	if err == nil {
		return nil
	}
	select {
	case <-w.store.Failed():
		return health.Final{Err: err}
	default:
	}
	if ctx.Err() != nil {
		return fmt.Errorf("its disk is overloaded, or the majority of its members is not there: %w", err)
	}
	return err
}

// sources are where the numbers come from.
func (w watched) sources(checks *health.Monitor) metrics.Sources {
	s := metrics.Sources{
		Cases: w.docket.Counts, Unsent: w.docket.Unsent, Checks: checks.Holds,
		Fleet: func() metrics.Fleet {
			return metrics.Fleet{Attached: w.fleet.Attached(), Shed: int64(w.gate.Stats().Shed())}
		},
		Ledger: func() metrics.Ledger {
			now := w.ledger.Stats()
			return metrics.Ledger{GrantedParts: now.GrantedParts, GrantedBytes: now.GrantedBytes, StoredBytes: now.StoredBytes}
		},
		Store: func(ctx context.Context) (metrics.Store, error) {
			now, err := w.store.Status(ctx)
			return metrics.Store{Revision: now.Revision, Bytes: now.Bytes, Used: now.Used, Quota: now.Quota,
				HasLeader: now.HasLeader, Leads: now.Leads, Full: now.Full, Differs: now.Differs, Snapshot: w.backup.Last().Time}, err
		},
	}
	if w.queue != nil {
		s.Intake = func() metrics.Intake {
			now := w.queue.Stats()
			return metrics.Intake{Polled: now.Polled, Age: now.Oldest,
				Received: now.Received, Taken: now.Taken, Malformed: now.Malformed, Buried: now.Buried, Failed: now.Failed}
		}
	}
	return s
}

// watch serves what is known of the collector's health.
type watch struct {
	front   *front // nil: nobody asks
	monitor *health.Monitor
	metrics *metrics.Metrics
	log     *slog.Logger
}

// watch makes the watch over a service, whose cases have these steps.
func (c *serveCmd) watch(s *service, front *front, bucket *locker.Locker, book *ledger.Ledger, steps []string) (*watch, error) {
	if c.HealthEvery < time.Second {
		return nil, fmt.Errorf("cannot look every %v whether all is there: want 1s or more", c.HealthEvery)
	}
	over := watched{store: s.store, bucket: bucket, queue: s.queue, docket: s.docket, fleet: s.fleet, gate: s.gate, ledger: book, backup: s.backup, agents: s.listener.Addr()}
	w := &watch{front: front, monitor: health.New(s.log, over.checks(c.HealthEvery)...), log: s.log}
	w.metrics = metrics.New(version, steps, over.sources(w.monitor))
	return w, nil
}

// begin watches until it is stopped, which is after the collector's parts have
// ended: while they do, from ctx's end on, it is not ready.
func (w *watch) begin(ctx context.Context) (stop func()) {
	if w.front == nil {
		return func() {}
	}
	outlives, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var watching sync.WaitGroup
	watching.Go(func() { w.monitor.Run(outlives) })
	w.front.show(health.Handler(w.monitor, w.metrics.Handler(w.log)))
	forget := context.AfterFunc(ctx, w.monitor.Stopping)
	return func() {
		forget()
		cancel()
		watching.Wait()
	}
}

// front answers who asks for the collector's health, from the beginning on: its
// store may not be there for long, and that has to be seen.
type front struct {
	shows atomic.Pointer[http.Handler]
	stop  func()
}

// front opens it; nil where nobody is to ask.
func (c *serveCmd) front(log *slog.Logger) (*front, error) {
	if c.HealthListen == "" {
		return nil, nil
	}
	listener, err := health.Listen(c.HealthListen)
	if err != nil {
		return nil, err
	}
	f := &front{}
	f.show(health.Handler(health.New(log, health.Check{Name: "store",
		Before: "it is not open yet: a node that is one of several waits for the majority of them; see the log, and start the others"}), nil))
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := health.Serve(ctx, listener, f, log); err != nil {
			log.Error("nobody can see the collector's health any more; its work goes on", "error", err)
		}
	})
	f.stop = func() { cancel(); serving.Wait() }
	return f, nil
}

func (f *front) show(h http.Handler) { f.shows.Store(&h) }

// ServeHTTP answers as whoever knows most does.
func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) { (*f.shows.Load()).ServeHTTP(w, r) }

func (f *front) close() {
	if f != nil {
		f.stop()
	}
}
