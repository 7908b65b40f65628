package e2e

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quicklime-ir/quicklime/packaging/lab/world"
)

// TestMoreIsTaken: the service's definitions bring files that no agent takes by
// itself; and an operator who has read the tables, while the memory image is
// still taken, has the memory of one process kept as a core.
func TestMoreIsTaken(t *testing.T) {
	t.Parallel()
	definitions := t.TempDir()
	image, root := host(t)
	for path, text := range map[string]string{
		filepath.Join(definitions, "shop.yaml"): "name: Shop\ndoc: The shop's orders.\nsources: [{type: FILE, attributes: {paths: ['/srv/shop/*.db']}}]\n",
		filepath.Join(root, "srv/shop/a.db"):    "orders\n",
		filepath.Join(root, "proc/77/maps"):     "00001000-00002000 rw-p 00000000 00:00 0    [heap]\n",
		filepath.Join(root, "proc/77/mem"):      strings.Repeat("\x00", 4096) + strings.Repeat("only in memory, ", 256),
		filepath.Join(root, "proc/77/auxv"):     strings.Repeat("\x00", 16),
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	w := start(t, func(c *world.Config) { c.Collector = append([]string{"--artifacts", definitions}, quick...) })
	a, err := w.StartAgent(world.Victim, image, root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Stop(); err != nil {
			t.Error(err)
		}
	})
	onMemoryPart(w, 2, func() { operator(t, w, "case", "collect", caseID(t, w), "--process-memory", "77") })
	if err := w.Find(world.Compromised(world.Victim)); err != nil {
		t.Fatal(err)
	}
	c := await(t, w, "its end", ended)
	allDone(t, c)
	if out := verify(t, w); !strings.Contains(out, "PROVEN: case "+c.ID) {
		t.Errorf("verify says:\n%s", out)
	}
	got := taken{w, c}
	lacks(t, "files that are not in the tar", members(t, got, "live/files.tar", "orders\n"), []string{"[root]/srv/shop/a.db"})
	lacks(t, "cores with what only memory holds", members(t, got, "live/process_memory.tar", "only in memory, "), []string{"live_response/process_memory/77/core"})
	if out := operator(t, w, "case", "show", c.ID); !strings.Contains(out, "/live to take the memory of [77]") {
		t.Errorf("show says\n%s", out)
	}
}

// members names those of a tar that hold a text.
func members(t *testing.T, g taken, name, text string) []string {
	t.Helper()
	r := g.open(t, name)
	defer r.Close()
	var out []string
	for archive := tar.NewReader(r); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(io.LimitReader(archive, 64<<20))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(body, []byte(text)) {
			out = append(out, header.Name)
		}
	}
}
