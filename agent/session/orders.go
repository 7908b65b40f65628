package session

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quicklime-ir/quicklime/agent/throttle"
	"github.com/quicklime-ir/quicklime/agent/upload"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// take starts an order, unless it is known: then a running one goes on, and
// the result of an ended one is sent again.
func (s *Session) take(ctx context.Context, w *wire.Order, handle Handler) {
	order, err := orderFromWire(w)
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := s.orders[w.GetId()]; known != nil {
		known.taken = false
		s.nudge()
		return
	}
	s.trim()
	j := &job{started: time.Now(), throttle: order.Throttle}
	s.orders[w.GetId()] = j
	s.order = append(s.order, w.GetId())
	if running := s.running(); err == nil && running > maxRunning {
		err = fmt.Errorf("cannot run order %s: %d orders run already, want %d at most", order.ID, running-1, maxRunning)
	}
	if err != nil {
		s.finish(j, order.ID, Result{Error: err.Error()})
		return
	}
	s.cfg.Log.Info("order taken", "order", order.ID, "case", order.Case, "kind", order.Kind)
	limited, stop := context.WithTimeoutCause(ctx, order.TimeLimit, fmt.Errorf("time limit of %v passed", order.TimeLimit))
	running, cancel := context.WithCancelCause(limited)
	j.cancel = cancel
	s.jobs.Go(func() {
		defer stop()
		defer cancel(errFinished)
		result := handle(running, order, func(p Progress) {
			s.mu.Lock()
			defer s.mu.Unlock()
			j.progress = p
		})
		s.mu.Lock()
		defer s.mu.Unlock()
		s.finish(j, order.ID, result)
	})
}

// finish records a result; the caller holds mu.
func (s *Session) finish(j *job, id string, r Result) {
	s.cfg.Log.Info("order ended", "order", id, "outcome", r.Outcome, "source", r.Source, "error", r.Error)
	j.result = &wire.OrderResult{
		OrderId: id, Outcome: outcomeToWire(r.Outcome), Error: clip(r.Error), Source: r.Source,
		Started: timestamppb.New(j.started), Ended: timestamppb.Now(),
	}
	for _, refused := range r.Refused {
		j.result.RefusedSources = append(j.result.RefusedSources, &wire.SourceVerdict{
			Source: refused.Source, Reason: refused.Reason, Detail: clip(refused.Detail)})
	}
	s.nudge()
}

// nudge wakes the sender, if it sleeps.
func (s *Session) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// results gives the ended orders that are not taken yet.
func (s *Session) results() []*wire.AgentMessage {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*wire.AgentMessage
	for _, id := range s.order {
		if j := s.orders[id]; j.result != nil && !j.taken {
			out = append(out,
				&wire.AgentMessage{Body: &wire.AgentMessage_Progress{Progress: progressToWire(id, j.progress)}},
				&wire.AgentMessage{Body: &wire.AgentMessage_Result{Result: j.result}})
		}
	}
	return out
}

// progress gives how far the running orders have come.
func (s *Session) progress() []*wire.AgentMessage {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*wire.AgentMessage
	for _, id := range s.order {
		if j := s.orders[id]; j.result == nil {
			out = append(out, &wire.AgentMessage{Body: &wire.AgentMessage_Progress{Progress: j.now(id, time.Now())}})
		}
	}
	return out
}

// now gives how far a job has come, and how fast it gets on; the caller
// holds mu.
func (j *job) now(id string, at time.Time) *wire.Progress {
	p := progressToWire(id, j.progress)
	p.Paused = j.throttle.Paused()
	p.ReadPerSecond, p.StoredPerSecond = j.pace.rates(glance{at, p.GetBytesRead(), p.GetBytesStored()}, p.GetPaused())
	if d := left(p.GetBytesRead(), p.GetBytesTotal(), p.GetReadPerSecond()); d > 0 {
		p.Left = durationpb.New(d)
	}
	return p
}

// control puts an order into the state in which the collector wants it. One
// that is not known, or that has ended, is none of its business: the
// collector says it again whenever it sends the order.
func (s *Session) control(c *wire.Control) {
	s.mu.Lock()
	j := s.orders[c.GetOrderId()]
	s.mu.Unlock()
	if j == nil {
		return
	}
	limits := limitsFromWire(c.GetLimits())
	j.throttle.Set(limits)
	j.throttle.Pause(c.GetPaused())
	s.cfg.Log.Info("order controlled", "order", c.GetOrderId(), "paused", c.GetPaused(), "cpu_percent", limits.CPUPercent, "bytes_per_second", limits.BytesPerSecond)
}

func (s *Session) cancelOrder(id, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j := s.orders[id]; j != nil && j.cancel != nil {
		j.cancel(fmt.Errorf("cancelled by the collector: %.200s", reason))
	}
}

func (s *Session) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j := s.orders[id]; j != nil {
		j.taken = true
	}
}

// idle reports whether no order runs, and each result is taken.
func (s *Session) idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, j := range s.orders {
		if !j.taken {
			return false
		}
	}
	return true
}

// running counts the orders that have not ended; the caller holds mu.
func (s *Session) running() int {
	n := 0
	for _, j := range s.orders {
		if j.result == nil {
			n++
		}
	}
	return n
}

