package notify

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestEscape(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"plain", "i-0c3f9a5b7d1e24680 in eu-central-1", "i-0c3f9a5b7d1e24680 in eu-central-1"},
		{"bold and italic", "**a** _b_ ~~c~~", `\*\*a\*\* \_b\_ \~\~c\~\~`},
		{"code", "`rm`\n```\nx\n```", "\\`rm\\`\n\\`\\`\\`\nx\n\\`\\`\\`"},
		{"spoiler", "||x||", `\|\|x\|\|`},
		{"everyone", "@everyone @here", `\@everyone \@here`},
		{"mention", "<@123> <@&4> <#5>", `\<\@123> \<\@&4> \<#5>`},
		{"emoji and time", "<:a:1> <t:0:R> :skull:", `\<\:a\:1> \<t\:0\:R> \:skull\:`},
		{"masked link", "[login](https://evil.example)", `\[login\](https\://evil.example)`},
		{"bare link", "http://evil.example", `http\://evil.example`},
		{"heading, quote, list, small", "# a\n> b\n - c\n+ d\n-# e", "\\# a\n\\> b\n \\- c\n\\+ d\n\\-# e"},
		{"own backslashes", `\*a\*`, `\\\*a\\\*`},
		{"bidirectional", "safe\u202egpj.exe\u2066\u200f", "safegpj.exe"},
		{"zero width", "ad\u200bm\u2060in\ufeff", "admin"},
		{"tag characters", "a\U000e0041b", "ab"},
		{"terminal escapes", "\x1b[31mred\x07\x00", `\[31mred`},
		{"private and unassigned", "a\ue000\U0010ffff\u0378b", "ab"},
		{"not UTF-8", "a\xffb", "a\ufffdb"},
		{"odd spaces", "a\tb\u00a0c\u2028d", "a b c\nd"},
		{"only blank", " \u200b\n\t ", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := escape(c.in, 1000); got != c.want {
				t.Errorf("escape(%q) = %q, want %q", c.in, got, c.want)
			}
		})
	}
}

func TestEscapeCuts(t *testing.T) {
	for _, c := range []struct {
		name, in string
		limit    int
		want     string
	}{
		{"fits exactly", "abcde", 5, "abcde"},
		{"one too many", "abcdef", 5, "abcd…"},
		{"between escapes, not inside", "abc**", 5, "abc…"},
		{"an escape that fits to the end", "abc*", 5, `abc\*`},
		{"astral characters count twice", "😀😀😀", 5, "😀😀…"},
		{"a space before the ellipsis goes", "abc def", 5, "abc…"},
		{"dropped characters count nothing", "ab\u200b\u200b\u200b\u200bcde", 5, "abcde"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := escape(c.in, c.limit); got != c.want {
				t.Errorf("escape(%q, %d) = %q, want %q", c.in, c.limit, got, c.want)
			}
		})
	}
}

