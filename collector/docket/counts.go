package docket

import "context"

// Counts counts the cases whose steps are not all taken: those that a node
// runs, and those that wait for one. The others are not counted, as that would
// be to read them all.
func (d *Docket) Counts(ctx context.Context) (map[string]int, error) {
	places, err := d.Queue(ctx)
	if err != nil {
		return nil, err
	}
	counts := map[string]int{"waiting": 0, "running": 0}
	for _, p := range places {
		if p.Owner == "" {
			counts["waiting"]++
		} else {
			counts["running"]++
		}
	}
	return counts, nil
}

// Unsent counts the journal entries that the bucket may not have yet.
func (d *Docket) Unsent(ctx context.Context) (int, error) {
	entries, err := d.unsentOf(ctx, outbox)
	return len(entries), err
}
