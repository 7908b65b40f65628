package definition

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func load(text string) *Set { return Load(nil, []File{{"x.yaml", []byte(text)}}) }

const good = `# A comment, then a definition with all that there is.
---
name: Everything
doc: |
  In two
  lines.
aliases: [All, EverythingElse]
sources:
- type: FILE
  attributes:
    paths: ['/a/*', "%%users.homedir%%/b"]
    separator: '/'
  supported_os: [Linux]
- {type: PATH, attributes: {paths: [/c]}, conditions: [os_major_version >= 6]}
- {type: DIRECTORY, attributes: {paths: [/d]}}
- {type: COMMAND, attributes: {cmd: /bin/ps, args: ['-ef']}}
- {type: REGISTRY_KEY, attributes: {keys: ['HKLM\X']}, supported_os: [Windows]}
- {type: REGISTRY_VALUE, attributes: {key_value_pairs: [{key: 'HKLM\X', value: Y}]}}
- {type: WMI, attributes: {query: SELECT, base_object: 'x'}}
supported_os: [Linux, Windows]
conditions: []
labels: [Logs]
provides: [users.homedir]
urls: ['https://example.org/']
---
name: Group
doc: A group.
sources: [{type: ARTIFACT_GROUP, attributes: {names: [all, Darwin]}}]
---
name: Darwin
doc: For another system.
sources: [{type: FILE, attributes: {paths: [/e]}}]
supported_os: [Darwin]
`

func TestLoad(t *testing.T) {
	s := load(good)
	if len(s.Refused) != 0 || len(s.All()) != 3 {
		t.Fatalf("%d loaded, refused: %v", len(s.All()), s.Refused)
	}
	def := s.Find("EVERYTHINGELSE")
	if def == nil || def.Name != "Everything" || def.Doc != "In two\nlines.\n" || def.Line != 3 || def.File != "x.yaml" {
		t.Fatalf("got %+v", def)
	}
	var types []Type
	for _, source := range def.Linux() {
		types = append(types, source.Type)
	}
	if !slices.Equal(types, []Type{FilePaths, Path, Directory, Command}) {
		t.Errorf("on Linux serve %v", types)
	}
	if s := def.Sources[0]; s.Line != 9 || !slices.Equal(s.Paths, []string{"/a/*", "%%users.homedir%%/b"}) {
		t.Errorf("got %+v", s)
	}
	if s := def.Sources[3]; s.Cmd != "/bin/ps" || !slices.Equal(s.Args, []string{"-ef"}) {
		t.Errorf("got %+v", s)
	}
}

func names(defs []*Definition) string {
	var out []string
	for _, def := range defs {
		out = append(out, def.Name)
	}
	return strings.Join(out, " ")
}

func group(name, members string) string {
	return "---\nname: " + name + "\ndoc: d\nsources:\n- type: ARTIFACT_GROUP\n  attributes: {names: [" + members + "]}\n"
}

func file(name string) string {
	return "---\nname: " + name + "\ndoc: d\nsources:\n- type: FILE\n  attributes: {paths: [/" + name + "]}\n"
}

func TestGroupsBringTheirMembers(t *testing.T) {
	s := load(file("A") + group("G", "C, H, A") + file("B") + group("H", "B") + file("C"))
	if got := names(s.Linux()); got != "A G C H B" || len(s.Refused) != 0 {
		t.Errorf("in order: %s; %v", got, s.Refused)
	}
	if got := names(s.Expand(s.Find("g"))); got != "G C H B A" {
		t.Errorf("expanded: %s", got)
	}
	over := Load(s, []File{{"y.yaml", []byte(file("D") + file("A") + group("I", "D, A, B"))}})
	if got := names(over.Linux()); got != "D A I" || over.Find("A").File != "y.yaml" || over.Find("B").File != "x.yaml" {
		t.Errorf("above a base: %s; %v", got, over.Refused)
	}
}

func TestGroupsThatDoNotEnd(t *testing.T) {
	s := load(group("A", "B") + group("B", "A") + group("Self", "self") + group("Lost", "Nowhere") + group("Outer", "Lost") + file("Fine"))
	if got := names(s.All()); got != "Fine" || len(s.Refused) != 5 {
		t.Errorf("loaded %s, refused %v", got, s.Refused)
	}
	chain := file("N0")
	for i := range 70 {
		chain += group("N"+strings.Repeat("x", i+1), map[bool]string{true: "N0", false: "N" + strings.Repeat("x", i)}[i == 0])
	}
	if s := load(chain); len(s.Refused) != 70-maxNesting {
		t.Errorf("of 70 nested groups %d are refused", len(s.Refused))
	}
}

