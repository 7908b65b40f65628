// Package acquire brings evidence from its source to its place, the most
// volatile first.
//
// It joins the other rooms of the agent: memory and artifact read, pack cuts
// into parts, and a Place, the bucket or a folder, keeps them. It decides how
// much memory all of that may use, and it tells the truth about the end: an
// item is whole only when its place says so.
package acquire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quicklime-ir/quicklime/agent/artifact"
	"github.com/quicklime-ir/quicklime/agent/memory"
	"github.com/quicklime-ir/quicklime/agent/pack"
	"github.com/quicklime-ir/quicklime/agent/throttle"
	"github.com/quicklime-ir/quicklime/agent/upload"
	"github.com/quicklime-ir/quicklime/proto/definition"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// closeLimit bounds how long an item whose order has ended may take to be
// closed as partial.
const closeLimit = 30 * time.Second

// tellEvery is how often a capture says how it gets on, at least.
const tellEvery = time.Second

// Place is where items are kept.
type Place interface {
	// Open begins an item. An item that an earlier run of the same order
	// began is found again; its stored parts are kept.
	Open(ctx context.Context, item evidence.Item) (Slot, error)
}

// Slot keeps the parts of one item.
type Slot interface {
	// Closed reports whether an earlier run has completed the item.
	Closed() bool
	// Has reports whether a part is stored since an earlier run.
	Has(number int32) bool
	// Put stores a part. On return it is durable; faults of the network were
	// retried until ctx ended. Parts may come in any order, from several
	// goroutines.
	Put(ctx context.Context, p pack.Part) error
	// Close completes the item of this many parts, as whole where why is nil,
	// else as partial.
	Close(ctx context.Context, parts int32, why error) error
}

// inOrder is a Slot that stores its parts in ascending order alone: its Put
// waits until those before are stored.
type inOrder interface{ inOrder() }

// Acquirer takes evidence from this host.
type Acquirer struct {
	Memory memory.Options
	Host   *artifact.Host
	Log    *slog.Logger
	// Definitions are files of artifact definitions that every order for files
	// takes beside the agent's own.
	Definitions []definition.File
	// OpenMemory opens the memory source; nil is memory.Open.
	OpenMemory func(context.Context, memory.Options) (memory.Source, []memory.Refusal, error)
}

// Order says what to take.
type Order struct {
	Kind         evidence.Kind
	MemorySource string // auto, kcore or lime
	Compression  evidence.Compression
	Throttle     *throttle.Throttle // nil: no limits
	// Case and Instance stand in every row of a table.
	Case, Instance string
	// Definitions are files of artifact definitions, by name, and
	// ProcessMemory the processes whose memory is taken, for artifacts alone.
	Definitions   map[string]string
	ProcessMemory []int
}

// stored is the compression that the order's items are stored with.
func (o Order) stored() evidence.Compression {
	if o.Compression == evidence.Auto {
		return evidence.Zstd
	}
	return o.Compression
}

// Progress says how far an order has come. Its fields only grow, Doing
// excepted.
type Progress struct {
	Read, Total, Stored uint64        // bytes: of the source, and of objects
	Parts               uint32        // stored
	Doing               string        // the item at hand
	Uplink              upload.Uplink // "" where the place has none
	Retries             uint64        // tries that did not store their part, of the item at hand
}

// Result is how an order ended.
type Result struct {
	Status  evidence.Status // Whole, Partial, or "" where nothing was stored
	Err     error           // why it is not whole
	Source  string          // the memory source that was used
	Refused []memory.Refusal
}

// Run carries out an order. It returns soon after ctx has ended, with what
// was stored by then closed as partial.
func (a *Acquirer) Run(ctx context.Context, order Order, place Place, report func(Progress)) Result {
	m := &meter{report: report}
	defer m.tellEach(tellEvery)()
	switch order.Kind {
	case evidence.Memory:
		return a.memory(ctx, order, place, m)
	case evidence.Volatile:
		return a.volatile(ctx, order, place, m)
	case evidence.Symbols:
		return a.symbols(ctx, order, place, m)
	case evidence.Live:
		return a.live(ctx, order, place, m)
	}
	return Result{Err: fmt.Errorf("cannot take evidence of kind %q: unknown", order.Kind)}
}

