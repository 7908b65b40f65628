package artifact

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quicklime-ir/quicklime/agent/artifact/journal"
)

// Bounds of the table journal.
const (
	maxJournals     = 4096
	maxJournalRows  = 1_000_000
	maxJournalBytes = 512 << 20 // of all values
	maxJournalText  = 4 << 10   // of a value other than the message
	maxDamages      = 16        // of a file that are recorded one by one
)

// JournalEntry is a row of the table journal.
type JournalEntry struct {
	File        Text      `json:"file"`
	Offset      int64     `json:"offset"` // in the file
	Seqnum      uint64    `json:"seqnum"`
	Time        time.Time `json:"time"`         // __REALTIME_TIMESTAMP; when journald took it in
	MonotonicUS uint64    `json:"monotonic_us"` // since the boot
	Boot        string    `json:"boot"`         // its ID, 32 hex digits
	Unit        Text      `json:"unit,omitempty"`
	UserUnit    Text      `json:"user_unit,omitempty"`
	Identifier  Text      `json:"identifier,omitempty"` // chosen by the sender, as is the message
	Priority    Text      `json:"priority,omitempty"`   // 0 emerg … 7 debug
	PID         Text      `json:"pid,omitempty"`
	UID         Text      `json:"uid,omitempty"`
	Comm        Text      `json:"comm,omitempty"`
	Exe         Text      `json:"exe,omitempty"`
	Cmdline     Text      `json:"cmdline,omitempty"`
	Transport   Text      `json:"transport,omitempty"`
	Message     Text      `json:"message,omitempty"`
	// Fields holds all others, and further values of those above, by name.
	Fields map[Text][]Text `json:"fields,omitempty"`
	Cut    bool            `json:"cut,omitempty"` // a value or the list of fields is cut short
	// Unlinked says that the file's own index does not lead to it: it was just
	// being written, or the file is damaged or was tampered with.
	Unlinked bool `json:"unlinked,omitempty"`
}

// column gives the place of a field in the row, or nil.
func (r *JournalEntry) column(name string) *Text {
	switch name {
	case "_SYSTEMD_UNIT":
		return &r.Unit
	case "_SYSTEMD_USER_UNIT":
		return &r.UserUnit
	case "SYSLOG_IDENTIFIER":
		return &r.Identifier
	case "PRIORITY":
		return &r.Priority
	case "_PID":
		return &r.PID
	case "_UID":
		return &r.UID
	case "_COMM":
		return &r.Comm
	case "_EXE":
		return &r.Exe
	case "_CMDLINE":
		return &r.Cmdline
	case "_TRANSPORT":
		return &r.Transport
	case "MESSAGE":
		return &r.Message
	}
	return nil
}

// journalRow makes a row of an entry; size is the bytes of its values.
func journalRow(file string, e *journal.Entry) (row JournalEntry, size int) {
	row = JournalEntry{
		File: Text(file), Offset: e.Offset, Seqnum: e.Seqnum, Boot: e.Boot, MonotonicUS: e.Monotonic,
		Time: saneTime(int64(e.Realtime/1e6), int64(e.Realtime%1e6)),
		Cut:  e.Cut, Unlinked: e.Unlinked,
	}
	for _, f := range e.Fields {
		limit := maxJournalText
		if f.Name == "MESSAGE" {
			limit = maxLine
		}
		value := clip(f.Value, limit)
		row.Cut = row.Cut || f.Cut || len(value) < len(f.Value)
		size += len(f.Name) + len(value)
		if f.Name == "_BOOT_ID" && string(value) == e.Boot {
			continue
		}
		if column := row.column(f.Name); column != nil && *column == "" {
			*column = value
			continue
		}
		if row.Fields == nil {
			row.Fields = map[Text][]Text{}
		}
		row.Fields[Text(f.Name)] = append(row.Fields[Text(f.Name)], value)
	}
	return row, size
}

// journalFile is a file that was found.
type journalFile struct {
	path  string
	mtime time.Time
}

// journals reads journal files within the table's bounds.
type journals struct {
	s     *sheet
	tree  *tree
	files []journalFile
	rows  int
	bytes int
}

// fillJournal writes the table journal: the files written last come first,
// each in its own order.
func fillJournal(h *Host, s *sheet) error {
	t, err := h.openTree(s)
	if err != nil {
		s.failed("/", err)
		return s.ctx.Err()
	}
	defer t.close()
	j := &journals{s: s, tree: t}
	for _, base := range []string{"/var/log/journal", "/run/log/journal"} {
		j.find(base, 2) // files lie in a folder for each machine and name space
	}
	if len(j.files) == 0 {
		s.note("/var/log/journal", NoteNone, "")
	}
	slices.SortStableFunc(j.files, func(a, b journalFile) int { return b.mtime.Compare(a.mtime) })
	for _, f := range j.files {
		if j.rows >= maxJournalRows || j.bytes >= maxJournalBytes {
			s.note(f.path, NoteCut, "not read: the table is full")
			continue
		}
		if err := j.read(f.path); err != nil {
			return err
		}
	}
	return nil
}

// find lists the journals below a folder.
func (j *journals) find(base string, depth int) {
	for _, p := range j.tree.w.namesOf(j.s, base) {
		n := j.tree.listed(p)
		if n == nil {
			continue
		}
		switch {
		case n.is(unix.S_IFDIR) && depth > 1:
			j.find(p, depth-1)
		case !strings.HasSuffix(p, ".journal") && !strings.HasSuffix(p, ".journal~"):
		case len(j.files) == maxJournals:
			j.s.note(p, NoteCut, fmt.Sprintf("more than %d journals", maxJournals))
		case n.is(unix.S_IFREG):
			j.files = append(j.files, journalFile{p, timeOf(n.stat.Mtime)})
		default:
			j.s.note(p, NoteUnread, n.kindName())
		}
		n.close()
	}
}

// read writes the rows of a file.
func (j *journals) read(p string) error {
	n := j.tree.listed(p)
	if n == nil {
		return nil
	}
	in, facts := j.tree.opened(n, p)
	if in == nil {
		return nil
	}
	defer in.Close()
	file, err := journal.Open(in, facts.Size)
	if err != nil {
		j.s.failed(p, err)
		return nil
	}
	return j.entries(j.s.ctx, p, file)
}

func (j *journals) entries(ctx context.Context, p string, file *journal.File) error {
	damages := 0
	defer func() {
		if damages > maxDamages {
			j.s.note(p, NoteOdd, strconv.Itoa(damages)+" places in all cannot be read")
		}
	}()
	for e, err := range file.Entries(ctx) {
		var damage *journal.Damage
		if errors.As(err, &damage) {
			if damages++; damages <= maxDamages {
				j.s.note(p, NoteOdd, err.Error())
			}
			continue
		}
		if err != nil {
			return err
		}
		if j.rows >= maxJournalRows || j.bytes >= maxJournalBytes {
			j.s.note(p, NoteCut, fmt.Sprintf("the table is full at offset %d of the file", e.Offset))
			return nil
		}
		row, size := journalRow(p, e)
		j.rows, j.bytes = j.rows+1, j.bytes+size
		if err := j.s.put(row); err != nil {
			return err
		}
	}
	return nil
}
