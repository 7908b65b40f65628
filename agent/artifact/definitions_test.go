package artifact

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quicklime-ir/quicklime/agent/artifact/command"
	"github.com/quicklime-ir/quicklime/proto/definition"
)

// Our own definitions load whole, say what they hold, and have limits and
// commands by names that there are.
func TestDefinitionsAreSound(t *testing.T) {
	set := definition.Embedded()
	for _, refused := range set.Refused {
		t.Error(refused)
	}
	names, commands := map[string]bool{}, 0
	defs := Definitions()
	if len(defs) != len(set.All()) {
		t.Errorf("%d of %d reach Linux", len(defs), len(set.All()))
	}
	for _, def := range defs {
		names[def.Name] = true
		if !regexp.MustCompile(`^[A-Z][A-Za-z0-9]+$`).MatchString(def.Name) || !strings.HasSuffix(def.Doc, ".") {
			t.Errorf("definition %q needs a name in letters, and a doc that is a sentence", def.Name)
		}
		for _, argv := range def.Commands {
			commands++
			if !command.Known(argv) || len(def.Commands) != 1 {
				t.Errorf("%s: %q is not on the list of commands, or not its only one", def.Name, argv)
			}
		}
		both := slices.Concat(def.Paths, def.Locations)
		slices.Sort(both)
		if len(slices.Compact(both)) != len(def.Paths)+len(def.Locations) {
			t.Errorf("%s names a path twice", def.Name)
		}
	}
	if commands != command.Count() {
		t.Errorf("%d commands are defined, %d are on the list", commands, command.Count())
	}
	for name := range limits {
		if !names[name] {
			t.Errorf("limits are for %s, which is no definition", name)
		}
	}
}

// What no other tool takes, and what is easily missed: one file of each.
func TestDefinitionsReach(t *testing.T) {
	root := t.TempDir()
	paths := []string{
		"var/lib/amazon/ssm/i-0abc/document/orchestration/1-2/awsrunShellScript/0.awsrunShellScript/_script.sh",
		"var/lib/amazon/ssm/i-0abc/document/orchestration/1-2/awsrunShellScript/0.awsrunShellScript/stdout",
		"var/lib/amazon/ssm/i-0abc/document/state/completed/1-2",
		"var/log/amazon/ssm/audits/audit.log", "snap/amazon-ssm-agent/current/amazon-ssm-agent.json",
		"var/lib/cloud/instances/i-0abc/user-data.txt", "var/lib/cloud/instances/i-0abc/user-data.txt.i", "var/lib/cloud/scripts/per-boot/x.sh",
		"run/cloud-init/instance-data.json", "opt/aws/amazon-cloudwatch-agent/etc/amazon-cloudwatch-agent.d/file_x.json",
		"opt/aws/amazon-cloudwatch-agent/logs/amazon-cloudwatch-agent.log", "etc/eks/bootstrap.sh", "etc/kubernetes/kubelet/kubelet-config.json",
		"etc/cni/net.d/10-aws.conflist", "var/log/aws-routed-eni/ipamd.log", "var/log/pods/ns_pod_uid/c/0.log",
		"run/containerd/io.containerd.runtime.v2.task/k8s.io/abc/config.json", "var/lib/docker/containers/abc/config.v2.json", "var/lib/docker/containers/abc/abc-json.log",
		"run/log/journal/m/system.journal", "var/log/journal/m/system@x.journal", "var/log/audit/audit.log.1", "var/log/secure-20260101.gz", "var/log/wtmp", "var/log/lastlog",
		"var/log/nginx/access.log.2.gz", "var/spool/cron/root", "var/spool/cron/crontabs/root", "var/spool/cron/atjobs/a0001", "var/spool/at/a0001", "etc/anacrontab",
		"etc/systemd/system/evil.timer", "run/systemd/transient/run-1.service", "home/ann/.config/systemd/user/x.service", "etc/rc.local", "etc/profile.d/x.sh",
		"etc/xdg/autostart/x.desktop", "etc/update-motd.d/00-x", "etc/udev/rules.d/99-x.rules", "etc/dbus-1/system.d/x.conf", "etc/polkit-1/rules.d/x.rules",
		"etc/dracut.conf.d/x.conf", "etc/grub.d/40_custom", "boot/grub2/grub.cfg", "etc/pam.d/sshd", "etc/ld.so.preload", "etc/binfmt.d/x.conf", "etc/sudoers.d/x", "etc/shadow",
		"root/.ssh/authorized_keys", "home/ann/.bash_history", "home/ann/.python_history", "var/lib/dpkg/status", "var/lib/rpm/rpmdb.sqlite", "etc/yum.repos.d/x.repo",
		"usr/lib/systemd/system/sshd.service", "etc/sysctl.d/99.conf", "var/lib/wtmpdb/wtmp.db", "dev/shm/x", "tmp/x", "var/tmp/x", "etc/rc3.d/S01x",
	}
	files := map[string]string{"etc/passwd": "root:x:0:0::/root:/bin/sh\n"}
	for _, p := range paths {
		files[p] = p
	}
	place(t, root, files)
	got, record := collect(t, &Host{Root: root}, Definitions()...)
	for _, p := range paths {
		if got["[root]/"+p].content != p {
			t.Errorf("%s was not taken", p)
		}
	}
	for _, e := range record {
		if e.Error != "" {
			t.Errorf("on record is %+v", e)
		}
	}
}

