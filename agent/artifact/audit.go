package artifact

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bounds of the table audit.
const (
	auditFolder    = "/var/log/audit"
	maxAuditRows   = 2_000_000
	maxAuditBytes  = 1 << 30 // of all logs, after decompression
	maxAuditFields = 256     // of a record
	maxAuditLogs   = 4096    // files
)

// AuditRecord is a row of the table audit: a line of auditd's log. Records
// of one event share its serial number.
type AuditRecord struct {
	File   Text      `json:"file"`
	Line   int       `json:"line"` // from 1
	Node   Text      `json:"node,omitempty"`
	Type   Text      `json:"type"`   // SYSCALL, EXECVE, USER_LOGIN …
	Time   time.Time `json:"time"`   // milliseconds
	Serial uint64    `json:"serial"` // of the event
	// Fields holds name and value; quotes are taken off and hex is decoded of
	// the fields that the kernel writes so. A name that occurs again, as uid
	// does in the part that auditd enriches, keeps its first value and lists
	// the others in More.
	Fields map[Text]Text `json:"fields"`
	More   []Text        `json:"more,omitempty"` // name=value
	Cut    bool          `json:"cut,omitempty"`  // there are more than 256 fields
}

// untrusted names the fields that the kernel, or a program by libaudit,
// writes in hex when they hold a blank, a quote or a control character.
// Source: Linux, kernel/audit.c, audit_log_untrustedstring; audit-userspace,
// lib/audit_logging.c.
var untrusted = map[string]bool{
	"proctitle": true, "comm": true, "exe": true, "name": true, "cwd": true, "path": true, "dir": true, "key": true, "cmd": true,
	"acct": true, "data": true, "file": true, "vm": true, "sw": true, "watch": true, "device": true, "new-disk": true, "old-disk": true,
}

// auditArgument reports whether a name is an argument of execve: a0, a1, or a
// part of a long one, a1[0].
func auditArgument(name string) bool {
	name, part, parted := strings.Cut(name, "[")
	if parted && !strings.HasSuffix(part, "]") || len(name) < 2 || name[0] != 'a' {
		return false
	}
	_, err := strconv.ParseUint(name[1:], 10, 32)
	return err == nil
}

// parseAudit reads a line of the log. It gives nil for one of another form.
func parseAudit(line []byte) *AuditRecord {
	row := &AuditRecord{Fields: map[Text]Text{}}
	rest := string(line)
	if after, ok := strings.CutPrefix(rest, "node="); ok {
		node, after, _ := strings.Cut(after, " ")
		row.Node, rest = clip(node, maxWord), after
	}
	rest, ok := strings.CutPrefix(rest, "type=")
	if !ok {
		return nil
	}
	kind, rest, _ := strings.Cut(rest, " ")
	rest, ok = strings.CutPrefix(rest, "msg=audit(")
	if !ok {
		return nil
	}
	stamp, rest, ok := strings.Cut(rest, "):")
	if !ok || !row.stamp(stamp) {
		return nil
	}
	row.Type = clip(kind, maxWord)
	count := 0
	row.parse(rest, &count)
	return row
}

// stamp reads SECONDS.MILLISECONDS:SERIAL.
func (r *AuditRecord) stamp(text string) bool {
	at, serial, ok := strings.Cut(text, ":")
	seconds, millis, dotted := strings.Cut(at, ".")
	s, err1 := strconv.ParseInt(seconds, 10, 64)
	ms, err2 := strconv.ParseInt(millis, 10, 32)
	n, err3 := strconv.ParseUint(serial, 10, 64)
	r.Time, r.Serial = saneTime(s, ms*1000), n
	return ok && dotted && err1 == nil && err2 == nil && err3 == nil
}

