package e2e

import (
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/packaging/lab/world"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// operator runs a command of the collector's.
func operator(t *testing.T, w *world.World, words ...string) string {
	t.Helper()
	out, err := exec.Command(binaries.Collector, append(words, "--data", w.Data())...).CombinedOutput()
	if err != nil {
		t.Errorf("%v: %v\n%s", words, err, out)
	}
	return string(out)
}

// onMemoryPart calls f once, when so many parts of the image are stored: the
// answer to the last waits until f returns.
func onMemoryPart(w *world.World, parts int32, f func()) (done <-chan struct{}) {
	var stored atomic.Int32
	called := make(chan struct{})
	w.S3.OnPart(func(key string) {
		if strings.Contains(key, "/memory/") && stored.Add(1) == parts {
			f()
			close(called)
		}
	})
	return called
}

// caseID gives the only case's.
func caseID(t *testing.T, w *world.World) string {
	t.Helper()
	cases, err := w.Cases(t.Context())
	if err != nil || len(cases) != 1 {
		t.Errorf("cases %v, %v; want one", cases, err)
		return ""
	}
	return cases[0].ID
}

// standsStill waits until no part of the image has come for two seconds, and
// counts those that have.
func standsStill(t *testing.T, w *world.World) int {
	t.Helper()
	parts, since := w.S3.PartsOf("/memory/"), time.Now()
	for time.Since(since) < 2*time.Second {
		if now := w.S3.PartsOf("/memory/"); now != parts {
			parts, since = now, time.Now()
		}
		time.Sleep(20 * time.Millisecond)
	}
	return parts
}

// whole wants every step done, the image whole, and all of it proven.
func whole(t *testing.T, w *world.World) {
	t.Helper()
	c := await(t, w, "its end", ended)
	for _, s := range c.Steps {
		if s.Outcome != casefile.Done {
			t.Errorf("step %s: %s, %s", s.Name, s.Outcome, s.Detail)
		}
	}
	if item := memoryItem(t, c); item.Status != evidence.Whole {
		t.Errorf("item %s: %s", item.Status, item.Error)
	}
	if out := verify(t, w); !strings.Contains(out, "PROVEN: case "+c.ID) {
		t.Errorf("verify says:\n%s", out)
	}
}

// TestACaptureIsPaused in the middle of the dump, for longer than one that
// stalls may last. It goes on where it stopped, and the case says who stopped
// it. So it does when the collector dies meanwhile: what was asked outlives
// it.
func TestACaptureIsPaused(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name      string
		meanwhile func(*testing.T, *world.World)
	}{
		{"nothing happens", func(*testing.T, *world.World) { time.Sleep(5 * time.Second) }},
		{"the collector dies", func(t *testing.T, w *world.World) {
			if err := w.KillCollector(); err != nil {
				t.Fatal(err)
			}
			if err := w.StartCollector(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Second)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := start(t, func(c *world.Config) { c.Collector = []string{"--agent-wait", "60s", "--stall", "4s"} })
			attach(t, w, world.Victim)
			paused := onMemoryPart(w, 2, func() { operator(t, w, "case", "pause", caseID(t, w)) })
			if err := w.Find(world.Compromised(world.Victim)); err != nil {
				t.Fatal(err)
			}
			<-paused
			id, before := caseID(t, w), standsStill(t, w)
			tt.meanwhile(t, w)
			if now := w.S3.PartsOf("/memory/"); now != before || before >= 6 {
				t.Errorf("%d parts are stored, %d were before the pause; the image has 6", now, before)
			}
			c, progress, err := w.Case(t.Context(), id)
			if s, _ := c.StepNamed("memory"); err != nil || s.Outcome != "" || len(progress) != 1 || !progress[0].GetPaused() {
				t.Errorf("%v; step %+v, progress %v; want that it is paused", err, s, progress)
			}
			if out := operator(t, w, "case", "show", id); !strings.Contains(out, "PAUSED by an operator") {
				t.Errorf("show says\n%s", out)
			}
			operator(t, w, "case", "resume", id)
			whole(t, w)
			if c, _, err := w.Case(t.Context(), id); err != nil || len(c.Controls) != 2 {
				t.Errorf("%v; the case says %v, want a pause and its end", err, c.Controls)
			}
		})
	}
}

// TestLimitsChangeWhileItRuns: at the bandwidth with which it begins, the
// image would take two minutes, longer than await waits.
func TestLimitsChangeWhileItRuns(t *testing.T) {
	t.Parallel()
	w := start(t, func(c *world.Config) {
		c.Collector = append([]string{"--memory-bandwidth", "256KiB", "--memory-cpu", "50"}, quick...)
	})
	attach(t, w, world.Victim)
	if err := w.Find(world.Compromised(world.Victim)); err != nil {
		t.Fatal(err)
	}
	await(t, w, "the image", func(c casefile.Case) bool { s, _ := c.StepNamed("memory"); return s.Tries > 0 })
	id := caseID(t, w)
	for {
		_, progress, err := w.Case(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if len(progress) == 1 && progress[0].GetDoing() == "memory" && progress[0].GetBytesRead() > 0 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if parts := w.S3.PartsOf("/memory/"); parts > 0 {
		t.Errorf("%d parts came at once; at 256 KiB a second, the first takes twenty seconds", parts)
	}
	if out := operator(t, w, "case", "limit", id, "--cpu", "0", "--bandwidth", "0"); out != id+"/memory\n" {
		t.Errorf("limit says %q", out)
	}
	whole(t, w)
}

// TestAnOperatorEndsACapture: what is stored is kept, labelled, and proven as
// what it is, and the rest of the case goes on.
func TestAnOperatorEndsACapture(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	attach(t, w, world.Victim)
	onMemoryPart(w, 2, func() { operator(t, w, "case", "cancel", caseID(t, w), "--reason", "the host is needed") })
	if err := w.Find(world.Compromised(world.Victim)); err != nil {
		t.Fatal(err)
	}
	c := await(t, w, "its end", ended)
	for _, s := range c.Steps {
		if s.Name != "memory" && s.Outcome != casefile.Done {
			t.Errorf("step %s: %s, %s", s.Name, s.Outcome, s.Detail)
		}
	}
	item := memoryItem(t, c)
	if s, _ := c.StepNamed("memory"); s.Outcome != casefile.Partly || !strings.Contains(s.Detail, "ended by an operator: the host is needed") ||
		item.Status != evidence.Partial || item.Size == 0 {
		t.Errorf("step %+v, item %+v", s, item)
	}
	contained(t, w, world.Victim)
	if out := verify(t, w); !strings.Contains(out, "partial") || !strings.Contains(out, "PROVEN: case "+c.ID) {
		t.Errorf("verify says:\n%s", out)
	}
}
