package notify

import (
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

const ellipsis = "…"

// plain makes hostile text harmless in a log: one line, without control,
// bidirectional and invisible characters, of at most limit characters.
func plain(s string, limit int) string {
	return build(s, limit, func(r rune, _ bool) string {
		if r == '\n' {
			return " "
		}
		return string(r)
	})
}

// escape makes hostile text harmless in Discord's markdown: it is shown as it
// was written, and nothing in it formats, links, mentions or pings. The result
// has at most limit characters (UTF-16 units, the strictest way to count) and
// is never cut inside an escape.
func escape(s string, limit int) string {
	return build(s, limit, func(r rune, lineStart bool) string {
		switch r {
		case '\\', '*', '_', '~', '`', '|', '<', '[', ']', '@', ':':
			return `\` + string(r)
		case '-', '+', '#', '>':
			if lineStart {
				return `\` + string(r)
			}
		}
		return string(r)
	})
}

// escapeLine is escape for places of one line.
func escapeLine(s string, limit int) string {
	return escape(strings.NewReplacer("\r\n", " ", "\n", " ", "\r", " ", "\u2028", " ", "\u2029", " ").Replace(s), limit)
}

// build cleans s and joins what each character becomes, as long as it fits.
func build(s string, limit int, become func(r rune, lineStart bool) string) string {
	var out strings.Builder
	length, fits, lineStart := 0, 0, true // fits: bytes of out that leave room for the ellipsis
	for _, r := range strings.TrimSpace(s) {
		r, ok := clean(r)
		if !ok {
			continue
		}
		unit := become(r, lineStart)
		if length+units(unit) > limit {
			return strings.TrimRight(out.String()[:fits], " \n") + ellipsis
		}
		out.WriteString(unit)
		length += units(unit)
		if length <= limit-1 {
			fits = out.Len()
		}
		lineStart = r == '\n' || lineStart && r == ' '
	}
	return strings.TrimSpace(out.String())
}

// clean maps a character to the one to show; false drops it. Dropped are
// control and format characters (bidirectional overrides, zero-width ones,
// tags) and private ones, which hide or reorder text.
func clean(r rune) (rune, bool) {
	switch {
	case r == '\n' || r == '\u2028' || r == '\u2029':
		return '\n', true
	case unicode.IsSpace(r):
		return ' ', true
	case r == utf8.RuneError:
		return utf8.RuneError, true
	case unicode.In(r, unicode.Cc, unicode.Cf, unicode.Co, unicode.Cs) || !assigned(r):
		return 0, false
	}
	return r, true
}

// assigned drops noncharacters and what no script uses yet.
func assigned(r rune) bool {
	return unicode.In(r, unicode.L, unicode.M, unicode.N, unicode.P, unicode.S, unicode.Z)
}

func units(s string) int {
	n := 0
	for _, r := range s {
		n += utf16.RuneLen(r)
	}
	return n
}
