package unpack

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// shelf is a place with evidence, in memory.
type shelf map[string][]byte

func (s shelf) Open(ctx context.Context, key string) (io.ReadCloser, error) {
	return s.OpenRange(ctx, key, 0, int64(len(s[key])))
}

func (s shelf) OpenRange(_ context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	return io.NopCloser(io.NewSectionReader(bytes.NewReader(s[key]), offset, length)), nil
}

func (s shelf) Keys(context.Context, string) ([]string, error) { return nil, errors.New("not asked") }

// add stores an item, and gives what a manifest says of it.
func (s shelf) add(kind evidence.Kind, name string, format evidence.Format, body []byte) evidence.Item {
	part := evidence.Part{Number: 1, Size: uint64(len(body)), SHA256: sha256.Sum256(body), RawSize: uint64(len(body))}
	i := evidence.Item{Kind: kind, Name: name, Format: format, Compression: evidence.None, Status: evidence.Whole, Key: "cases/c/i/" + string(kind) + "/" + name,
		Size: part.Size, Parts: []evidence.Part{part}, SHA256: evidence.Composite([]evidence.Part{part})}
	s[i.Key] = body
	return i
}

var modified = time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)

// entry is a member of a tar.
type entry struct {
	tar.Header
	body string
}

func file(name, body string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o4755, Uid: 1, Size: int64(len(body)), PAXRecords: map[string]string{"SCHILY.xattr.user.x": "y"}}, body}
}

func link(kind byte, name, target string) entry {
	return entry{tar.Header{Typeflag: kind, Name: name, Linkname: target}, ""}
}

func tarOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		e.Format, e.ModTime = tar.FormatPAX, modified
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// caseOf is a case with a tar of files.
func caseOf(t testing.TB, files ...entry) (shelf, evidence.Manifest) {
	t.Helper()
	s := shelf{}
	return s, evidence.Manifest{Case: "c", Made: modified, Items: []evidence.Item{
		s.add(evidence.Volatile, "processes", evidence.JSONL, []byte("{\"pid\":1}\n")),
		s.add(evidence.Live, "bodyfile", evidence.Text, []byte("0|/etc|1\n")),
		s.add(evidence.Live, "recovered", evidence.Tar, tarOf(t, file("live_response/recovered/7/exe", "ELF"), link(tar.TypeLink, "live_response/recovered/8/exe", "live_response/recovered/7/exe"))),
		s.add(evidence.Live, "files", evidence.Tar, tarOf(t, files...)),
		{Kind: evidence.Memory, Name: "memory", Format: evidence.LiME},
	}}
}

// tree reads a folder back: what lies at each path.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	got := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, p)
		switch {
		case d.IsDir():
			got[name+"/"] = info.Mode().String()
		case !info.Mode().IsRegular() || info.Mode() != 0o600:
			t.Errorf("%q has mode %v", name, info.Mode())
		default:
			body, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			got[name] = string(body)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func listed(t testing.TB, dir string) map[string]Member {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, listName))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]Member{}
	for line := range strings.Lines(string(text)) {
		var m Member
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatal(err)
		}
		out[m.Name] = m
	}
	return out
}

