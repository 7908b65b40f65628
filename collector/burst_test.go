package main

import (
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/quicklime-ir/quicklime/collector/docket"
	"github.com/quicklime-ir/quicklime/collector/store/etcd"
)

// BenchmarkBurst takes 10,000 findings on 1,000 instances by 32 hands, as the
// intake has, into one etcd member on the disk: findings/s is from the event's
// bytes to the durable case.
func BenchmarkBurst(b *testing.B) {
	const findings, instances, hands = 10_000, 1000, 32
	for b.Loop() {
		state, err := etcd.Open(b.Context(), etcd.Config{Dir: b.TempDir(), Name: "n", Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			b.Fatal(err)
		}
		cases := docket.New(docket.Config{Store: state, Node: "n", Bucket: noBucket{}, Threshold: 7, Steps: []string{"contain"},
			RecordSteps: []string{"notify"}, Log: slog.New(slog.DiscardHandler), Now: time.Now})
		next := make(chan int)
		from := time.Now()
		var all sync.WaitGroup
		for range hands {
			all.Go(func() {
				for n := range next {
					if err := cases.Take(b.Context(), []byte(findingEvent(n, instanceNumber(n%instances)))); err != nil {
						b.Error(err)
					}
				}
			})
		}
		for n := range findings {
			next <- n
		}
		close(next)
		all.Wait()
		b.ReportMetric(findings/time.Since(from).Seconds(), "findings/s")
		if list, err := cases.List(b.Context()); err != nil || len(list) != instances {
			b.Errorf("%d cases, %v", len(list), err)
		}
		if err := state.Close(); err != nil {
			b.Error(err)
		}
	}
}
