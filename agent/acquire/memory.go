package acquire

import (
	"context"
	"runtime"
	"runtime/debug"

	"github.com/quicklime-ir/quicklime/agent/arena"
	"github.com/quicklime-ir/quicklime/agent/memory"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

// memory takes the image.
func (a *Acquirer) memory(ctx context.Context, order Order, place Place, m *meter) Result {
	debug.FreeOSMemory() // what earlier captures left, as a small host has little
	if _, err := arena.DropProgram(); err != nil {
		a.Log.Info("the program stays in memory as it is", "reason", err)
	}
	buffers := new(arena.Arena)
	options := a.Memory
	options.Prefer, options.Alloc = order.MemorySource, allocFrom(buffers)
	source, refused, err := a.source(ctx, options)
	if err != nil {
		return Result{Err: err, Refused: refused}
	}
	defer func() {
		if err := source.Close(); err != nil {
			a.Log.Error("memory source left something behind", "source", source.Name(), "error", err)
		}
	}()
	result := Result{Source: source.Name(), Refused: refused}
	for _, r := range refused {
		a.Log.Warn("memory source refused", "source", r.Source, "reason", r.Reason, "detail", r.Detail)
	}

	ranges := source.Ranges()
	use := budgetFor(ranges, runtime.GOMAXPROCS(0))
	parts := lime.Plan(ranges, use.partRAM)
	m.total.Store(total(ranges))
	m.begin("memory")
	item := evidence.Item{Kind: evidence.Memory, Name: "memory", Format: evidence.LiME, Compression: order.stored(),
		Source: source.Name(), RAM: ranges, PartRAMBytes: use.partRAM, PageFlags: source.PageFlags()}
	slot, err := place.Open(ctx, item)
	if err != nil {
		result.Err = because(ctx, err)
		return result
	}
	if slot.Closed() {
		result.Status = evidence.Whole
		return result
	}
	job := &imageJob{source: source, parts: parts, order: sequence(ctx, source, slot, parts), meter: m,
		compression: item.Compression, auto: order.Compression == evidence.Auto, use: use, throttle: order.Throttle, arena: buffers}
	job.slot = m.follow(slot, job.full)
	err = because(ctx, job.run(ctx))
	if w, ok := source.(memory.Witness); ok {
		a.Log.Info("digest of the stream, by the module", "digest", w.Digest())
	}
	if why := buffers.Unlocked(); why != nil {
		a.Log.Warn("evidence in memory could have been swapped to disk", "reason", why)
	}
	result.Status = evidence.Whole
	if err != nil {
		result.Status = evidence.Partial
	}
	if result.Err = closeSlot(ctx, slot, int32(len(parts)), err); result.Err != nil {
		result.Status = evidence.Partial
	}
	return result
}

// source opens the memory that the order wants.
func (a *Acquirer) source(ctx context.Context, o memory.Options) (memory.Source, []memory.Refusal, error) {
	if a.OpenMemory != nil {
		return a.OpenMemory(ctx, o)
	}
	return memory.Open(ctx, o)
}

// allocFrom gives buffers that evidence passes through: locked ones, or, rather
// than none, Go's own.
func allocFrom(buffers *arena.Arena) func(int) ([]byte, func()) {
	return func(n int) ([]byte, func()) {
		b, free, err := buffers.Alloc(n)
		if err != nil {
			return make([]byte, n), func() {}
		}
		return b, free
	}
}

// sequence gives the numbers of the parts in the order in which they are
// taken: what changes fastest first, unless the place or the source wants
// them ascending.
func sequence(ctx context.Context, source memory.Source, slot Slot, parts [][]lime.Range) []int32 {
	numbers := make([]int32, 0, len(parts))
	if _, ascending := slot.(inOrder); ascending {
		for i := range parts {
			numbers = append(numbers, int32(i+1))
		}
		return numbers
	}
	for _, i := range source.Order(ctx, parts) {
		numbers = append(numbers, int32(i+1))
	}
	return numbers
}
