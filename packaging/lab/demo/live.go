package demo

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/desk"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// liner shows one line for each step: while it runs, where the output is a
// terminal, and when it has ended.
type liner struct {
	out      io.Writer
	terminal bool
	shown    map[string]bool // steps whose end was shown
	told     time.Time       // when progress was last shown
	read     uint64          // at first sight of the order, for its rate
	since    time.Time
	order    string
}

func newLiner(out io.Writer) *liner {
	l := &liner{out: out, shown: map[string]bool{}}
	if f, ok := out.(*os.File); ok {
		info, err := f.Stat()
		l.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return l
}

func (l *liner) update(c casefile.Case, progress []*wire.Progress, began time.Time) {
	for _, s := range c.Steps {
		switch {
		case s.Outcome != "" && !l.shown[s.Name]:
			l.shown[s.Name] = true
			l.line("%-9s %-8s %7s  %s\n", s.Name, s.Outcome, s.Ended.Sub(s.Started).Round(10*time.Millisecond), l.about(c, s))
		case s.Outcome == "" && s.Tries > 0:
			l.now(s, progress)
		}
	}
}

// about says what a step has got.
func (l *liner) about(c casefile.Case, s casefile.Step) string {
	if s.Detail != "" {
		return desk.Plain(s.Detail)
	}
	var count int
	var bytes uint64
	for _, i := range c.Items {
		if string(i.Kind) == s.Name {
			count++
			bytes += i.Size
		}
	}
	if count == 0 {
		return ""
	}
	took := s.Ended.Sub(s.Started).Seconds()
	return fmt.Sprintf("%d objects, %s, %s/s", count, desk.Bytes(bytes), desk.Bytes(uint64(float64(bytes)/max(took, 0.001))))
}

// now shows a running step: bytes, rate, and how long it may still take.
func (l *liner) now(s casefile.Step, progress []*wire.Progress) {
	every := 3 * time.Second
	if l.terminal {
		every = 250 * time.Millisecond
	}
	if len(progress) == 0 || time.Since(l.told) < every {
		return
	}
	l.told = time.Now()
	p := progress[0]
	if l.order != p.GetOrderId() {
		l.order, l.read, l.since = p.GetOrderId(), p.GetBytesRead(), time.Now()
	}
	rate := float64(p.GetBytesRead()-l.read) / max(time.Since(l.since).Seconds(), 0.001)
	text := fmt.Sprintf("%-9s %-8s %7s  %s", s.Name, "now", time.Since(s.Started).Round(100*time.Millisecond), desk.PrintProgress(p))
	if rate > 0 && time.Since(l.since) > time.Second {
		text += fmt.Sprintf(", %s/s", desk.Bytes(uint64(rate)))
		if left := float64(p.GetBytesTotal()) - float64(p.GetBytesRead()); left > 0 {
			text += fmt.Sprintf(", %v to go", time.Duration(left/rate*float64(time.Second)).Round(time.Second))
		}
	}
	if l.terminal {
		l.line("%s", text)
		return
	}
	fmt.Fprintln(l.out, text)
}

// line writes over the line that shows a running step.
func (l *liner) line(format string, args ...any) {
	if l.terminal {
		fmt.Fprint(l.out, "\r\x1b[K")
	}
	fmt.Fprintf(l.out, format, args...)
}
