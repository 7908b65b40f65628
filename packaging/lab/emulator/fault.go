package emulator

import (
	"slices"
	"sync"
	"time"
)

// FaultKind is how a call fails.
type FaultKind int

// The kinds of faults.
const (
	Throttle    FaultKind = iota + 1 // refused for its rate; nothing is done
	Unavailable                      // refused with 503; nothing is done
	LostReply                        // done, but the connection is cut in place of the answer
	Slow                             // done and answered, after Delay
)

// Fault makes the next calls of an action fail.
type Fault struct {
	Service string // as in the credential scope: ec2, sqs, events, sts
	Action  string // as in CreateImage; empty: any
	Kind    FaultKind
	Times   int           // how many calls; 0: one
	Delay   time.Duration // of Slow
}

// Inject adds a fault behind those that wait already.
func (e *Emulator) Inject(f Fault) {
	f.Times = max(f.Times, 1)
	e.faults.mu.Lock()
	defer e.faults.mu.Unlock()
	e.faults.waiting = append(e.faults.waiting, f)
}

// Calm takes back the faults that have not happened yet.
func (e *Emulator) Calm() {
	e.faults.mu.Lock()
	defer e.faults.mu.Unlock()
	e.faults.waiting = nil
}

type faults struct {
	mu      sync.Mutex
	waiting []Fault // under mu; Times counts down
}

// take gives the fault of a call; its Kind is zero where there is none.
func (f *faults) take(service, action string) Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	at := slices.IndexFunc(f.waiting, func(w Fault) bool {
		return w.Service == service && (w.Action == "" || w.Action == action)
	})
	if at < 0 {
		return Fault{}
	}
	f.waiting[at].Times--
	fault := f.waiting[at]
	if fault.Times == 0 {
		f.waiting = slices.Delete(f.waiting, at, at+1)
	}
	return fault
}
