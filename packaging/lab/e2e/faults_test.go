package e2e

import (
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/packaging/lab/bucket"
	"github.com/quicklime-ir/quicklime/packaging/lab/world"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// memoryItem gives the image's item.
func memoryItem(t *testing.T, c casefile.Case) evidence.Item {
	t.Helper()
	for _, i := range c.Items {
		if i.Kind == evidence.Memory {
			return i
		}
	}
	t.Fatal("the case has no memory image")
	return evidence.Item{}
}

// TestNoAgent: nobody answers on the instance. The AMI is taken and the
// instance contained all the same, and everyone is told what is missing.
func TestNoAgent(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	if err := w.Find(world.Compromised(world.Victim)); err != nil {
		t.Fatal(err)
	}
	c := await(t, w, "its end", ended)
	got := outcomes(c)
	for _, step := range []string{"volatile", "symbols", "memory", "live"} {
		if s, _ := c.StepNamed(step); s.Outcome != casefile.Failed || !strings.Contains(s.Detail, "no agent answers") {
			t.Errorf("step %s: %s, %s", step, s.Outcome, s.Detail)
		}
	}
	for _, step := range []string{"protect", "image", "contain", "verify", "seal", "report"} {
		if got[step] != casefile.Done {
			t.Errorf("step %s: %s", step, got[step])
		}
	}
	if len(c.Missing) != 4 {
		t.Errorf("missing %+v", c.Missing)
	}
	contained(t, w, world.Victim)
	if out := verify(t, w); !strings.Contains(out, "missing   memory: no agent answers") {
		t.Errorf("verify says:\n%s", out)
	}
	messages := w.Discord.Messages()
	if last := messages[len(messages)-1].Embeds[0]; !strings.Contains(last.Title, "not all is well") || !strings.Contains(last.Fields[0].Value, "no agent answers") {
		t.Errorf("Discord was told %+v", last)
	}
}

// dieAfter ends an agent once so many parts are stored.
func dieAfter(w *world.World, parts int, a *world.Agent) (died <-chan error) {
	done := make(chan error, 1)
	var once sync.Once
	var mu sync.Mutex
	left := parts
	w.S3.OnPart(func(key string) {
		mu.Lock()
		defer mu.Unlock()
		if !strings.Contains(key, "/memory/") {
			return
		}
		if left--; left == 0 {
			once.Do(func() { go func() { done <- a.Stop() }() })
		}
	})
	return done
}

// TestTheAgentDiesInTheMiddleOfTheDump and does not come back: what was
// stored is kept, labelled, and proven as what it is.
func TestTheAgentDiesInTheMiddleOfTheDump(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	image, root := host(t)
	a, err := w.StartAgent(world.Victim, image, root)
	if err != nil {
		t.Fatal(err)
	}
	died := dieAfter(w, 2, a)
	w.S3.Inject(bucket.Fault{Kind: bucket.SlowDown, Match: bucket.PartUploadOf("/memory/"), Times: 2})
	if err := w.Find(world.Compromised(world.Victim)); err != nil {
		t.Fatal(err)
	}
	c := await(t, w, "its end", ended)
	if err := <-died; err != nil {
		t.Fatal(err)
	}
	item := memoryItem(t, c)
	if s, _ := c.StepNamed("memory"); s.Outcome != casefile.Partly || item.Status != evidence.Partial || item.Size == 0 {
		t.Errorf("step %+v, item %+v", s, item)
	}
	contained(t, w, world.Victim)
	if len(c.Missing) == 0 || !slices.ContainsFunc(c.Missing, func(m evidence.Missing) bool { return m.Kind == evidence.Memory && m.Reason != "" }) {
		t.Errorf("missing %+v; want memory and why", c.Missing)
	}
	out := verify(t, w)
	for _, says := range []string{item.Key + "  memory partial, ", "missing memory ", "missing   memory: ", "\nPROVEN: case " + c.ID} {
		if !strings.Contains(out, says) {
			t.Errorf("verify does not say %q:\n%s", says, out)
		}
	}
}

// TestAnAgentThatComesBackGoesOn: the next agent knows nothing of the first,
// and stores only what is not stored yet.
func TestAnAgentThatComesBackGoesOn(t *testing.T) {
	t.Parallel()
	w := start(t, func(c *world.Config) { c.Collector = []string{"--agent-wait", "40s", "--stall", "40s"} })
	image, root := host(t)
	first, err := w.StartAgent(world.Victim, image, root)
	if err != nil {
		t.Fatal(err)
	}
	died := dieAfter(w, 3, first)
	if err := w.Find(world.Compromised(world.Victim)); err != nil {
		t.Fatal(err)
	}
	if err := <-died; err != nil {
		t.Fatal(err)
	}
	stored := w.S3.PartsOf("/memory/")
	second, err := w.StartAgent(world.Victim, image, root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := second.Stop(); err != nil {
			t.Error(err)
		}
	})
	c := await(t, w, "its end", ended)
	if item := memoryItem(t, c); item.Status != evidence.Whole {
		t.Errorf("item %s: %s", item.Status, item.Error)
	}
	if parts := w.S3.PartsOf("/memory/"); stored < 3 || stored >= imageParts || parts < sentParts || parts > sentParts+1 {
		t.Errorf("%d parts were stored, %d of them by the first agent; the image has %d", parts, stored, sentParts)
	}
	allDone(t, c)
	contained(t, w, world.Victim)
	verify(t, w)
}

