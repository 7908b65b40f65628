package session

import (
	"slices"
	"time"
)

// Bounds of what is said of an order's pace.
const (
	paceOver = 5 * time.Second     // rates are those of so long
	mostLeft = 30 * 24 * time.Hour // an estimate beyond it says nothing
)

// pace tells how fast an order gets on. It is not safe for several
// goroutines.
type pace struct{ seen []glance } // oldest first, one older than paceOver at most

// glance is how far an order was at a moment, in bytes.
type glance struct {
	at           time.Time
	read, stored uint64
}

// rates adds a glance, and gives the bytes a second since the oldest one. An
// order that is paused has no pace, and begins a new one when it goes on.
func (p *pace) rates(now glance, paused bool) (read, stored uint64) {
	if paused {
		p.seen = []glance{now}
		return 0, 0
	}
	p.seen = append(p.seen, now)
	for len(p.seen) > 2 && now.at.Sub(p.seen[1].at) >= paceOver {
		p.seen = slices.Delete(p.seen, 0, 1)
	}
	first := p.seen[0]
	took := now.at.Sub(first.at)
	return perSecond(first.read, now.read, took), perSecond(first.stored, now.stored, took)
}

func perSecond(from, to uint64, took time.Duration) uint64 {
	if to <= from || took <= 0 {
		return 0
	}
	return uint64(float64(to-from) / took.Seconds())
}

// left estimates how long the rest of the reading takes; 0 is unknown.
func left(read, total, perSecond uint64) time.Duration {
	if total <= read || perSecond == 0 {
		return 0
	}
	seconds := float64(total-read) / float64(perSecond)
	if seconds > mostLeft.Seconds() {
		return 0
	}
	return time.Duration(seconds * float64(time.Second))
}
