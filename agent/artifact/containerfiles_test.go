package artifact

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// TestFilesOfAContainer: a process in a mount namespace and a root of its own,
// whose files try to lead out of it.
func TestFilesOfAContainer(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	place(t, root, map[string]string{
		"etc/passwd":          "root:x:0:0::/root:/bin/sh\nmallory:x:1:1::/srv/m:/bin/sh\n",
		"root/.bash_history":  "curl evil.example\n",
		"srv/m/.zsh_history":  "make\n",
		"etc/shadow":          "root:*:1::::::\n",
		"usr/bin/of-an-image": "x",
	})
	for name, target := range map[string]string{"etc/group": "/etc/passwd", "home": "/../../../../root", "var": "/proc/1/root/var"} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	buildSmall(t, filepath.Join(root, "child"))
	cmd := exec.Command("/child")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Chroot: root}
	pid := plant(t, cmd)
	ns, err := new(Host).namespaceOf(strconv.Itoa(pid), "mnt")
	if err != nil {
		t.Fatal(err)
	}
	var histories []Definition
	for _, d := range Definitions() {
		if d.Name == "ShellHistories" || d.Name == "Accounts" {
			histories = append(histories, d)
		}
	}
	got, record := collect(t, new(Host), histories...)
	folder := fmt.Sprintf("containers/mntns-%d", ns)
	for name, text := range map[string]string{"/root/.bash_history": "curl evil.example\n", "/srv/m/.zsh_history": "make\n", "/etc/shadow": "root:*:1::::::\n"} {
		if m := got[folder+name]; m.Header == nil || m.content != text {
			t.Errorf("%s: %+v", name, m)
		}
	}
	if owner := got[folder+"/root/.bash_history"]; owner.Header != nil && owner.Uname != "root" {
		t.Errorf("it is owned by %q", owner.Uname)
	}
	for name := range got {
		if strings.HasPrefix(name, folder) && (strings.Contains(name, "of-an-image") || strings.Contains(name, "/home/") || strings.Contains(name, "/var/")) {
			t.Errorf("%s was taken", name)
		}
	}
	if e := find(t, record, folder+"/root/.bash_history"); e.Source != "ShellHistories" || e.SHA256 == "" {
		t.Errorf("on record is %+v", e)
	}
}
