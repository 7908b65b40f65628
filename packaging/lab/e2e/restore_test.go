package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/steps"
	"github.com/quicklime-ir/quicklime/packaging/lab/world"
)

// TestTheStateIsLost: the collector dies in the middle of a case, and its disk
// with it. A node that is restored from the bucket goes on where the case was,
// although the snapshot is from before it: nothing is made twice, the instance
// is isolated, and the case says which evidence is stored and not accounted
// for.
func TestTheStateIsLost(t *testing.T) {
	t.Parallel()
	w := start(t, func(c *world.Config) { c.ImagePending = 2 * time.Second })
	lag("CreateImage")(w)
	attach(t, w, world.Victim)
	if err := w.Find(world.Compromised(world.Victim)); err != nil {
		t.Fatal(err)
	}
	before := await(t, w, "step image", func(c casefile.Case) bool { return begun(steps.Image)(c) && called("CreateImage")(w) })
	if err := w.KillCollector(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(w.Data(), "store")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binaries.Collector, "restore", "--bucket", world.Bucket, "--retention", "1h", "--data", w.Data())
	cmd.Env = w.Environ()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("restore: %v\n%s", err, out.String())
	}
	for _, want := range []string{"1 cases, 1 of them running", "brought to where their journals have come: " + before.ID + "\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
	if err := w.StartCollector(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := await(t, w, "its end", ended)
	if c.ID != before.ID || len(c.Findings) != 1 {
		t.Errorf("it is case %s with %d findings, it was %s", c.ID, len(c.Findings), before.ID)
	}
	for _, s := range c.Steps {
		was, _ := before.StepNamed(s.Name)
		if was.Outcome != "" && (s.Outcome != was.Outcome || !s.Ended.Equal(was.Ended)) {
			t.Errorf("step %s was %s at %v, it is %s at %v", s.Name, was.Outcome, was.Ended, s.Outcome, s.Ended)
		}
	}
	lost := map[string]bool{}
	for _, m := range c.Missing {
		lost[string(m.Kind)] = strings.Contains(m.Reason, "what is stored lies at cases/"+c.ID)
	}
	for _, kind := range []string{"volatile", "memory", "live"} {
		if !lost[kind] {
			t.Errorf("of the evidence %s it says %v", kind, c.Missing)
		}
	}
	contained(t, w, world.Victim)
	if out := verify(t, w); !strings.Contains(out, "case "+c.ID) || !strings.Contains(out, "signature holds") {
		t.Errorf("verify says:\n%s", out)
	}
}
