package definition

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
	DefaultDepth = 10   // levels that a bare ** matches, as in plaso
	maxPattern   = 4096 // bytes
	maxSegments  = 64
)

// Pattern is a path in which segments may be patterns: * stands for any bytes
// within a segment, ? for one character, [0-9] for one of a range, [!0-9] for
// one of all others; the segment ** for one to ten levels, **N for one to N.
// Every name counts, also one that starts with a dot.
// Source: ForensicArtifacts, "Artifact definition format and style guide".
type Pattern struct {
	Homes    bool   // below each home
	Base     string // the folder before the first pattern, "/" at least; "" where homes
	Segments []Segment
}

// Segment is one element of a path.
type Segment struct {
	Text  string // as path.Match takes it
	Depth int    // levels of a globstar; 0 is none
}

func (s Segment) Literal() bool { return s.Depth == 0 && !strings.ContainsAny(s.Text, `*?[\`) }

// Match reports whether a name fits.
func (s Segment) Match(name string) bool {
	if s.Depth > 0 {
		return true
	}
	ok, err := path.Match(s.Text, name)
	return ok && err == nil
}

// newSegment reads one element. A backslash means itself, and ! in brackets
// what ^ does.
func newSegment(word string) (Segment, error) {
	number, globstar := strings.CutPrefix(word, "**")
	if !globstar {
		seg := Segment{Text: strings.NewReplacer(`\`, `\\`, "[!", "[^").Replace(word)}
		if _, err := path.Match(seg.Text, ""); err != nil {
			return seg, fmt.Errorf("%q has a bracket that is not closed, or closes nothing", word)
		}
		return seg, nil
	}
	if number == "" {
		return Segment{Text: word, Depth: DefaultDepth}, nil
	}
	n, err := strconv.Atoi(number)
	if err != nil || n < 1 || n > DefaultDepth {
		return Segment{}, fmt.Errorf("** takes a number from 1 to %d, not %q", DefaultDepth, number)
	}
	return Segment{Text: word, Depth: n}, nil
}

// ParsePattern reads a pattern.
func ParsePattern(s string) (Pattern, error) {
	rest, homes := strings.CutPrefix(s, homesVariable)
	if len(s) > maxPattern || !strings.HasPrefix(rest, "/") || path.Clean(rest) != rest || rest == "/" {
		return Pattern{}, fmt.Errorf("cannot read pattern %.200q: want a clean absolute path, or one that starts with %s", s, homesVariable)
	}
	rest = anyUser.Replace(rest)
	if strings.Contains(rest, "%%") {
		return Pattern{}, fmt.Errorf("cannot read pattern %.200q: it has a variable that no Linux has, or one at a place where it means nothing", s)
	}
	p := Pattern{Homes: homes}
	words := strings.Split(rest[1:], "/")
	if len(words) > maxSegments {
		return Pattern{}, fmt.Errorf("cannot read pattern %.200q: it has %d levels, want %d at most", s, len(words), maxSegments)
	}
	globstars := 0
	for _, word := range words {
		seg, err := newSegment(word)
		if err != nil {
			return Pattern{}, fmt.Errorf("cannot read pattern %.200q: %w", s, err)
		}
		if seg.Depth > 0 {
			globstars++
		}
		p.Segments = append(p.Segments, seg)
	}
	if globstars > 1 {
		return Pattern{}, fmt.Errorf("cannot read pattern %.200q: ** stands in it %d times, want once", s, globstars)
	}
	if !homes {
		p.Base = "/"
		for len(p.Segments) > 1 && p.Segments[0].Literal() {
			p.Base = path.Join(p.Base, p.Segments[0].Text)
			p.Segments = p.Segments[1:]
		}
	}
	return p, nil
}
