package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

// TestChaos torments collectors for a minute. Where the verdict is bad, what
// they logged is in the folder that the output names.
func TestChaos(t *testing.T) {
	t.Parallel()
	for name, flags := range map[string][]string{
		"one node":    {"--nodes", "1", "--duration", "30s"},
		"three nodes": {"--nodes", "3", "--duration", "1m"},
		"it grows to three, and the first is killed for good": {"--nodes", "3", "--grow", "--duration", "40s"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if flags[1] != "1" {
				needsWires(t)
			}
			cmd := exec.CommandContext(t.Context(), binaries.Lab, append([]string{"chaos", "--bin", filepath.Dir(binaries.Lab)}, flags...)...)
			out, err := cmd.Output()
			if err != nil || !regexp.MustCompile(`\ncases [1-9]\d*, lost 0, doubled 0, longest pause \d+\.\d s\n$`).Match(out) {
				t.Errorf("%v", err)
			}
			t.Logf("%s", out)
		})
	}
}

// needsWires skips a test where no namespaces can be made; CI has what it
// takes.
func needsWires(t *testing.T) {
	t.Helper()
	_, err := exec.LookPath("ip")
	if err == nil && os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("CI has to run as root, with iproute2")
	}
	t.Skip("it takes root and iproute2 to make namespaces")
}