// TestAFolderHoldsWhatATarTriesToMakeOfIt: every trick of a hostile tar ends as
// a file of the analyst's, or as a line of the list.
func TestAFolderHoldsWhatATarTriesToMakeOfIt(t *testing.T) {
	odd := "[root]/tmp/new\nline\xff"
	objects, m := caseOf(t,
		file("uac.log", "log"), entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: "[root]/etc/", Mode: 0o755}}, file("[root]/etc/passwd", "root"), file(odd, "odd"),
		file("[root]/etc/passwd", "second"), link(tar.TypeSymlink, "[root]/out", "/"), file("[root]/out/etc/shadow", "below a link"),
		link(tar.TypeSymlink, "[root]/up", "../../.."), link(tar.TypeLink, "[root]/etc/hard", "[root]/etc/passwd"), link(tar.TypeLink, "[root]/etc/bad", "../../../etc/passwd"),
		file("../escaped", "x"), file("/escaped", "x"), file("[root]/a/../../../escaped", "x"), file("[root]/etc/passwd/child", "x"), file(listName, "forged"),
		entry{Header: tar.Header{Typeflag: tar.TypeFifo, Name: "[root]/fifo"}}, entry{Header: tar.Header{Typeflag: tar.TypeChar, Name: "[root]/dev/null", Devmajor: 1, Devminor: 3}},
		file("[root]/"+strings.Repeat("n", 300), "long"), file("[root]/zeros", strings.Repeat("\x00", 1<<20)+"end"))
	dir := filepath.Join(t.TempDir(), "out")
	result, err := ToFolder(t.Context(), objects, m, dir)
	if err != nil || result.Lacks() != "" {
		t.Fatalf("%+v, %v", result, err)
	}
	got := tree(t, dir)
	delete(got, listName)
	want := map[string]string{
		"uac.log": "log", "[root]/": "drwx------", "[root]/etc/": "drwx------", "[root]/etc/passwd": "root", "[root]/etc/passwd~2": "second", "[root]/tmp/": "drwx------", odd: "odd",
		"[root]/out/": "drwx------", "[root]/out/etc/": "drwx------", "[root]/out/etc/shadow": "below a link", "[root]/etc/hard": "root", "[root]/zeros": strings.Repeat("\x00", 1<<20) + "end",
		"live_response/": "drwx------", "live_response/volatile/": "drwx------", "live_response/volatile/processes.jsonl": "{\"pid\":1}\n",
		"bodyfile/": "drwx------", "bodyfile/bodyfile.txt": "0|/etc|1\n", "live_response/recovered/": "drwx------", "live_response/recovered/7/": "drwx------", "live_response/recovered/8/": "drwx------",
		"live_response/recovered/7/exe": "ELF", "live_response/recovered/8/exe": "ELF",
	}
	for name, text := range want {
		if got[name] != text {
			t.Errorf("%q is %.40q, want %.40q", name, got[name], text)
		}
	}
	for name := range got {
		if _, wanted := want[name]; !wanted {
			t.Errorf("%q was made", name)
		}
	}
	if parent := tree(t, filepath.Dir(dir)); len(parent) != len(got)+2 {
		t.Errorf("something was made beside it")
	}
	info, err := os.Stat(filepath.Join(dir, "[root]/etc/passwd"))
	if err != nil || !info.ModTime().Equal(modified) {
		t.Errorf("modified at %v, %v", info.ModTime(), err)
	}
	if info, err := os.Stat(filepath.Join(dir, "[root]/zeros")); err != nil || info.Sys().(*syscall.Stat_t).Blocks*512 > 64<<10 {
		t.Errorf("a file of zeros has no holes: %v", err)
	}
	list := listed(t, dir)
	for name, why := range map[string]string{"[root]/out": "told of and not made", "../escaped": "leads elsewhere", "[root]/etc/bad": "target leads elsewhere",
		"[root]/etc/passwd/child": "cannot be made", "[root]/fifo": "told of", listName: "of the list"} {
		if m := list[name]; !strings.Contains(m.Why, why) || m.Written != "" {
			t.Errorf("%s is told as %+v", name, m)
		}
	}
	if m := list["[root]/up"]; m.Kind != "symlink" || m.Target != "../../.." {
		t.Errorf("a link is told as %+v", m)
	}
	if m := list["[root]/zeros"]; m.Mode != "4755" || m.UID != 1 || m.Written != "[root]/zeros" {
		t.Errorf("a file is told as %+v", m)
	}
}

func TestAFolderThatIsThere(t *testing.T) {
	objects, m := caseOf(t, file("uac.log", "log"))
	dir := t.TempDir() // it is empty
	if _, err := ToFolder(t.Context(), objects, m, dir); err != nil {
		t.Fatal(err)
	}
	if _, err := ToFolder(t.Context(), objects, m, dir); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("a full one: %v", err)
	}
}

