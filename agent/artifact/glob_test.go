package artifact

import (
	"path"
	"strings"
	"testing"
)

func TestParsePattern(t *testing.T) {
	for in, base := range map[string]string{"/etc/passwd": "/etc", "/x": "/", "/var/log/**": "/var/log", "/a/*/b": "/a", "/a/**3/b": "/a"} {
		if p, err := parsePattern(in); err != nil || p.base != base || p.homes {
			t.Errorf("%s: base %q, %v, want %q", in, p.base, err, base)
		}
	}
	if p, err := parsePattern("%%users.homedir%%/.ssh/*"); err != nil || !p.homes || len(p.segments) != 2 {
		t.Errorf("got %+v, %v", p, err)
	}
	if p, err := parsePattern("/var/spool/cron/%%users.username%%"); err != nil || p.base != "/var/spool/cron" || p.segments[0].text != "*" {
		t.Errorf("got %+v, %v", p, err)
	}
	for _, bad := range []string{"", "/", "relative", "/a/../b", "/a//b", "/a/", "/a/**0", "/a/**11", "/a/**x", "%%users.homedir%%", "%%other%%/x",
		"/a/%%environ_windir%%", "/a/%%users.homedir%%/b", "/a/**/b/**", "/a/[0-9", "/a" + strings.Repeat("/b", 64), "/" + strings.Repeat("a", 5000)} {
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
		{"*\n*", "two\nlines", true}, {"[a]", "a", true}, {"?", "x", true}, {"?", "\xff", true}, {"?", "é", true}, {"?", "", false},
		{"tty[0-9]", "tty7", true}, {"tty[0-9]", "ttyS", false}, {"[!0-9]*", "a1", true}, {"[!0-9]*", "1a", false}, {`a\b`, `a\b`, true}, {`a\*`, `a\x`, true},
		{"*\xff", "a\xff", true},
	} {
		seg, err := newSegment(c.pattern)
		if got := seg.match(c.name); got != c.want || err != nil {
			t.Errorf("%q matches %q: %t, %v", c.pattern, c.name, got, err)
		}
	}
}

// No pattern that is taken fails at a name, and one without a wildcard matches
// itself alone.
func FuzzMatch(f *testing.F) {
	f.Add("a*b*c", "axxbc")
	f.Add("[!0-9]?", "a\xff")
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if strings.Contains(pattern, "/") || strings.Contains(name, "/") {
			return
		}
		seg, err := newSegment(pattern)
		if err != nil || seg.depth > 0 {
			return
		}
		if _, err := path.Match(seg.text, name); err != nil {
			t.Errorf("%q fails at %q: %v", pattern, name, err)
		}
		if !strings.ContainsAny(pattern, "*?[") && seg.match(name) != (name == pattern) {
			t.Errorf("%q matches %q: %t", pattern, name, seg.match(name))
		}
	})
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
