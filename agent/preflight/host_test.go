package preflight

import (
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"
)

// TestWhatTheHostItselfSays: the report repeats /proc, and does not guess.
func TestWhatTheHostItselfSays(t *testing.T) {
	r := Check(t.Context(), Options{Memory: image()})
	for path, got := range map[string]string{
		"/proc/sys/kernel/osrelease": r.Kernel, "/proc/sys/kernel/kptr_restrict": r.KptrRestrict,
	} {
		want, err := os.ReadFile(path)
		if err != nil && !os.IsNotExist(err) && !os.IsPermission(err) {
			t.Fatal(err)
		}
		if got != strings.TrimSpace(string(want)) {
			t.Errorf("%s is %q here, %q in the report", path, want, got)
		}
	}
	said := strings.Join(r.Reasons, "\n")
	if hidden := r.KptrRestrict == "2"; strings.Contains(said, "kptr_restrict") != hidden {
		t.Errorf("kptr_restrict is %q, and the reasons are %q", r.KptrRestrict, r.Reasons)
	}
	for _, name := range r.Lacking {
		if !strings.Contains(said, name) || r.Verdict == Ready {
			t.Errorf("%s is lacking, verdict %s, reasons %q", name, r.Verdict, r.Reasons)
		}
	}
	if raw, err := json.Marshal(r); err != nil || !json.Valid(raw) || !strings.Contains(string(raw), `"kernel":"`+r.Kernel+`"`) {
		t.Errorf("%s, %v", raw, err)
	}
}

// TestAPreflightThatIsCalledOff does not wait for whom it cannot reach.
func TestAPreflightThatIsCalledOff(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	began := time.Now()
	r := Check(ctx, Options{Memory: image(), Collectors: []string{"192.0.2.1:443"}, S3: "https://192.0.2.1"})
	if r.Verdict != Unable || len(r.Reach) != 2 || time.Since(began) > knockLimit/2 {
		t.Errorf("verdict %s, %d tries, after %v", r.Verdict, len(r.Reach), time.Since(began))
	}
}
