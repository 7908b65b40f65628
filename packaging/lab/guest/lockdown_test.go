package guest

import (
	"context"
	"path/filepath"
	"regexp"
	"testing"
	"time"
)

// TestSecureBootLeavesKcore: a kernel that is locked down to integrity, as
// after Secure Boot, takes no module that is not signed, and gives /proc/kcore;
// the agent says both.
func TestSecureBootLeavesKcore(t *testing.T) {
	kit := testKit(t)
	cfg := testConfig(t, kit)
	cfg.Agent = filepath.Join(t.TempDir(), "quicklime-agent")
	if err := buildStatic(t.Context(), "../../..", "./agent", cfg.Agent); err != nil {
		t.Fatal(err)
	}
	cfg.AgentArgs, cfg.KernelArgs = []string{"preflight"}, []string{"lockdown=integrity"}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	vm, err := Boot(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Stop()
	want := regexp.MustCompile(`source kcore +usable\s+source lime +lockdown: .*\[integrity\].*is not signed`)
	for !want.MatchString(vm.ConsoleTail()) {
		if ctx.Err() != nil {
			t.Fatalf("the agent does not say %q: %s", want, vm.ConsoleTail())
		}
		time.Sleep(100 * time.Millisecond)
	}
}
