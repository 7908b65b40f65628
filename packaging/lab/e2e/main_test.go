// Package e2e runs Quicklime from end to end in the lab.
package e2e

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/packaging/lab/world"
)

var binaries world.Binaries

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "quicklime-e2e-")
	if err != nil {
		panic(err)
	}
	if binaries, err = world.Build(context.Background(), dir); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// quick are limits that suit a test.
var quick = []string{"--agent-wait", "5s", "--stall", "10s"}

// start gives a world whose remains are shown when the test fails.
func start(t *testing.T, change func(*world.Config)) *world.World {
	t.Helper()
	cfg := world.Config{Dir: t.TempDir(), Binaries: binaries, Collector: quick, ImagePending: 500 * time.Millisecond, MissReads: 1}
	if change != nil {
		change(&cfg)
	}
	w, err := world.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the logs end:\n%s", w.LogTail())
		}
	})
	return w
}

// host makes a host for an agent in this process: an image file of several
// parts for its memory, and a folder for its files.
func host(t *testing.T) (image, root string) {
	t.Helper()
	image, root, err := world.MakeHost(t.TempDir(), 47<<20)
	if err != nil {
		t.Fatal(err)
	}
	return image, root
}

// attach starts an agent for the victim.
func attach(t *testing.T, w *world.World, instance string) *world.Agent {
	t.Helper()
	image, root := host(t)
	return attachHost(t, w, instance, image, root)
}

func attachHost(t *testing.T, w *world.World, instance, image, root string) *world.Agent {
	t.Helper()
	a, err := w.StartAgent(instance, image, root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Stop(); err != nil {
			t.Error(err)
		}
	})
	return a
}

// await waits until the only case is as the test wants it.
func await(t *testing.T, w *world.World, what string, is func(casefile.Case) bool) casefile.Case {
	t.Helper()
	return awaitFor(t, w, 90*time.Second, what, is)
}

// awaitFor waits so long.
func awaitFor(t *testing.T, w *world.World, limit time.Duration, what string, is func(casefile.Case) bool) casefile.Case {
	t.Helper()
	deadline := time.Now().Add(limit)
	var last casefile.Case
	for time.Now().Before(deadline) {
		cases, err := w.Cases(t.Context())
		if err == nil && len(cases) > 0 {
			if last = cases[0]; is(last) {
				return last
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("the case did not come to %s; it is %+v", what, last)
	return last
}

func ended(c casefile.Case) bool { return c.State == casefile.Ended }