// A place is looked at and not read, though another definition may read it.
func TestLocationsAreOnlyLookedAt(t *testing.T) {
	root := t.TempDir()
	place(t, root, map[string]string{"var/www/secret.php": "secret", "var/log/x": "x"})
	got, record := collect(t, &Host{Root: root}, Definition{Name: "Web", Locations: []string{"/var/www/*", "/var/www/*", "/var/log/x"}}, logs)
	if len(got) != 1 || got["[root]/var/log/x"].content != "x" {
		t.Errorf("took %d members", len(got))
	}
	e := find(t, record, "/var/www/secret.php")
	if e.Note != NoteLocation || !strings.Contains(string(e.Detail), "mode 100644") || !strings.Contains(string(e.Detail), " size 6 ") {
		t.Errorf("on record is %+v", e)
	}
	times := 0
	for _, e := range record {
		if e.Path == "/var/www/secret.php" {
			times++
		}
	}
	if times != 1 {
		t.Errorf("it is on record %d times", times)
	}
}

// No command of a definition from outside runs; nor does one of ours for a
// root that is not the host's.
func TestCommandsThatAreNotRun(t *testing.T) {
	planted := filepath.Join(t.TempDir(), "ran")
	def := Definition{Name: "Foreign", Commands: [][]string{{"/bin/touch", planted}, {"/usr/sbin/nft", "list", "ruleset"}, {"/usr/sbin/nft", "flush", "ruleset"}}}
	got, record := collect(t, &Host{Root: t.TempDir()}, def)
	if _, err := os.Stat(planted); !errors.Is(err, os.ErrNotExist) || len(got) != 0 {
		t.Errorf("it ran: %v, %d members", err, len(got))
	}
	for _, argv := range def.Commands {
		if e := find(t, record, strings.Join(argv, " ")); e.Note != NoteNotRun || e.Detail == "" {
			t.Errorf("on record is %+v", e)
		}
	}
}

// What a command says lies beside the files.
func TestMember(t *testing.T) {
	var out bytes.Buffer
	c := &collection{tar: tar.NewWriter(&out)}
	if err := c.member(responses+"/NFTablesRules.txt", time.Unix(1, 0), []byte("table ip x\n")); err != nil {
		t.Fatal(err)
	}
	in := tar.NewReader(&out)
	header, err := in.Next()
	if err != nil || header.Name != "live_response/NFTablesRules.txt" || header.Mode != 0o600 || !header.ModTime.Equal(time.Unix(1, 0)) {
		t.Fatalf("got %+v, %v", header, err)
	}
	if content, err := io.ReadAll(in); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) || string(content) != "table ip x\n" {
		t.Errorf("got %q, %v", content, err)
	}
	c.tar = tar.NewWriter(brokenWriter{})
	if err := c.member("x", time.Unix(1, 0), []byte("x")); !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

