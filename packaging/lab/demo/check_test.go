package demo

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestSearch finds needles that lie across the windows' borders.
func TestSearch(t *testing.T) {
	const step = 8 << 20
	needle := bytes.Repeat([]byte{0xEE}, 4096)
	for _, at := range []int{0, 1, step - 4096, step - 1, step, step + 4095, 2*step + 17} {
		file := make([]byte, 2*step+100_000)
		copy(file[at:], needle)
		path := filepath.Join(t.TempDir(), "image")
		if err := os.WriteFile(path, file, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := search(path, [][]byte{needle, []byte("not there")})
		if err != nil || !slices.Equal(got, []int64{int64(at), -1}) {
			t.Errorf("a needle at %d: found at %v, %v", at, got, err)
		}
	}
}

func TestAFolderThatIsNotEmptyIsNotUsed(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := folder(dir); err != nil {
		t.Errorf("an empty folder: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := folder(dir); err == nil {
		t.Error("a folder with files was taken")
	}
}
