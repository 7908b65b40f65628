package guest

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/quicklime-ir/quicklime/packaging/lab/guest/pact"
)

// fakeKit is a kit of text files with net_failover built in.
func fakeKit(t *testing.T) *Kit {
	t.Helper()
	dir := t.TempDir()
	kit := &Kit{Release: testRelease, ModuleDir: dir, Lime: filepath.Join(dir, "lime"), Busybox: filepath.Join(dir, "busybox"), Kernel: filepath.Join(dir, "kernel")}
	for _, path := range []string{kit.Lime, kit.Busybox} {
		must(t, os.WriteFile(path, []byte(path), 0o755))
	}
	must(t, os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte("kernel/drivers/net/net_failover.ko\n"), 0o644))
	for _, name := range networkModules {
		if name != "net_failover" {
			must(t, os.WriteFile(filepath.Join(dir, strings.ReplaceAll(name, "_", "-")+".ko"), []byte(name), 0o644))
		}
	}
	return kit
}

func packed(t *testing.T, cfg Config) (map[string]cpio.Record, []string, error) {
	t.Helper()
	var out bytes.Buffer
	if err := pack(&out, cfg, pact.Orders{Seed: make([]byte, pact.SeedSize)}, intrusion(make([]byte, pact.SeedSize), "h", time.Now()), time.Now()); err != nil {
		return nil, nil, err
	}
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(out.Bytes())))
	must(t, err)
	byName, order := map[string]cpio.Record{}, []string{}
	for _, r := range records {
		if _, twice := byName[r.Name]; twice {
			t.Errorf("%s is packed twice", r.Name)
		}
		byName[r.Name] = r
		order = append(order, r.Name)
	}
	return byName, order, nil
}

func testPackConfig(t *testing.T) Config {
	kit := fakeKit(t)
	return Config{Kit: kit, Init: kit.Busybox, Agent: kit.Busybox, Hostname: "h"}
}

func TestPack(t *testing.T) {
	cfg := testPackConfig(t)
	cfg.Files = map[string]File{"/etc/quicklime/deep/key.pem": {Mode: fs.ModeSetuid | 0o400, UID: 7, Data: []byte("key")}}
	records, order, err := packed(t, cfg)
	must(t, err)
	for _, name := range order {
		if dir := filepath.Dir(name); dir != "." && slices.Index(order, dir) > slices.Index(order, name) {
			t.Errorf("%s comes before its folder", name)
		}
	}
	key := records["etc/quicklime/deep/key.pem"]
	if key.Mode != cpio.S_IFREG|0o4400 || key.UID != 7 || text(t, key) != "key" {
		t.Errorf("the key is packed as %s", key)
	}
	if mode := records["tmp"].Mode; mode != cpio.S_IFDIR|0o1777 {
		t.Errorf("/tmp has mode %o", mode)
	}
	for _, trace := range intrusion(make([]byte, pact.SeedSize), "h", time.Now()) {
		if !strings.Contains("\n"+text(t, records[strings.TrimPrefix(trace.Path, "/")]), "\n"+trace.Line+"\n") {
			t.Errorf("%s lacks the planted line %q", trace.Path, trace.Line)
		}
	}
	orders := text(t, records[strings.TrimPrefix(pact.OrdersPath, "/")])
	if strings.Contains(orders, "net_failover.ko") || strings.Contains(orders, "net-failover") || strings.Index(orders, "failover.ko") > strings.Index(orders, "virtio-net.ko") {
		t.Errorf("modules are not in load order, or a built-in one is loaded: %s", orders)
	}
}

func TestPackRefuses(t *testing.T) {
	for _, name := range []string{"relative", "/etc/../init", "/tmp/x", "/run/x", "/bin/sh", "/init", pact.AgentPath, pact.OrdersPath, "/etc/passwd", "/", "/root", "/var/run"} {
		t.Run(name, func(t *testing.T) {
			cfg := testPackConfig(t)
			cfg.Files = map[string]File{name: {Mode: 0o644}}
			if _, _, err := packed(t, cfg); err == nil {
				t.Error("packed")
			}
		})
	}
	t.Run("module gone", func(t *testing.T) {
		cfg := testPackConfig(t)
		must(t, os.Remove(filepath.Join(cfg.Kit.ModuleDir, "virtio-net.ko")))
		if _, _, err := packed(t, cfg); err == nil || !strings.Contains(err.Error(), "virtio_net") {
			t.Errorf("got %v", err)
		}
	})
}

func text(t *testing.T, r cpio.Record) string {
	t.Helper()
	if r.ReaderAt == nil {
		return ""
	}
	data, err := io.ReadAll(io.NewSectionReader(r, 0, int64(r.FileSize)))
	must(t, err)
	return string(data)
}

// Two boots never share a trace.
func TestTracesDependOnSeed(t *testing.T) {
	one, two := intrusion([]byte{1}, "h", time.Unix(0, 0)), intrusion([]byte{2}, "h", time.Unix(0, 0))
	for i := range one {
		if one[i].Line == two[i].Line {
			t.Errorf("%q is in both", one[i].Line)
		}
	}
}
