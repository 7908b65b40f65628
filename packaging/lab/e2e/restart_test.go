package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/steps"
	"github.com/quicklime-ir/quicklime/packaging/lab/bucket"
	"github.com/quicklime-ir/quicklime/packaging/lab/emulator"
	"github.com/quicklime-ir/quicklime/packaging/lab/world"
)

// TestTheCollectorDiesInEachStep kills the collector as a power cut would
// while a step is being taken, and starts it again: no step is lost, nothing
// is made twice, and the evidence is proven.
func TestTheCollectorDiesInEachStep(t *testing.T) {
	for _, step := range steps.Names((&steps.Story{}).Steps()) {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			w := start(t, func(c *world.Config) { c.ImagePending = 2 * time.Second })
			slow(w, step)
			attach(t, w, world.Victim)
			if err := w.Find(world.Compromised(world.Victim)); err != nil {
				t.Fatal(err)
			}
			c := await(t, w, "step "+step, func(c casefile.Case) bool {
				s, ok := c.StepNamed(step)
				return ok && s.Tries > 0
			})
			if err := w.KillCollector(); err != nil {
				t.Fatal(err)
			}
			if s, _ := c.StepNamed(step); s.Outcome != "" {
				t.Logf("the step was quicker than the test, and had ended when the collector was killed")
			}
			if err := w.StartCollector(t.Context()); err != nil {
				t.Fatal(err)
			}
			c = await(t, w, "its end", ended)
			for _, s := range c.Steps {
				if s.Outcome != casefile.Done {
					t.Errorf("step %s: %s, %s", s.Name, s.Outcome, s.Detail)
				}
			}
			contained(t, w, world.Victim)
			if out := verify(t, w); !strings.Contains(out, "\nPROVEN: case "+c.ID) {
				t.Errorf("verify says:\n%s", out)
			}
		})
	}
}

// slow makes a step last long enough to be hit in its middle.
func slow(w *world.World, step string) {
	call := func(action string, times int) {
		w.AWS.Inject(emulator.Fault{Service: "ec2", Action: action, Kind: emulator.Slow, Times: times, Delay: 700 * time.Millisecond})
	}
	switch step {
	case steps.Notify:
		w.Discord.Limit(2)
	case steps.Protect:
		call("ModifyInstanceAttribute", 2)
	case steps.Volatile:
		w.S3.Inject(bucket.Fault{Kind: bucket.SlowDown, Match: bucket.PartUpload, Times: 3})
	case steps.Symbols:
		w.S3.Inject(bucket.Fault{Kind: bucket.SlowDown, Match: bucket.PartUploadOf("/symbols/"), Times: 3})
	case steps.Memory:
		w.S3.Inject(bucket.Fault{Kind: bucket.SlowDown, Match: bucket.PartUploadOf("/memory/"), Times: 4})
	case steps.Live:
		w.S3.Inject(bucket.Fault{Kind: bucket.SlowDown, Match: bucket.PartUploadOf("/live/"), Times: 3})
	case steps.Image:
		call("CreateImage", 1)
	case steps.Contain:
		call("ModifyNetworkInterfaceAttribute", 1)
	}
	// verify waits for the image; seal and report are hit by polling alone.
}
