package guest

import (
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/quicklime-ir/quicklime/packaging/lab/guest/pact"
)

// networkModules are what virtio-net takes, in the order that loads.
var networkModules = []string{
	"failover", "net_failover", "virtio_ring", "virtio", "virtio_pci_modern_dev",
	"virtio_pci_legacy_dev", "virtio_pci", "virtio_net",
}

// diskModules are what virtio disks take besides; ext4 is built in.
var diskModules = []string{"virtio_blk"}

// applets are the commands that an investigator at the console would miss.
var applets = []string{"sh", "ash", "cat", "ls", "ps", "ip", "mount", "uname", "date", "dmesg", "free", "grep", "sleep", "netstat"}

// pack writes the guest's initramfs to w, uncompressed: under emulation,
// unpacking gzip costs more than loading the bytes does.
func pack(w io.Writer, cfg Config, orders pact.Orders, traces []Trace, now time.Time) error {
	files := machineFiles(cfg.Hostname, traces, now)
	modules, err := packModules(files, cfg)
	if err != nil {
		return err
	}
	orders.Modules = modules
	if cfg.Root != "" {
		orders.Root, orders.Carry = rootDevice, carried(cfg, traces)
	}
	data, err := json.Marshal(orders)
	if err != nil {
		return fmt.Errorf("cannot encode the orders: %w", err)
	}
	files[pact.OrdersPath] = File{Mode: 0o400, Data: data}
	for to, from := range map[string]string{
		"/init": cfg.Init, pact.AgentPath: cfg.Agent, "/usr/bin/busybox": cfg.Kit.Busybox,
		pact.ModulesDir + "/" + cfg.Kit.Release + "/lime.ko": cfg.Kit.Lime,
	} {
		if err := packProgram(files, to, from); err != nil {
			return err
		}
	}
	for name, f := range cfg.Files {
		if err := mayPack(name, files); err != nil {
			return err
		}
		files[name] = f
	}
	return writeArchive(w, files, now)
}

// rootDevice is where the guest finds Config.Root.
const rootDevice = "/dev/vda"

// carried lists what init takes along into Config.Root.
func carried(cfg Config, traces []Trace) []string {
	all := map[string]bool{"/init": true, pact.AgentPath: true, pact.ModulesDir + "/" + cfg.Kit.Release + "/lime.ko": true}
	for _, t := range traces {
		all[t.Path] = true
	}
	for name := range cfg.Files {
		all[name] = true
	}
	return slices.Sorted(maps.Keys(all))
}

// mayPack refuses a caller's file that init's mounts would hide, or that is the
// lab's own.
func mayPack(name string, files map[string]File) error {
	if !path.IsAbs(name) || path.Clean(name) != name {
		return fmt.Errorf("cannot pack the file %q: want a clean absolute path", name)
	}
	for _, hidden := range []string{"/proc/", "/sys/", "/dev/", "/run/", "/tmp/", "/bin/", "/sbin/", "/lib/"} {
		if strings.HasPrefix(name, hidden) {
			return fmt.Errorf("cannot pack the file %q: %s is mounted over or a link in the guest", name, hidden)
		}
	}
	if _, taken := files[name]; taken {
		return fmt.Errorf("cannot pack the file %q: the lab packs its own", name)
	}
	return nil
}

func packProgram(files map[string]File, to, from string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("cannot pack %s: %w", to, err)
	}
	mode := fs.FileMode(0o755)
	if strings.HasSuffix(to, ".ko") {
		mode = 0o644
	}
	files[to] = File{Mode: mode, Data: data}
	return nil
}

