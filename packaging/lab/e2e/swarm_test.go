package e2e

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/quicklime-ir/quicklime/packaging/lab/swarm"
)

// TestAStormOfAgentsSettles: all lose their connections at once, and come back
// without an error, while cases go on with those that have stayed. How fast that
// is `make bench PART=fleet` measures.
func TestAStormOfAgentsSettles(t *testing.T) {
	var figures, logs bytes.Buffer
	r, err := swarm.Run(t.Context(), swarm.Options{Binaries: binaries, Agents: 500, Sample: 10, Settle: time.Second, Idle: time.Second, Out: &figures, Logs: &logs})
	if err != nil {
		t.Fatal(err)
	}
	if r.Attached != 500 || r.Errors != 0 || len(r.Calm) != 5*4 {
		t.Errorf("%+v", r)
	}
	if !strings.Contains(figures.String(), "\nfleet_storm_settled ") {
		t.Errorf("the figures are\n%s", &figures)
	}
	if strings.Contains(logs.String(), "panic") {
		t.Error("the collector panicked")
	}
}