// trim drops the oldest ended orders past the bound; the caller holds mu.
func (s *Session) trim() {
	for i := 0; len(s.order) >= maxRemembered && i < len(s.order); {
		if s.orders[s.order[i]].result == nil {
			i++
			continue
		}
		delete(s.orders, s.order[i])
		s.order = append(s.order[:i], s.order[i+1:]...)
	}
}

// clip bounds a text that goes into a message, which takes only UTF-8.
func clip(text string) string {
	return strings.ToValidUTF8(text[:min(len(text), 2000)], "\uFFFD")
}

func orderFromWire(w *wire.Order) (Order, error) {
	o := Order{ID: w.GetId(), Case: w.GetCaseId(), Instance: w.GetInstanceId(), MemorySource: "auto", TimeLimit: w.GetTimeLimit().AsDuration(),
		Throttle: throttle.New(limitsFromWire(w.GetMemory().GetLimits()))}
	if o.ID == "" || o.TimeLimit <= 0 {
		return o, fmt.Errorf("cannot run order %q: it needs an id and a time limit", o.ID)
	}
	var compression wire.Compression
	switch capture := w.GetCapture().(type) {
	case *wire.Order_Memory:
		o.Kind, compression = evidence.Memory, capture.Memory.GetCompression()
		switch capture.Memory.GetSource() {
		case wire.MemorySource_MEMORY_SOURCE_UNSPECIFIED:
		case wire.MemorySource_MEMORY_SOURCE_KCORE:
			o.MemorySource = "kcore"
		case wire.MemorySource_MEMORY_SOURCE_LIME:
			o.MemorySource = "lime"
		default:
			return o, fmt.Errorf("cannot run order %s: unknown memory source %v", o.ID, capture.Memory.GetSource())
		}
	case *wire.Order_Volatile:
		if err := o.choose(capture.Volatile); err != nil {
			return o, err
		}
		o.Kind, compression = evidence.Volatile, capture.Volatile.GetCompression()
	case *wire.Order_Symbols:
		o.Kind, compression = evidence.Symbols, capture.Symbols.GetCompression()
	case *wire.Order_Live:
		if err := o.choose(capture.Live); err != nil {
			return o, err
		}
		o.Kind, compression = evidence.Live, capture.Live.GetCompression()
	default:
		return o, fmt.Errorf("cannot run order %s: it names no capture that this agent knows", o.ID)
	}
	var err error
	if o.Compression, err = compression.Ordered(); err != nil {
		return o, fmt.Errorf("cannot run order %s: %w", o.ID, err)
	}
	if o.Compression == evidence.Auto && o.Kind != evidence.Memory {
		o.Compression = evidence.Zstd // tables and files are small, and compress well
	}
	return o, nil
}

// choose reads what is to be taken beside the agent's own choice.
func (o *Order) choose(c *wire.ArtifactCapture) error {
	if len(c.GetDefinitions()) > wire.MaxDefinitionFiles || len(c.GetProcessMemory()) > wire.MaxProcessMemory {
		return fmt.Errorf("cannot run order %s: it names %d files of definitions and %d processes, want %d and %d at most",
			o.ID, len(c.GetDefinitions()), len(c.GetProcessMemory()), wire.MaxDefinitionFiles, wire.MaxProcessMemory)
	}
	for _, f := range c.GetDefinitions() {
		if len(f.GetYaml()) > wire.MaxDefinitionBytes {
			return fmt.Errorf("cannot run order %s: definitions %.80q have %d bytes, want %d at most", o.ID, f.GetName(), len(f.GetYaml()), wire.MaxDefinitionBytes)
		}
		if o.Definitions == nil {
			o.Definitions = map[string]string{}
		}
		o.Definitions[f.GetName()] = f.GetYaml()
	}
	for _, pid := range c.GetProcessMemory() {
		if pid <= 0 {
			return fmt.Errorf("cannot run order %s: %d is no process", o.ID, pid)
		}
		o.ProcessMemory = append(o.ProcessMemory, int(pid))
	}
	return nil
}

// limitsFromWire reads limits; none were set where there are none.
func limitsFromWire(l *wire.Limits) throttle.Limits {
	return throttle.Limits{CPUPercent: int(min(l.GetCpuPercent(), 100)), BytesPerSecond: l.GetBytesPerSecond()}
}

var uplinks = map[upload.Uplink]wire.Uplink{
	upload.Idle:    wire.Uplink_UPLINK_IDLE,
	upload.Flowing: wire.Uplink_UPLINK_FLOWING,
	upload.Full:    wire.Uplink_UPLINK_FULL,
	upload.Failing: wire.Uplink_UPLINK_FAILING,
	upload.Waiting: wire.Uplink_UPLINK_WAITING,
}

func outcomeToWire(s evidence.Status) wire.Outcome {
	switch s {
	case evidence.Whole:
		return wire.Outcome_OUTCOME_WHOLE
	case evidence.Partial:
		return wire.Outcome_OUTCOME_PARTIAL
	}
	return wire.Outcome_OUTCOME_FAILED
}

func progressToWire(id string, p Progress) *wire.Progress {
	return &wire.Progress{OrderId: id, BytesRead: p.BytesRead, BytesTotal: p.BytesTotal,
		BytesStored: p.BytesStored, PartsStored: p.PartsStored, Doing: p.Doing, Uplink: uplinks[p.Uplink], Retries: p.Retries}
}
