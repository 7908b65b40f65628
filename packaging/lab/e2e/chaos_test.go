package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

// TestChaos torments three nodes for a minute, and others while they become
// three. Where the verdict is bad, what they logged is in the folder that the
// output names.
func TestChaos(t *testing.T) {
	t.Parallel()
	needsWires(t)
	for name, flags := range map[string][]string{
		"three nodes": {"--duration", "1m"},
		"it grows to three, and the first is killed for good": {"--grow", "--duration", "30s"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), binaries.Lab, append([]string{"chaos", "--bin", filepath.Dir(binaries.Lab), "--nodes", "3"}, flags...)...)
			cmd.Stderr = t.Output()
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
