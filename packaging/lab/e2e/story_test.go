package e2e

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/packaging/lab/emulator"
	"github.com/quicklime-ir/quicklime/packaging/lab/world"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// outcomes tells how each step ended.
func outcomes(c casefile.Case) map[string]casefile.Outcome {
	out := map[string]casefile.Outcome{}
	for _, s := range c.Steps {
		out[s.Name] = s.Outcome
	}
	return out
}

// allDone wants every step done.
func allDone(t *testing.T, c casefile.Case) {
	t.Helper()
	for _, s := range c.Steps {
		if s.Outcome != casefile.Done {
			t.Errorf("step %s: %s, %s", s.Name, s.Outcome, s.Detail)
		}
	}
}

// contained holds EC2's own state against what must be true after a case.
func contained(t *testing.T, w *world.World, instance string) {
	t.Helper()
	s := w.AWS.State()
	if s.Created["image"] != 1 || s.Created["group"] != 1 {
		t.Errorf("created %v, want one image and one group", s.Created)
	}
	for _, i := range s.Interfaces {
		if i.Instance != instance {
			continue
		}
		at := slices.IndexFunc(s.Groups, func(g emulator.GroupState) bool { return slices.Equal(i.Groups, []string{g.ID}) })
		if at < 0 || len(s.Groups[at].Ingress)+len(s.Groups[at].Egress) > 0 {
			t.Errorf("interface %+v is not isolated", i)
			continue
		}
		if before := i.Tags["quicklime:previous-groups"]; !strings.Contains(before, "sg-0123456789abcdef0") || strings.Contains(before, s.Groups[at].ID) {
			t.Errorf("interface %s was in groups %q, says its tag", i.ID, before)
		}
	}
	for _, i := range s.Images {
		if i.State != "available" || !i.NoReboot || len(i.Snapshots) != 2 {
			t.Errorf("image %+v", i)
		}
	}
}

// verify runs the command by which anyone can check the bucket.
func verify(t *testing.T, w *world.World) string {
	t.Helper()
	cmd := exec.Command(binaries.Collector, "verify", "--bucket", world.Bucket, "--key", filepath.Join(w.Data(), "verify.pub"))
	cmd.Env = w.Environ()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Errorf("verify: %v\n%s", err, out.String())
	}
	return out.String()
}

// TestTheMainJob: a finding comes in, and at the end all of it is there.
func TestTheMainJob(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	attach(t, w, world.Victim)
	if err := w.Find(world.Compromised(world.Victim)); err != nil {
		t.Fatal(err)
	}
	c := await(t, w, "its end", ended)
	allDone(t, c)
	for _, item := range c.Items {
		if item.Status != evidence.Whole {
			t.Errorf("item %s: %s, %s", item.Key, item.Status, item.Error)
		}
	}
	contained(t, w, world.Victim)
	if out := verify(t, w); !strings.Contains(out, "\nPROVEN: case "+c.ID) {
		t.Errorf("verify says:\n%s", out)
	}
	if messages := w.Discord.Messages(); len(messages) != 2 {
		t.Errorf("%d Discord messages, want that it begins and that it ended", len(messages))
	}
}
