package artifact

import (
	"bytes"
	"compress/flate"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// recordBytes bounds a record in memory, in compressed bytes: room for some
// 70,000 files and their hashes. Successes may fill three quarters of it, so
// that failures still find room on a host with more files than that.
const recordBytes = 8 << 20

// Entry is one thing that was tried, and what came of it: a row of
// collection.jsonl.
type Entry struct {
	Source string `json:"source"`         // table:NAME, or the name of a Definition
	Path   Text   `json:"path,omitempty"` // what was read, as the host names it
	// Size is a file's size when first seen; Bytes is how many bytes of it,
	// or of the table, are in the evidence; Padded is how many of these are
	// zeros that stand in for bytes that could not be read.
	Size   int64  `json:"size,omitempty"`
	Bytes  int64  `json:"bytes,omitempty"`
	Padded int64  `json:"padded,omitempty"`
	Rows   int64  `json:"rows,omitempty"`
	SHA256 string `json:"sha256,omitempty"` // of those Bytes, in hex
	Note   string `json:"note,omitempty"`   // one of the notes below, or several with commas
	Detail Text   `json:"detail,omitempty"` // says more about the note
	Error  Text   `json:"error,omitempty"`  // why it failed
	Errno  string `json:"errno,omitempty"`  // the same as the kernel's code, such as EACCES
	// Started and Ended tell when it was tried, by this host's clock.
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended"`
}

// The notes.
const (
	NoteVanished   = "vanished"    // it was gone before it was read: normal for processes
	NoteGrew       = "grew"        // a file grew while it was read; kept is the size first seen
	NoteShrank     = "shrank"      // a file shrank while it was read; zeros fill its place
	NoteChanged    = "changed"     // a file was written to while it was read
	NoteCut        = "cut"         // a limit was reached; Detail says which
	NoteUnread     = "unread"      // a kind of file that is never read: FIFO, device, socket
	NotePrivateKey = "private_key" // seen, and by rule not taken
	NoteFileSystem = "file_system" // not entered: a network's, a user's or the kernel's
	NoteLink       = "link"        // the way to a collected folder led through a symbolic link
	NoteHardLink   = "hard_link"   // another name of a file that is in the tar; Detail is the first
	NoteSparse     = "sparse"      // a file with holes; Bytes and SHA256 are of its data alone
	NoteNone       = "none"        // nothing on this host matches
	NoteAgain      = "again"       // found, and left out as the tar has it already; Detail counts
	NoteNotRun     = "not_run"     // a command that was not started; Detail says why
	NoteLocation   = "location"    // a place that was only looked at; Detail says what is there
	NoteFallback   = "fallback"    // Path was read in place of a source that tells more; Detail says why
	NoteOdd        = "odd"         // bytes that do not have the form that was expected
)

// SchemaVersion counts the forms that the rows of tables and of the record have
// had. A field or a table that is added leaves it as it is: a reader passes over
// what it does not know. One that is removed, renamed or changed in meaning
// raises it.
const SchemaVersion = 1

// Summary is the last row of a record.
type Summary struct {
	Source  string `json:"source"`  // always "summary"
	Schema  int    `json:"schema"`  // SchemaVersion
	Tried   int64  `json:"tried"`   // entries, kept or not
	Failed  int64  `json:"failed"`  // those with an error
	Dropped int64  `json:"dropped"` // those the record had no room for
}

// Record lists everything that was tried, for one case and instance, whose
// names stand in each row that is written. Its memory is bounded: entries are
// kept compressed, at most 8 MiB of them, and those beyond are counted. The zero
// Record is empty and ready. It may be used from several goroutines.
type Record struct {
	Case, Instance string // "" leaves them out
	bound          int    // bytes of entries; 0 is recordBytes

	mu      sync.Mutex
	spool   bytes.Buffer
	deflate *flate.Writer // nil until the first entry
	sealed  bool
	sum     Summary
	end     []byte // the summary's row, once it is written
}

// Add appends an entry.
func (r *Record) Add(e Entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sum.Tried++
	room := r.bound
	if room == 0 {
		room = recordBytes
	}
	if e.Error != "" {
		r.sum.Failed++
	} else if e.Note == "" {
		room -= room / 4
	}
	if r.sealed || r.spool.Len() >= room {
		r.sum.Dropped++
		return
	}
	if r.deflate == nil {
		// A level that exists never fails.
		r.deflate, _ = flate.NewWriter(&r.spool, flate.BestSpeed)
	}
	// Neither marshalling an Entry nor writing to memory can fail.
	row, _ := json.Marshal(e)
	r.deflate.Write(append(r.stamp(e.Ended, row), '\n'))
}

// stamp puts case, instance and time in front of a row, a JSON object.
func (r *Record) stamp(at time.Time, row []byte) []byte {
	// Texts and a time marshal without fail.
	head, _ := json.Marshal(stamp{r.Case, r.Instance, at.UTC()})
	if row[1] == '}' {
		return append(head, row[2:]...)
	}
	return append(append(head[:len(head)-1], ','), row[1:]...)
}

// stamp is what every row of a table, and of a record, begins with.
type stamp struct {
	Case        string    `json:"case,omitempty"`
	Instance    string    `json:"instance,omitempty"`
	CollectedAt time.Time `json:"collected_at"` // when the row was read, by this host's clock
}

// Summary counts what was added so far.
func (r *Record) Summary() Summary {
	r.mu.Lock()
	defer r.mu.Unlock()
	sum := r.sum
	sum.Source, sum.Schema = "summary", SchemaVersion
	return sum
}

// WriteTo writes the record as JSON Lines, an Entry each, a Summary last. It
// ends the record: what is added later is only counted.
func (r *Record) WriteTo(w io.Writer) (int64, error) {
	last := r.last()
	rows, err := r.seal()
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(w, io.MultiReader(rows, bytes.NewReader(last), strings.NewReader("\n")))
	if err != nil {
		return n, fmt.Errorf("cannot write the record: %w", err)
	}
	return n, nil
}

// last gives the row of the summary, the same each time.
func (r *Record) last() []byte {
	sum := r.Summary()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.end == nil {
		row, _ := json.Marshal(sum)
		r.end = r.stamp(time.Now(), row)
	}
	return r.end
}

func (r *Record) seal() (io.Reader, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.deflate == nil {
		r.sealed = true
		return bytes.NewReader(nil), nil
	}
	if !r.sealed {
		r.sealed = true
		if err := r.deflate.Close(); err != nil {
			return nil, fmt.Errorf("cannot end the record: %w", err)
		}
	}
	return flate.NewReader(bytes.NewReader(r.spool.Bytes())), nil
}

// failed fills in why an entry failed. A thing that is gone is a note, not an
// error, as hosts go on living while they are read.
func (e Entry) failed(err error) Entry {
	if err == nil {
		return e
	}
	if gone(err) {
		e.Note = NoteVanished
		return e
	}
	e.Error = clip(err.Error(), maxPath)
	e.Errno = errnoName(err)
	return e
}

// gone reports whether an error says that a file or process is no more.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}

// errnoName gives the kernel's code inside err, or "".
func errnoName(err error) string {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return ""
	}
	if name := unix.ErrnoName(errno); name != "" {
		return name
	}
	return "errno " + strconv.Itoa(int(errno))
}
