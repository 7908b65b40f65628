package e2e

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/klauspost/compress/zstd"

	"github.com/quicklime-ir/quicklime/agent/artifact"
	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/packaging/lab/guest"
	"github.com/quicklime-ir/quicklime/packaging/lab/world"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// TestAWholeDebian: systemd, its journal, cron and dpkg are real, and the agent
// is systemd's service, in the sandbox of its package. What the case holds is
// what the guest's own programs say of it.
func TestAWholeDebian(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("a real kernel takes minutes; not with -short")
	}
	k := kit(t)
	w := start(t, func(c *world.Config) {
		c.Guest, c.Collector = true, []string{"--agent-wait", "60s", "--stall", "90s", "--memory-source", "kcore"}
	})
	d := bootDebian(t, w, k)
	before := d.processes(t)
	packages := d.says(t, "/usr/bin/dpkg-query", "-W", "-f", "${Package} ${Version} ${Architecture}\n")
	units := d.says(t, "/usr/bin/systemctl", "list-units", "--all", "--type=service,socket,target,timer", "--no-legend", "--no-pager", "--plain")
	journal := d.says(t, "/bin/sh", "-c", "journalctl --quiet --output=export | grep -a -e ^__CURSOR= -e ^MESSAGE=")

	onMemoryPart(w, 1, func() { operator(t, w, "case", "cancel", caseID(t, w), "--reason", "other tests take the image") })
	if err := w.Find(world.Compromised(world.Victim)); err != nil {
		t.Fatal(err)
	}
	c := awaitFor(t, w, 5*time.Minute, "its end", ended)
	for _, s := range c.Steps {
		t.Logf("%-9s %-8s %7v %s", s.Name, s.Outcome, s.Ended.Sub(s.Started).Round(100*time.Millisecond), s.Detail)
		if s.Name != "memory" && s.Outcome != casefile.Done {
			t.Errorf("step %s: %s, %s", s.Name, s.Outcome, s.Detail)
		}
	}
	if item := memoryItem(t, c); item.Status != evidence.Partial || item.Size == 0 {
		t.Errorf("the image is %s, of %d bytes: %s", item.Status, item.Size, item.Error)
	}
	if out := verify(t, w); !strings.Contains(out, "PROVEN: case "+c.ID) {
		t.Errorf("verify says:\n%s", out)
	}
	got := taken{w, c}
	sameProcesses(t, got, d, before)
	sameModules(t, got, d)
	sameLogins(t, got, d)
	samePackages(t, got, packages)
	sameUnits(t, got, units)
	sameJournal(t, got, journal)
	waysBack(t, got, d.facts)
	filesOf(t, got, d.facts)
	nothingRefused(t, got)
}

// debian is the guest, up, with its agent attached.
type debian struct {
	vm    *guest.VM
	facts guest.Facts
}

