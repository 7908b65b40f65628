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

// anyUser are variables that stand for something of every user. Each matches
// what * does, as then users count who were removed, too.
var anyUser = strings.NewReplacer("%%users.username%%", "*", "%%users.uid%%", "*", "%%users.gid%%", "*")

// Bounds of a pattern.
const (
	defaultDepth = 10   // levels that a bare ** matches, as in plaso
	maxPattern   = 4096 // bytes
	maxSegments  = 64
)

// pattern is a path in which segments may be patterns: * stands for any bytes
// within a segment, ? for one character, [0-9] for one of a range, [!0-9] for
// one of all others; the segment ** for one to ten levels, **N for one to N.
// Every name counts, also one that starts with a dot.
// Source: ForensicArtifacts, "Artifact definition format and style guide".
type pattern struct {
	homes    bool   // below each home
	base     string // the folder before the first pattern, "/" at least; "" where homes
	segments []segment
}

// segment is one element of a path.
type segment struct {
	text  string // as path.Match takes it
	depth int    // levels of a globstar; 0 is none
}

func (s segment) literal() bool { return s.depth == 0 && !strings.ContainsAny(s.text, `*?[\`) }

// match reports whether a name fits.
func (s segment) match(name string) bool {
	if s.depth > 0 {
		return true
	}
	ok, err := path.Match(s.text, name)
	return ok && err == nil
}

// newSegment reads one element. A backslash means itself, and ! in brackets
// what ^ does.
func newSegment(word string) (segment, error) {
	number, globstar := strings.CutPrefix(word, "**")
	if !globstar {
		seg := segment{text: strings.NewReplacer(`\`, `\\`, "[!", "[^").Replace(word)}
		if _, err := path.Match(seg.text, ""); err != nil {
			return seg, fmt.Errorf("%q has a bracket that is not closed, or closes nothing", word)
		}
		return seg, nil
	}
	if number == "" {
		return segment{text: word, depth: defaultDepth}, nil
	}
	n, err := strconv.Atoi(number)
	if err != nil || n < 1 || n > defaultDepth {
		return segment{}, fmt.Errorf("** takes a number from 1 to %d, not %q", defaultDepth, number)
	}
	return segment{text: word, depth: n}, nil
}

// parsePattern reads a pattern.
func parsePattern(s string) (pattern, error) {
	rest, homes := strings.CutPrefix(s, homesVariable)
	if len(s) > maxPattern || !strings.HasPrefix(rest, "/") || path.Clean(rest) != rest || rest == "/" {
		return pattern{}, fmt.Errorf("cannot read pattern %.200q: want a clean absolute path, or one that starts with %s", s, homesVariable)
	}
	rest = anyUser.Replace(rest)
	if strings.Contains(rest, "%%") {
		return pattern{}, fmt.Errorf("cannot read pattern %.200q: it has a variable that no Linux has, or one at a place where it means nothing", s)
	}
	p := pattern{homes: homes}
	words := strings.Split(rest[1:], "/")
	if len(words) > maxSegments {
		return pattern{}, fmt.Errorf("cannot read pattern %.200q: it has %d levels, want %d at most", s, len(words), maxSegments)
	}
	globstars := 0
	for _, word := range words {
		seg, err := newSegment(word)
		if err != nil {
			return pattern{}, fmt.Errorf("cannot read pattern %.200q: %w", s, err)
		}
		if seg.depth > 0 {
			globstars++
		}
		p.segments = append(p.segments, seg)
	}
	if globstars > 1 {
		return pattern{}, fmt.Errorf("cannot read pattern %.200q: ** stands in it %d times, want once", s, globstars)
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
