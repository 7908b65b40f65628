package metrics

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/quicklime-ir/quicklime/collector/casefile"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// every is sources of everything.
var every = Sources{
	Intake: func() Intake {
		return Intake{Polled: time.Unix(1700000000, 500e6), Age: 90 * time.Second, Received: 12, Taken: 8, Malformed: 3, Buried: 2, Failed: 1}
	},
	Cases: func(context.Context) (map[string]int, error) {
		return map[string]int{"waiting": 0, "running": 5, "closed": 2, "lost": 1}, nil
	},
	Unsent: func(context.Context) (int, error) { return 4, nil },
	Fleet:  func() Fleet { return Fleet{Attached: 100, Shed: 7} },
	Ledger: func() Ledger { return Ledger{GrantedParts: 3, GrantedBytes: 48 << 20, StoredBytes: 32 << 20} },
	Store: func(context.Context) (Store, error) {
		return Store{Revision: 77, Bytes: 4096, Used: 1024, Quota: 8 << 30, HasLeader: true, Full: true, Snapshot: time.Unix(1700000100, 0)}, nil
	},
	Checks: func() map[string]bool { return map[string]bool{"store": true, "bucket": false} },
}

func TestSources(t *testing.T) {
	want, err := os.ReadFile("testdata/sources.txt")
	if err != nil {
		t.Fatal(err)
	}
	if err := testutil.CollectAndCompare(every, strings.NewReader(string(want))); err != nil {
		t.Error(err)
	}
}

// TestSourcesThatFail are told, and hide no other.
func TestSourcesThatFail(t *testing.T) {
	s := Sources{
		Cases: func(ctx context.Context) (map[string]int, error) {
			if _, ok := ctx.Deadline(); !ok {
				t.Error("asked without a deadline")
			}
			return nil, errors.New("the store gives no answer")
		},
		Unsent: func(context.Context) (int, error) { return 4, nil },
	}
	if err := testutil.CollectAndCompare(s, strings.NewReader(`
# HELP quicklime_journal_unsent_entries Journal entries that are durable in the store, and not in the bucket yet.
# TYPE quicklime_journal_unsent_entries gauge
quicklime_journal_unsent_entries 4
# HELP quicklime_source_up 1 if this part's numbers could be read at this scrape.
# TYPE quicklime_source_up gauge
quicklime_source_up{source="cases"} 0
quicklime_source_up{source="journal"} 1
`)); err != nil {
		t.Error(err)
	}
}

// TestNoAgeBeforeTheFirstPoll: an unknown age is not the age 0.
func TestNoAgeBeforeTheFirstPoll(t *testing.T) {
	s := Sources{Intake: func() Intake { return Intake{} }}
	if n := testutil.CollectAndCount(s, "quicklime_queue_age_seconds", "quicklime_queue_polled_timestamp_seconds"); n != 0 {
		t.Errorf("%d ages and times of a queue that was not polled", n)
	}
}

func TestSteps(t *testing.T) {
	m := New("1.0", []string{"memory", "contain"}, Sources{})
	m.StepBegan("memory")
	m.StepBegan("memory")
	m.StepBegan("contain")
	m.StepEnded("memory", casefile.Done, 40*time.Second)
	m.StepEnded("contain", casefile.Failed, 2*time.Second)
	m.StepBegan("contain")
	m.StepEnded("contain", "", time.Second) // the collector stops
	if got := testutil.ToFloat64(m.running.WithLabelValues("memory")); got != 1 {
		t.Errorf("%v steps of memory are under way, want 1", got)
	}
	if got := testutil.ToFloat64(m.running.WithLabelValues("contain")); got != 0 {
		t.Errorf("%v steps of contain are under way, want 0", got)
	}
	for _, c := range []struct {
		step, outcome string
		want          float64
	}{{"memory", "done", 1}, {"memory", "failed", 0}, {"contain", "failed", 1}, {"contain", "interrupted", 1}} {
		if got := testutil.ToFloat64(m.ended.WithLabelValues(c.step, c.outcome)); got != c.want {
			t.Errorf("%s %s: %v, want %v", c.step, c.outcome, got, c.want)
		}
	}
	body := scrape(t, m)
	for _, want := range []string{
		`quicklime_step_duration_seconds_bucket{step="memory",le="30"} 0`,
		`quicklime_step_duration_seconds_bucket{step="memory",le="60"} 1`,
		`quicklime_step_duration_seconds_count{step="contain"} 1`, // what was interrupted took no time of its own
		`quicklime_build_info{version="1.0"} 1`,
		"go_goroutines ", "process_resident_memory_bytes ",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s", want)
		}
	}
}

// TestLabelsAreOurOwnWords: whatever is counted, a peer adds no series.
func TestLabelsAreOurOwnWords(t *testing.T) {
	m := New("1.0", []string{"memory"}, Sources{})
	before := series(t, m)
	for _, word := range []string{"", "evil\n{}", strings.Repeat("x", 1<<20), "MEMORY"} {
		m.StepBegan(word)
		m.StepEnded(word, casefile.Outcome(word+"!"), time.Second)
	}
	if after := series(t, m); after != before {
		t.Errorf("%d series, had %d", after, before)
	}
	if got := testutil.ToFloat64(m.ended.WithLabelValues(other, other)); got != 4 {
		t.Errorf("%v others, want 4", got)
	}
}

// series counts those that are not of the runtime.
func series(t *testing.T, m *Metrics) int {
	t.Helper()
	return strings.Count(scrape(t, m), "\nquicklime_")
}

func scrape(t *testing.T, m *Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler(slog.New(slog.DiscardHandler)).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("%d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

// TestNames holds every name against Prometheus's own rules.
func TestNames(t *testing.T) {
	m := New("1.0", []string{"memory"}, every)
	problems, err := testutil.GatherAndLint(m.registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "quicklime_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}
