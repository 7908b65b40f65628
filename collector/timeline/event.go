package timeline

import (
	"bufio"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Bounds of an event, in bytes. OpenSearch refuses a keyword of more than
// 32,766, and one refused line ends an import. Source: Lucene, IndexWriter,
// MAX_TERM_LENGTH.
const (
	maxMessage = 8 << 10
	maxValue   = 16 << 10
	maxFields  = 100
	maxEvent   = 256 << 10 // of all values, before their escapes in JSON
)

// field is a field of a row. Every value is text, so that no field is a
// number in one table and a word in another, which an index would refuse.
type field struct{ name, value string }

// event is one line.
type event struct {
	message string
	time    time.Time
	desc    string // what the time is of
	table   string // where it is from
	fields  []field
}

// writer writes events.
type writer struct {
	out                    *bufio.Writer
	caseID, instance, host string
	events                 int64
	line                   []byte
}

// taken are names that every event has; a row's own field of such a name is
// row_NAME.
var taken = map[string]bool{
	"message": true, "datetime": true, "timestamp": true, "timestamp_desc": true, "data_type": true, "source_short": true, "case": true,
	"instance": true, "hostname": true, "tag": true, "label": true, "cut": true,
}

// write writes an event.
func (w *writer) write(e event) error {
	w.line = append(w.line[:0], '{')
	w.add("message", escape(e.message, maxMessage, true))
	w.add("datetime", e.time.UTC().Format("2006-01-02T15:04:05.000000+00:00"))
	w.line = fmt.Appendf(w.line, `,"timestamp":%d`, e.time.UnixMicro())
	w.add("timestamp_desc", e.desc)
	w.add("data_type", "quicklime:"+e.table)
	w.add("source_short", "QL")
	w.add("case", w.caseID)
	w.add("instance", w.instance)
	if w.host != "" {
		w.add("hostname", escape(w.host, maxValue, false))
	}
	w.addFields(e.fields)
	w.line = append(w.line, '}', '\n')
	if _, err := w.out.Write(w.line); err != nil {
		return fmt.Errorf("cannot write the timeline: %w", err)
	}
	w.events++
	return nil
}

// addFields adds a row's own fields, as many as there is room for.
func (w *writer) addFields(fields []field) {
	room, cut := maxEvent, len(fields) > maxFields
	for _, f := range fields[:min(len(fields), maxFields)] {
		value := escape(f.value, maxValue, false)
		if room -= len(value); room < 0 {
			cut = true
			break
		}
		cut = cut || len(f.value) > maxValue
		if taken[f.name] {
			f.name = "row_" + f.name
		}
		w.add(f.name, value)
	}
	if cut {
		w.add("cut", "true") // a value, or the list of fields
	}
}

// add adds a text. Marshalling one cannot fail.
func (w *writer) add(name, value string) {
	if len(w.line) > 1 {
		w.line = append(w.line, ',')
	}
	key, _ := json.Marshal(name)
	text, _ := json.Marshal(value)
	w.line = append(append(append(w.line, key...), ':'), text...)
}

// escape gives text that is harmless to print, of at most so many bytes:
// control characters, and those that show nothing or turn the direction of
// writing, are \u{HEX}, and bytes that are no UTF-8 are \xNN. A backslash
// stands as it is, as tables have it escaped already. One that is for a single
// line has no line ends or tabs either; the others have them escaped too.
func escape(s string, most int, ellipsis bool) string {
	if len(s) <= most && plain(s) {
		return s
	}
	end := ""
	if ellipsis {
		end = "…"
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		piece := s[i : i+n]
		switch {
		case r == utf8.RuneError && n == 1:
			piece = fmt.Sprintf(`\x%02x`, s[i])
		case !shown(r):
			piece = fmt.Sprintf(`\u{%x}`, r)
		}
		if b.Len()+len(piece) > most-len(end) {
			return b.String() + end
		}
		b.WriteString(piece)
		i += n
	}
	return b.String()
}

// plain reports whether every byte is ASCII that prints.
func plain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// shown reports whether a rune prints as itself. Format characters, Cf, turn
// writing or show nothing; the only space that is shown is U+0020.
func shown(r rune) bool { return unicode.IsPrint(r) }

// sane reports whether a time can be an event's: Timesketch takes years of
// four digits.
func sane(t time.Time) bool {
	y := t.UTC().Year()
	return y >= 1900 && y <= 9999 // 1 is Go's zero
}
