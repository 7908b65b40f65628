package bench

import (
	"bytes"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/quicklime-ir/quicklime/packaging/lab/guest"
	"github.com/quicklime-ir/quicklime/packaging/lab/world"
)

// TestKcoreInAGuest takes each reading once on a real kernel: all of them read
// the same bytes, and each gives its figure. What the figures say is nobody's
// concern here.
func TestKcoreInAGuest(t *testing.T) {
	if testing.Short() {
		t.Skip("a real kernel takes a minute; not with -short")
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	kit, cache, err := func() (*guest.Kit, string, error) {
		if err := guest.Install(t.Context(), log); err != nil {
			return nil, "", err
		}
		cache, err := guest.CacheDir()
		if err != nil {
			return nil, "", err
		}
		kit, err := guest.Prepare(t.Context(), cache, log)
		return kit, cache, err
	}()
	if err != nil && os.Getenv("CI") == "" {
		t.Skipf("no real kernel here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	binaries, err := world.Build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := Run(t.Context(), Options{Binaries: binaries, Kit: kit, Cache: cache, Source: "../../..", Rounds: 1, Parts: []string{Kcore}, Out: &out, Log: log}); err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for line := range strings.Lines(out.String()) {
		fields := strings.Fields(line)
		if len(fields) != 3 || strings.HasPrefix(fields[1], "0.000") || strings.HasPrefix(fields[1], "-") {
			t.Errorf("not a figure: %q", line)
			continue
		}
		got[fields[0]]++
	}
	for _, name := range []string{"kcore_dd", "kcore_read", "kcore_read_2_readers", "kcore_pread", "kpageflags", "kcore_read_vs_dd", "kcore_read_2_readers_vs_1"} {
		if got[name] != 1 {
			t.Errorf("%s has %d lines, want 1, in:\n%s", name, got[name], out.String())
		}
	}
}
