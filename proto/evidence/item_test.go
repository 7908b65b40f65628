package evidence

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/quicklime-ir/quicklime/proto/lime"
)

// S3's rule, written out: hash each part, hash the hashes one after the
// other, base64, a dash, the number of parts.
func TestCompositeIsTheHashOfThePartsHashes(t *testing.T) {
	a, b := sha256.Sum256([]byte("first part")), sha256.Sum256([]byte("second part"))
	both := sha256.Sum256(append(a[:], b[:]...))
	want := base64.StdEncoding.EncodeToString(both[:]) + "-2"
	if got := Composite([]Part{{Number: 1, SHA256: a}, {Number: 2, SHA256: b}}); got != want {
		t.Errorf("Composite = %s, want %s", got, want)
	}
	if got := Composite([]Part{{Number: 1, SHA256: b}, {Number: 2, SHA256: a}}); got == want {
		t.Error("the order of the parts does not matter to Composite")
	}
	// printf hello | sha256sum | xxd -r -p | openssl dgst -sha256 -binary | base64
	if got, want := Composite([]Part{{SHA256: sha256.Sum256([]byte("hello"))}}), "lZXJ35AHUUjrBoYDZd8zWEt1v/eCpRDGzUiDpBmDPVA=-1"; got != want {
		t.Errorf("Composite of one part = %s, want %s", got, want)
	}
}

func TestMissingAndGaps(t *testing.T) {
	ram := []lime.Range{{Start: 0x1000, End: 0x9ffff}, {Start: 0x100000, End: 0x1fffff}}
	bad := Gap{Range: lime.Range{Start: 0x180000, End: 0x180fff}, Reason: ReadError, Errno: "EIO"}
	low := Part{Number: 1, Ranges: []lime.Range{{Start: 0x1000, End: 0x9ffff}}}
	middle := Part{Number: 2, Ranges: []lime.Range{{Start: 0x100000, End: 0x17ffff}}}
	high := Part{Number: 3, Ranges: []lime.Range{{Start: 0x180000, End: 0x1fffff}}, Gaps: []Gap{bad}}
	lost := func(start, end uint64) Gap {
		return Gap{Range: lime.Range{Start: start, End: end}, Reason: NotStored}
	}
	for _, c := range []struct {
		name  string
		parts []Part
		want  []Gap
	}{
		{"nothing is stored", nil, []Gap{lost(0x1000, 0x9ffff), lost(0x100000, 0x1fffff)}},
		{"all is stored", []Part{low, middle, high}, []Gap{bad}},
		{"the first is not, and its gap comes first", []Part{middle, high}, []Gap{lost(0x1000, 0x9ffff), bad}},
		{"one in the middle is not", []Part{low, high}, []Gap{lost(0x100000, 0x17ffff), bad}},
		{"half of a range is not", []Part{low, middle}, []Gap{lost(0x180000, 0x1fffff)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			item := Item{RAM: ram, Parts: c.parts}
			if diff := cmp.Diff(c.want, item.Gaps()); diff != "" {
				t.Error(diff)
			}
			var missing []lime.Range
			for _, g := range c.want {
				if g.Reason == NotStored {
					missing = append(missing, g.Range)
				}
			}
			if diff := cmp.Diff(missing, item.Missing()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestValidName(t *testing.T) {
	for name, want := range map[string]bool{
		"processes":             true,
		"a":                     true,
		"log_2":                 true,
		strings.Repeat("a", 40): true,
		strings.Repeat("a", 41): false,
		"":                      false,
		"Processes":             false,
		"2fast":                 false,
		"_a":                    false,
		"a/b":                   false,
		"..":                    false,
		"a.b":                   false,
		"a\n":                   false,
		"a\x00":                 false,
		"ä":                     false,
	} {
		if ValidName(name) != want {
			t.Errorf("ValidName(%q) = %v", name, !want)
		}
	}
}

func TestFileName(t *testing.T) {
	for want, item := range map[string]Item{
		"memory.lime.zst": {Name: "memory", Format: LiME, Compression: Zstd},
		"sockets.jsonl":   {Name: "sockets", Format: JSONL, Compression: None},
	} {
		if got := item.FileName(); got != want {
			t.Errorf("FileName = %s, want %s", got, want)
		}
	}
}

func TestDigestJSON(t *testing.T) {
	d := Digest(sha256.Sum256(nil))
	const hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	text, err := json.Marshal(d)
	if err != nil || string(text) != `"`+hex+`"` {
		t.Fatalf("Marshal = %s, %v", text, err)
	}
	var back Digest
	if err := json.Unmarshal(text, &back); err != nil || back != d {
		t.Errorf("Unmarshal = %v, %v", back, err)
	}
	if d.Base64() != "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=" {
		t.Errorf("Base64 = %s", d.Base64())
	}
	for _, bad := range []string{`""`, `"e3"`, `"` + hex + `00"`, `"` + strings.Repeat("z", 64) + `"`, `"` + strings.Repeat("\\n", 64) + `"`} {
		back := d
		if err := json.Unmarshal([]byte(bad), &back); err == nil {
			t.Errorf("Unmarshal took %s", bad)
		} else if strings.Contains(err.Error(), "\n") {
			t.Errorf("the error has a line break of its own: %q", err)
		}
		if back != d {
			t.Errorf("a bad text %s changed the digest", bad)
		}
	}
}
