package guest

import (
	"context"
	"log/slog"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/quicklime-ir/quicklime/packaging/lab/guest/pact"
)

// TestDebian boots into a whole Debian: its systemd is the first process, and
// the lab's service runs the agent and obeys.
func TestDebian(t *testing.T) {
	kit := testKit(t)
	dir, err := CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(t, kit)
	cfg.Root, err = Debian(t.Context(), dir, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil && os.Getenv("CI") == "" {
		t.Skipf("no Debian to boot: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer goleak.VerifyNone(t)
	cfg.MemoryMiB = 512
	cfg.AgentArgs = []string{pact.HostLoopback + ":1"} // it ends, again and again
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	vm, err := Boot(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Stop()
	facts, err := vm.Ready(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("it stands after %v", facts.BootTime)
	for _, tt := range []struct {
		argv []string
		want string
	}{
		{[]string{"/usr/bin/cat", "/proc/1/comm"}, "systemd\n"},
		{[]string{"/usr/bin/hostname"}, "ip-10-0-2-15\n"},
		{[]string{"/usr/bin/systemctl", "is-active", "systemd-journald", "cron", "sys-sync.timer"}, "active\nactive\nactive\n"},
		{[]string{"/usr/bin/tail", "-n", "1", "/root/.bash_history"}, "df -h\n"},
		{[]string{"/usr/bin/ls", "/run/quicklime-lab"}, "/usr/bin/ls: cannot access '/run/quicklime-lab': No such file or directory\n"},
	} {
		got, err := vm.Run(ctx, time.Minute, tt.argv...)
		if err != nil || string(got.Output) != tt.want {
			t.Errorf("%v: %q, exit code %d, %v; want %q", tt.argv, got.Output, got.Exit, err, tt.want)
		}
	}
}
