package main

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/quicklime-ir/quicklime/collector/docket"
	"github.com/quicklime-ir/quicklime/collector/playbook"
	"github.com/quicklime-ir/quicklime/collector/steps"
	"github.com/quicklime-ir/quicklime/collector/store/etcd"
)

// BenchmarkCases runs 500 cases of one account and region from finding to end,
// whose steps do nothing, with the state in one etcd member on the disk:
// cases/min is what queue, ownership, journal and state bear by themselves.
func BenchmarkCases(b *testing.B) {
	const instances = 500
	for b.Loop() {
		state, err := etcd.Open(b.Context(), etcd.Config{Dir: b.TempDir(), Name: "n", Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			b.Fatal(err)
		}
		story := (&steps.Story{}).Steps()
		for i := range story {
			story[i].Do = func(context.Context, *playbook.Run) error { return nil }
		}
		cases := docket.New(docket.Config{Store: state, Node: "n", Bucket: noBucket{}, Threshold: 7, Steps: steps.Names(story),
			Log: slog.New(slog.DiscardHandler), Now: time.Now})
		for n := range instances {
			if err := cases.Take(b.Context(), []byte(findingEvent(n, instanceNumber(n)))); err != nil {
				b.Fatal(err)
			}
		}
		from := time.Now()
		runAll(b, cases, story)
		b.ReportMetric(instances/time.Since(from).Minutes(), "cases/min")
		if err := state.Close(); err != nil {
			b.Error(err)
		}
	}
}

// runAll runs the cases until none is left in the queue.
func runAll(b *testing.B, cases *docket.Docket, story []playbook.Step) {
	ctx, cancel := context.WithCancel(b.Context())
	runner := &playbook.Runner{Docket: cases, Steps: story, Caps: playbook.DefaultCaps, Log: slog.New(slog.DiscardHandler)}
	ended := make(chan error, 2)
	go func() { ended <- cases.Run(ctx) }()
	go func() { ended <- runner.Run(ctx) }()
	for {
		places, err := cases.Queue(ctx)
		if err != nil {
			b.Fatal(fmt.Errorf("cannot read the queue: %w", err))
		}
		if len(places) == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	<-ended
	<-ended
}