func TestPlainIsOneLine(t *testing.T) {
	if got, want := plain("a\nlevel=ERROR msg=forged\x1b[0m", 100), "a level=ERROR msg=forged[0m"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func decoded(t testing.TB, m Message) embed {
	t.Helper()
	raw, err := render(m)
	if err != nil {
		t.Fatal(err)
	}
	var p struct {
		Content         *string
		Embeds          []embed
		AllowedMentions map[string][]string `json:"allowed_mentions"`
	}
	if err := json.Unmarshal(raw, &p); err != nil {
		t.Fatal(err)
	}
	if p.Content != nil || len(p.Embeds) != 1 || p.AllowedMentions["parse"] == nil || len(p.AllowedMentions["parse"]) != 0 {
		t.Fatalf("payload %s", raw)
	}
	return p.Embeds[0]
}

// holds checks an embed against every limit that Discord documents.
func holds(t testing.TB, e embed) {
	t.Helper()
	total := units(e.Title) + units(e.Description)
	if e.Title == "" || units(e.Title) > 256 || units(e.Description) > 4096 || len(e.Fields) > 25 {
		t.Fatalf("title %d, description %d, fields %d", units(e.Title), units(e.Description), len(e.Fields))
	}
	for _, f := range e.Fields {
		if strings.TrimSpace(f.Name) == "" || strings.TrimSpace(f.Value) == "" || units(f.Name) > 256 || units(f.Value) > 1024 {
			t.Fatalf("field %q: %q", f.Name, f.Value)
		}
		total += units(f.Name) + units(f.Value)
	}
	if total > 6000 {
		t.Fatalf("%d characters together", total)
	}
}

func TestRenderKeepsDiscordsLimits(t *testing.T) {
	long := strings.Repeat("*", 5000)
	many := make([]Field, 40)
	for i := range many {
		many[i] = Field{Name: "n", Value: "v"}
	}
	for _, c := range []struct {
		name   string
		m      Message
		fields int
		last   string
	}{
		{"nothing at all", Message{}, 0, ""},
		{"empty field", Message{Fields: []Field{{}}}, 1, "(empty)"},
		{"25 fields", Message{Title: "t", Fields: many[:25]}, 25, "v"},
		{"40 fields", Message{Title: "t", Fields: many}, 25, "16 more, see the case"},
		{"long everywhere", Message{Title: long, Body: long, Fields: []Field{{Name: long, Value: long}, {Name: long, Value: long}, {Name: "x", Value: "y"}}}, 2, "2 more, see the case"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := decoded(t, c.m)
			holds(t, e)
			if len(e.Fields) != c.fields {
				t.Fatalf("%d fields, want %d", len(e.Fields), c.fields)
			}
			if c.fields > 0 && e.Fields[c.fields-1].Value != c.last {
				t.Errorf("last field %q, want %q", e.Fields[c.fields-1].Value, c.last)
			}
		})
	}
}

func TestTitleIsOneLine(t *testing.T) {
	if e := decoded(t, Message{Title: "a\r\n# b"}); e.Title != "a # b" {
		t.Errorf("title %q", e.Title)
	}
}

func TestOnlyWebLinksPass(t *testing.T) {
	for in, want := range map[string]string{
		"https://console.example/case/1":         "https://console.example/case/1",
		"http://127.0.0.1:8080/":                 "http://127.0.0.1:8080/",
		"javascript:alert(1)":                    "",
		"file:///etc/passwd":                     "",
		"/case/1":                                "",
		"https://":                               "",
		"":                                       "",
		"https://x/" + strings.Repeat("a", 3000): "",
	} {
		if got := decoded(t, Message{URL: in}).URL; got != want {
			t.Errorf("%.40q becomes %q, want %q", in, got, want)
		}
	}
}

// FuzzEscape: whatever comes in, the text is within its limit, valid, visible,
// and no markdown character is left bare.
func FuzzEscape(f *testing.F) {
	for _, s := range []string{"", "@everyone", "[a](http://b)", "\\", "\u202e*", "a\xff\n- b\n\u200b# c", strings.Repeat("😀`", 300)} {
		f.Add(s, 256)
	}
	f.Fuzz(func(t *testing.T, s string, limit int) {
		limit = min(max(limit, 1), 5000)
		got := escape(s, limit)
		if !utf8.ValidString(got) || units(got) > limit {
			t.Fatalf("%d units of %d, %q", units(got), limit, got)
		}
		escaped := false
		for _, r := range got {
			if unicode.Is(unicode.Cf, r) || unicode.IsControl(r) && r != '\n' {
				t.Fatalf("%q holds %U", got, r)
			}
			if !escaped && strings.ContainsRune("*_~`|<[]@:", r) {
				t.Fatalf("%q leaves %q bare", got, r)
			}
			escaped = !escaped && r == '\\'
		}
		if escaped {
			t.Fatalf("%q ends inside an escape", got)
		}
		for _, line := range strings.Split(got, "\n") {
			if line = strings.TrimLeft(line, " "); line != "" && strings.ContainsRune("#>-+", rune(line[0])) {
				t.Fatalf("%q begins a block", line)
			}
		}
		holds(t, decoded(t, Message{Title: s, Body: s, Fields: []Field{{Name: s, Value: s}, {Name: s, Value: s}}, URL: s}))
	})
}
