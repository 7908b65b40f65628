package custody

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// maxEntry bounds one entry of a journal, in bytes: a finding and some more.
const maxEntry = 4 << 20

// Entry is one event of a case's journal. Its bytes are its JSON as
// encoding/json writes it: these four fields in this order, no spaces, the
// hash as lower-case hex, the time in UTC as RFC 3339 with nanoseconds, and
// "<", ">" and "&" escaped. Any other spelling of the same entry is refused,
// so that an entry has one hash.
type Entry struct {
	Seq   int             `json:"seq"` // from 1
	Time  time.Time       `json:"time"`
	Prev  evidence.Digest `json:"prev"` // SHA-256 of the entry before; zeros for the first
	Event json.RawMessage `json:"event"`
}

// Next makes the entry that follows prev, whose zero value is the journal
// without entries, and the head after it. The bytes stay the same when they
// are kept as a json.RawMessage inside another JSON document.
func Next(prev evidence.JournalHead, now time.Time, event any) (raw []byte, head evidence.JournalHead, err error) {
	body, err := json.Marshal(event)
	if err != nil {
		return nil, head, fmt.Errorf("cannot write journal entry %d: %w", prev.Entries+1, err)
	}
	raw, err = json.Marshal(Entry{Seq: prev.Entries + 1, Time: now.UTC(), Prev: prev.SHA256, Event: body})
	if err != nil {
		return nil, head, fmt.Errorf("cannot write journal entry %d: %w", prev.Entries+1, err)
	}
	if len(raw) > maxEntry {
		return nil, head, fmt.Errorf("cannot write journal entry %d: it has %d bytes, want %d at most", prev.Entries+1, len(raw), maxEntry)
	}
	return raw, evidence.JournalHead{Entries: prev.Entries + 1, SHA256: Hash(raw)}, nil
}

// VerifyChain holds a journal's entries, in their order, against each other
// and gives its head. An error is ErrBroken and says which entry is wrong
// and how: missing, moved, doubled or changed. That entries are missing at
// the end, or that the last one was changed, only a head from elsewhere can
// show.
func VerifyChain(raws [][]byte) (evidence.JournalHead, error) {
	entries := make([]Entry, len(raws))
	for i, raw := range raws {
		var err error
		if entries[i], err = parseEntry(raw); err != nil {
			return evidence.JournalHead{}, fmt.Errorf("%w: the journal's entry in place %d is changed: %w", ErrBroken, i+1, err)
		}
	}
	if err := checkOrder(entries); err != nil {
		return evidence.JournalHead{}, err
	}
	var head evidence.JournalHead
	for i, e := range entries {
		if e.Prev != head.SHA256 {
			return evidence.JournalHead{}, blame(raws, entries, i, head)
		}
		head = evidence.JournalHead{Entries: e.Seq, SHA256: Hash(raws[i])}
	}
	return head, nil
}

// parseEntry reads an entry that is spelled as Next spells it.
func parseEntry(raw []byte) (Entry, error) {
	if len(raw) > maxEntry {
		return Entry{}, fmt.Errorf("it has %d bytes, want %d at most", len(raw), maxEntry)
	}
	var e Entry
	if err := json.Unmarshal(raw, &e); err != nil {
		return Entry{}, fmt.Errorf("it is no entry: %w", err)
	}
	e.Time = e.Time.UTC()
	again, err := json.Marshal(e)
	if err != nil {
		return Entry{}, fmt.Errorf("it is no entry: %w", err)
	}
	if !bytes.Equal(raw, again) {
		return Entry{}, fmt.Errorf("it is not spelled as entries are")
	}
	return e, nil
}

// checkOrder wants the entries numbered from 1 without a gap.
func checkOrder(entries []Entry) error {
	place := map[int]int{} // of each number
	for i, e := range entries {
		if first, ok := place[e.Seq]; ok {
			return fmt.Errorf("%w: journal entry %d is doubled: it is in places %d and %d", ErrBroken, e.Seq, first, i+1)
		}
		place[e.Seq] = i + 1
	}
	for i, e := range entries {
		if e.Seq == i+1 {
			continue
		}
		if at, ok := place[i+1]; ok {
			return fmt.Errorf("%w: journal entry %d is moved: it is in place %d, and entry %d in its own", ErrBroken, i+1, at, e.Seq)
		}
		return fmt.Errorf("%w: journal entry %d is missing: in its place is entry %d", ErrBroken, i+1, e.Seq)
	}
	return nil
}

// blame says which entry was changed, where entry i does not follow the head
// before it. Entry i is as it was written if the one after it says so.
func blame(raws [][]byte, entries []Entry, i int, before evidence.JournalHead) error {
	vouched := i+1 < len(entries) && entries[i+1].Prev == Hash(raws[i])
	changed := fmt.Sprintf("entry %d is", i)
	switch {
	case i == 0:
		changed = "entry 1, which follows nothing, is"
	case !vouched:
		changed = fmt.Sprintf("entry %d or %d is", i, i+1)
	}
	return fmt.Errorf("%w: journal %s changed: entry %d was written after one with SHA-256 %v, but %v comes before it",
		ErrBroken, changed, i+1, entries[i].Prev, before.SHA256)
}
