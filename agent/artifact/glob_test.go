package artifact

import (
	"path"
	"regexp"
	"strings"
	"testing"
)

func TestDefinitionsAreSound(t *testing.T) {
	names := map[string]bool{}
	for _, def := range Definitions() {
		if !regexp.MustCompile(`^[A-Z][A-Za-z]+$`).MatchString(def.Name) || def.Doc == "" || len(def.Paths) == 0 || names[def.Name] {
			t.Errorf("definition %q needs a name of its own, a doc and paths", def.Name)
		}
		names[def.Name] = true
		for _, p := range def.Paths {
			if _, err := parsePattern(p); err != nil {
				t.Errorf("%s: %v", def.Name, err)
			}
		}
	}
}

func TestParsePattern(t *testing.T) {
	for in, base := range map[string]string{"/etc/passwd": "/etc", "/x": "/", "/var/log/**": "/var/log", "/a/*/b": "/a", "/a/**3/b": "/a"} {
		if p, err := parsePattern(in); err != nil || p.base != base || p.homes {
			t.Errorf("%s: base %q, %v, want %q", in, p.base, err, base)
		}
	}
	if p, err := parsePattern("%%users.homedir%%/.ssh/*"); err != nil || !p.homes || len(p.segments) != 2 {
		t.Errorf("got %+v, %v", p, err)
	}
	for _, bad := range []string{"", "/", "relative", "/a/../b", "/a//b", "/a/", "/a/**0", "/a/**11", "/a/**x", "%%users.homedir%%", "%%other%%/x"} {
		if _, err := parsePattern(bad); err == nil {
			t.Errorf("%q was taken for a pattern", bad)
		}
	}
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"passwd", "passwd", true}, {"passwd", "passwd-", false}, {"*", ".hidden", true}, {"*", "", true},
		{".*history", ".bash_history", true}, {".*history", ".history", true}, {".*history", "history", false},
		{"cron.*", "cron.d", true}, {"a*a", "a", false}, {"a*a", "aa", true}, {"a*b*c", "a-b-c", true}, {"a*b*c", "acb", false},
		{"*\n*", "two\nlines", true}, {"[a]", "a", false}, {"?", "x", false},
	} {
		if got := (segment{text: c.pattern}).match(c.name); got != c.want {
			t.Errorf("%q matches %q: %t", c.pattern, c.name, got)
		}
	}
}

// path.Match agrees where it gives * the same meaning.
func FuzzMatch(f *testing.F) {
	f.Add("a*b*c", "axxbc")
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if strings.ContainsAny(pattern, `?[]\/`) || strings.Contains(name, "/") || !isASCII(pattern+name) {
			return
		}
		want, err := path.Match(pattern, name)
		if err != nil {
			return
		}
		if got := (segment{text: pattern}).match(name); got != want {
			t.Errorf("%q matches %q: %t, want %t", pattern, name, got, want)
		}
	})
}

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r > 127 }) < 0
}

func FuzzParsePattern(f *testing.F) {
	f.Add("/var/log/**3/x*")
	f.Add("%%users.homedir%%/.ssh/*")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parsePattern(s)
		if err != nil {
			return
		}
		if len(p.segments) == 0 || (p.base == "") != p.homes || strings.Contains(p.base, "..") && path.Clean(p.base) != p.base {
			t.Errorf("%q gives %+v", s, p)
		}
		for _, seg := range p.segments {
			if seg.text == ".." || seg.text == "" || seg.depth > defaultDepth {
				t.Errorf("%q gives segment %+v", s, seg)
			}
		}
	})
}
