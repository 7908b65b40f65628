package artifact

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/quicklime-ir/quicklime/agent/artifact/unit"
)

// Bounds of the table systemd_units.
const (
	maxUnits        = 50_000
	maxUnitBytes    = 1 << 20
	maxUnitSettings = 128 // of a row
	maxUnitNames    = 128 // of each list of a row
)

// Unit is a row of the table systemd_units: a unit file, or a unit that runs
// and has none. What systemd would make of it is not told, only what is there:
// where several folders hold one name, the first of them counts, and the
// others are shadowed.
type Unit struct {
	Name  Text   `json:"name"`
	Kind  string `json:"kind"`  // service, timer, socket …
	Scope string `json:"scope"` // system; user, for every user's manager; home, for that of one home
	Home  Text   `json:"home,omitempty"`
	// Origin is what kind of folder the file lies in: etc, control, transient,
	// run, generator, vendor; none is a unit that runs without a file.
	Origin string `json:"origin"`
	FileFacts
	SHA256   string `json:"sha256,omitempty"` // of the file, in hex; absent where it was cut
	Masked   bool   `json:"masked"`           // it is empty, or a link to /dev/null
	Shadowed bool   `json:"shadowed"`         // a file of this name in an earlier folder counts instead
	DropIns  []Text `json:"drop_ins,omitempty"`
	// EnabledBy lists the links in NAME.wants, NAME.requires and NAME.upholds
	// that pull it in, as it or an instance of it; also links that are its
	// other names.
	EnabledBy []Text        `json:"enabled_by,omitempty"`
	Settings  []UnitSetting `json:"settings,omitempty"`
	// LastTrigger is when a timer with Persistent= last ran its unit.
	LastTrigger *time.Time `json:"last_trigger,omitempty"`
	Cgroup      Text       `json:"cgroup,omitempty"` // of its first process
	PIDs        []int      `json:"pids,omitempty"`   // 128 at most
	Truncated   bool       `json:"truncated,omitempty"`
}

// UnitSetting is an assignment that tells what a unit does, in the order of
// the files: its own, then drop-ins.
type UnitSetting struct {
	Section Text `json:"section"`
	Key     Text `json:"key"`
	Value   Text `json:"value"`          // "" takes back what was assigned before
	File    Text `json:"file,omitempty"` // where it is a drop-in
}

// unitKeys are the keys that rows tell, beside Exec*, On*, Listen*,
// Environment* and Path*. Source: systemd.service(5) and its kin.
var unitKeys = map[string]bool{
	"Description": true, "Documentation": true, "Type": true, "User": true, "Group": true, "DynamicUser": true, "Restart": true,
	"WorkingDirectory": true, "RootDirectory": true, "RootImage": true, "PassEnvironment": true, "BusName": true, "PIDFile": true,
	"Unit": true, "Persistent": true, "AccuracySec": true, "RandomizedDelaySec": true, "DirectoryNotEmpty": true, "Accept": true,
	"Service": true, "What": true, "Where": true, "Options": true, "Alias": true, "Also": true, "WantedBy": true, "RequiredBy": true,
	"AmbientCapabilities": true, "CapabilityBoundingSet": true, "SourcePath": true, "BindsTo": true, "Requires": true, "Wants": true,
}

