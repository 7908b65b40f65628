// Package history reads what shells and other programs wrote down of the
// commands that they were given.
//
// A file may hold anything: the formats are told apart line by line where they
// can be, as several shells may write one file.
package history

import (
	"bufio"
	"errors"
	"io"
	"strconv"
	"strings"
	"time"
)

// Command is one command.
type Command struct {
	Line int           // at which it begins, from 1
	Time time.Time     // when it was given; zero where the file does not say
	Took time.Duration // whole seconds; 0 where the file does not say
	Text string        // a command of several lines has their ends
	Cut  bool          // it is longer than MaxText
}

// Bounds of a command, in bytes, and of a line that is looked at.
const (
	MaxText = 4096
	maxLine = 64 << 10
)

// Format says how a file is written.
type Format int

// The formats.
const (
	Lines   Format = iota // a command on each line, of most shells and programs; also bash with times, and zsh's extended
	Fish                  // fish_history
	Viminfo               // Vim's .viminfo
)

// FormatOf tells a format by a file's name.
func FormatOf(name string) Format {
	switch {
	case strings.HasSuffix(name, "fish_history"):
		return Fish
	case strings.HasSuffix(name, ".viminfo"):
		return Viminfo
	}
	return Lines
}

// Read gives each command of a file to emit, until that fails. It holds one
// line, and one command. An error is r's or emit's.
func Read(r io.Reader, format Format, emit func(Command) error) error {
	in := &lines{r: bufio.NewReaderSize(r, maxLine)}
	switch format {
	case Fish:
		return fish(in, emit)
	case Viminfo:
		return viminfo(in, emit)
	}
	return plain(in, emit)
}

// lines gives a file's lines without their ends; one that is longer than
// maxLine is cut there.
type lines struct {
	r      *bufio.Reader
	number int
}

func (l *lines) next() (string, error) {
	line, err := l.r.ReadSlice('\n')
	text := string(line)
	for errors.Is(err, bufio.ErrBufferFull) {
		_, err = l.r.ReadSlice('\n')
	}
	if text == "" {
		return "", err
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	l.number++
	return strings.TrimSuffix(text, "\n"), nil
}

// add appends a line to the command's text.
func (c *Command) add(line string) {
	if room := MaxText - len(c.Text); len(line) > room {
		line, c.Cut = line[:room], true
	}
	c.Text += line
}

// plain reads a command on each line. Bash, where HISTTIMEFORMAT is set, writes
// a line #SECONDS before each; zsh, with EXTENDED_HISTORY, ": SECONDS:TOOK;" in
// front of it, ends each line of one but the last with a backslash, and writes
// some bytes as two.
// Source: bash(1), HISTTIMEFORMAT; zshoptions(1), EXTENDED_HISTORY; zsh,
// Src/hist.c, savehistfile, and Src/utils.c, unmetafy.
func plain(in *lines, emit func(Command) error) error {
	var stamp time.Time
	for {
		line, err := in.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if at, ok := bashStamp(line); ok {
			stamp = at
			continue
		}
		c := Command{Line: in.number, Time: stamp}
		stamp = time.Time{}
		if at, took, rest, ok := zshStamp(line); ok {
			c.Time, c.Took = at, took
			if err := c.continued(in, rest); err != nil {
				return err
			}
			c.Text = unmeta(c.Text)
		} else {
			c.add(line)
		}
		if strings.TrimSpace(c.Text) == "" {
			continue
		}
		if err := emit(c); err != nil {
			return err
		}
	}
}

// continued takes a line, and the next ones while each ends with a backslash.
func (c *Command) continued(in *lines, line string) error {
	for {
		head, more := strings.CutSuffix(line, `\`)
		if !more {
			c.add(line)
			return nil
		}
		c.add(head + "\n")
		var err error
		if line, err = in.next(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func bashStamp(line string) (time.Time, bool) {
	digits, ok := strings.CutPrefix(line, "#")
	if !ok || len(digits) < 9 || len(digits) > 11 {
		return time.Time{}, false
	}
	return seconds(digits)
}

func seconds(digits string) (time.Time, bool) {
	n, err := strconv.ParseUint(digits, 10, 40)
	return time.Unix(int64(n), 0).UTC(), err == nil
}

func zshStamp(line string) (at time.Time, took time.Duration, rest string, ok bool) {
	line, ok = strings.CutPrefix(line, ": ")
	if !ok {
		return
	}
	head, rest, ok := strings.Cut(line, ";")
	from, lasted, colon := strings.Cut(strings.TrimSpace(head), ":")
	if !ok || !colon {
		return at, 0, "", false
	}
	n, err := strconv.ParseUint(lasted, 10, 31)
	if at, ok = seconds(from); !ok || err != nil {
		return at, 0, "", false
	}
	return at, time.Duration(n) * time.Second, rest, true
}

// meta is the byte after which zsh writes the next one with its sixth bit
// changed.
const meta = 0x83

func unmeta(s string) string {
	if strings.IndexByte(s, meta) < 0 {
		return s
	}
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		b := s[i]
		if b == meta && i+1 < len(s) {
			i++
			b = s[i] ^ 0x20
		}
		out = append(out, b)
	}
	return string(out)
}

// fish reads "- cmd: COMMAND", in which \n and \\ are escaped, and "when: SECONDS"
// below it. Source: fish-shell, src/history, the format of version 2 files.
func fish(in *lines, emit func(Command) error) error {
	var c Command
	done := func() error {
		if c.Line == 0 {
			return nil
		}
		return emit(c)
	}
	for {
		line, err := in.next()
		if errors.Is(err, io.EOF) {
			return done()
		}
		if err != nil {
			return err
		}
		if text, ok := strings.CutPrefix(line, "- cmd: "); ok {
			if err := done(); err != nil {
				return err
			}
			c = Command{Line: in.number}
			c.add(unescape(text))
		} else if digits, ok := strings.CutPrefix(line, "  when: "); ok && c.Line > 0 {
			if at, ok := seconds(digits); ok {
				c.Time = at
			}
		}
	}
}

var escapes = strings.NewReplacer(`\\`, `\`, `\n`, "\n")

func unescape(s string) string { return escapes.Replace(s) }

// viminfo reads what was typed: lines |2,TYPE,SECONDS,SEPARATOR,"TEXT". A text
// that is too long for its line is left on the next, and given as it stands.
// Source: Vim, runtime/doc/starting.txt, viminfo-file-barline, and
// src/viminfo.c, barline_writestring.
func viminfo(in *lines, emit func(Command) error) error {
	for {
		line, err := in.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		fields := strings.SplitN(line, ",", 5)
		if len(fields) != 5 || fields[0] != "|2" {
			continue
		}
		at, ok := seconds(fields[2])
		kind, known := vimKinds[fields[1]]
		text, quoted := strings.CutPrefix(fields[4], `"`)
		if !ok || !known || !quoted {
			continue
		}
		c := Command{Line: in.number, Time: at}
		c.add(kind + vimEscapes.Replace(strings.TrimSuffix(text, `"`)))
		if err := emit(c); err != nil {
			return err
		}
	}
}

// vimKinds are what Vim shows before what is typed.
var vimKinds = map[string]string{"0": ":", "1": "/", "2": "=", "3": "@", "4": ">"}

var vimEscapes = strings.NewReplacer(`\\`, `\`, `\"`, `"`, `\n`, "\n")