// TestOneBadItemIsNamed and the others are unpacked.
func TestOneBadItemIsNamed(t *testing.T) {
	objects, m := caseOf(t, file("uac.log", "log"), file("[root]/a", strings.Repeat("a", 2000)), file("[root]/b", "b"))
	objects["cases/c/i/volatile/processes"] = []byte("{\"pid\":2}\n")
	cut := &m.Items[3] // the agent was lost in the middle of [root]/a
	body := objects[cut.Key][:4600]
	*cut = objects.add(evidence.Live, "files", evidence.Tar, body)
	cut.Status, cut.Error = evidence.Partial, "the agent was lost"
	dir := filepath.Join(t.TempDir(), "out")
	result, err := ToFolder(t.Context(), objects, m, dir)
	if err != nil || len(result.Faulty) != 2 || !strings.Contains(result.Lacks(), "files: it was not taken to its end: the agent was lost") || !strings.Contains(result.Lacks(), "evidence is not proven") {
		t.Errorf("%+v, %v", result, err)
	}
	got := tree(t, dir)
	if got["uac.log"] != "log" || got["bodyfile/bodyfile.txt"] == "" || strings.Contains(got["live_response/volatile/processes.jsonl"], "pid") {
		t.Errorf("got %q", got)
	}
	if m := listed(t, dir)["[root]/a"]; !strings.Contains(m.Why, "ends too soon") {
		t.Errorf("a file that is cut is told as %+v", m)
	}
	var out bytes.Buffer
	if result, err := ToTarGz(t.Context(), objects, m, &out); err != nil || len(result.Faulty) != 2 {
		t.Errorf("%+v, %v", result, err)
	}
	if names := names(t, &out); !slices.Contains(names, "bodyfile/bodyfile.txt") || names[0] != "uac.log" {
		t.Errorf("the archive has %q", names)
	}
}