// parse reads NAME=VALUE parted by blanks, or by 0x1d before the part that
// auditd enriches. A user's record holds its own fields in msg='…'.
func (r *AuditRecord) parse(text string, count *int) {
	for {
		text = strings.TrimLeft(text, " ,\x1d")
		name, rest, ok := strings.Cut(text, "=")
		if !ok {
			return
		}
		if i := strings.LastIndexAny(name, " \x1d"); i >= 0 { // words that are no field
			name = name[i+1:]
		}
		if *count++; *count > maxAuditFields {
			r.Cut = true
			return
		}
		var value string
		switch {
		case name == "msg" && strings.HasPrefix(rest, "'"):
			inner, after := untilQuote(rest[1:], '\'')
			r.parse(inner, count)
			text = after
			continue
		case strings.HasPrefix(rest, `"`):
			value, text = untilQuote(rest[1:], '"')
		default:
			end := strings.IndexAny(rest, " \x1d")
			if end < 0 {
				end = len(rest)
			}
			value, text = r.decode(name, rest[:end]), rest[end:]
		}
		r.set(Text(name), Text(value))
	}
}

func untilQuote(text string, quote byte) (inside, after string) {
	end := strings.IndexByte(text, quote)
	if end < 0 {
		return text, ""
	}
	return text[:end], text[end+1:]
}

// decode takes the hex off a value that stands without quotes. The a0 to a3
// of a system call are numbers, and stay.
func (r *AuditRecord) decode(name, value string) string {
	if !untrusted[name] && (r.Type != "EXECVE" || !auditArgument(name)) {
		return value
	}
	raw, err := hex.DecodeString(value)
	if err != nil || len(raw) == 0 {
		return value // as (null) or ?
	}
	return string(raw)
}

func (r *AuditRecord) set(name, value Text) {
	if _, known := r.Fields[name]; known {
		r.More = append(r.More, name+"="+value)
		return
	}
	r.Fields[name] = value
}

// fillAudit writes the table audit, the current log first.
func fillAudit(h *Host, s *sheet) error {
	t, err := h.openTree(s)
	if err != nil {
		s.failed("/", err)
		return s.ctx.Err()
	}
	defer t.close()
	var logs []journalFile
	for _, p := range t.w.namesOf(s, auditFolder) {
		if !strings.HasPrefix(path.Base(p), "audit.log") || len(logs) == maxAuditLogs {
			continue
		}
		if n := t.listed(p); n != nil {
			logs = append(logs, journalFile{p, timeOf(n.stat.Mtime)})
			n.close()
		}
	}
	if len(logs) == 0 {
		s.note(auditFolder, NoteNone, "")
	}
	slices.SortStableFunc(logs, func(a, b journalFile) int { return b.mtime.Compare(a.mtime) })
	a := &audits{s: s, left: maxAuditBytes}
	for _, f := range logs {
		if err := a.file(t, f.path); err != nil {
			return err
		}
	}
	return nil
}

// audits reads logs within the table's bounds.
type audits struct {
	s    *sheet
	rows int
	left int64 // bytes that may still be read
}

func (a *audits) file(t *tree, p string) error {
	n := t.listed(p)
	if n == nil {
		return nil
	}
	f, facts := t.opened(n, p)
	if f == nil {
		return nil
	}
	defer f.Close()
	in := bufio.NewReader(io.LimitReader(f, facts.Size))
	var r io.Reader = in
	if magic, _ := in.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		var err error
		if r, err = gzip.NewReader(in); err != nil {
			a.s.failed(p, err)
			return nil
		}
	}
	return a.lines(p, r)
}

func (a *audits) lines(p string, r io.Reader) error {
	limited := &io.LimitedReader{R: r, N: a.left}
	number, odd, full := 0, 0, false
	err := a.s.linesOf(p, limited, func(line []byte) error {
		number++
		row := parseAudit(line)
		switch {
		case row == nil:
			odd++
			return nil
		case a.rows == maxAuditRows:
			full = true
			return nil
		}
		a.rows++
		row.File, row.Line = Text(p), number
		return a.s.put(row)
	})
	a.left = limited.N
	if full || a.left == 0 {
		a.s.note(p, NoteCut, "the table is full")
	}
	if odd > 0 {
		a.s.note(p, NoteOdd, fmt.Sprintf("%d lines are no records", odd))
	}
	return err
}