// bootDebian boots it, and has its systemd start the agent.
func bootDebian(t *testing.T, w *world.World, k *guest.Kit) debian {
	t.Helper()
	dir, err := guest.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := w.Guest(k, world.Victim)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Root, err = guest.Debian(t.Context(), dir, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil && os.Getenv("CI") == "" {
		t.Skipf("no Debian to boot: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	unit, err := os.ReadFile("../../linux/quicklime-agent.service")
	if err != nil {
		t.Fatal(err)
	}
	cfg.AgentArgs = nil
	cfg.Files["/etc/systemd/system/quicklime-agent.service"] = guest.File{Mode: 0o644, Data: unit}
	cfg.Files["/etc/quicklime/agent.env"] = guest.File{Mode: 0o600,
		Data: []byte("QUICKLIME_COLLECTOR=" + w.CollectorGuestAddr() + "\nQUICKLIME_S3_CA=" + world.GuestCA + "\n")}
	vm, err := guest.Boot(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the console ends:\n%s", vm.ConsoleTail())
		}
		if err := vm.Stop(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	d := debian{vm: vm}
	if d.facts, err = vm.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("it stands after %v", d.facts.BootTime)
	for want, argv := range map[string][]string{
		"systemd\n":        {"/usr/bin/cat", "/proc/1/comm"},
		"ip-10-0-2-15\n":   {"/usr/bin/hostname"},
		"df -h\n":          {"/usr/bin/tail", "-n", "1", "/root/.bash_history"},
		"":                 {"/usr/bin/find", "/run", "-name", "quicklime-lab", "-prune"},
		"active\nactive\n": {"/usr/bin/systemctl", "is-active", "systemd-journald", "cron"},
	} {
		if got := d.says(t, argv...); got != want {
			t.Errorf("%v says %q, want %q", argv, got, want)
		}
	}
	d.says(t, "/usr/bin/systemctl", "start", "quicklime-agent")
	for {
		agents, err := w.Agents(ctx)
		if err == nil && len(agents) == 1 {
			return d
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the agent does not attach: %v\n%s", err, d.says(t, "/usr/bin/systemctl", "status", "quicklime-agent"))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// says runs a program in the guest.
func (d debian) says(t *testing.T, argv ...string) string {
	t.Helper()
	got, err := d.vm.Run(t.Context(), time.Minute, argv...)
	if err != nil || got.Exit != 0 {
		t.Errorf("%v: exit code %d, %v\n%s", argv, got.Exit, err, got.Output)
	}
	return string(got.Output)
}

// processes gives the lines "PID NAME" of ps, without the kernel's workers, which
// are called after what they do at the time.
func (d debian) processes(t *testing.T) []string {
	var out []string
	for line := range strings.Lines(d.says(t, "/usr/bin/ps", "-e", "-o", "pid=,comm=")) {
		if f := strings.Fields(line); !strings.HasPrefix(f[1], "kworker/") {
			out = append(out, strings.Join(f, " "))
		}
	}
	return out
}

// taken is what the case holds in S3.
type taken struct {
	w *world.World
	c casefile.Case
}

// open gives an object, decompressed.
func (g taken) open(t *testing.T, name string) io.ReadCloser {
	t.Helper()
	key := path.Join("cases", g.c.ID, world.Victim, name+".zst")
	object, err := g.w.S3.Client().GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String(world.Bucket), Key: &key})
	if err != nil {
		t.Fatalf("%s: %v", key, err)
	}
	t.Cleanup(func() { object.Body.Close() })
	d, err := zstd.NewReader(object.Body, zstd.WithDecoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	return d.IOReadCloser()
}

// rows gives those of a table, KIND/NAME.
func rows[T any](t *testing.T, g taken, table string) []T {
	t.Helper()
	r := g.open(t, table+".jsonl")
	defer r.Close()
	var out []T
	for d := json.NewDecoder(r); ; {
		var row T
		err := d.Decode(&row)
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatalf("%s, row %d: %v", table, len(out)+1, err)
		}
		out = append(out, row)
	}
}

// sameLines tells what only one of two lists has.
func sameLines(t *testing.T, what string, ours, theirs []string) {
	t.Helper()
	lacks(t, what+", that the guest does not say", theirs, ours)
	lacks(t, what+", that is not in the table", ours, theirs)
	if len(theirs) == 0 {
		t.Errorf("%s: the guest says nothing", what)
	}
}

// lacks tells what is wanted and not there.
func lacks(t *testing.T, what string, there, wanted []string) {
	t.Helper()
	slices.Sort(there)
	var missing []string
	for _, line := range wanted {
		if _, ok := slices.BinarySearch(there, line); !ok {
			missing = append(missing, line)
		}
	}
	if len(missing) > 0 {
		t.Errorf("%d of %d: %s: %.20q", len(missing), len(wanted), what, missing)
	}
}

// sameProcesses wants those that ps shows before the case and after it, and the
// intruder with its deleted program.
func sameProcesses(t *testing.T, g taken, d debian, before []string) {
	after := d.processes(t)
	slices.Sort(after)
	stayed := slices.DeleteFunc(before, func(line string) bool {
		_, there := slices.BinarySearch(after, line)
		return !there
	})
	var ours []string
	intruder := false
	for _, p := range rows[artifact.Process](t, g, "volatile/processes") {
		ours = append(ours, fmt.Sprintf("%d %s", p.PID, p.Name))
		if p.PID == d.facts.DeletedPID {
			intruder = p.ExeDeleted && p.ExeSHA256 != "" && slices.Contains(p.Environ, artifact.Text("QUICKLIME_MARKER="+d.facts.Marker))
		}
	}
	lacks(t, "processes of ps, that are not in the table", ours, stayed)
	if !intruder || !slices.Contains(ours, "1 systemd") {
		t.Errorf("the intruder is as it is: %v; processes %q", intruder, ours)
	}
}

func sameModules(t *testing.T, g taken, d debian) {
	var ours, theirs []string
	for _, m := range rows[artifact.Module](t, g, "volatile/modules") {
		if m.InProc {
			ours = append(ours, string(m.Name))
		}
	}
	for line := range strings.Lines(d.says(t, "/usr/bin/cat", "/proc/modules")) {
		theirs = append(theirs, strings.Fields(line)[0])
	}
	sameLines(t, "modules", ours, theirs)
}

// sameLogins holds wtmp against utmpdump, whose lines are
// [type] [pid] [id] [user] [line] [host] [address] [time].
func sameLogins(t *testing.T, g taken, d debian) {
	var ours, theirs []string
	boot := false
	for _, l := range rows[artifact.Login](t, g, "volatile/logins") {
		if l.File == "wtmp" {
			ours = append(ours, fmt.Sprintf("%05d %s %s %s", l.PID, l.User, l.Line, l.Time.UTC().Format(time.RFC3339)))
			boot = boot || l.Type == "boot_time"
		}
	}
	for line := range strings.Lines(d.says(t, "/bin/sh", "-c", "utmpdump /var/log/wtmp 2>/dev/null")) {
		f := strings.Split(strings.Trim(line, "[]\n"), "] [")
		if len(f) != 8 {
			t.Fatalf("utmpdump says %q", line)
		}
		at, _, _ := strings.Cut(f[7], ",")
		theirs = append(theirs, fmt.Sprintf("%s %s %s %sZ", f[1], strings.TrimSpace(f[3]), strings.TrimSpace(f[4]), at))
	}
	sameLines(t, "records of wtmp", ours, theirs)
	if !boot {
		t.Errorf("wtmp has no boot in %q", ours)
	}
}

func samePackages(t *testing.T, g taken, said string) {
	var ours []string
	for _, p := range rows[artifact.Package](t, g, "live/packages") {
		ours = append(ours, fmt.Sprintf("%s %s %s", p.Name, p.Version, p.Arch))
	}
	sameLines(t, "packages", ours, strings.Split(strings.TrimSpace(said), "\n"))
}

// sameUnits wants every unit that systemd has loaded from a file, the processes
// of those that run, and who enables what was enabled.
func sameUnits(t *testing.T, g taken, said string) {
	var names, alive, enabled []string
	for _, u := range rows[artifact.Unit](t, g, "live/systemd_units") {
		names = append(names, string(u.Name))
		if len(u.PIDs) > 0 {
			alive = append(alive, string(u.Name))
		}
		for _, by := range u.EnabledBy {
			enabled = append(enabled, fmt.Sprintf("%s by %s", u.Name, by))
		}
	}
	var loaded, running []string
	for line := range strings.Lines(said) {
		f := strings.Fields(line) // name, whether loaded, whether active, state
		if before, after, ok := strings.Cut(f[0], "@"); ok {
			f[0] = before + "@" + path.Ext(after) // the table has the template, whose file it is
		}
		if f[1] == "loaded" {
			loaded = append(loaded, f[0])
		}
		if f[3] == "running" && strings.HasSuffix(f[0], ".service") {
			running = append(running, f[0])
		}
	}
	lacks(t, "units that are not in the table", names, loaded)
	lacks(t, "services that run without processes in the table", alive, running)
	if !slices.Contains(loaded, "sys-sync.timer") || !slices.Contains(running, "quicklime-agent.service") {
		t.Errorf("systemctl says\n%s", said)
	}
	lacks(t, "units that nothing enables in the table", enabled, []string{
		"sys-sync.timer by /etc/systemd/system/timers.target.wants/sys-sync.timer",
		"cron.service by /etc/systemd/system/multi-user.target.wants/cron.service",
	})
}

// sameJournal wants each entry of before the case, with its message, by the
// number, boot and time of its cursor.
func sameJournal(t *testing.T, g taken, export string) {
	var ours, theirs []string
	for _, e := range rows[artifact.JournalEntry](t, g, "live/journal") {
		ours = append(ours, fmt.Sprintf("i=%x b=%s t=%x %s", e.Seqnum, e.Boot, e.Time.UnixMicro(), e.Message))
	}
	var cursor string
	for line := range strings.Lines(export) {
		if at, ok := strings.CutPrefix(line, "__CURSOR="); ok {
			f := strings.Split(strings.TrimSpace(at), ";") // s, i, b, m, t, x
			cursor = strings.Join([]string{f[1], f[2], f[4]}, " ")
		} else if message, ok := strings.CutPrefix(line, "MESSAGE="); ok {
			theirs = append(theirs, cursor+" "+strings.TrimSuffix(message, "\n"))
		}
	}
	lacks(t, "entries of the journal that are not in the table", ours, theirs)
	if len(theirs) < 100 {
		t.Errorf("journalctl says %d entries", len(theirs))
	}
}

// waysBack wants what the intruder left to come back by, in the tables.
func waysBack(t *testing.T, g taken, facts guest.Facts) {
	var ours []string
	for _, k := range rows[artifact.SSHKey](t, g, "live/ssh_keys") {
		ours = append(ours, "key "+string(k.Comment))
	}
	for _, j := range rows[artifact.ScheduledJob](t, g, "live/scheduled_jobs") {
		ours = append(ours, strings.TrimSpace("cron "+string(j.Schedule)+" "+string(j.User)+" "+string(j.Command)))
	}
	for _, u := range rows[artifact.Unit](t, g, "live/systemd_units") {
		for _, s := range u.Settings {
			ours = append(ours, fmt.Sprintf("unit %s %s=%s", u.Name, s.Key, s.Value))
		}
	}
	wanted := []string{"key intruder", "unit sys-sync.timer OnUnitActiveSec=7min", "unit sys-sync.service ExecStart=/usr/local/sbin/sys-sync --quiet"}
	for _, trace := range facts.Traces {
		switch f := strings.Fields(trace.Line); trace.Kind {
		case "key":
			wanted = append(wanted, "key "+f[len(f)-1])
		case "cron":
			if f[0] == "@reboot" { // root's own table names no user
				f = slices.Insert(f, 1, "root")
			}
			wanted = append(wanted, "cron "+strings.Join(f, " "))
		}
	}
	lacks(t, "ways back that are in no table", ours, wanted)
}

// filesOf wants the traces and the journal in the tar, and in the bodyfile what
// is not taken.
func filesOf(t *testing.T, g taken, facts guest.Facts) {
	r := g.open(t, "live/files.tar")
	defer r.Close()
	var there []string
	var wanted = []string{"a journal", "/home/admin/.ssh/authorized_keys", "/etc/systemd/system/sys-sync.timer"}
	for _, trace := range facts.Traces {
		wanted = append(wanted, trace.Path+" "+trace.Line)
	}
	for archive := tar.NewReader(r); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(io.LimitReader(archive, 64<<20))
		if err != nil {
			t.Fatal(err)
		}
		name, inRoot := strings.CutPrefix(header.Name, "[root]")
		if !inRoot {
			continue // uac.log and the like
		}
		there = append(there, name)
		if strings.HasPrefix(name, "/var/log/journal/") && bytes.HasPrefix(body, []byte("LPKSHHRH")) {
			there = append(there, "a journal")
		}
		for _, trace := range facts.Traces {
			if trace.Path == name && bytes.Contains(body, []byte(trace.Line+"\n")) {
				there = append(there, name+" "+trace.Line)
			}
		}
	}
	lacks(t, "files and lines that are not in the tar", there, wanted)

	b := g.open(t, "live/bodyfile.txt")
	defer b.Close()
	setuid := false
	for lines := bufio.NewScanner(b); lines.Scan(); {
		if f := strings.Split(lines.Text(), "|"); len(f) == 11 && f[1] == "/usr/local/bin/.tool" {
			setuid = strings.HasPrefix(f[3], "r/rrws")
		}
	}
	if !setuid {
		t.Error("the bodyfile has no /usr/local/bin/.tool that is setuid")
	}
}

// nothingRefused wants that the service's sandbox kept nothing from the agent.
func nothingRefused(t *testing.T, g taken) {
	for _, record := range []string{"volatile/collection", "live/collection"} {
		for _, e := range rows[artifact.Entry](t, g, record) {
			if slices.Contains([]string{"EPERM", "EACCES", "EROFS"}, e.Errno) {
				t.Errorf("%s: %s %s: %s", record, e.Source, e.Path, e.Error)
			}
		}
	}
}
