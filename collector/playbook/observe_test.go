package playbook

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quicklime-ir/quicklime/collector/casefile"
)

// diary is an Observer that writes down what it is told.
type diary struct {
	mu    sync.Mutex
	lines []string
}

func (d *diary) write(line string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, line)
}

func (d *diary) StepBegan(step string) { d.write(step + " began") }

func (d *diary) StepEnded(step string, outcome casefile.Outcome, took time.Duration) {
	d.write(fmt.Sprintf("%s ended %q after %v", step, outcome, took))
}

func TestAnObserverIsToldOfEachStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, d := newShelf(t, "memory", "image", "contain"), &diary{}
		r := &Runner{Docket: s, Log: slog.New(slog.DiscardHandler), Caps: DefaultCaps, Observer: d, Steps: []Step{
			step("memory", func(context.Context, *Run) error { time.Sleep(3 * time.Second); return nil }),
			step("image", func(context.Context, *Run) error { return errors.New("denied") }),
			step("contain", func(ctx context.Context, _ *Run) error { <-ctx.Done(); return ctx.Err() }),
		}}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- r.Run(ctx) }()
		time.Sleep(5 * time.Second)
		cancel()
		<-ended
		want := []string{"memory began", `memory ended "done" after 3s`, "image began", `image ended "failed" after 0s`,
			"contain began", `contain ended "" after 2s`}
		if !slices.Equal(d.lines, want) {
			t.Errorf("%q, want %q", d.lines, want)
		}
	})
}
