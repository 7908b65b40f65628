package e2e

import (
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/quicklime-ir/quicklime/packaging/lab/demo"
	"github.com/quicklime-ir/quicklime/packaging/lab/guest"
)

// kit gives the real kernel, or skips where it cannot be had; not in CI.
func kit(t *testing.T) *guest.Kit {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	err := guest.Install(t.Context(), log)
	var k *guest.Kit
	if err == nil {
		var dir string
		if dir, err = guest.CacheDir(); err == nil {
			k, err = guest.Prepare(t.Context(), dir, log)
		}
	}
	if err != nil && os.Getenv("CI") == "" {
		t.Skipf("no real kernel here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestTheMainJobOnARealKernel runs the demo's checks with each memory source,
// and has Volatility read each image. The first goes through the command that
// a newcomer runs, on a host of 512 MiB; half of that is quicker to dump.
func TestTheMainJobOnARealKernel(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("a real kernel takes minutes; not with -short")
	}
	k := kit(t)
	run := map[string]func(t *testing.T, keep string) (said string){
		"kcore": func(t *testing.T, keep string) string {
			said, err := exec.CommandContext(t.Context(), binaries.Lab, "demo", "--bin", filepath.Dir(binaries.Lab), "--memory", "kcore", "--keep", keep).CombinedOutput()
			t.Log(string(said))
			if err != nil {
				t.Fatal(err)
			}
			return string(said)
		},
		"lime": func(t *testing.T, keep string) string {
			var out strings.Builder
			err := demo.Run(t.Context(), demo.Options{Binaries: binaries, Kit: k, Memory: "lime", MemoryMiB: 256, Keep: keep, Out: &out})
			t.Log(out.String())
			if err != nil {
				t.Fatal(err)
			}
			return out.String()
		},
	}
	var mu sync.Mutex
	var boots []map[string]json.RawMessage // owned by mu
	t.Run("sources", func(t *testing.T) {
		for source, run := range run {
			t.Run(source, func(t *testing.T) {
				t.Parallel()
				keep := filepath.Join(t.TempDir(), "keep")
				said := run(t, keep)
				if !strings.Contains(said, source+":ok") {
					t.Errorf("the agent did not say that %s would work", source)
				}
				t.Run("volatility", func(t *testing.T) {
					boot := readable(t, keep, said)
					mu.Lock()
					defer mu.Unlock()
					boots = append(boots, boot)
				})
				damaged(t, keep)
			})
		}
	})
	if len(boots) == 2 {
		sameKernel(t, boots[0], boots[1])
	}
}

var damagedPart = regexp.MustCompile(`(?m)^ *BAD +"part [0-9]+": `)

// damaged changes one byte of the kept image object: the public command must
// find it, and say which part.
func damaged(t *testing.T, keep string) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(keep, "bucket/cases/*/*/memory/memory.lime.zst"))
	if err != nil || len(found) != 1 {
		t.Fatalf("images %v, %v", found, err)
	}
	f, err := os.OpenFile(found[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	one := make([]byte, 1)
	at := int64(12 << 20)
	if _, err := f.ReadAt(one, at); err != nil {
		t.Fatal(err)
	}
	one[0] ^= 0x40
	if _, err := f.WriteAt(one, at); err != nil {
		t.Fatal(err)
	}
	said, err := exec.CommandContext(t.Context(), binaries.Collector, "verify", "--dir", filepath.Join(keep, "bucket"), "--key", filepath.Join(keep, "verify.pub")).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 || !damagedPart.Match(said) {
		t.Errorf("verify of a damaged image: %v\n%s", err, said)
	}
}
