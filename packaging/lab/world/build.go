package world

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Binaries names the programs that the lab runs.
type Binaries struct {
	Agent     string // quicklime-agent, static
	Collector string // quicklime-collector
	Lab       string // quicklime-lab, which is also the S3 server's process
	Init      string // the guest's first process, static
}

// BinariesIn gives the programs that `make build` has put into a folder.
func BinariesIn(dir string) (Binaries, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Binaries{}, err
	}
	b := Binaries{
		Agent: filepath.Join(dir, "quicklime-agent"), Collector: filepath.Join(dir, "quicklime-collector"),
		Lab: filepath.Join(dir, "quicklime-lab"), Init: filepath.Join(dir, "quicklime-guest-init"),
	}
	for _, path := range []string{b.Agent, b.Collector, b.Lab, b.Init} {
		if _, err := os.Stat(path); err != nil {
			return Binaries{}, fmt.Errorf("cannot run the lab: %w; run 'make build' first", err)
		}
	}
	return b, nil
}

// Build makes the programs anew in a folder, for tests. The module of the
// lab must be the working folder's.
func Build(ctx context.Context, dir string) (Binaries, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return Binaries{}, fmt.Errorf("cannot find the lab's module: %w", err)
	}
	lab := strings.TrimSpace(string(out))
	top := filepath.Join(lab, "..", "..")
	for _, build := range []struct{ dir, pkg, name string }{
		{top, "./agent", "quicklime-agent"}, {top, "./collector", "quicklime-collector"},
		{lab, ".", "quicklime-lab"}, {lab, "./guest/init", "quicklime-guest-init"},
	} {
		cmd := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(dir, build.name), build.pkg)
		cmd.Dir, cmd.Env = build.dir, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return Binaries{}, fmt.Errorf("cannot build %s: %w\n%s", build.name, err, out)
		}
	}
	return BinariesIn(dir)
}
