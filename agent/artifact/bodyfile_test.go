package artifact

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// bodyLine is a line read back.
type bodyLine struct {
	name, target, mode string
	inode, size        uint64
	modified, born     string
}

var (
	bodyMode = regexp.MustCompile(`^([rdlphcb])/([rdlphcb])([r-][w-][xsS-]){2}[r-][w-][xtT-]$`)
	bodyTime = regexp.MustCompile(`^-?[0-9]+(\.[0-9]{9})?$`)
	// A field: anything but bars and backslashes, or one of the three escapes.
	bodyField = regexp.MustCompile(`^(?:[^|\\\x00-\x1f\x7f]|\\[|\\]|\\x[0-9a-f]{2})*`)
)

// unescapeBody undoes appendBodyName.
func unescapeBody(s string) string {
	var out []byte
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] != '\\':
			out = append(out, s[i])
		case s[i+1] == 'x':
			b, _ := strconv.ParseUint(s[i+2:i+4], 16, 8)
			out = append(out, byte(b))
			i += 3
		default:
			i++
			out = append(out, s[i])
		}
	}
	return string(out)
}

// parseBody is strict: each line has eleven fields of their form, or the test
// fails.
func parseBody(t testing.TB, text string) map[string]bodyLine {
	t.Helper()
	got := map[string]bodyLine{}
	for line := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n") {
		rest, ok := strings.CutPrefix(line, "0|")
		name := bodyField.FindString(rest)
		fields := strings.Split(strings.TrimPrefix(rest[len(name):], "|"), "|")
		if !ok || len(fields) != 9 || !bodyMode.MatchString(fields[1]) {
			t.Fatalf("line %q", line)
		}
		var n [9]uint64
		for _, i := range []int{0, 2, 3, 4} {
			var err error
			if n[i], err = strconv.ParseUint(fields[i], 10, 64); err != nil {
				t.Fatalf("line %q: %v", line, err)
			}
		}
		for _, word := range fields[5:] {
			if !bodyTime.MatchString(word) {
				t.Fatalf("line %q: time %q", line, word)
			}
		}
		l := bodyLine{mode: fields[1], inode: n[0], size: n[4], modified: fields[6], born: fields[8]}
		if fields[1][0] == 'l' {
			name, l.target, _ = strings.Cut(name, " -> ")
		}
		l.name, l.target = unescapeBody(name), unescapeBody(l.target)
		if _, twice := got[l.name]; twice {
			t.Errorf("%q is there twice", l.name)
		}
		got[l.name] = l
	}
	return got
}

func bodyfile(t testing.TB, h *Host) (map[string]bodyLine, []Entry) {
	t.Helper()
	var out bytes.Buffer
	var rec Record
	if err := h.WriteBodyfile(t.Context(), &out, &rec); err != nil {
		t.Fatal(err)
	}
	return parseBody(t, out.String()), entries(t, &rec)
}

func TestBodyfileOfOddThings(t *testing.T) {
	root := t.TempDir()
	names := []string{"two\nlines", "blank\n\nline", "invalid\xff\xfeutf8", "bar|bar", `back\slash`, `\x0a`, "é", "c1\u0085x", "\x1b[2J", strings.Repeat("n", 255), " -> "}
	for _, name := range names {
		place(t, root, map[string]string{"odd/" + name + "/" + name: "x"})
	}
	dir := filepath.Join(root, "odd")
	before := time.Unix(-2, 250_000_000)
	err := errors.Join(
		os.Symlink("loop", filepath.Join(dir, "loop")),
		os.Symlink(".. -> |\n", filepath.Join(dir, "link")),
		unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600),
		os.WriteFile(filepath.Join(dir, "setuid"), nil, 0o755),
		os.Chmod(filepath.Join(dir, "setuid"), 0o755|os.ModeSetuid),
		os.WriteFile(filepath.Join(dir, "old"), nil, 0o600),
		os.Chtimes(filepath.Join(dir, "old"), before, before),
		os.WriteFile(filepath.Join(dir, "hole"), nil, 0o600),
		os.Truncate(filepath.Join(dir, "hole"), 2<<30),
	)
	if err != nil {
		t.Fatal(err)
	}
	got, record := bodyfile(t, &Host{Root: root})
	for _, name := range names {
		if got["/odd/"+name+"/"+name].mode[:3] != "r/r" || got["/odd/"+name].mode[:3] != "d/d" {
			t.Errorf("%q has no line", name)
		}
	}
	for name, want := range map[string]string{"fifo": "p/prw-------", "setuid": "r/rrwsr-xr-x", "loop": "l/lrwxrwxrwx", "hole": "r/rrw-------"} {
		if l := got["/odd/"+name]; l.mode != want {
			t.Errorf("%s has mode %q, want %q", name, l.mode, want)
		}
	}
	if l := got["/odd/link"]; l.target != ".. -> |\n" {
		t.Errorf("link to %q", l.target)
	}
	if l := got["/odd/old"]; l.modified != "-1.750000000" {
		t.Errorf("modified at %q, which is 1.75 s before 1970", l.modified)
	}
	if l := got["/odd/hole"]; l.size != 2<<30 {
		t.Errorf("%d bytes", l.size)
	}
	whole := record[len(record)-1]
	for _, e := range record {
		if e.SHA256 != "" {
			whole = e
		}
	}
	if whole.Source != "bodyfile" || whole.Rows != int64(len(got)) || whole.Note != "" {
		t.Errorf("on record is %+v for %d lines", whole, len(got))
	}
}

