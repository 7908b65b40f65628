package evidence

import (
	"crypto/sha256"
	"os"
	"testing"
)

func TestThisProgramIsTheTest(t *testing.T) {
	binary, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	got, err := ThisProgram("me", "v1")
	if want := (Software{"me", "v1", sha256.Sum256(binary)}); err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
}
