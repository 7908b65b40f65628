package timeline

import (
	"bytes"
	"strconv"
	"strings"
	"time"
)

// bodyTimes are the times of a bodyfile's line in their order, and how
// mactime abbreviates each.
var bodyTimes = [4]struct {
	letter byte
	index  int // in MACB
	name   string
}{{'A', 1, "Access"}, {'M', 0, "Modification"}, {'C', 2, "Metadata Change"}, {'B', 3, "Creation"}}

// bodyLine makes events of a line of a bodyfile of mactime 3.x:
//
//	MD5|name|inode|mode_as_string|UID|GID|size|atime|mtime|ctime|crtime
//
// one for each time, so that times that are equal are one event. Times are
// seconds of UTC with up to nine decimals; 0 is not known.
func (t *timeline) bodyLine(line []byte) error {
	columns := splitBody(line)
	if len(columns) != 11 {
		return bad("it has %d columns, want 11", len(columns))
	}
	var at [4]time.Time
	for i := range at {
		var ok bool
		if at[i], ok = bodyTime(columns[7+i]); !ok {
			return bad("column %d is no time", 8+i)
		}
	}
	fields := []field{{"filename", columns[1]}}
	for i, name := range []string{"inode", "mode", "uid", "gid", "size"} {
		fields = append(fields, field{name, columns[2+i]})
	}
	if columns[0] != "0" {
		fields = append(fields, field{"md5", columns[0]})
	}
	for i := range at {
		if !sane(at[i]) || earlier(at, i) {
			continue
		}
		macb, names := []byte("...."), []string(nil)
		for k, other := range bodyTimes {
			if at[k].Equal(at[i]) {
				macb[other.index] = other.letter
				names = append(names, other.name)
			}
		}
		all := append(fields[:len(fields):len(fields)], field{"macb", string(macb)})
		e := event{message: string(macb) + " " + columns[1], time: at[i], desc: strings.Join(names, ", ") + " Time", table: "bodyfile", fields: all}
		if err := t.write(e); err != nil {
			return err
		}
	}
	return nil
}

// earlier reports whether a time is that of one before it.
func earlier(at [4]time.Time, i int) bool {
	for _, before := range at[:i] {
		if before.Equal(at[i]) {
			return true
		}
	}
	return false
}

// splitBody cuts a line at its bars. In a column \| is a bar; other escapes,
// \\ and \xNN, stay as they are, as they are those of an event's texts.
func splitBody(line []byte) []string {
	var columns []string
	var column []byte
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '\\' && i+1 < len(line):
			if i++; line[i] != '|' {
				column = append(column, c)
			}
			column = append(column, line[i])
		case c == '|':
			columns = append(columns, string(column))
			column = column[:0]
		default:
			column = append(column, c)
		}
	}
	return append(columns, string(bytes.TrimSuffix(column, []byte("\r"))))
}

// bodyTime reads seconds with decimals. The zero time is one that is not
// known.
func bodyTime(s string) (time.Time, bool) {
	whole, decimals, _ := strings.Cut(s, ".")
	seconds, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || len(decimals) > 9 {
		return time.Time{}, false
	}
	nanos := uint64(0)
	if decimals != "" {
		if nanos, err = strconv.ParseUint((decimals + "00000000")[:9], 10, 32); err != nil {
			return time.Time{}, false
		}
	}
	if seconds == 0 && nanos == 0 || seconds < -1<<40 || seconds > 1<<40 {
		return time.Time{}, true // not known, or beyond any event
	}
	if strings.HasPrefix(whole, "-") {
		return time.Unix(seconds, -int64(nanos)), true
	}
	return time.Unix(seconds, int64(nanos)), true
}