// firstTries strikes the first so many tries of each part.
func firstTries(n int) func(*http.Request) bool {
	var mu sync.Mutex
	tries := map[string]int{}
	return func(r *http.Request) bool {
		if !bucket.PartUpload(r) {
			return false
		}
		mu.Lock()
		defer mu.Unlock()
		part := r.URL.Path + " " + r.URL.Query().Get("partNumber")
		tries[part]++
		return tries[part] <= n
	}
}

// laterLooks matches what asks after an object, but the first time.
func laterLooks(infix string) func(*http.Request) bool {
	var looks atomic.Int32
	return func(r *http.Request) bool {
		return r.Method == http.MethodHead && strings.Contains(r.URL.Path, infix) && looks.Add(1) > 1
	}
}

// TestTheWayToS3: what happens to parts on their way is mended, and none but
// the granted bytes become evidence.
func TestTheWayToS3(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		fault bucket.Fault
		again int // parts that S3 has stored twice, at most
	}{
		{"S3 is overloaded for a while", bucket.Fault{Kind: bucket.SlowDown, Match: firstTries(3), Times: 20}, 0},
		{"a byte is changed on the way", bucket.Fault{Kind: bucket.FlipByte, Match: bucket.PartUploadOf("/memory/"), Times: 1}, 0},
		{"connections are cut", bucket.Fault{Kind: bucket.Reset, Match: bucket.PartUpload, Times: 4}, 0},
		{"answers are lost", bucket.Fault{Kind: bucket.LostReply, Match: firstTries(1), Times: 4}, 4},
		{"nobody can look at the image, once it is stored", bucket.Fault{Kind: bucket.SlowDown, Match: laterLooks("/memory/memory.lime"), Times: 9}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := start(t, func(c *world.Config) { c.Collector = []string{"--agent-wait", "30s", "--stall", "60s"} })
			attach(t, w, world.Victim)
			w.S3.Inject(tt.fault)
			if err := w.Find(world.Compromised(world.Victim)); err != nil {
				t.Fatal(err)
			}
			c := await(t, w, "its end", ended)
			allDone(t, c)
			if w.S3.Struck() != tt.fault.Times {
				t.Errorf("the fault struck %d times, want %d", w.S3.Struck(), tt.fault.Times)
			}
			if item := memoryItem(t, c); item.Status != evidence.Whole {
				t.Errorf("item %s: %s", item.Status, item.Error)
			}
			if n := w.S3.PartsOf("/memory/"); n < sentParts || n > sentParts+tt.again {
				t.Errorf("S3 has stored %d parts of memory; want %d, and %d more at most", n, sentParts, tt.again)
			}
			verify(t, w)
		})
	}
}

// TestDiscordIsBusy: a message that is refused for now is told later.
func TestDiscordIsBusy(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	attach(t, w, world.Victim)
	w.Discord.Limit(3)
	if err := w.Find(world.Compromised(world.Victim)); err != nil {
		t.Fatal(err)
	}
	allDone(t, await(t, w, "its end", ended))
	if n := len(w.Discord.Messages()); n != 2 {
		t.Errorf("%d messages came, want 2", n)
	}
}

// TestDiscordTakesNothingForLong: the case does not wait for it, and people are
// told both that it began and how it ended, later.
func TestDiscordTakesNothingForLong(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	attach(t, w, world.Victim)
	w.Discord.Limit(1 << 20)
	if err := w.Find(world.Compromised(world.Victim)); err != nil {
		t.Fatal(err)
	}
	c := await(t, w, "its end", ended)
	allDone(t, c)
	if n := len(w.Discord.Messages()); n != 0 || len(c.Untold) != 2 {
		t.Errorf("%d messages came, and %+v are to be told", n, c.Untold)
	}
	w.Discord.Calm()
	await(t, w, "people are told", func(c casefile.Case) bool { return len(c.Untold) == 0 })
	messages := w.Discord.Messages()
	if len(messages) != 2 || !strings.HasPrefix(messages[0].Embeds[0].Title, "Compromised instance "+world.Victim) ||
		!strings.HasSuffix(messages[1].Embeds[0].Title, "evidence is whole, instance is isolated") {
		t.Errorf("Discord was told %+v", messages)
	}
}

// TestACaptureThatGetsNowhere: S3 takes nothing for good. Each capture is
// given up, by its stall or by its deadline, and the rest goes on.
func TestACaptureThatGetsNowhere(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		flags []string
		says  string
	}{
		{"it stalls", []string{"--stall", "4s"}, "makes no progress"},
		{"its deadline passes", []string{"--stall", "1m", "--volatile-limit", "3s", "--symbols-limit", "3s", "--memory-limit", "3s", "--live-limit", "3s"}, "passed its limit of 3s"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := start(t, func(c *world.Config) { c.Collector = tt.flags })
			attach(t, w, world.Victim)
			w.S3.Inject(bucket.Fault{Kind: bucket.SlowDown, Match: bucket.PartUpload, Times: 1 << 30})
			if err := w.Find(world.Compromised(world.Victim)); err != nil {
				t.Fatal(err)
			}
			c := await(t, w, "its end", ended)
			for _, step := range []string{"volatile", "symbols", "memory", "live"} {
				if s, _ := c.StepNamed(step); s.Outcome != casefile.Failed || !strings.Contains(s.Detail, tt.says) {
					t.Errorf("step %s: %s, %s", step, s.Outcome, s.Detail)
				}
			}
			contained(t, w, world.Victim)
			verify(t, w)
		})
	}
}