// meter counts and reports.
type meter struct {
	read, total, stored atomic.Uint64
	parts               atomic.Uint32

	mu     sync.Mutex
	doing  string         // owned by mu
	way    way            // of the item at hand, nil where its place has none; owned by mu
	full   func() bool    // the readers wait for the way; owned by mu
	report func(Progress) // called under mu
}

func (m *meter) tell() {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := Progress{Read: m.read.Load(), Total: m.total.Load(), Stored: m.stored.Load(), Parts: m.parts.Load(), Doing: m.doing}
	if m.way != nil {
		p.Uplink, p.Retries = m.way.State().Uplink(), m.way.Stats().Retries
		if p.Uplink == upload.Flowing && m.full() {
			p.Uplink = upload.Full
		}
	}
	m.report(p)
}

// way is how parts get to their place; an uploader has it.
type way interface {
	State() upload.State
	Stats() upload.Stats
}

// follow tells from now on how the slot's parts get on. full says whether
// readers wait for them.
func (m *meter) follow(slot Slot, full func() bool) counted {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.way, _ = slot.(way)
	m.full = full
	return counted{slot, m, new(atomic.Int64)}
}

func never() bool { return false }

// tellEach tells from time to time also what stands still: an uplink that has
// begun to fail. What it gives back ends that.
func (m *meter) tellEach(every time.Duration) (stop func()) {
	ended := make(chan struct{})
	var telling sync.WaitGroup
	telling.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				m.tell()
			case <-ended:
				return
			}
		}
	})
	return func() { close(ended); telling.Wait() }
}

func (m *meter) begin(what string) {
	m.mu.Lock()
	m.doing = what
	m.mu.Unlock()
	m.tell()
}

func (m *meter) addRead(n int) {
	m.read.Add(uint64(n))
	m.tell()
}

func (m *meter) addStored(n int) {
	m.stored.Add(uint64(n))
	m.parts.Add(1)
	m.tell()
}

// metered counts what is written through it, and keeps to the throttle. The
// time since the last write was work too: what is written had to be read.
type metered struct {
	io.Writer
	m        *meter
	sent     *atomic.Int64   // nanoseconds in all puts of the item
	ctx      context.Context // of the order, as an io.Writer has none
	throttle *throttle.Throttle
	workers  int       // that read for it
	since    time.Time // the spell of work began
	sending  int64     // and sent by then
}

func (w *metered) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	w.m.addRead(n)
	idle := time.Duration(w.sent.Load() - w.sending) // it waited for the uplink
	err = errors.Join(err, w.throttle.Work(w.ctx, time.Since(w.since)-idle, w.workers))
	w.begin()
	return n, err
}

// begin begins a spell of work.
func (w *metered) begin() { w.since, w.sending = time.Now(), w.sent.Load() }

// counted is a slot whose parts are counted once they are stored.
type counted struct {
	Slot
	m    *meter
	sent *atomic.Int64 // nanoseconds in all puts
}

func (c counted) Put(ctx context.Context, p pack.Part) error {
	began := time.Now()
	err := c.Slot.Put(ctx, p)
	c.sent.Add(int64(time.Since(began)))
	if err != nil {
		return err
	}
	c.m.addStored(len(p.Bytes))
	return nil
}

// closeSlot closes a slot also when the order has ended, so that partial
// evidence is kept, and gives the reason why the item is not whole.
func closeSlot(ctx context.Context, slot Slot, parts int32, why error) error {
	if why == nil {
		return slot.Close(ctx, parts, nil)
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeLimit)
	defer cancel()
	return errors.Join(why, slot.Close(last, parts, why))
}

// because prefers the reason for which ctx ended to the bare error of a call
// that it cut short.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); err != nil && cause != nil && errors.Is(err, ctx.Err()) {
		return cause
	}
	return err
}
