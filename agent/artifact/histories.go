package artifact

import (
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/quicklime-ir/quicklime/agent/artifact/history"
)

// Bounds of the table shell_history.
const (
	maxHistoryRows  = 1_000_000
	maxHistoryBytes = 8 << 20 // of one file, its last: those are the newest
	maxHistoryFiles = 10_000
)

var errEnoughRows = errors.New("enough rows")

// HistoryCommand is a row of the table shell_history: a command that a file of
// a home remembers.
type HistoryCommand struct {
	User Text `json:"user"` // whose home it is; "" where no account names it
	FileFacts
	Line    int        `json:"line"`              // from 1
	Time    *time.Time `json:"time"`              // when it was given; null where the file does not say
	Seconds int64      `json:"seconds,omitempty"` // that it took; zsh notes it
	Command Text       `json:"command"`
	Cut     bool       `json:"cut,omitempty"` // it is longer than 4096 bytes
}

// historyFolders are where in a home histories lie.
var historyFolders = []string{"", ".local/share/fish", ".local/state", ".local/share"}

// isHistory tells histories by their names, those of any shell and of most
// programs that ask for commands.
func isHistory(name string) bool {
	name = strings.ToLower(name)
	return strings.Contains(name, "history") && !strings.HasSuffix(name, ".sqlite") && !strings.HasSuffix(name, ".db") ||
		name == ".histfile" || name == ".zhistory" || name == ".viminfo"
}

// fillShellHistory writes the table shell_history: each command of each history
// file in each home, those that no account names too. Links are followed within
// the host's root; one that leads nowhere, to /dev/null say, is on record.
func fillShellHistory(h *Host, s *sheet) error {
	t, err := h.openTree(s)
	if err != nil {
		return err
	}
	defer t.close()
	homes, err := t.accountHomes(h)
	if err != nil {
		return err
	}
	left, files := maxHistoryRows, 0
	for _, a := range homes {
		for _, folder := range historyFolders {
			dir := path.Join(string(a.home), folder)
			for _, name := range t.names(dir) {
				if !isHistory(name) {
					continue
				}
				if files++; files > maxHistoryFiles || left <= 0 {
					s.note(dir, NoteCut, fmt.Sprintf("more than %d files, or %d commands", maxHistoryFiles, maxHistoryRows))
					return nil
				}
				if err := t.history(path.Join(dir, name), a.user, &left); err != nil {
					return err
				}
			}
		}
	}
	if files == 0 {
		s.note("/root", NoteNone, "")
	}
	return nil
}

// history writes the rows of one file.
func (t *tree) history(at string, user Text, left *int) error {
	in, facts, found := t.openLinked(at)
	if found && in == nil {
		t.s.note(at, NoteUnread, "a link to "+string(facts.Target)) // to /dev/null, to keep none
	}
	if in == nil {
		return nil
	}
	defer in.Close()
	skipped := facts.Size > maxHistoryBytes
	if skipped {
		t.s.note(at, NoteCut, fmt.Sprintf("the last %d bytes are read", maxHistoryBytes))
		if _, err := in.Seek(-maxHistoryBytes, io.SeekEnd); err != nil {
			t.s.failed(at, err)
			return nil
		}
	}
	err := history.Read(in, history.FormatOf(path.Base(at)), func(c history.Command) error {
		if *left == 0 {
			return errEnoughRows
		}
		*left--
		row := HistoryCommand{User: user, FileFacts: facts, Line: c.Line, Seconds: int64(c.Took.Seconds()), Command: Text(c.Text), Cut: c.Cut}
		if skipped {
			row.Line = 0
		}
		if !c.Time.IsZero() {
			row.Time = &c.Time
		}
		if err := t.s.put(row); err != nil {
			return errors.Join(errPut, err)
		}
		return nil
	})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errEnoughRows):
		t.s.note(at, NoteCut, fmt.Sprintf("more than %d commands", maxHistoryRows))
		return nil
	case errors.Is(err, errPut):
		return err
	}
	t.s.failed(at, err)
	return nil
}

// errPut marks an error of the table itself, not of what is read for it.
var errPut = errors.New("cannot write a row")
