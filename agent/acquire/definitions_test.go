package acquire

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quicklime-ir/quicklime/proto/definition"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// Files of definitions come from the agent's folder and from the order; one that
// is broken is on record and keeps nothing else from being taken.
func TestDefinitionsOfFolderAndOrder(t *testing.T) {
	a, _ := host(t)
	for _, name := range []string{"srv/folder", "srv/order"} {
		path := filepath.Join(a.Host.Root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(name), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	of := func(path string) string {
		return "name: Mine\ndoc: d\nsources: [{type: FILE, attributes: {paths: [" + path + "]}}]\n"
	}
	a.Definitions = []definition.File{{Name: "x.yaml", YAML: []byte(of("/srv/folder"))}}
	s := newShelf()
	order := Order{Kind: evidence.Live, Compression: evidence.None, Definitions: map[string]string{
		"b": strings.Replace(of("/srv/order"), "Mine", "Ordered", 1), "a": of("relative"),
	}}
	if r := a.Run(t.Context(), order, s, silent); r.Err != nil || r.Status != evidence.Whole {
		t.Fatalf("got %+v", r)
	}
	taken := map[string]bool{}
	in := tar.NewReader(bytes.NewReader(s.items["files"].bytes(t)))
	for {
		header, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		taken[header.Name] = true
	}
	for _, want := range []string{"[root]/var/log/syslog", "[root]/srv/folder", "[root]/srv/order"} {
		if !taken[want] {
			t.Errorf("%s was not taken", want)
		}
	}
	if record := string(s.items[collection].bytes(t)); !strings.Contains(record, "order:a:3: cannot use Mine: cannot read pattern") {
		t.Errorf("the broken one is not on record: %s", record)
	}
}
