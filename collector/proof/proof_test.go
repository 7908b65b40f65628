package proof

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quicklime-ir/quicklime/collector/custody"
	"github.com/quicklime-ir/quicklime/collector/locker"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

const victim = "i-0123456789abcdef0"

// put writes an object into a folder, as the bucket would hold it.
func put(t *testing.T, dir, name string, body []byte) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, body, 0o600); err != nil {
		t.Fatal(err)
	}
}

// putItem writes an item of one part, and gives what a manifest says of it.
func putItem(t *testing.T, dir string, kind evidence.Kind, name string, format evidence.Format, body []byte) evidence.Item {
	t.Helper()
	part := evidence.Part{Number: 1, Size: uint64(len(body)), SHA256: sha256.Sum256(body), RawSize: uint64(len(body))}
	item := evidence.Item{Kind: kind, Name: name, Format: format, Compression: evidence.None, Status: evidence.Whole, Size: part.Size,
		Key: "cases/c1/" + victim + "/" + string(kind) + "/" + name + "." + string(format), Parts: []evidence.Part{part},
		SHA256: evidence.Composite([]evidence.Part{part})}
	put(t, dir, item.Key, body)
	return item
}

// seal writes the papers of a case of these items: a journal of three entries
// and a manifest. It gives the key by which they verify.
func seal(t *testing.T, dir string, items ...evidence.Item) *custody.Key {
	t.Helper()
	var head evidence.JournalHead
	for n := 1; n <= 3; n++ {
		var raw []byte
		var err error
		if raw, head, err = custody.Next(head, time.Now(), map[string]int{"n": n}); err != nil {
			t.Fatal(err)
		}
		put(t, dir, locker.JournalKey("c1", victim, n), raw)
	}
	key, err := custody.NewKey(filepath.Join(t.TempDir(), "key"))
	if err != nil {
		t.Fatal(err)
	}
	envelope, err := custody.Seal(t.Context(), key, evidence.Manifest{Case: "c1", Instance: evidence.Instance{ID: victim}, Items: items, Journal: head})
	if err != nil {
		t.Fatal(err)
	}
	_, payload, err := custody.Open(envelope, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	put(t, dir, locker.SignatureKey("c1", victim), envelope)
	put(t, dir, locker.ManifestKey("c1", victim), payload)
	return key
}

// sealed writes a case of one table.
func sealed(t *testing.T) (dir string, key *custody.Key) {
	t.Helper()
	dir = t.TempDir()
	return dir, seal(t, dir, putItem(t, dir, evidence.Volatile, "processes", evidence.JSONL, []byte("{\"pid\":1}\n")))
}

// proved proves the case c1 of a folder, and gives what is printed of it.
func proved(t *testing.T, dir string, key *custody.Key) (ok bool, text string) {
	t.Helper()
	folder, err := OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	proofs, err := Prove(t.Context(), folder, key.Public(), "c1")
	if err != nil || len(proofs) != 1 {
		t.Fatalf("proofs %+v, %v", proofs, err)
	}
	var out bytes.Buffer
	if err := proofs[0].WriteText(&out); err != nil {
		t.Fatal(err)
	}
	return proofs[0].OK(), out.String()
}

func TestProve(t *testing.T) {
	base := "cases/c1/" + victim + "/"
	tests := []struct {
		name   string
		damage func(t *testing.T, dir string)
		want   string // in what is printed; "" for proven
	}{
		{"an untouched copy", func(*testing.T, string) {}, ""},
		{"a table with another byte", rewrite(base+"volatile/processes.jsonl", "{\"pid\":2}\n"), "NOT PROVEN"},
		{"a table that is gone", remove(base + "volatile/processes.jsonl"), "NOT PROVEN"},
		{"a manifest that says something else", rewrite(base+"manifest.json", "{}"), "manifest.json is not what"},
		{"a journal with an entry less", remove(base + "journal/000003.json"), "the manifest saw 3"},
		{"a journal with an entry changed", rewrite(base+"journal/000002.json", "{}"), "PROBLEM   journal"},
		{"a signature that is none", rewrite(base+"manifest.sig", "{}"), "PROBLEM   manifest"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir, key := sealed(t)
			tt.damage(t, dir)
			proven, out := proved(t, dir, key)
			if proven != (tt.want == "") || !strings.Contains(out, tt.want) {
				t.Errorf("want %q in\n%s", tt.want, out)
			}
		})
	}
}

func rewrite(name, text string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func remove(name string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWhatIsNotListedIsNamed(t *testing.T) {
	dir, key := sealed(t)
	rewrite("cases/c1/"+victim+"/extra.bin", "x")(t, dir)
	folder, err := OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	proofs, err := Prove(t.Context(), folder, key.Public(), "")
	if err != nil || len(proofs) != 1 || fmt.Sprint(proofs[0].Unlisted) != "[cases/c1/"+victim+"/extra.bin]" {
		t.Errorf("proofs %+v, %v", proofs, err)
	}
	if _, err := Prove(t.Context(), folder, key.Public(), "c2"); !errors.Is(err, ErrNotProven) {
		t.Errorf("a case that is not there: %v", err)
	}
}

func TestNoKeyLeadsOutOfTheFolder(t *testing.T) {
	folder, err := OpenFolder(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	for _, key := range []string{"../secret", "/etc/passwd", "a/../../b"} {
		if r, err := folder.Open(t.Context(), key); err == nil {
			r.Close()
			t.Errorf("%s was opened", key)
		}
		if r, err := folder.OpenRange(t.Context(), key, 0, 1); err == nil {
			r.Close()
			t.Errorf("%s was opened", key)
		}
	}
}

func TestAStretchOfAFile(t *testing.T) {
	dir := t.TempDir()
	rewrite("object", "0123456789")(t, dir)
	folder, err := OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	for want, at := range map[string][2]int64{"345": {3, 3}, "89": {8, 5}, "": {10, 1}} {
		r, err := folder.OpenRange(t.Context(), "object", at[0], at[1])
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || string(got) != want || r.Close() != nil {
			t.Errorf("%v gives %q, %v; want %q", at, got, err, want)
		}
	}
}

// TestLoad: with a key only what its holder signed, without one whatever is
// there.
func TestLoad(t *testing.T) {
	dir, key := sealed(t)
	other, err := custody.NewKey(filepath.Join(t.TempDir(), "key"))
	if err != nil {
		t.Fatal(err)
	}
	folder, err := OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	if m, err := Load(t.Context(), folder, key.Public(), "c1"); err != nil || m.Instance.ID != victim {
		t.Errorf("with the key: %+v, %v", m, err)
	}
	if _, err := Load(t.Context(), folder, other.Public(), "c1"); !errors.Is(err, ErrNotProven) {
		t.Errorf("with another key: %v", err)
	}
	if m, err := Load(t.Context(), folder, nil, "c1"); err != nil || m.Case != "c1" {
		t.Errorf("without a key: %+v, %v", m, err)
	}
	for _, id := range []string{"c", "c2", "", "../c1"} {
		if _, err := Load(t.Context(), folder, nil, id); !errors.Is(err, ErrNotProven) {
			t.Errorf("case %q: %v", id, err)
		}
	}
	rewrite("cases/c1/"+victim+"/manifest.sig", "{}")(t, dir)
	if _, err := Load(t.Context(), folder, nil, "c1"); !errors.Is(err, custody.ErrBroken) {
		t.Errorf("an envelope that is none: %v", err)
	}
}
