package artifact

import (
	"time"

	"golang.org/x/sys/unix"
)

// Clock is the row of the table clock: what this host's clock said, how it is
// kept, and what it is to be compared by. All clocks are read within one row's
// making, Wall before and WallAfter behind the others.
type Clock struct {
	BootID      Text      `json:"boot_id"`
	Wall        time.Time `json:"wall"`
	MonotonicNS int64     `json:"monotonic_ns"` // CLOCK_MONOTONIC: since boot, without sleep
	BootTimeNS  int64     `json:"boottime_ns"`  // CLOCK_BOOTTIME: with it
	TAINS       int64     `json:"tai_ns"`       // CLOCK_TAI: as Wall, without leap seconds
	WallAfter   time.Time `json:"wall_after"`

	// What the kernel says of the clock. Source: adjtimex(2).
	State        string   `json:"state"`  // ok, insert, delete, in_progress, wait, error
	Status       []string `json:"status"` // the names of STA_ bits that are set
	Synced       bool     `json:"synced"` // neither state error nor the bit unsync
	OffsetNS     int64    `json:"offset_ns"`
	FrequencyPPB int64    `json:"frequency_ppb"` // correction, in parts of 10⁹
	MaxErrorUS   int64    `json:"max_error_us"`
	EstErrorUS   int64    `json:"est_error_us"`
	TAIOffset    int32    `json:"tai_offset"` // seconds

	Source           Text        `json:"source"`
	SourcesAvailable Text        `json:"sources_available"`
	ZoneTarget       Text        `json:"zone_target,omitempty"` // of /etc/localtime, where it is a link
	ZoneName         Text        `json:"zone_name,omitempty"`   // of /etc/timezone
	Files            []ClockFile `json:"files,omitempty"`
}

// ClockFile is a file in which a keeper of time leaves what it learned.
type ClockFile struct {
	FileFacts
	Text Text `json:"text"` // its first 4096 bytes
}

// clockFiles are chrony's, ntpd's, timesyncd's and hwclock's; of the empty ones
// the time is the fact.
var clockFiles = []string{
	"/var/lib/chrony/drift", "/var/lib/chrony/chrony.drift", "/var/lib/ntp/drift", "/var/lib/ntp/ntp.drift", "/var/lib/ntpsec/ntp.drift",
	"/run/systemd/timesync/synchronized", "/var/lib/systemd/timesync/clock", "/etc/adjtime",
}

var (
	clockStates = []string{"ok", "insert", "delete", "in_progress", "wait", "error"}
	clockBits   = []string{"pll", "pps_freq", "pps_time", "fll", "insert", "delete", "unsync", "freq_hold", "pps_signal", "pps_jitter", "pps_wander",
		"pps_error", "clock_error", "nano", "mode", "clk"}
)

// fillClock writes the table clock. The kernel is asked of this host, whatever
// Host.Root is.
func fillClock(h *Host, s *sheet) error {
	c := &Clock{
		BootID:           s.text(h.path("proc/sys/kernel/random/boot_id"), maxWord),
		Source:           s.text(h.path("sys/devices/system/clocksource/clocksource0/current_clocksource"), maxWord),
		SourcesAvailable: s.text(h.path("sys/devices/system/clocksource/clocksource0/available_clocksource"), maxWord),
	}
	c.read(s)
	t, err := h.openTree(s)
	if err != nil {
		return err
	}
	defer t.close()
	if f := t.file("/etc/localtime", 1); f != nil {
		c.ZoneTarget = f.Target
	}
	if f := t.file("/etc/timezone", maxWord); f != nil {
		c.ZoneName = Text(f.data)
	}
	for _, at := range clockFiles {
		if f := t.file(at, maxPath); f != nil {
			c.Files = append(c.Files, ClockFile{f.FileFacts, Text(f.data)})
		}
	}
	if len(c.Files) == 0 {
		s.note("/var/lib/chrony/drift", NoteNone, "")
	}
	return s.put(c)
}

func (c *Clock) read(s *sheet) {
	c.Wall = time.Now().UTC()
	for _, clock := range []struct {
		id int32
		to *int64
	}{{unix.CLOCK_MONOTONIC, &c.MonotonicNS}, {unix.CLOCK_BOOTTIME, &c.BootTimeNS}, {unix.CLOCK_TAI, &c.TAINS}} {
		var ts unix.Timespec
		if err := unix.ClockGettime(clock.id, &ts); err != nil {
			s.failed("clock_gettime", err)
			continue
		}
		*clock.to = ts.Nano()
	}
	c.WallAfter = time.Now().UTC()
	var state unix.Timex // Modes 0: reads alone
	code, err := unix.Adjtimex(&state)
	if err != nil {
		s.failed("adjtimex", err)
		return
	}
	c.set(code, &state)
}

// set tells what adjtimex gave.
func (c *Clock) set(code int, state *unix.Timex) {
	if code >= 0 && code < len(clockStates) {
		c.State = clockStates[code]
	}
	c.Status = []string{}
	for i, name := range clockBits {
		if state.Status&(1<<i) != 0 {
			c.Status = append(c.Status, name)
		}
	}
	c.Synced = code != unix.TIME_ERROR && state.Status&unix.STA_UNSYNC == 0
	c.OffsetNS = int64(state.Offset)
	if state.Status&unix.STA_NANO == 0 {
		c.OffsetNS *= 1000 // the kernel gave microseconds
	}
	c.FrequencyPPB = int64(state.Freq) * 1000 >> 16 // of parts of 10⁶, with 16 bits behind the point
	c.MaxErrorUS, c.EstErrorUS, c.TAIOffset = int64(state.Maxerror), int64(state.Esterror), state.Tai
}