func names(t testing.TB, r io.Reader) (names []string) {
	t.Helper()
	z, err := gzip.NewReader(r)
	if err != nil {
		t.Fatal(err)
	}
	err = members(z, func(h *tar.Header, body io.Reader) error {
		names = append(names, h.Name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// TestAnArchiveHasTheTarAsItIs, PAX records and all, and the tables after it.
func TestAnArchiveHasTheTarAsItIs(t *testing.T) {
	objects, m := caseOf(t, file("uac.log", "log"), file("[root]/etc/passwd", "root"), link(tar.TypeSymlink, "[root]/l", "/"))
	var out bytes.Buffer
	result, err := ToTarGz(t.Context(), objects, m, &out)
	if err != nil || result.Lacks() != "" {
		t.Fatalf("%+v, %v", result, err)
	}
	z, err := gzip.NewReader(bytes.NewReader(out.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	stored := objects["cases/c/i/live/files"]
	if !bytes.HasPrefix(plain, stored[:len(stored)-trailer]) {
		t.Error("the archive does not begin with the stored tar")
	}
	want := []string{"uac.log", "[root]/etc/passwd", "[root]/l", "live_response/volatile/processes.jsonl", "bodyfile/bodyfile.txt", "live_response/recovered/7/exe", "live_response/recovered/8/exe"}
	if got := names(t, &out); !slices.Equal(got, want) {
		t.Errorf("the archive has %q", got)
	}
}

// TestATarThatHidesWhatFollows: ends in the middle, members that claim what is
// not theirs, and names of tables. The tables are in the archive all the same,
// and what was done is told.
func TestATarThatHidesWhatFollows(t *testing.T) {
	a := tarOf(t, file("uac.log", "log"), file("[root]/a", "a"))
	b := tarOf(t, file("[root]/b", strings.Repeat("b", 1<<20)))
	tests := []struct {
		name, told string // told is in Lacks, or is the first that is left out
		tar        []byte
	}{
		{"an end in the middle", "bytes follow the end of the tar", append(slices.Clone(a), b...)},
		{"a member that claims more than there is", "unexpected EOF", append(slices.Clone(a[:len(a)-trailer]), b[:len(b)-800<<10]...)},
		{"the name of a table", "live_response/volatile/processes.jsonl: its name is that of a table", tarOf(t, file("uac.log", "log"), file("[root]/a", "a"), file("live_response/volatile/processes.jsonl", "forged"))},
		{"a device", "[root]/sda: it is", tarOf(t, file("uac.log", "log"), file("[root]/a", "a"), entry{Header: tar.Header{Typeflag: tar.TypeBlock, Name: "[root]/sda"}})},
		{"a name that leads out", "../up: its name leads elsewhere", tarOf(t, file("uac.log", "log"), file("[root]/a", "a"), file("../up", "x"))},
		{"a second name of a folder", "", tarOf(t, file("uac.log", "log"), file("[root]/a", "a"), entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: "[root]/d/"}}, link(tar.TypeLink, "[root]/l", "[root]/d"))},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			objects, m := caseOf(t, file("uac.log", "log"))
			m.Items[3] = objects.add(evidence.Live, "files", evidence.Tar, tt.tar)
			dir := filepath.Join(t.TempDir(), "out")
			inFolder, err := ToFolder(t.Context(), objects, m, dir)
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			inArchive, err := ToTarGz(t.Context(), objects, m, &out)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range []Result{inFolder, inArchive} {
				if told := r.Lacks() + "\n" + r.First; !strings.Contains(told, tt.told) {
					t.Errorf("told is %q, want %q", told, tt.told)
				}
			}
			got := tree(t, dir)
			if got["[root]/a"] != "a" || got["live_response/volatile/processes.jsonl"] != "{\"pid\":1}\n" {
				t.Errorf("the folder has %q", got)
			}
			names := names(t, &out)
			for _, want := range []string{"[root]/a", "live_response/volatile/processes.jsonl", "bodyfile/bodyfile.txt"} {
				if n := strings.Count(strings.Join(names, "\n"), want); n != 1 {
					t.Errorf("the archive has %s %d times among %q", want, n, names)
				}
			}
			if slices.Contains(names, "../up") || slices.Contains(names, "[root]/sda") {
				t.Errorf("the archive has %q", names)
			}
		})
	}
}

func TestAFullDiskEndsIt(t *testing.T) {
	objects, m := caseOf(t, file("uac.log", strings.Repeat("noise", 1000)))
	if _, err := ToTarGz(t.Context(), objects, m, fullDisk{}); !errors.Is(err, errOutput) || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %v", err)
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

func FuzzFolder(f *testing.F) {
	f.Add(tarOf(f, file("[root]/a", "b"), link(tar.TypeSymlink, "[root]/l", "/"), file("[root]/l/x", "x"), link(tar.TypeLink, "[root]/h", "[root]/a")))
	f.Add(tarOf(f, file("../../x", "y")))
	f.Fuzz(func(t *testing.T, body []byte) {
		s := shelf{}
		m := evidence.Manifest{Items: []evidence.Item{s.add(evidence.Live, "files", evidence.Tar, body)}}
		base := t.TempDir()
		if _, err := ToFolder(t.Context(), s, m, filepath.Join(base, "out")); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(base)
		if err != nil || len(entries) != 1 {
			t.Fatalf("%v, %v", entries, err)
		}
		tree(t, base)
	})
}

// BenchmarkUnpack unpacks logs of 64 MiB in files of 1 MiB.
func BenchmarkUnpack(b *testing.B) {
	var files []entry
	var text strings.Builder
	for i := 0; text.Len() < 1<<20; i++ {
		fmt.Fprintf(&text, "Nov 26 03:00:%02d ip-10-0-0-1 sshd[%d]: Accepted publickey for root from 192.0.2.%d port %d\n", i%60, i*7%30000, i%250, i*13%60000)
	}
	for n := range 64 {
		files = append(files, file(fmt.Sprintf("[root]/var/log/%d", n), text.String()))
	}
	objects, m := caseOf(b, files...)
	b.Run("tar.gz", func(b *testing.B) {
		b.SetBytes(64 << 20)
		for b.Loop() {
			if _, err := ToTarGz(b.Context(), objects, m, io.Discard); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("files", func(b *testing.B) {
		b.SetBytes(64 << 20)
		for b.Loop() {
			if _, err := ToFolder(b.Context(), objects, m, filepath.Join(b.TempDir(), "out")); err != nil {
				b.Fatal(err)
			}
		}
	})
}
