package e2e

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

// TestChaos torments a collector for a minute; its log is in the folder that
// the output names.
func TestChaos(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), binaries.Lab, "chaos", "--bin", filepath.Dir(binaries.Lab))
	out, err := cmd.CombinedOutput()
	if err != nil || !regexp.MustCompile(`\ncases [1-9]\d*, lost 0, doubled 0, longest pause \d+\.\d s\n$`).Match(out) {
		t.Errorf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}