func tellsUnit(key string) bool {
	for _, prefix := range []string{"Exec", "On", "Listen", "Environment", "Path"} {
		if strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return unitKeys[key]
}

// unitFolder is a folder that managers read units from.
type unitFolder struct{ dir, origin string }

// The folders, those that count first being first. Source: systemd.unit(5),
// "Unit File Load Path".
var (
	systemUnitFolders = []unitFolder{
		{"/etc/systemd/system.control", "control"}, {"/run/systemd/system.control", "control"},
		{"/run/systemd/transient", "transient"}, {"/run/systemd/generator.early", "generator"},
		{"/etc/systemd/system", "etc"}, {"/etc/systemd/system.attached", "etc"},
		{"/run/systemd/system", "run"}, {"/run/systemd/system.attached", "run"}, {"/run/systemd/generator", "generator"},
		{"/usr/local/lib/systemd/system", "vendor"}, {"/usr/lib/systemd/system", "vendor"}, {"/lib/systemd/system", "vendor"},
		{"/run/systemd/generator.late", "generator"},
	}
	userUnitFolders = []unitFolder{
		{"/etc/systemd/user", "etc"}, {"/etc/xdg/systemd/user", "etc"}, {"/run/systemd/user", "run"},
		{"/usr/local/share/systemd/user", "vendor"}, {"/usr/share/systemd/user", "vendor"},
		{"/usr/local/lib/systemd/user", "vendor"}, {"/usr/lib/systemd/user", "vendor"}, {"/lib/systemd/user", "vendor"},
	}
	homeUnitFolders = []unitFolder{
		{".config/systemd/user.control", "control"}, {".config/systemd/user", "etc"}, {".local/share/systemd/user", "vendor"},
	}
)

// unitReader reads the units of one scope after another.
type unitReader struct {
	t       *tree
	running map[[2]string]*runningUnit // by name and user
	told    map[[2]string]bool
	seen    map[[2]uint64]bool // folders, as /lib may be /usr/lib
	left    int
}

type runningUnit struct {
	cgroup string
	pids   []int
}

// fillUnits writes the table systemd_units. It reads the files that systemd
// does, and asks no bus: so it also reads a host whose manager does not answer.
func fillUnits(h *Host, s *sheet) error {
	t, err := h.openTree(s)
	if err != nil {
		return err
	}
	defer t.close()
	r := &unitReader{t: t, running: h.runningUnits(s), told: map[[2]string]bool{}, seen: map[[2]uint64]bool{}, left: maxUnits}
	if err := r.scope(systemUnitFolders, "system", account{}, "/var/lib/systemd/timers"); err != nil {
		return err
	}
	if err := r.scope(userUnitFolders, "user", account{}, ""); err != nil {
		return err
	}
	accounts, err := t.accounts(h)
	if err != nil {
		return err
	}
	for _, a := range accounts {
		if err := r.home(a); err != nil {
			return err
		}
	}
	// Sessions' and generators' user units live in the run folder of the user.
	for _, uid := range t.names("/run/user") {
		base := path.Join("/run/user", uid, "systemd")
		folders := []unitFolder{{base + "/transient", "transient"}, {base + "/user", "run"}, {base + "/user.control", "control"},
			{base + "/generator", "generator"}, {base + "/generator.early", "generator"}, {base + "/generator.late", "generator"}}
		id, _ := strconv.ParseUint(uid, 10, 32)
		if err := r.scope(folders, "home", account{home: Text("/run/user/" + uid), uid: uint32(id)}, ""); err != nil {
			return err
		}
	}
	if r.left == maxUnits {
		s.note("/etc/systemd/system", NoteNone, "")
	}
	return r.withoutFile()
}

func (r *unitReader) home(a account) error {
	var folders []unitFolder
	for _, f := range homeUnitFolders {
		folders = append(folders, unitFolder{path.Join(string(a.home), f.dir), f.origin})
	}
	return r.scope(folders, "home", a, path.Join(string(a.home), ".local/share/systemd/timers"))
}

// scope reads the folders of one manager.
func (r *unitReader) scope(folders []unitFolder, scope string, a account, stamps string) error {
	listed := map[string][]string{}
	links := map[string][]Text{}   // what pulls a unit in, by its name
	dropIns := map[string][]Text{} // files, by folder name
	for _, f := range r.unseen(folders) {
		listed[f.dir] = r.t.names(f.dir)
		r.learn(f.dir, listed[f.dir], links, dropIns)
	}
	taken := map[string]bool{}
	for _, f := range folders {
		for _, name := range listed[f.dir] {
			if unit.Kind(name) == "" {
				continue
			}
			if r.left == 0 {
				r.t.s.note(f.dir, NoteCut, fmt.Sprintf("more than %d units", maxUnits))
				return nil
			}
			row := r.read(f, name, dropIns)
			if row == nil {
				continue
			}
			r.left--
			row.Scope, row.Home = scope, a.home
			row.Shadowed = taken[name]
			taken[name] = true
			row.EnabledBy, row.Truncated = bounded(links[name], row.Truncated)
			r.addRunning(row, scope, a)
			if row.Kind == "timer" && stamps != "" {
				row.LastTrigger = r.stamp(path.Join(stamps, "stamp-"+name))
			}
			if err := r.t.s.put(row); err != nil {
				return err
			}
		}
	}
	return nil
}

func bounded(all []Text, truncated bool) ([]Text, bool) {
	if len(all) > maxUnitNames {
		return all[:maxUnitNames], true
	}
	return all, truncated
}

// unseen leaves out folders that are not there, or are read under another name.
func (r *unitReader) unseen(folders []unitFolder) []unitFolder {
	var out []unitFolder
	for _, f := range folders {
		n := r.t.w.openHome(r.t.s, f.dir)
		if n == nil {
			continue
		}
		id := [2]uint64{n.dev(), n.stat.Ino}
		n.close()
		if !r.seen[id] {
			r.seen[id] = true
			out = append(out, f)
		}
	}
	return out
}

// learn looks into the folders of links and drop-ins beside units.
func (r *unitReader) learn(dir string, names []string, links, dropIns map[string][]Text) {
	add := func(to map[string][]Text, key, file string) {
		if len(to[key]) <= maxUnitNames && len(to) < maxUnits {
			to[key] = append(to[key], clip(file, maxPath))
		}
	}
	for _, name := range names {
		folder := path.Join(dir, name)
		switch path.Ext(name) {
		case ".wants", ".requires", ".upholds":
			for _, link := range r.t.names(folder) {
				add(links, link, path.Join(folder, link))
				if t := unit.Template(link); t != link {
					add(links, t, path.Join(folder, link))
				}
			}
		case ".d":
			for _, file := range r.t.names(folder) {
				if strings.HasSuffix(file, ".conf") {
					add(dropIns, name, path.Join(folder, file))
				}
			}
		default:
			r.alias(dir, name, links, add)
		}
	}
}

// alias learns of a link beside units that is another name of one.
func (r *unitReader) alias(dir, name string, links map[string][]Text, add func(map[string][]Text, string, string)) {
	if unit.Kind(name) == "" {
		return
	}
	at := path.Join(dir, name)
	n, err := r.t.node(at)
	if err != nil {
		return // the row itself will say so
	}
	defer n.close()
	if target, err := n.target(); err == nil && path.Base(target) != name && unit.Kind(path.Base(target)) != "" {
		add(links, path.Base(target), at)
	}
}

// read reads a unit file and what adds to it.
func (r *unitReader) read(f unitFolder, name string, dropIns map[string][]Text) *Unit {
	file := r.t.file(path.Join(f.dir, name), maxUnitBytes)
	if file == nil {
		return nil
	}
	row := &Unit{Name: Text(name), Kind: unit.Kind(name), Origin: f.origin, FileFacts: file.FileFacts}
	row.Masked = file.Target == "/dev/null" || len(file.data) == 0 && file.Size == 0
	if !file.cut && len(file.data) > 0 {
		sum := sha256.Sum256(file.data)
		row.SHA256 = hex.EncodeToString(sum[:])
	}
	row.Truncated = file.cut
	row.add(file.data, "")
	for _, folder := range unit.DropInFolders(name) {
		for _, add := range dropIns[folder] {
			if len(row.DropIns) == maxUnitNames {
				row.Truncated = true
				break
			}
			row.DropIns = append(row.DropIns, add)
			if more := r.t.file(string(add), maxUnitBytes); more != nil {
				row.add(more.data, add)
			}
		}
	}
	return row
}

// add tells the settings of one file.
func (u *Unit) add(data []byte, file Text) {
	all, more := unit.Parse(data)
	u.Truncated = u.Truncated || more
	for _, setting := range all {
		if !tellsUnit(setting.Key) {
			continue
		}
		if len(u.Settings) == maxUnitSettings {
			u.Truncated = true
			return
		}
		u.Settings = append(u.Settings, UnitSetting{Text(setting.Section), Text(setting.Key), Text(setting.Value), file})
	}
}

// stamp tells when a timer last ran; the file is empty, its time is the fact.
func (r *unitReader) stamp(at string) *time.Time {
	n, err := r.t.node(at)
	if err != nil {
		if !gone(err) && !isNotDir(err) {
			r.t.s.failed(at, err)
		}
		return nil
	}
	defer n.close()
	when := timeOf(n.stat.Mtime)
	return &when
}

// addRunning tells the processes of a unit, or of the instances of a template.
func (r *unitReader) addRunning(row *Unit, scope string, a account) {
	for key, run := range r.running {
		mine := key[0] == string(row.Name) || unit.Template(key[0]) == string(row.Name)
		switch scope {
		case "system":
			mine = mine && key[1] == ""
		case "user":
			mine = mine && key[1] != ""
		case "home":
			mine = mine && key[1] == strconv.Itoa(int(a.uid)) && (a.user != "" || strings.HasPrefix(string(a.home), "/run/user/"))
		}
		if !mine {
			continue
		}
		r.told[key] = true
		row.Cgroup = Text(run.cgroup)
		row.PIDs = append(row.PIDs, run.pids...)
	}
	slices.Sort(row.PIDs)
	if len(row.PIDs) > maxUnitNames {
		row.PIDs, row.Truncated = row.PIDs[:maxUnitNames], true
	}
}

// withoutFile tells the units that run and have no file.
func (r *unitReader) withoutFile() error {
	var keys [][2]string
	for key := range r.running {
		if !r.told[key] {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, func(a, b [2]string) int { return strings.Compare(a[1]+"\x00"+a[0], b[1]+"\x00"+b[0]) })
	for _, key := range keys {
		run := r.running[key]
		row := &Unit{Name: Text(key[0]), Kind: unit.Kind(key[0]), Scope: "system", Origin: "none", Cgroup: Text(run.cgroup), PIDs: run.pids}
		if key[1] != "" {
			row.Scope = "user"
		}
		if len(row.PIDs) > maxUnitNames {
			row.PIDs, row.Truncated = row.PIDs[:maxUnitNames], true
		}
		if err := r.t.s.put(row); err != nil {
			return err
		}
	}
	return nil
}

// runningUnits tells the units that processes are in, by their control groups.
func (h *Host) runningUnits(s *sheet) map[[2]string]*runningUnit {
	all := map[[2]string]*runningUnit{}
	h.eachCgroup(s, func(pid int, group string) {
		name, user := unit.OfCgroup(group)
		if name == "" {
			return
		}
		key := [2]string{name, user}
		if all[key] == nil {
			all[key] = &runningUnit{cgroup: group}
		}
		if run := all[key]; len(run.pids) <= maxUnitNames {
			run.pids = append(run.pids, pid)
		}
	})
	return all
}

// eachCgroup gives every process and its control group to do: that of version
// 2, or of systemd's own hierarchy in version 1.
func (h *Host) eachCgroup(s *sheet, do func(pid int, group string)) {
	pids, err := h.pids()
	if err != nil {
		s.failed("/proc", err)
		return
	}
	var buf []byte
	for _, pid := range pids {
		if s.ctx.Err() != nil {
			return
		}
		dir, err := h.openProc(strconv.Itoa(pid))
		if err != nil {
			continue // it ended
		}
		data, _, err := dir.read("cgroup", buf, maxCgroup)
		dir.close()
		if err != nil {
			if !gone(err) {
				s.failed(fmt.Sprintf("/proc/%d/cgroup", pid), err)
			}
			continue
		}
		buf = data
		if group := cgroupOf(data); group != "" {
			do(pid, group)
		}
	}
}

// cgroupOf reads /proc/PID/cgroup: HIERARCHY:CONTROLLERS:PATH lines. Of version
// 1 the hierarchy that says most is taken. Source: cgroups(7).
func cgroupOf(data []byte) string {
	best := ""
	for line := range bytes.SplitSeq(data, []byte{'\n'}) {
		f := strings.SplitN(string(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		if f[1] == "name=systemd" && len(f[2]) > 1 {
			return f[2]
		}
		if len(f[2]) > len(best) {
			best = f[2]
		}
	}
	return best
}
