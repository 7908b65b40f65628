package artifact

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestClock(t *testing.T) {
	root := t.TempDir()
	place(t, root, map[string]string{
		"etc/timezone":                   "Europe/Berlin\n",
		"var/lib/chrony/drift":           "1.5 0.01\n",
		"proc/sys/kernel/random/boot_id": "b\n",
		"sys/devices/system/clocksource/clocksource0/current_clocksource": "kvm-clock\n",
	})
	plantLink(t, root, "/usr/share/zoneinfo/Europe/Berlin", "etc/localtime")
	got, _ := table[Clock](t, &Host{Root: root}, "clock")
	if len(got) != 1 {
		t.Fatalf("%d rows", len(got))
	}
	c := got[0]
	if c.BootID != "b" || c.Source != "kvm-clock" || c.ZoneTarget != "/usr/share/zoneinfo/Europe/Berlin" || c.ZoneName != "Europe/Berlin\n" ||
		len(c.Files) != 1 || c.Files[0].Text != "1.5 0.01\n" || c.MonotonicNS <= 0 || c.BootTimeNS < c.MonotonicNS || c.WallAfter.Before(c.Wall) || c.State == "" {
		t.Errorf("got %+v", c)
	}
	if off := time.Duration(c.TAINS - c.Wall.UnixNano()); off < 0 || off > time.Minute {
		t.Errorf("TAI and the wall clock are %s apart", off)
	}
}

func TestClockState(t *testing.T) {
	var c Clock
	c.set(unix.TIME_ERROR, &unix.Timex{Status: unix.STA_PLL | unix.STA_UNSYNC, Offset: 3, Freq: 65536, Maxerror: 5, Tai: 37})
	want := Clock{State: "error", Status: []string{"pll", "unsync"}, OffsetNS: 3000, FrequencyPPB: 1000, MaxErrorUS: 5, TAIOffset: 37}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Error(diff)
	}
}