func TestBodyfileHasEachNameOnce(t *testing.T) {
	root := t.TempDir()
	want := 1
	for i := range 40 {
		want++
		for j := range 40 {
			want++
			place(t, root, map[string]string{filepath.Join(strconv.Itoa(i), strconv.Itoa(j)): ""})
		}
	}
	if got, _ := bodyfile(t, &Host{Root: root}); len(got) != want {
		t.Errorf("%d lines, want %d", len(got), want)
	}
}

func TestBodyfileIsCutAtItsLimits(t *testing.T) {
	root := t.TempDir()
	place(t, root, map[string]string{"a/b/c/d": "", "a/e": "", "a/f": ""})
	for name, limits := range map[string]Limits{"entries": {BodyEntries: 3}, "depth": {BodyDepth: 2}, "time": {BodyTime: 1}} {
		_, record := bodyfile(t, &Host{Root: root, Limits: limits})
		cut := false
		for _, e := range record {
			cut = cut || e.Note == NoteCut && string(e.Detail) == name
		}
		if !cut {
			t.Errorf("%s: the cut went unsaid: %+v", name, record)
		}
	}
}

func TestBodyfileFailsWhenItsPlaceDoes(t *testing.T) {
	if err := (&Host{Root: t.TempDir()}).WriteBodyfile(t.Context(), brokenWriter{}, new(Record)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

func TestPlanMounts(t *testing.T) {
	var mounts []*Mount
	for _, line := range []string{
		"1 0 259:1 / / rw - ext4 /dev/root rw",
		"2 1 259:1 /srv/www /mnt/bind rw - ext4 /dev/root rw",
		"3 1 259:2 / /data rw - xfs /dev/nvme1n1 rw",
		"4 1 259:2 / /again rw - xfs /dev/nvme1n1 rw",
		"5 1 0:40 / /nfs rw - nfs4 server:/ rw",
		"6 1 0:41 / /merged rw - overlay overlay rw,upperdir=/up",
		"7 1 0:42 /@home /home rw - btrfs /dev/sdb rw",
		"8 1 0:42 /@ /pool rw - btrfs /dev/sdb rw",
		"9 1 0:43 / /proc rw - proc proc rw",
		"10 1 0:44 / /run rw - tmpfs tmpfs rw",
		`11 1 0:45 / /odd\040name rw - fuse.sshfs x rw`,
	} {
		mounts = append(mounts, parseMount([]byte(line)))
	}
	plan := planMounts(mounts)
	for point, want := range map[string]string{
		"/mnt/bind": "walked at /", "/data": "", "/again": "walked at /data", "/nfs": "nfs4", "/home": "", "/pool": "",
		"/merged": "overlay: its layers are walked where they lie", "/proc": "proc", "/run": "", "/odd name": "fuse.sshfs",
	} {
		if got, known := plan[point]; !known || got != want {
			t.Errorf("%s: %q, want %q", point, got, want)
		}
	}
}

func TestBodyfileLooksIntoNoRefusedMount(t *testing.T) {
	root := t.TempDir()
	place(t, root, map[string]string{"proc/self/mountinfo": "36 35 0:4095 / /far rw - nfs4 server:/ rw\n", "far/file": "", "near/file": ""})
	got, record := bodyfile(t, &Host{Root: root})
	if _, seen := got["/far/file"]; seen || got["/near/file"].mode == "" {
		t.Errorf("got %v", got)
	}
	if e := find(t, record, "/far"); e.Note != NoteFileSystem || e.Detail != "nfs4" {
		t.Errorf("on record is %+v", e)
	}
}

func FuzzBodyName(f *testing.F) {
	for _, seed := range []string{"/plain", "/a|b", "/a\\x0a", "/\xff\n", "/é\u0085"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		field := string(appendBodyName(nil, name))
		if bodyField.FindString(field) != field || unescapeBody(field) != name {
			t.Errorf("%q became %q, which reads %q", name, field, unescapeBody(field))
		}
	})
}