func TestAddedDefinitions(t *testing.T) {
	root := t.TempDir()
	place(t, root, map[string]string{"srv/app/a.conf": "a", "srv/app/b.log": "b"})
	var rec Record
	more := Added([]definition.File{{Name: "mine.yaml", YAML: []byte(`name: Mine
doc: Mine.
sources:
- {type: FILE, attributes: {paths: ['/srv/app/?.conf']}}
- {type: REGISTRY_KEY, attributes: {keys: ['HKEY_LOCAL_MACHINE\X']}}
supported_os: [Linux, Windows]
---
name: Broken
doc: Broken.
sources:
- type: FILE
  attributes:
    paths: ['/srv/../etc/shadow']
---
name: Both
doc: A group of this file's and of ours.
sources: [{type: ARTIFACT_GROUP, attributes: {names: [Mine, SSMCommands]}}]
`)}}, &rec)
	got, _ := collect(t, &Host{Root: root}, more...)
	if len(got) != 1 || got["[root]/srv/app/a.conf"].content != "a" {
		t.Errorf("took %d members", len(got))
	}
	if e := find(t, entries(t, &rec), "mine.yaml"); !strings.HasPrefix(string(e.Error), "mine.yaml:11: cannot use Broken: cannot read pattern") {
		t.Errorf("on record is %+v", e)
	}
}

// debianArtifacts gives the definitions of Debian's package forensic-artifacts,
// from where the package puts them, or by
// apt from Debian's mirror.
func debianArtifacts(t *testing.T) []definition.File {
	t.Helper()
	dir := "/usr/share/artifacts"
	if _, err := os.Stat(dir); err != nil {
		dir = filepath.Join(fetchArtifacts(t), "usr/share/artifacts")
	}
	files, err := definition.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// fetchArtifacts downloads and unpacks the package; apt holds what it fetches
// against the mirror's signed list of hashes.
func fetchArtifacts(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, argv := range [][]string{{"apt-get", "-q", "download", "forensic-artifacts"}, {"sh", "-c", "dpkg-deb -x forensic-artifacts_*.deb ."}} {
		cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatalf("cannot get Debian's forensic-artifacts: %v\n%s", err, out)
			}
			t.Skipf("no Debian mirror within reach for forensic-artifacts: %v\n%s", err, out)
		}
	}
	return dir
}

// Debian's definitions load, all of them, and those that reach Linux run as
// they are.
func TestDebiansDefinitions(t *testing.T) {
	files := debianArtifacts(t)
	set := definition.Load(definition.Embedded(), files)
	for _, refused := range set.Refused {
		t.Error(refused)
	}
	if all, linux := len(set.All()), len(set.Linux()); all < 660 || linux < 241 {
		t.Errorf("%d load and %d reach Linux, want 660 and 241", all, linux)
	}
	root := t.TempDir()
	tree := map[string]string{
		"etc/passwd": "ann:x:1000:1000::/home/ann:/bin/sh\n", "var/log/auth.log": "x", "home/ann/.bash_history": "ls\n",
		"var/lib/dpkg/status": "x", "etc/ssh/sshd_config": "x", "home/ann/.ssh/known_hosts": "x", "etc/crontab": "x",
	}
	place(t, root, tree)
	var rec Record
	more := Added(files, &rec)
	if rec.Summary().Failed != 0 {
		t.Errorf("%d were refused", rec.Summary().Failed)
	}
	got, record := collect(t, &Host{Root: root}, more...)
	for name := range tree {
		if got["[root]/"+name].Header == nil {
			t.Errorf("%s was not taken", name)
		}
	}
	tried, notRun := map[string]bool{}, 0
	for _, e := range record {
		tried[e.Source] = true
		if e.Note == NoteNotRun {
			notRun++
		}
		if e.Error != "" {
			t.Errorf("on record is %+v", e)
		}
	}
	for _, def := range more {
		if !tried[def.Name] {
			t.Errorf("%s left nothing on record", def.Name)
		}
	}
	t.Logf("%d load, %d reach Linux, %d of them say where to look, %d commands not run",
		len(set.All()), len(set.Linux()), len(more), notRun)
}
