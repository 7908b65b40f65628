package acquire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/quicklime-ir/quicklime/agent/arena"
	"github.com/quicklime-ir/quicklime/agent/artifact"
	"github.com/quicklime-ir/quicklime/agent/pack"
	"github.com/quicklime-ir/quicklime/proto/definition"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// collection is the name of the item that tells what was tried, and what
// came of it.
const collection = "collection"

// ahead is how many items are at hand at a time: one is read, others are
// opened for what comes next or are on their way to their place. A table takes
// a moment to read and some round trips to store.
const ahead = 4

// volatile takes the tables, each as an item of its own, in their order.
func (a *Acquirer) volatile(ctx context.Context, order Order, place Place, m *meter) Result {
	record := artifact.Record{Case: order.Case, Instance: order.Instance}
	stored, errs := a.streams(ctx, order, place, m, tables(ctx, a.Host.Volatile(), &record))
	return a.finish(ctx, order, place, m, &record, stored, errs)
}

// live takes what lasts longer: first what lives on in processes alone, then
// the tables that change slowly, then the times of every file, and files last,
// for reading files changes times.
func (a *Acquirer) live(ctx context.Context, order Order, place Place, m *meter) Result {
	record := artifact.Record{Case: order.Case, Instance: order.Instance}
	more := artifact.Added(order.definitions(a.Definitions), &record)
	all := []stream{{"recovered", evidence.Tar, 1, func(w io.Writer) error { return a.Host.WriteRecovered(ctx, w, &record) }}}
	if len(order.ProcessMemory) > 0 {
		all = append(all, stream{"process_memory", evidence.Tar, 1, func(w io.Writer) error {
			return a.Host.WriteProcessMemory(ctx, w, &record, order.ProcessMemory)
		}})
	}
	all = append(all, tables(ctx, a.Host.Live(), &record)...)
	all = append(all,
		stream{"bodyfile", evidence.Text, artifact.BodyfileReaders(), func(w io.Writer) error { return a.Host.WriteBodyfile(ctx, w, &record) }},
		stream{"files", evidence.Tar, 1, func(w io.Writer) error { return a.Host.WriteFiles(ctx, w, &record, more...) }})
	stored, errs := a.streams(ctx, order, place, m, all)
	return a.finish(ctx, order, place, m, &record, stored, errs)
}

// stream is an item that is read from its first byte to its last.
type stream struct {
	name    string
	format  evidence.Format
	workers int // that read it
	write   func(io.Writer) error
}

// tables gives each table as an item of its own.
func tables(ctx context.Context, all []artifact.Table, record *artifact.Record) []stream {
	out := make([]stream, len(all))
	for i, table := range all {
		out[i] = stream{table.Name, evidence.JSONL, 1, func(w io.Writer) error { return table.Write(ctx, w, record) }}
	}
	return out
}

// streams stores each. They are read one after the other, in their order, but
// the next does not wait until what was read is stored. One that fails does
// not keep the others from being taken.
func (a *Acquirer) streams(ctx context.Context, order Order, place Place, m *meter, all []stream) (stored int, errs []error) {
	results := make([]error, len(all))
	var group errgroup.Group
	group.SetLimit(ahead)
	before := make(chan struct{})
	close(before)
	for i, s := range all {
		mine := turn{before, make(chan struct{})}
		group.Go(func() error {
			results[i] = a.item(ctx, order, place, m, s, mine)
			return nil
		})
		before = mine.over
	}
	_ = group.Wait() // the results have the errors
	for _, err := range results {
		if err == nil {
			stored++
		} else {
			errs = append(errs, err)
		}
	}
	return stored, errs
}

// turn is an item's turn to be read: it comes when that of the item before is
// over.
type turn struct{ before, over chan struct{} }

// definitions gives files of definitions, then the order's by their names.
func (o Order) definitions(files []definition.File) []definition.File {
	files = slices.Clone(files)
	for _, name := range slices.Sorted(maps.Keys(o.Definitions)) {
		files = append(files, definition.File{Name: "order:" + name, YAML: []byte(o.Definitions[name])})
	}
	return files
}

// finish stores the record of the collection, and sums up.
func (a *Acquirer) finish(ctx context.Context, order Order, place Place, m *meter, record *artifact.Record, stored int, errs []error) Result {
	err := a.alone(ctx, order, place, m, stream{collection, evidence.JSONL, 1, func(w io.Writer) error {
		_, err := record.WriteTo(w)
		return err
	}})
	errs = append(errs, err)
	result := Result{Status: evidence.Whole, Err: errors.Join(errs...), Source: "proc"}
	switch {
	case result.Err != nil && stored == 0:
		result.Status = ""
	case result.Err != nil:
		result.Status = evidence.Partial
	}
	return result
}

// alone stores an item beside which there is none.
func (a *Acquirer) alone(ctx context.Context, order Order, place Place, m *meter, s stream) error {
	_, errs := a.streams(ctx, order, place, m, []stream{s})
	return errors.Join(errs...)
}

// item brings one item to its place. It is opened before its turn, read in it,
// and stored after.
func (a *Acquirer) item(ctx context.Context, order Order, place Place, m *meter, s stream, mine turn) error {
	end := sync.OnceFunc(func() {
		<-mine.before
		close(mine.over)
	})
	defer end()
	slot, err := place.Open(ctx, evidence.Item{Kind: order.Kind, Name: s.name, Format: s.format, Compression: order.stored(), Source: "proc"})
	if err != nil {
		return because(ctx, fmt.Errorf("cannot take %s: %w", s.name, err))
	}
	if slot.Closed() {
		return nil
	}
	<-mine.before
	m.begin(s.name)
	counted := m.follow(slot, never)
	out, err := pack.NewWriter(ctx, counted, pack.Options{Compression: order.stored(), Alloc: allocFrom(new(arena.Arena))})
	if err != nil {
		return closeSlot(ctx, slot, 0, fmt.Errorf("cannot pack %s: %w", s.name, err))
	}
	work := &metered{Writer: out, m: m, sent: counted.sent, ctx: ctx, throttle: order.Throttle, workers: s.workers}
	work.begin()
	err = s.write(work)
	end()
	if err = errors.Join(err, out.Close()); err != nil {
		err = because(ctx, fmt.Errorf("cannot take %s: %w", s.name, err))
	}
	return closeSlot(ctx, slot, out.Parts(), err)
}
