package acquire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/quicklime-ir/quicklime/agent/arena"
	"github.com/quicklime-ir/quicklime/agent/artifact"
	"github.com/quicklime-ir/quicklime/agent/pack"
	"github.com/quicklime-ir/quicklime/proto/definition"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// collection is the name of the item that tells what was tried, and what
// came of it.
const collection = "collection"

// volatile takes the tables, each as an item of its own, in their order.
func (a *Acquirer) volatile(ctx context.Context, order Order, place Place, m *meter) Result {
	record := artifact.Record{Case: order.Case, Instance: order.Instance}
	stored, errs := a.tables(ctx, order, place, m, a.Host.Volatile(), &record)
	return a.finish(ctx, order, place, m, &record, stored, errs)
}

// live takes what lasts longer: first what lives on in processes alone, then
// the tables that change slowly, then the times of every file, and files last,
// for reading files changes times.
func (a *Acquirer) live(ctx context.Context, order Order, place Place, m *meter) Result {
	record := artifact.Record{Case: order.Case, Instance: order.Instance}
	more := artifact.Added(order.definitions(a.Definitions), &record)
	stored, errs := a.streams(ctx, order, place, m, []stream{
		{"recovered", evidence.Tar, 1, func(w io.Writer) error { return a.Host.WriteRecovered(ctx, w, &record) }},
	})
	also := func(n int, why []error) { stored, errs = stored+n, append(errs, why...) }
	if len(order.ProcessMemory) > 0 {
		also(a.streams(ctx, order, place, m, []stream{
			{"process_memory", evidence.Tar, 1, func(w io.Writer) error {
				return a.Host.WriteProcessMemory(ctx, w, &record, order.ProcessMemory)
			}},
		}))
	}
	also(a.tables(ctx, order, place, m, a.Host.Live(), &record))
	also(a.streams(ctx, order, place, m, []stream{
		{"bodyfile", evidence.Text, artifact.BodyfileReaders(), func(w io.Writer) error { return a.Host.WriteBodyfile(ctx, w, &record) }},
		{"files", evidence.Tar, 1, func(w io.Writer) error { return a.Host.WriteFiles(ctx, w, &record, more...) }},
	}))
	return a.finish(ctx, order, place, m, &record, stored, errs)
}

// stream is an item that is no table.
type stream struct {
	name    string
	format  evidence.Format
	workers int // that read it
	write   func(io.Writer) error
}

// streams stores each; one that fails does not keep the others from being
// taken.
func (a *Acquirer) streams(ctx context.Context, order Order, place Place, m *meter, all []stream) (stored int, errs []error) {
	for _, s := range all {
		if err := a.itemBy(ctx, order, place, m, s.workers, s.name, s.format, s.write); err != nil {
			errs = append(errs, err)
			continue
		}
		stored++
	}
	return stored, errs
}

// definitions gives files of definitions, then the order's by their names.
func (o Order) definitions(files []definition.File) []definition.File {
	files = slices.Clone(files)
	for _, name := range slices.Sorted(maps.Keys(o.Definitions)) {
		files = append(files, definition.File{Name: "order:" + name, YAML: []byte(o.Definitions[name])})
	}
	return files
}

// tables stores each table as an item of its own. One that fails does not
// keep the others from being taken.
func (a *Acquirer) tables(ctx context.Context, order Order, place Place, m *meter, tables []artifact.Table, record *artifact.Record) (stored int, errs []error) {
	for _, table := range tables {
		err := a.item(ctx, order, place, m, table.Name, evidence.JSONL, func(w io.Writer) error {
			return table.Write(ctx, w, record)
		})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		stored++
	}
	return stored, errs
}

// finish stores the record of the collection, and sums up.
func (a *Acquirer) finish(ctx context.Context, order Order, place Place, m *meter, record *artifact.Record, stored int, errs []error) Result {
	err := a.item(ctx, order, place, m, collection, evidence.JSONL, func(w io.Writer) error {
		_, err := record.WriteTo(w)
		return err
	})
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

// item streams one item to its place, read by one worker.
func (a *Acquirer) item(ctx context.Context, order Order, place Place, m *meter, name string, format evidence.Format, write func(io.Writer) error) error {
	return a.itemBy(ctx, order, place, m, 1, name, format, write)
}

// itemBy streams one item that so many workers read.
func (a *Acquirer) itemBy(ctx context.Context, order Order, place Place, m *meter, workers int, name string, format evidence.Format, write func(io.Writer) error) error {
	m.begin(name)
	slot, err := place.Open(ctx, evidence.Item{Kind: order.Kind, Name: name, Format: format, Compression: order.stored(), Source: "proc"})
	if err != nil {
		return because(ctx, fmt.Errorf("cannot take %s: %w", name, err))
	}
	if slot.Closed() {
		return nil
	}
	out, err := pack.NewWriter(ctx, m.follow(slot, never), pack.Options{Compression: order.stored(), Alloc: allocFrom(new(arena.Arena))})
	if err != nil {
		return closeSlot(ctx, slot, 0, fmt.Errorf("cannot pack %s: %w", name, err))
	}
	work := &metered{Writer: out, m: m, ctx: ctx, throttle: order.Throttle, workers: workers}
	work.begin()
	err = errors.Join(write(work), out.Close())
	if err != nil {
		err = because(ctx, fmt.Errorf("cannot take %s: %w", name, err))
	}
	return closeSlot(ctx, slot, out.Parts(), err)
}
