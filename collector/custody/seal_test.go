package custody_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"github.com/quicklime-ir/quicklime/collector/custody"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

func newKey(t testing.TB) *custody.Key {
	t.Helper()
	key, err := custody.NewKey(filepath.Join(t.TempDir(), "signing.key"))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// item is a stored item with a part for each text.
func item(name string, texts ...string) evidence.Item {
	i := evidence.Item{Kind: evidence.Memory, Name: name, Format: evidence.LiME, Compression: evidence.Zstd, Status: evidence.Whole,
		Key: "cases/c1/i-1/memory/" + name + ".lime.zst", RAM: []lime.Range{{Start: 0x1000, End: 0x2000}}}
	for n, text := range texts {
		i.Parts = append(i.Parts, evidence.Part{Number: int32(n + 1), Size: uint64(len(text)), SHA256: custody.Hash([]byte(text)),
			Started: noon.UTC(), Ended: noon.UTC(), Granted: noon.UTC()})
		i.Size += uint64(len(text))
	}
	if len(texts) > 0 {
		i.SHA256 = evidence.Composite(i.Parts)
	}
	return i
}

func manifest() evidence.Manifest {
	empty := item("nothing")
	empty.Status, empty.Error = evidence.Partial, "the agent was gone"
	return evidence.Manifest{
		Case: "c1", Made: noon.UTC(), Instance: evidence.Instance{ID: "i-1", Account: "123456789012", Region: "eu-west-1"},
		Findings: []evidence.Finding{{EventID: "e1", Event: []byte("{\"title\": \"<b> & more\"}\n")}},
		Items:    []evidence.Item{item("image", "one", "two"), item("small", "only"), empty},
		Journal:  evidence.JournalHead{Entries: 7, SHA256: custody.Hash([]byte("seven"))},
	}
}

func seal(t testing.TB, key custody.Signer, m evidence.Manifest) []byte {
	t.Helper()
	envelope, err := custody.Seal(context.Background(), key, m)
	if err != nil {
		t.Fatal(err)
	}
	return envelope
}

func TestSealAndOpen(t *testing.T) {
	key := newKey(t)
	want := manifest()
	got, payload, err := custody.Open(seal(t, key, want), key.Public())
	if err != nil {
		t.Fatal(err)
	}
	want.Actions = nil
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	var s struct {
		Type          string `json:"_type"`
		PredicateType string
		Subject       []struct {
			Name   string
			Digest map[string]string
		}
	}
	if err := json.Unmarshal(payload, &s); err != nil {
		t.Fatal(err)
	}
	if s.Type != "https://in-toto.io/Statement/v1" || s.PredicateType != evidence.ManifestType || len(s.Subject) != 2 {
		t.Fatalf("statement is %+v", s)
	}
	image, small := s.Subject[0], s.Subject[1]
	if image.Name != "cases/c1/i-1/memory/image.lime.zst" || image.Digest["sha256Composite"] != evidence.Composite(want.Items[0].Parts) {
		t.Errorf("object of two parts is %v", image)
	}
	if small.Digest["sha256"] != custody.Hash([]byte("only")).String() {
		t.Errorf("object of one part is %v", small)
	}
}

// TestSealedByTheBook verifies an envelope with the library's own verifier.
func TestSealedByTheBook(t *testing.T) {
	key := newKey(t)
	var e dsse.Envelope
	if err := json.Unmarshal(seal(t, key, manifest()), &e); err != nil {
		t.Fatal(err)
	}
	body, err := e.DecodeB64Payload()
	if err != nil {
		t.Fatal(err)
	}
	sig, err := base64.StdEncoding.DecodeString(e.Signatures[0].Sig)
	if err != nil || !ed25519.Verify(key.Public(), dsse.PAE("application/vnd.in-toto+json", body), sig) {
		t.Errorf("signature does not hold (%v)", err)
	}
}

func TestSealRefuses(t *testing.T) {
	key := newKey(t)
	for name, change := range map[string]func(*evidence.Manifest){
		"an open item":          func(m *evidence.Manifest) { m.Items[0].Status = evidence.Open },
		"a hash not its parts'": func(m *evidence.Manifest) { m.Items[0].SHA256 = m.Items[1].SHA256 },
		"a size not its parts'": func(m *evidence.Manifest) { m.Items[0].Size++ },
		"a hash without parts":  func(m *evidence.Manifest) { m.Items[2].SHA256 = "x" },
		"two items on one key":  func(m *evidence.Manifest) { m.Items[1].Key = m.Items[0].Key },
		"an object without key": func(m *evidence.Manifest) { m.Items[0].Key = "" },
		"more than can be read": func(m *evidence.Manifest) { m.Items[2].Error = strings.Repeat("x", 50<<20) },
	} {
		m := manifest()
		change(&m)
		if _, err := custody.Seal(t.Context(), key, m); err == nil {
			t.Errorf("%s is sealed", name)
		}
	}
}

// broken is a signer that fails in one way.
type broken struct {
	custody.Signer
	sig []byte
	err error
}

func (b broken) Sign(context.Context, []byte) ([]byte, error) { return b.sig, b.err }

func TestSealTellsABadSigner(t *testing.T) {
	away := errors.New("the key service is away")
	if _, err := custody.Seal(t.Context(), broken{newKey(t), nil, away}, manifest()); !errors.Is(err, away) {
		t.Errorf("a signer that fails: %v", err)
	}
	if _, err := custody.Seal(t.Context(), broken{newKey(t), make([]byte, 64), nil}, manifest()); !errors.Is(err, custody.ErrBroken) {
		t.Errorf("a signer that signs wrongly: %v", err)
	}
}

func TestOpenTellsTampering(t *testing.T) {
	key, other := newKey(t), newKey(t)
	good := seal(t, key, manifest())
	id, err := key.KeyID()
	if err != nil {
		t.Fatal(err)
	}
	// reseal signs any payload with the right key.
	reseal := func(kind string, edit func(string) string) []byte {
		_, payload, err := custody.Open(good, key.Public())
		if err != nil {
			t.Fatal(err)
		}
		signer, err := dsse.NewEnvelopeSigner(key)
		if err != nil {
			t.Fatal(err)
		}
		e, err := signer.SignPayload(t.Context(), kind, []byte(edit(string(payload))))
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	const inToto = "application/vnd.in-toto+json"
	swap := func(old, new string) func(string) string {
		return func(s string) string {
			if !strings.Contains(s, old) {
				t.Fatalf("payload has no %q", old)
			}
			return strings.Replace(s, old, new, 1)
		}
	}
	edit := func(old, new string) []byte { return []byte(swap(old, new)(string(good))) }
	for name, test := range map[string]struct {
		envelope []byte
		says     string
	}{
		"nothing":                  {nil, "no DSSE envelope"},
		"null":                     {[]byte("null"), "not spelled"},
		"space":                    {edit(`,"signatures"`, `, "signatures"`), "not spelled"},
		"line end":                 {append(bytes.Clone(good), '\n'), "not spelled"},
		"field":                    {edit(`,"signatures"`, `,"x":1,"signatures"`), "not spelled"},
		"second payload":           {edit(`,"signatures"`, `,"payload":"","signatures"`), "not spelled"},
		"line end in the payload":  {edit(`"payload":"`, `"payload":"\n`), "not spelled as encoders do"},
		"signature left out":       {[]byte(`{"payloadType":"application/vnd.in-toto+json","payload":"","signatures":[]}`), "0 signatures"},
		"signature doubled":        {edit(`"signatures":[`, `"signatures":[{"keyid":"","sig":""},`), "2 signatures"},
		"key left out":             {edit(id, ""), "signed with key"},
		"another's key":            {seal(t, other, manifest()), "signed with key"},
		"another's as this one's":  {[]byte(strings.Replace(string(seal(t, other, manifest())), must(other.KeyID()), id, 1)), "does not hold"},
		"payload type":             {edit("vnd.in-toto", "vnd.another"), "its payload type"},
		"signed payload type":      {reseal("text/plain", swap("", "")), "its payload type"},
		"signed statement type":    {reseal(inToto, swap("Statement/v1", "Statement/v2")), "it states a"},
		"signed predicate type":    {reseal(inToto, swap("manifest/v1", "manifest/v2")), "it states a"},
		"signed garbage":           {reseal(inToto, func(string) string { return "[]" }), "no statement"},
		"signed subject renamed":   {reseal(inToto, swap("small.lime.zst", "other.lime.zst")), "subjects are not the items"},
		"signed subject rehashed":  {reseal(inToto, swap(`{"sha256":"`+custody.Hash([]byte("only")).String()[:4], `{"sha256":"0000`)), "subjects are not the items"},
		"signed subjects left out": {reseal(inToto, func(s string) string { return cut(s, `"subject":[`, `],"predicateType"`) }), "subjects are not the items"},
		"signed item's size":       {reseal(inToto, swap(`"size":6`, `"size":7`)), "its parts have 6"},
		"too large":                {make([]byte, custody.MaxEnvelope+1), "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			m, payload, err := custody.Open(test.envelope, key.Public())
			if !errors.Is(err, custody.ErrBroken) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v\nwant %s", err, test.says)
			}
			if payload != nil || m.Case != "" {
				t.Error("what did not verify is given out")
			}
		})
	}
	if _, _, err := custody.Open(good, nil); !errors.Is(err, custody.ErrBroken) {
		t.Errorf("without a key: %v", err)
	}
}

