package intake

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
)

func TestOldest(t *testing.T) {
	now := time.UnixMilli(1_700_000_060_500)
	for _, c := range []struct {
		about string
		sent  []string
		want  time.Duration
	}{
		{"an empty queue", nil, 0},
		{"one message", []string{"1700000000000"}, 60500 * time.Millisecond},
		{"the oldest counts", []string{"1700000050000", "1700000030000", "1700000060000"}, 30500 * time.Millisecond},
		{"SQS is ahead of us", []string{"1700000070000"}, 0},
		{"no time is given", []string{"", "x", "-1"}, 0},
	} {
		var messages []types.Message
		for _, s := range c.sent {
			messages = append(messages, types.Message{Attributes: map[string]string{"SentTimestamp": s}})
		}
		if got := oldest(messages, now); got != c.want {
			t.Errorf("%s: %v, want %v", c.about, got, c.want)
		}
	}
}

// TestTheAgeOfAQueue that was left for an hour is seen, and forgotten once it
// is empty.
func TestTheAgeOfAQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api, taker := &fakeQueue{}, &fakeTaker{}
		api.put("old")
		time.Sleep(time.Hour)
		if stats, _ := run(t, api, taker, time.Second); stats.Oldest != time.Hour {
			t.Errorf("the oldest message is %v old, want 1h", stats.Oldest)
		}
		if stats, _ := run(t, api, taker, time.Minute); stats.Oldest != 0 || stats.Polled.IsZero() {
			t.Errorf("an empty queue: %+v", stats)
		}
	})
}
