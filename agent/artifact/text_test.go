package artifact

import (
	"encoding/json"
	"testing"
	"unicode/utf8"
)

func TestText(t *testing.T) {
	for raw, want := range map[Text]string{
		"":                     `""`,
		"plain":                `"plain"`,
		"two\nlines":           `"two\nlines"`,
		"\xff\xfe":             `"\\xff\\xfe"`,
		`back\slash`:           `"back\\x5cslash"`,
		`\xff`:                 `"\\x5cxff"`,
		"gr\u00fcn \U0001f41f": "\"gr\u00fcn \U0001f41f\"",
		"\ufffd":               "\"\ufffd\"",
		"\x1b[31m\x00":         `"\u001b[31m\u0000"`,
	} {
		got, err := json.Marshal(raw)
		if err != nil || string(got) != want {
			t.Errorf("%q: got %s, %v, want %s", raw, got, err, want)
		}
	}
}

func TestTextRefusesForeignEscapes(t *testing.T) {
	for _, bad := range []string{`\`, `\n`, `\x`, `\x1`, `\xgg`} {
		if err := new(Text).UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q was taken for text", bad)
		}
	}
}

func FuzzText(f *testing.F) {
	f.Add([]byte("a\\b\xff\n\x00"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		row, err := json.Marshal(struct{ T Text }{Text(raw)})
		if err != nil || !utf8.Valid(row) {
			t.Fatalf("%q gives %q, %v", raw, row, err)
		}
		for _, b := range row {
			if b == '\n' {
				t.Fatalf("%q breaks the line: %q", raw, row)
			}
		}
		var back struct{ T Text }
		if err := json.Unmarshal(row, &back); err != nil || string(back.T) != string(raw) {
			t.Fatalf("%q came back as %q, %v", raw, back.T, err)
		}
	})
}