// cut takes out what lies between two marks.
func cut(s, from, to string) string {
	i := strings.Index(s, from) + len(from)
	return s[:i] + s[i+strings.Index(s[i:], to):]
}

func must(s string, err error) string {
	if err != nil {
		panic(err)
	}
	return s
}

// TestOpenTellsEveryBit flips each bit of an envelope.
func TestOpenTellsEveryBit(t *testing.T) {
	key := newKey(t)
	m := manifest()
	m.Items, m.Findings = m.Items[1:2], nil
	envelope := seal(t, key, m)
	for i := range envelope {
		for bit := range 8 {
			envelope[i] ^= 1 << bit
			_, _, err := custody.Open(envelope, key.Public())
			envelope[i] ^= 1 << bit
			if !errors.Is(err, custody.ErrBroken) {
				t.Fatalf("bit %d of byte %d (%q) can be changed: %v", bit, i, envelope[i], err)
			}
		}
	}
}

func FuzzOpen(f *testing.F) {
	key := newKey(f)
	good := seal(f, key, manifest())
	f.Add(good)
	f.Add([]byte(`{"payloadType":"application/vnd.in-toto+json","payload":"e30=","signatures":[{"keyid":"","sig":""}]}`))
	f.Add([]byte(strings.Replace(string(good), `"sig":"`, `"sig":"AAAA`, 1)))
	f.Fuzz(func(t *testing.T, envelope []byte) {
		_, _, err := custody.Open(envelope, key.Public())
		if (err == nil) != bytes.Equal(envelope, good) {
			t.Fatalf("%v for %q", err, envelope)
		}
		if err != nil && !errors.Is(err, custody.ErrBroken) {
			t.Fatal(err)
		}
	})
}
