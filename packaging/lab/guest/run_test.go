package guest

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/quicklime-ir/quicklime/packaging/lab/guest/pact"
)

const busybox = "/usr/bin/busybox"

// TestRunAndDisks runs programs in a real guest, with one disk to write and
// one to read.
func TestRunAndDisks(t *testing.T) {
	kit := testKit(t)
	defer goleak.VerifyNone(t)
	cfg := testConfig(t, kit)
	cfg.AgentArgs = []string{pact.HostLoopback + ":1"} // it ends, again and again
	var disks [2]string
	for i, text := range []string{"to be read", "to be written"} {
		disks[i] = filepath.Join(t.TempDir(), "disk,comma.img")
		image := make([]byte, 1<<20)
		copy(image, text)
		must(t, os.WriteFile(disks[i], image, 0o600))
		cfg.Disks = append(cfg.Disks, Disk{Path: disks[i], ReadOnly: i == 0})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	vm, err := Boot(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Stop()
	if _, err := vm.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	script := func(text string) []string { return []string{busybox, "sh", "-c", text} }
	tests := []struct {
		name   string
		argv   []string
		limit  time.Duration // 0 is a minute
		output string        // its beginning
		exit   int
		err    string
	}{
		{name: "both outputs and the code", argv: script("echo out; echo err >&2; exit 7"), output: "out\nerr\n", exit: 7},
		{name: "it is root, in /", argv: script("busybox id -u; pwd"), output: "0\n/\n"},
		{name: "a signal", argv: script("kill -TERM $$"), exit: 143},
		{name: "bytes as they are", argv: script(`printf 'a\0b\377'`), output: "a\x00b\xff"},
		{name: "several pieces", argv: script("busybox head -c 70000 /dev/zero"), output: strings.Repeat("\x00", 70_000)},
		{name: "more", argv: script("busybox yes; true"), err: "it wrote more than 1048576 bytes"},
		{name: "too slow, with a child", argv: script("sleep 1000 & sleep 1000"), limit: time.Second, err: "its time was over"},
		{name: "a child that stays", argv: script("sleep 1000 & echo gone"), output: "gone\n"},
		{name: "nobody listens any more", argv: script("exec >&- 2>&-; sleep 1; exit 3"), exit: 3},
		{name: "no such program", argv: []string{"/none"}, err: "cannot run /none"},
		{name: "no absolute path", argv: []string{"busybox"}, err: "want an absolute path"},
		{name: "no limit", argv: script("true"), limit: -1, err: "and a limit"},
		{name: "the disks", argv: script("cat /dev/vda | busybox head -c 10; echo 'was written' > /dev/vdb; sync; echo no > /dev/vda"), output: "to be read", exit: 1},
	}
	for _, tt := range tests {
		limit := tt.limit
		if limit == 0 {
			limit = time.Minute
		}
		got, err := vm.Run(ctx, limit, tt.argv...)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: %v, want %q", tt.name, err, tt.err)
			}
			continue
		}
		if err != nil || got.Exit != tt.exit || !bytes.HasPrefix(got.Output, []byte(tt.output)) {
			t.Errorf("%s: exit %d, %d bytes %.60q, %v", tt.name, got.Exit, len(got.Output), got.Output, err)
		}
	}
	left, err := vm.Run(ctx, time.Minute, script("ps | grep -c '[s]leep 1000'")...)
	if err != nil || strings.TrimSpace(string(left.Output)) != "1" { // the one that was left to stay
		t.Errorf("sleepers: %q, %v", left.Output, err)
	}
	if err := vm.Stop(); err != nil {
		t.Error(err)
	}
	written, err := os.ReadFile(disks[1])
	must(t, err)
	if read, err := os.ReadFile(disks[0]); err != nil || !bytes.HasPrefix(written, []byte("was written\n")) || !bytes.HasPrefix(read, []byte("to be read")) {
		t.Errorf("the disks hold %.20q and %.20q, %v", read, written, err)
	}
}

// TestDiskModulesArePackedForDisksAlone.
func TestDiskModulesArePackedForDisksAlone(t *testing.T) {
	cfg := testPackConfig(t)
	must(t, os.WriteFile(filepath.Join(cfg.Kit.ModuleDir, "virtio_blk.ko"), nil, 0o644))
	for _, disks := range [][]Disk{nil, {{Path: "x"}}} {
		cfg.Disks = disks
		modules, err := packModules(map[string]File{}, cfg)
		must(t, err)
		if has := slices.ContainsFunc(modules, func(m string) bool { return strings.HasSuffix(m, "/virtio_blk.ko") }); has != (len(disks) > 0) {
			t.Errorf("with %d disks the modules are %v", len(disks), modules)
		}
	}
}
