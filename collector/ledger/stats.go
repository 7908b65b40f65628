package ledger

import "sync/atomic"

// Stats counts what a Ledger has done since it was made.
type Stats struct {
	GrantedParts, GrantedBytes int64 // each URL that was given, also a second one for the same part
	StoredBytes                int64 // of the items that it closed
}

// counters are Stats while they are counted.
type counters struct{ parts, bytes, stored atomic.Int64 }

func (c *counters) granted(bytes uint64) {
	c.parts.Add(1)
	c.bytes.Add(int64(bytes))
}

// Stats says what was done so far.
func (l *Ledger) Stats() Stats {
	return Stats{GrantedParts: l.done.parts.Load(), GrantedBytes: l.done.bytes.Load(), StoredBytes: l.done.stored.Load()}
}
