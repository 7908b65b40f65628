package locker

import (
	"strings"
	"testing"

	"github.com/quicklime-ir/quicklime/proto/evidence"
)

func TestKeys(t *testing.T) {
	item := evidence.Item{Kind: evidence.Memory, Name: "image", Format: evidence.LiME, Compression: evidence.Zstd}
	for got, want := range map[string]string{
		Key("20261123-ab12", "i-0abc", item):        "cases/20261123-ab12/i-0abc/memory/image.lime.zst",
		ManifestKey("c1", "i-1"):                    "cases/c1/i-1/manifest.json",
		SignatureKey("c1", "i-1"):                   "cases/c1/i-1/manifest.sig",
		JournalKey("c1", "i-1", 7):                  "cases/c1/i-1/journal/000007.json",
		JournalKey("c1", "i-1", 999_999):            "cases/c1/i-1/journal/999999.json",
		JournalKey("c1", "i-1", 1_000_000):          "",
		JournalKey("c1", "i-1", 0):                  "",
		ManifestKey("", "i-1"):                      "",
		ManifestKey("c1", ".."):                     "",
		ManifestKey("c1/../c2", "i-1"):              "",
		ManifestKey("c1", strings.Repeat("x", 101)): "",
	} {
		if got != want {
			t.Errorf("key is %q, want %q", got, want)
		}
	}
	for name, change := range map[string]func(*evidence.Item){
		"name":    func(i *evidence.Item) { i.Name = "../x" },
		"kind":    func(i *evidence.Item) { i.Kind = "a/b" },
		"no kind": func(i *evidence.Item) { i.Kind = "" },
		"journal": func(i *evidence.Item) { i.Kind = "journal" },
		"format":  func(i *evidence.Item) { i.Format = "/x" },
	} {
		bad := item
		change(&bad)
		if got := Key("c1", "i-1", bad); got != "" {
			t.Errorf("%s: key is %q", name, got)
		}
	}
}

func FuzzKey(f *testing.F) {
	f.Add("c1", "i-1", "memory", "image", "lime")
	f.Add("..", "i/1", "", "a\x00", "x=y")
	f.Fuzz(func(t *testing.T, caseID, instance, kind, name, format string) {
		key := Key(caseID, instance, evidence.Item{Kind: evidence.Kind(kind), Name: name, Format: evidence.Format(format)})
		if key == "" {
			return
		}
		if err := checkKey(key); err != nil {
			t.Fatal(err)
		}
		elements := strings.Split(key, "/")
		if len(elements) != 5 || elements[1] != caseID || elements[2] != instance || elements[3] != kind || elements[4] != name+"."+format {
			t.Fatalf("%q of %q", key, []string{caseID, instance, kind, name, format})
		}
		for _, e := range elements {
			if strings.HasPrefix(e, ".") {
				t.Fatalf("%q leads elsewhere", key)
			}
		}
	})
}
