package definition

import (
	"path"
	"strings"
	"testing"
)

func TestParsePattern(t *testing.T) {
	for in, base := range map[string]string{"/etc/passwd": "/etc", "/x": "/", "/var/log/**": "/var/log", "/a/*/b": "/a", "/a/**3/b": "/a"} {
		if p, err := ParsePattern(in); err != nil || p.Base != base || p.Homes {
			t.Errorf("%s: base %q, %v, want %q", in, p.Base, err, base)
		}
	}
	if p, err := ParsePattern("%%users.homedir%%/.ssh/*"); err != nil || !p.Homes || len(p.Segments) != 2 {
		t.Errorf("got %+v, %v", p, err)
	}
	if p, err := ParsePattern("/var/spool/cron/%%users.username%%"); err != nil || p.Base != "/var/spool/cron" || p.Segments[0].Text != "*" {
		t.Errorf("got %+v, %v", p, err)
	}
	for _, bad := range []string{"", "/", "relative", "/a/../b", "/a//b", "/a/", "/a/**0", "/a/**11", "/a/**x", "%%users.homedir%%", "%%other%%/x",
		"/a/%%environ_windir%%", "/a/%%users.homedir%%/b", "/a/**/b/**", "/a/[0-9", "/a" + strings.Repeat("/b", 64), "/" + strings.Repeat("a", 5000)} {
		if _, err := ParsePattern(bad); err == nil {
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
		if got := seg.Match(c.name); got != c.want || err != nil {
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
		if err != nil || seg.Depth > 0 {
			return
		}
		if _, err := path.Match(seg.Text, name); err != nil {
			t.Errorf("%q fails at %q: %v", pattern, name, err)
		}
		if !strings.ContainsAny(pattern, "*?[") && seg.Match(name) != (name == pattern) {
			t.Errorf("%q matches %q: %t", pattern, name, seg.Match(name))
		}
	})
}

func FuzzParsePattern(f *testing.F) {
	f.Add("/var/log/**3/x*")
	f.Add("%%users.homedir%%/.ssh/*")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePattern(s)
		if err != nil {
			return
		}
		if len(p.Segments) == 0 || (p.Base == "") != p.Homes || strings.Contains(p.Base, "..") && path.Clean(p.Base) != p.Base {
			t.Errorf("%q gives %+v", s, p)
		}
		for _, seg := range p.Segments {
			if seg.Text == ".." || seg.Text == "" || seg.Depth > DefaultDepth {
				t.Errorf("%q gives segment %+v", s, seg)
			}
		}
	})
}
