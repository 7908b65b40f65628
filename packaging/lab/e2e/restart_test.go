package e2e

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/steps"
	"github.com/quicklime-ir/quicklime/packaging/lab/bucket"
	"github.com/quicklime-ir/quicklime/packaging/lab/emulator"
	"github.com/quicklime-ir/quicklime/packaging/lab/world"
)

// imageParts is how many parts the image of host has, and sentParts how many
// S3 is sent for it: the seek table is one more.
const (
	imageParts = 6
	sentParts  = imageParts + 1
)

// death is a moment at which the collector is killed.
type death struct {
	name string
	step string
	slow func(*world.World)      // makes the step last; nil where it lasts
	when func(*world.World) bool // the step is at the act in question; nil: it has begun
}

// deaths has each step, and within those that create something the moment at
// which it is there and the collector does not know.
func deaths() []death {
	return []death{
		{"notify", steps.Notify, func(w *world.World) { w.Discord.Limit(2) }, nil},
		{"protect", steps.Protect, lag("ModifyInstanceAttribute"), called("ModifyInstanceAttribute")},
		{"volatile", steps.Volatile, overload("/volatile/", "1"), struck},
		{"symbols", steps.Symbols, overload("/symbols/", "1"), struck},
		{"memory", steps.Memory, overload("/memory/", "3"), struck},
		{"live", steps.Live, overload("/live/", "1"), struck},
		{"image", steps.Image, lag("CreateImage"), called("CreateImage")},
		{"contain, as the group is made", steps.Contain, lag("CreateSecurityGroup"), called("CreateSecurityGroup")},
		{"contain, as one of two interfaces is isolated", steps.Contain, lag("ModifyNetworkInterfaceAttribute"), called("ModifyNetworkInterfaceAttribute")},
		{"verify", steps.Verify, nil, nil}, // it waits for the image
		{"seal, as the signature is stored and the manifest is not", steps.Seal, refuseManifest, struck},
		{"report", steps.Report, nil, nil}, // the test makes it last
	}
}

// lag has EC2 do what it is asked at once, and answer late.
func lag(action string) func(*world.World) {
	return func(w *world.World) {
		w.AWS.Inject(emulator.Fault{Service: "ec2", Action: action, Kind: emulator.Slow, Delay: 1500 * time.Millisecond})
	}
}

func called(action string) func(*world.World) bool {
	return func(w *world.World) bool { return w.AWS.State().Calls["ec2."+action] > 0 }
}

// overload has S3 refuse one part for a while.
func overload(infix, part string) func(*world.World) {
	match := func(r *http.Request) bool {
		return bucket.PartUploadOf(infix)(r) && r.URL.Query().Get("partNumber") == part
	}
	return func(w *world.World) {
		w.S3.Inject(bucket.Fault{Kind: bucket.SlowDown, Match: match, Times: 4})
	}
}

func refuseManifest(w *world.World) {
	match := func(r *http.Request) bool {
		return r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, "/manifest.json")
	}
	w.S3.Inject(bucket.Fault{Kind: bucket.SlowDown, Match: match, Times: 4})
}

func struck(w *world.World) bool { return w.S3.Struck() > 0 }

// TestADeathForEachStep keeps the table complete.
func TestADeathForEachStep(t *testing.T) {
	covered := map[string]bool{}
	for _, d := range deaths() {
		covered[d.step] = true
	}
	for _, step := range steps.Names((&steps.Story{}).Steps()) {
		if !covered[step] {
			t.Errorf("no test kills the collector in step %s", step)
		}
	}
}

// TestTheCollectorDiesInEachStep kills the collector as a power cut would
// while a step is being taken, and starts it again: no step is lost, nothing
// is made twice, and the evidence is proven.
func TestTheCollectorDiesInEachStep(t *testing.T) {
	t.Parallel()
	for _, d := range deaths() {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			w := start(t, func(c *world.Config) { c.ImagePending = 2 * time.Second })
			if d.slow != nil {
				d.slow(w)
			}
			attach(t, w, world.Victim)
			if err := w.Find(world.Compromised(world.Victim)); err != nil {
				t.Fatal(err)
			}
			if d.step == steps.Report { // the first message must have passed
				await(t, w, "step protect", begun(steps.Protect))
				w.Discord.Limit(2)
			}
			await(t, w, d.name, func(c casefile.Case) bool { return begun(d.step)(c) && (d.when == nil || d.when(w)) })
			if err := w.KillCollector(); err != nil {
				t.Fatal(err)
			}
			if err := w.StartCollector(t.Context()); err != nil {
				t.Fatal(err)
			}
			unharmed(t, w, await(t, w, "its end", ended), d.step)
		})
	}
}

func begun(step string) func(casefile.Case) bool {
	return func(c casefile.Case) bool {
		s, ok := c.StepNamed(step)
		return ok && s.Tries > 0
	}
}

// unharmed wants a case that lacks nothing for the collector's death, and
// has nothing twice.
func unharmed(t *testing.T, w *world.World, c casefile.Case, interrupted string) {
	t.Helper()
	repeated := 0
	for _, s := range c.Steps {
		if s.Outcome != casefile.Done {
			t.Errorf("step %s: %s, %s", s.Name, s.Outcome, s.Detail)
		}
		repeated += s.Tries - 1
	}
	if repeated > 1 {
		t.Errorf("steps %+v; want none begun again but the one that was interrupted", c.Steps)
	}
	if s, _ := c.StepNamed(interrupted); s.Tries != 2 {
		t.Logf("the step was begun %d times: it was quicker than the test, and had ended when the collector was killed", s.Tries)
	}
	if n := w.S3.PartsOf("/memory/"); n < sentParts || n > sentParts+1 {
		t.Errorf("%d parts of memory were stored; want %d, and one more at most", n, sentParts)
	}
	contained(t, w, world.Victim)
	if out := verify(t, w); !strings.Contains(out, "\nPROVEN: case "+c.ID) {
		t.Errorf("verify says:\n%s", out)
	}
	messages := w.Discord.Messages()
	if len(messages) < 2 || len(messages) > 3 || !strings.Contains(messages[len(messages)-1].Embeds[0].Title, "evidence is whole, instance is isolated") {
		t.Errorf("Discord was told %+v", messages)
	}
}
