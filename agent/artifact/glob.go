package artifact

import (
	"fmt"
	"path"
	"strconv"
	"strings"
)

// homesVariable stands at the start of a path for every home of the host, as
// in ForensicArtifacts definitions.
const homesVariable = "%%users.homedir%%"

// defaultDepth is how many levels a bare ** matches, as in plaso.
const defaultDepth = 10

// pattern is a path in which segments may be patterns: * stands for any bytes
// within a segment; the segment ** for one to ten levels, **N for one to N.
// Every name counts, also one that starts with a dot.
// Source: ForensicArtifacts, "Artifact definition format and style guide".
type pattern struct {
	homes    bool   // below each home
	base     string // the folder before the first pattern, "/" at least; "" where homes
	segments []segment
}

// segment is one element of a path.
type segment struct {
	text  string // with its *
	depth int    // levels of a globstar; 0 is none
}

func (s segment) literal() bool { return s.depth == 0 && !strings.Contains(s.text, "*") }

// match reports whether a name fits.
func (s segment) match(name string) bool {
	if s.depth > 0 {
		return true
	}
	parts := strings.Split(s.text, "*")
	if len(parts) == 1 {
		return name == s.text
	}
	name, ok := strings.CutPrefix(name, parts[0])
	last := parts[len(parts)-1]
	if !ok || !strings.HasSuffix(name, last) {
		return false
	}
	name = name[:len(name)-len(last)]
	for _, part := range parts[1 : len(parts)-1] {
		_, after, found := strings.Cut(name, part)
		if !found {
			return false
		}
		name = after
	}
	return true
}

// parsePattern reads a pattern.
func parsePattern(s string) (pattern, error) {
	rest, homes := strings.CutPrefix(s, homesVariable)
	if !strings.HasPrefix(rest, "/") || path.Clean(rest) != rest || rest == "/" {
		return pattern{}, fmt.Errorf("cannot read pattern %.200q: want a clean absolute path, or one that starts with %s", s, homesVariable)
	}
	p := pattern{homes: homes}
	for word := range strings.SplitSeq(rest[1:], "/") {
		seg := segment{text: word}
		if number, ok := strings.CutPrefix(word, "**"); ok {
			seg.depth = defaultDepth
			if number != "" {
				n, err := strconv.Atoi(number)
				if err != nil || n < 1 || n > defaultDepth {
					return pattern{}, fmt.Errorf("cannot read pattern %.200q: ** takes a number from 1 to %d, not %q", s, defaultDepth, number)
				}
				seg.depth = n
			}
		}
		p.segments = append(p.segments, seg)
	}
	if !homes {
		p.base = "/"
		for len(p.segments) > 1 && p.segments[0].literal() {
			p.base = path.Join(p.base, p.segments[0].text)
			p.segments = p.segments[1:]
		}
	}
	return p, nil
}
