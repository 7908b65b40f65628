package upload

import (
	"sync/atomic"
	"time"
)

// grantPatience is how long a collector may take for a grant before the part
// counts as waiting for it.
const grantPatience = time.Second

// Uplink says what the way to S3 is like.
type Uplink string

// The states of an uplink. Full is for those to say who fill it: only they
// know that they wait.
const (
	Idle    Uplink = "idle"    // nothing to send
	Flowing Uplink = "flowing" // parts are being sent
	Full    Uplink = "full"    // the readers wait for it
	Failing Uplink = "failing" // the last try of a part failed
	Waiting Uplink = "waiting" // for a grant: the collector does not answer
)

// State is what an Uploader is at: so many parts of each sort. A part may be
// of two sorts, such as one that is sent again after a try that failed.
type State struct {
	Sending int
	Waiting int // for a grant, for over a second
	Failing int // their last try failed, and they are not stored yet
}

// Uplink says it in a word, the worst first.
func (s State) Uplink() Uplink {
	switch {
	case s.Waiting > 0:
		return Waiting
	case s.Failing > 0:
		return Failing
	case s.Sending > 0:
		return Flowing
	}
	return Idle
}

// State tells what is being done now. It may be called at any time.
func (u *Uploader) State() State {
	return State{Sending: int(u.sending.Load()), Waiting: int(u.waiting.Load()), Failing: int(u.failing.Load())}
}

// during counts something while f is done.
func during(count *atomic.Int64, f func()) {
	count.Add(1)
	defer count.Add(-1)
	f()
}

// duringLong counts something once f takes longer than it may.
func duringLong(count *atomic.Int64, patience time.Duration, f func()) {
	late := time.AfterFunc(patience, func() { count.Add(1) })
	defer func() {
		if !late.Stop() {
			count.Add(-1)
		}
	}()
	f()
}
