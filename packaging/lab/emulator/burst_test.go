package emulator_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/quicklime-ir/quicklime/collector/docket"
	"github.com/quicklime-ir/quicklime/collector/intake"
	"github.com/quicklime-ir/quicklime/collector/locker"
	"github.com/quicklime-ir/quicklime/collector/store"
	"github.com/quicklime-ir/quicklime/packaging/lab/emulator"
)

// noBucket takes every journal entry.
type noBucket struct{}

func (noBucket) Put(context.Context, string, []byte) (locker.Object, error) {
	return locker.Object{}, nil
}

// burstEvent is the nth finding of a burst on so many instances.
func burstEvent(n, instances int) string {
	return fmt.Sprintf(`{"version":"0","id":"6f1c1e0a-5a0c-4b35-9d0e-%012d","detail-type":"GuardDuty Finding","source":"aws.guardduty","account":"111122223333",`+
		`"time":"2026-11-20T09:41:07Z","region":"eu-central-1","resources":[],"detail":{"accountId":"111122223333","region":"eu-central-1","id":"finding-%d",`+
		`"type":"Type:EC2/%d","severity":8,"title":"t","resource":{"resourceType":"Instance","instanceDetails":{"instanceId":"i-%017x"}},"service":{"count":1}}}`,
		n, n, n/instances, n%instances)
}

// burst sends findings, and has the collector's own intake and docket take
// them until the queue is empty.
func burst(t *testing.T, l *lab, findings, instances int) (*docket.Docket, intake.Stats) {
	t.Helper()
	for n := range findings {
		if err := l.SendRaw(burstEvent(n, instances)); err != nil {
			t.Fatal(err)
		}
	}
	cases := docket.New(docket.Config{Store: store.Memory(), Node: "n", Bucket: noBucket{}, Threshold: 7, Steps: []string{"contain"}, RecordSteps: []string{"notify"},
		Log: slog.New(slog.DiscardHandler), Now: time.Now})
	cfg := l.cfg.Copy()
	cfg.RetryMaxAttempts = 1000 // so that no fault lasts until the message shows again
	atOnce := retry.BackoffDelayerFunc(func(int, error) (time.Duration, error) { return 0, nil })
	cfg.Retryer = func() aws.Retryer {
		return retry.NewStandard(func(o *retry.StandardOptions) { o.Backoff, o.RateLimiter = atOnce, ratelimit.None })
	}
	queue, err := intake.New(sqs.NewFromConfig(cfg), intake.Config{Queue: l.QueueURL()}, cases, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	from := time.Now()
	go func() { ended <- queue.Run(ctx) }()
	for s := l.State().Queue; s.Visible+s.InFlight > 0 && time.Since(from) < time.Minute; s = l.State().Queue {
		time.Sleep(20 * time.Millisecond)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	return cases, queue.Stats()
}

// TestTheCollectorTakesABurst of findings, from a queue that throttles, loses
// answers and is away: nothing is lost, and nothing is there twice.
func TestTheCollectorTakesABurst(t *testing.T) {
	const findings, instances = 500, 50
	l := start(t, func(c *emulator.Config) { c.MaxReceives, c.Log = 100, nil })
	for n := range 100 {
		action := []string{"ReceiveMessage", "DeleteMessage"}[n%2]
		kind := []emulator.FaultKind{emulator.Throttle, emulator.Unavailable, emulator.LostReply}[n%3]
		if action == "ReceiveMessage" && kind == emulator.LostReply {
			continue // its messages would show again after a minute, in which this test does not wait
		}
		l.Inject(emulator.Fault{Service: "sqs", Action: action, Kind: kind})
	}
	cases, stats := burst(t, l, findings, instances)
	all, err := cases.List(t.Context())
	if err != nil || len(all) != instances {
		t.Fatalf("%d cases, %v; want %d", len(all), err, instances)
	}
	for _, c := range all {
		slices.Sort(c.Seen)
		if len(c.Findings) != findings/instances || len(slices.Compact(c.Seen)) != findings/instances || c.Journal.Entries != findings/instances {
			t.Errorf("case %s has %d findings, %d events, %d entries of its journal; want %d of each", c.ID, len(c.Findings), len(c.Seen), c.Journal.Entries, findings/instances)
		}
	}
	if q := l.State().Queue; len(q.DeadLetters)+q.Visible+q.InFlight != 0 || stats.Malformed+stats.Failed != 0 {
		t.Errorf("%+v; %+v", q, stats)
	}
}
