package acquire

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/quicklime-ir/quicklime/agent/arena"
	"github.com/quicklime-ir/quicklime/agent/artifact"
	"github.com/quicklime-ir/quicklime/agent/pack"
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

// live takes what lasts longer: more tables, then the times of every file, and
// then files, as one tar, for reading files changes times.
func (a *Acquirer) live(ctx context.Context, order Order, place Place, m *meter) Result {
	record := artifact.Record{Case: order.Case, Instance: order.Instance}
	stored, errs := a.tables(ctx, order, place, m, a.Host.Live(), &record)
	for _, stream := range []struct {
		name    string
		format  evidence.Format
		workers int
		write   func(context.Context, io.Writer, *artifact.Record) error
	}{
		{"bodyfile", evidence.Text, artifact.BodyfileReaders(), a.Host.WriteBodyfile},
		{"files", evidence.Tar, 1, a.Host.WriteFiles},
	} {
		err := a.itemBy(ctx, order, place, m, stream.workers, stream.name, stream.format, func(w io.Writer) error {
			return stream.write(ctx, w, &record)
		})
		if err == nil {
			stored++
		}
		errs = append(errs, err)
	}
	return a.finish(ctx, order, place, m, &record, stored, errs)
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
