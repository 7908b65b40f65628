package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quicklime-ir/quicklime/collector/desk"
	"github.com/quicklime-ir/quicklime/packaging/lab/bucket"
	"github.com/quicklime-ir/quicklime/packaging/lab/world"
)

// probe asks the collector how it is.
type probe struct {
	t    *testing.T
	addr string
}

// newProbe gives a probe, and a free address for the collector to answer it.
func newProbe(t *testing.T) probe {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return probe{t, l.Addr().String()}
}

// get gives the status and the body of an answer; 0 where none came.
func (p probe) get(path string) (status int, body string) {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Get("http://" + p.addr + path)
	if err != nil {
		return 0, err.Error()
	}
	defer answer.Body.Close()
	all, err := io.ReadAll(answer.Body)
	if err != nil {
		p.t.Error(err)
	}
	return answer.StatusCode, string(all)
}

// await asks until an answer has this status.
func (p probe) await(path string, want int) string {
	p.t.Helper()
	status, body := 0, ""
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if status, body = p.get(path); status == want {
			return body
		}
	}
	p.t.Fatalf("%s answers %d, want %d:\n%s", path, status, want, body)
	return ""
}

// metrics gives each number by its name and labels.
func (p probe) metrics() map[string]string {
	out := map[string]string{}
	lines := bufio.NewScanner(strings.NewReader(p.await("/metrics", http.StatusOK)))
	for lines.Scan() {
		if name, value, ok := strings.Cut(lines.Text(), " "); ok && name != "#" {
			out[name] = value
		}
	}
	return out
}

// awaitMetrics asks until all of these are as wanted: the last journal entry
// reaches the bucket after its case has ended.
func (p probe) awaitMetrics(want map[string]string) {
	p.t.Helper()
	var differ []string
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		numbers := p.metrics()
		differ = nil
		for name, value := range want {
			if numbers[name] != value {
				differ = append(differ, fmt.Sprintf("%s is %q, want %s", name, numbers[name], value))
			}
		}
		if len(differ) == 0 {
			return
		}
	}
	p.t.Errorf("after 30 s:\n%s", strings.Join(differ, "\n"))
}

// TestTheBucketGoesAway and comes back: probes hear of it, with the reason,
// nobody restarts the collector, and it is ready again by itself. Prometheus
// sees the case that follows.
func TestTheBucketGoesAway(t *testing.T) {
	t.Parallel()
	p := newProbe(t)
	w := start(t, func(c *world.Config) {
		c.Collector = []string{"--agent-wait", "1s", "--health-listen", p.addr, "--health-every", "1s"}
	})
	p.await("/readyz", http.StatusOK)

	var away atomic.Bool
	away.Store(true)
	w.S3.Inject(bucket.Fault{Kind: bucket.LostReply, Match: func(*http.Request) bool { return away.Load() }, Times: 1 << 30})
	var report struct {
		Failing []struct {
			Check, Error string
			Since        time.Time
		}
	}
	body := p.await("/readyz", http.StatusServiceUnavailable)
	if err := json.Unmarshal([]byte(body), &report); err != nil || len(report.Failing) != 1 {
		t.Fatalf("%v: %s", err, body)
	}
	if f := report.Failing[0]; f.Check != "bucket" || f.Since.IsZero() || !strings.Contains(f.Error, "cannot reach bucket "+world.Bucket+": there is no connection to S3: see the route") {
		t.Errorf("told of %+v", f)
	}
	if status, body := p.get("/healthz"); status != http.StatusOK {
		t.Errorf("the process is well, and /healthz answers %d:\n%s", status, body)
	}
	if got := p.metrics()[`quicklime_check_ok{check="bucket"}`]; got != "0" {
		t.Errorf("the metric of the check says %q", got)
	}
	away.Store(false)
	p.await("/readyz", http.StatusOK)

	if err := w.Find(world.Compromised(world.Victim)); err != nil {
		t.Fatal(err)
	}
	await(t, w, "its end", ended)
	p.awaitMetrics(map[string]string{
		`quicklime_check_ok{check="bucket"}`: "1", `quicklime_intake_taken_total`: "1", `quicklime_journal_unsent_entries`: "0",
		`quicklime_steps_ended_total{outcome="done",step="contain"}`:  "1",
		`quicklime_steps_ended_total{outcome="failed",step="memory"}`: "1", // no agent is attached
		`quicklime_step_duration_seconds_count{step="memory"}`:        "1",
		`quicklime_steps_in_progress{step="contain"}`:                 "0",
		`quicklime_cases{state="running"}`:                            "0",
		`quicklime_agents_attached`:                                   "0",
		`quicklime_store_has_leader`:                                  "1",
		`quicklime_store_alarm{alarm="full"}`:                         "0",
		`quicklime_source_up{source="store"}`:                         "1",
	})
}

// TestANodeWithoutTheOthers is alive and not ready, says for whom it waits, and
// works as soon as they are there.
func TestANodeWithoutTheOthers(t *testing.T) {
	t.Parallel()
	p := newProbe(t)
	w := start(t, func(c *world.Config) { c.Nodes = 2 })
	first, second := w.Node(0), w.Node(1)
	if err := second.Join(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	awaitVoters(t, first, 2)
	for _, n := range w.Nodes() {
		if err := n.Stop(10 * time.Second); err != nil {
			t.Fatal(err)
		}
	}
	w.Flags("--agent-wait", "1s", "--health-listen", p.addr, "--health-every", "1s")
	if err := first.Launch(); err != nil {
		t.Fatal(err)
	}
	body := p.await("/readyz", http.StatusServiceUnavailable)
	if !strings.Contains(body, "waits for the majority") {
		t.Errorf("it says %s", body)
	}
	p.await("/healthz", http.StatusOK)
	w.Flags("--agent-wait", "1s")
	if err := second.Launch(); err != nil {
		t.Fatal(err)
	}
	p.await("/readyz", http.StatusOK)
	if err := w.Find(world.Compromised(world.Victim)); err != nil {
		t.Fatal(err)
	}
	await(t, w, "its end", ended)
}

// awaitVoters waits until so many nodes vote.
func awaitVoters(t *testing.T, n *world.Node, want int) {
	t.Helper()
	client, err := desk.Dial(n.Data())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	voters := 0
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		reply, err := client.Nodes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		voters = 0
		for _, n := range reply.GetNodes() {
			if n.GetVoter() {
				voters++
			}
		}
		if voters == want {
			return
		}
	}
	t.Fatalf("%d nodes vote, want %d", voters, want)
}
