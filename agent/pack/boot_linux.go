package pack

import (
	"time"

	"golang.org/x/sys/unix"
)

// SinceBoot is the time since the host was started, sleep included; 0 where
// the kernel does not tell. Source: clock_gettime(2), CLOCK_BOOTTIME.
func SinceBoot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