// A broken definition is refused with its line and reason; the one before and
// the one after it load.
func TestBrokenDefinitions(t *testing.T) {
	for _, c := range []struct {
		text, reason string
		line         int // of the broken document, from 1
	}{
		{"name: [\n", "no YAML: ", 1}, // the library tells the line before the bad one
		{"name: X\n\tdoc: y\n", "no YAML: ", 1},
		{"- a list\n", `the definition is a list, want keys and values`, 1},
		{"name: X\ndoc: d\n", "the definition has no sources", 1},
		{"doc: d\nsources: []\n", "the definition has no name", 1},
		{"name: X\ndoc: d\nsources: []\n", "want a list of 1 to 256", 3},
		{"name: X\nname: Y\n", "has the key name twice", 2},
		{"name: X\ndoc: d\ncollectors: []\n", `has the unknown key "collectors"`, 3},
		{"name: 1\n", `name: it is "1", want text`, 1},
		{"name: two words\ndoc: d\nsources: [{type: FILE, attributes: {paths: [/a]}}]\n", "is no name", 1},
		{"name: X\nurls: https://x\n", "want a list", 2},
		{"name: X\nsupported_os: [Plan9]\n", "is no system", 2},
		{"name: X\ndoc: d\nsources:\n- type: FILE\n", "the source has no attributes", 4},
		{"name: X\ndoc: d\nsources:\n- type: FOLDER\n  attributes: {}\n", `"FOLDER" is no type of source`, 5},
		{"name: X\ndoc: d\nsources:\n- type: FILE\n  attributes: {paths: []}\n", "there are no paths", 5},
		{"name: X\ndoc: d\nsources:\n- type: FILE\n  attributes:\n    paths: /a\n", "want a list", 6},
		{"name: X\ndoc: d\nsources:\n- type: COMMAND\n  attributes: {cmd: /bin/x}\n", "attributes has no args", 5},
		{"name: X\ndoc: d\nsources:\n- type: FILE\n  attributes: {paths: [bad]}\n", "cannot read pattern", 4},
		{"name: X\ndoc: d\nsources:\n- type: FILE\n  attributes: {paths: [/a]}\n  supported_os: [Linux]\nsupported_os: [Windows]\n", "is for Linux, the definition is not", 4},
		{"name: Before\ndoc: d\nsources: [{type: FILE, attributes: {paths: [/a]}}]\n", "the name Before is taken: x.yaml:2", 1},
		{"name: X\naliases: [bEFORE]\ndoc: d\nsources: [{type: FILE, attributes: {paths: [/a]}}]\n", "the name bEFORE is taken", 1},
		{"name: &a X\ndoc: *a\n", "doc: it is a YAML alias, which is not taken", 2},
		{"a: &a [x, x]\nb: &b [*a, *a]\n", `unknown key "a"`, 1},
		{"name: X\ndoc: d\nsources: [{type: FILE, attributes: {paths: [/a]}}]\n...\nname: Y\n", "start each definition with a line ---", 1},
		{"name: X\ndoc: d\nsources: [{type: ARTIFACT_GROUP, attributes: {names: [None]}}]\n", "it names None, which is not defined", 3},
		{strings.Repeat("[", 20000) + "\n", "no YAML: ", 1},
	} {
		s := load(file("Before") + "---\n" + c.text + file("After"))
		if names(s.All()) != "Before After" || len(s.Refused) != 1 {
			t.Errorf("%.80q: loaded %s, refused %v", c.text, names(s.All()), s.Refused)
			continue
		}
		start := strings.Count(file("Before"), "\n") + 1 // the document's marker
		if r := s.Refused[0]; !strings.Contains(r.Reason, c.reason) || r.Line != start+c.line || r.File != "x.yaml" {
			t.Errorf("%.80q: %v, want line %d", c.text, r, start+c.line)
		}
	}
}

func TestFilesThatAreTooLarge(t *testing.T) {
	s := Load(nil, []File{{"big.yaml", make([]byte, MaxFileBytes+1)}, {"x.yaml", []byte(file("A"))}})
	if len(s.Refused) != 1 || s.Refused[0].File != "big.yaml" || names(s.All()) != "A" {
		t.Errorf("loaded %s, refused %v", names(s.All()), s.Refused)
	}
}

func TestReadDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "with [brackets]*")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadDir(dir); err == nil || !strings.Contains(err.Error(), "0 files end in .yaml") {
		t.Errorf("an empty folder: %v", err)
	}
	for name, content := range map[string]string{"b.yaml": "b", "a.yaml": "a", "README.md": "c"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	files, err := ReadDir(dir)
	if err != nil || len(files) != 2 || files[0].Name != "a.yaml" || string(files[1].YAML) != "b" {
		t.Errorf("%+v, %v", files, err)
	}
	if err := os.Symlink("/dev/zero", filepath.Join(dir, "z.yaml")); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadDir(dir); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a device: %v", err)
	}
	os.Remove(filepath.Join(dir, "z.yaml"))
	if err := os.WriteFile(filepath.Join(dir, "z.yaml"), make([]byte, MaxFileBytes+1), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadDir(dir); err == nil || !strings.Contains(err.Error(), "too large") {
		t.Errorf("a large file: %v", err)
	}
}

// FuzzLoad holds what comes out of any bytes against what was promised.
func FuzzLoad(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte("a: &a [x]\nb: *a\n---\n%YAML 1.1\n---\n? {a: b}\n: c\n...\n"))
	f.Add([]byte(group("A", "B") + group("B", "A")))
	f.Add([]byte("<<: {name: X}\n--- |\n text\n---\t\n!!binary x\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		s := Load(nil, []File{{"x.yaml", text}})
		lines := strings.Count(string(text), "\n") + 1
		for _, r := range s.Refused {
			if r.Line < 0 || r.Line > lines+1 || r.Reason == "" {
				t.Errorf("%q: refused %+v of %d lines", text, r, lines)
			}
		}
		for _, def := range s.All() {
			if s.Find(def.Name) != def || len(def.Sources) == 0 || def.Line < 1 || def.Line > lines || !goodName.MatchString(def.Name) {
				t.Errorf("%q: got %+v", text, def)
			}
		}
		if len(s.Linux()) > len(s.All()) {
			t.Errorf("%q: more reach Linux than there are", text)
		}
	})
}