// packModules adds the modules of network and disks where they are not built
// in, and returns their paths in load order.
func packModules(files map[string]File, cfg Config) ([]string, error) {
	kit, wanted := cfg.Kit, networkModules
	if len(cfg.Disks) > 0 || cfg.Root != "" {
		wanted = slices.Concat(networkModules, diskModules)
	}
	builtin, err := os.ReadFile(filepath.Join(kit.ModuleDir, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("cannot tell which modules are built in: %w", err)
	}
	have := map[string]string{}
	err = filepath.WalkDir(kit.ModuleDir, func(at string, entry fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(at, ".ko") {
			have[moduleName(at)] = at
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("cannot list the kernel's modules: %w", err)
	}
	for line := range strings.Lines(string(builtin)) {
		have[moduleName(strings.TrimSpace(line))] = ""
	}
	var order []string
	for _, name := range wanted {
		from, known := have[name]
		if !known {
			return nil, fmt.Errorf("cannot find the module %s of kernel %s", name, kit.Release)
		}
		if from == "" {
			continue
		}
		relative, err := filepath.Rel(kit.ModuleDir, from)
		if err != nil {
			return nil, err
		}
		to := "/usr/lib/modules/" + kit.Release + "/" + relative
		if err := packProgram(files, to, from); err != nil {
			return nil, err
		}
		order = append(order, to)
	}
	return order, nil
}

// moduleName is a module's name as lsmod prints it.
func moduleName(file string) string {
	return strings.ReplaceAll(strings.TrimSuffix(path.Base(file), ".ko"), "-", "_")
}

// writeArchive writes files and the folders, links and devices that they need
// as a newc archive. The kernel makes no parent folder by itself.
func writeArchive(w io.Writer, files map[string]File, now time.Time) error {
	out := &archive{w: cpio.Newc.Writer(w), now: now, seen: map[string]bool{"/": true}}
	for _, d := range []struct {
		name string
		mode uint64
		uid  uint64
	}{
		{"/root", 0o700, 0}, {"/root/.ssh", 0o700, 0}, {"/home/admin", 0o755, 1000}, {"/var/spool/cron/crontabs", 0o1730, 0},
		{"/usr/bin", 0o755, 0}, {"/usr/sbin", 0o755, 0}, {"/usr/lib", 0o755, 0}, {"/proc", 0o555, 0}, {"/sys", 0o555, 0},
		{"/dev", 0o755, 0}, {"/run", 0o755, 0}, {"/tmp", 0o1777, 0}, {"/var/tmp", 0o1777, 0}, {"/mnt", 0o755, 0},
	} {
		out.folder(d.name, d.mode, d.uid)
	}
	for from, to := range map[string]string{"/bin": "usr/bin", "/sbin": "usr/sbin", "/lib": "usr/lib", "/var/run": "/run", "/etc/mtab": "/proc/self/mounts"} {
		out.put(cpio.Symlink(from, to))
	}
	for _, name := range applets {
		out.put(cpio.Symlink("/usr/bin/"+name, "busybox"))
	}
	// The kernel opens the console for init before devtmpfs is mounted.
	out.put(cpio.CharDev("/dev/console", 0o600, 5, 1))
	for _, name := range slices.Sorted(maps.Keys(files)) {
		out.file(name, files[name])
	}
	if out.err == nil {
		out.err = cpio.WriteTrailer(out.w)
	}
	if out.err != nil {
		return fmt.Errorf("cannot write the initramfs: %w", out.err)
	}
	return nil
}

// archive keeps the first error, so that its users read as a list.
type archive struct {
	w    cpio.RecordWriter
	now  time.Time
	seen map[string]bool
	err  error
}

// put writes one record, after the folders above it, and never a name twice.
func (a *archive) put(r cpio.Record) {
	name := path.Clean(r.Name)
	if a.err != nil || a.seen[name] {
		return
	}
	a.folder(path.Dir(name), 0o755, 0)
	a.seen[name] = true
	if r.MTime == 0 {
		r.MTime = uint64(a.now.Unix())
	}
	r.Name = strings.TrimPrefix(name, "/")
	a.err = a.w.WriteRecord(r)
}

func (a *archive) folder(name string, mode, owner uint64) {
	if a.seen[name] {
		return
	}
	r := cpio.Directory(name, mode)
	r.UID, r.GID = owner, owner
	a.put(r)
}

func (a *archive) file(name string, f File) {
	if a.seen[name] && a.err == nil {
		a.err = fmt.Errorf("cannot pack the file %q: it is a folder or link", name)
	}
	mode := uint64(f.Mode.Perm())
	for bit, unix := range map[fs.FileMode]uint64{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if f.Mode&bit != 0 {
			mode |= unix
		}
	}
	info := cpio.Info{Name: name, Mode: cpio.S_IFREG | mode, UID: uint64(f.UID), GID: uint64(f.GID)}
	if !f.ModTime.IsZero() {
		info.MTime = uint64(f.ModTime.Unix())
	}
	a.put(cpio.StaticRecord(f.Data, info))
}
