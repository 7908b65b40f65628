package artifact

import (
	"bytes"
	"fmt"
	"strconv"
	"unicode/utf8"
)

// Text is bytes that the host chose: names, paths, command lines. They need
// not be UTF-8.
//
// In JSON each byte that is not part of valid UTF-8, and each backslash, is
// written as \xNN, its value in two hex digits; all else stands as it is. So
// the exact bytes can be had back, which UnmarshalText does.
type Text string

// MarshalText implements encoding.TextMarshaler.
func (t Text) MarshalText() ([]byte, error) {
	out := make([]byte, 0, len(t))
	for i := 0; i < len(t); {
		r, n := utf8.DecodeRuneInString(string(t[i:]))
		if (r == utf8.RuneError && n == 1) || r == '\\' {
			out = fmt.Appendf(out, `\x%02x`, t[i])
		} else {
			out = append(out, t[i:i+n]...)
		}
		i += n
	}
	return out, nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *Text) UnmarshalText(text []byte) error {
	out := make([]byte, 0, len(text))
	for {
		before, after, found := bytes.Cut(text, []byte(`\`))
		out = append(out, before...)
		if !found {
			*t = Text(out)
			return nil
		}
		if len(after) < 3 || after[0] != 'x' {
			return fmt.Errorf(`cannot read text %.80q: a backslash must start \xNN`, text)
		}
		b, err := strconv.ParseUint(string(after[1:3]), 16, 8)
		if err != nil {
			return fmt.Errorf("cannot read text %.80q: %w", text, err)
		}
		out = append(out, byte(b))
		text = after[3:]
	}
}

// clip makes text of at most n bytes.
func clip[T string | []byte](b T, n int) Text { return Text(b[:min(len(b), n)]) }

// splitNUL splits b at NULs, as cmdline and environ are, and keeps whole
// elements, empty ones too. A last NUL ends the last element.
func splitNUL(b []byte) []Text {
	if len(b) == 0 {
		return nil
	}
	b = bytes.TrimSuffix(b, []byte{0})
	out := make([]Text, 0, bytes.Count(b, []byte{0})+1)
	for part := range bytes.SplitSeq(b, []byte{0}) {
		out = append(out, Text(part))
	}
	return out
}
