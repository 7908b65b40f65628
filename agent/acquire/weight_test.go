package acquire

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestWhatACaptureWeighs holds the peak of resident memory of a process that
// captures, in its own program without the race detector: 128 MiB on a host
// of 64 GiB and two processors, 48 MiB on one of 512 MiB. The buffers are the
// same for each part, so a few GiB tell what 64 would.
func TestWhatACaptureWeighs(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds a program; not with -short")
	}
	program := filepath.Join(t.TempDir(), "weigh")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./testdata/weigh").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, tt := range []struct{ ram, read, processors, most uint64 }{
		{64 << 30, 3 << 30, 2, 128 << 20},
		{511 << 20, 511 << 20, 2, 48 << 20},
		{256 << 20, 256 << 20, 1, 48 << 20},
	} {
		cmd := exec.CommandContext(t.Context(), program, fmt.Sprint(tt.ram), fmt.Sprint(tt.read), fmt.Sprint(tt.processors))
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		var peak, locked uint64
		if _, err := fmt.Sscan(string(out), &peak, &locked); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		t.Logf("%d MiB of RAM, %d processors: %d MiB resident at most, %d MiB locked", tt.ram>>20, tt.processors, peak>>20, locked>>20)
		if peak == 0 || peak > tt.most {
			t.Errorf("%d MiB of RAM: %d MiB were resident, want %d at most", tt.ram>>20, peak>>20, tt.most>>20)
		}
		if locked > tt.most {
			t.Errorf("%d MiB of RAM: %d MiB were locked, want %d at most", tt.ram>>20, locked>>20, tt.most>>20)
		}
	}
}
