package export

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// meterEvery is how often a Meter prints.
const meterEvery = 500 * time.Millisecond

// Meter shows progress to a person: bytes, rate and the time that is left, on
// one line that is written over. The rate is of what this export has done, not
// of what it found done.
type Meter struct {
	out   io.Writer
	now   func() time.Time
	first uint64
	began time.Time // zero before the first Show
	last  time.Time
}

// NewMeter gives a Meter on a terminal, or nil where the file is none.
func NewMeter(f *os.File) *Meter {
	if _, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err != nil {
		return nil
	}
	return &Meter{out: f, now: time.Now}
}

// Show is for Options.Progress; a nil Meter shows nothing.
func (m *Meter) Show(p Progress) {
	if m == nil {
		return
	}
	now := m.now()
	if m.began.IsZero() {
		m.began, m.first = now, p.Done
	}
	if now.Sub(m.last) < meterEvery && p.Done < p.Total {
		return
	}
	m.last = now
	fmt.Fprintf(m.out, "\r\x1b[K%s", m.line(p, now))
}

// End ends the line, so that what follows begins on one of its own.
func (m *Meter) End() {
	if m != nil && !m.began.IsZero() {
		fmt.Fprintln(m.out)
	}
}

func (m *Meter) line(p Progress, now time.Time) string {
	text := fmt.Sprintf("%s of %s", size(p.Done), size(p.Total))
	took := now.Sub(m.began).Seconds()
	if took <= 0 || p.Done <= m.first {
		return text
	}
	rate := float64(p.Done-m.first) / took
	left := time.Duration(float64(p.Total-min(p.Done, p.Total)) / rate * float64(time.Second))
	return fmt.Sprintf("%s, %s/s, %v left", text, size(uint64(rate)), left.Round(time.Second))
}

// size is a number of bytes for a person.
func size(n uint64) string {
	if n >= 10<<30 {
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}
