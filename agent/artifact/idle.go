package artifact

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Source: linux/include/uapi/linux/ioprio.h.
const (
	ioprioWhoProcess = 1       // one thread; 0 is the calling one
	ioprioIdle       = 3 << 13 // served when nobody else wants the disk
)

// idly lets this goroutine's reads wait for everybody else's until the
// function that it gives is called. Schedulers that know no classes (none,
// mq-deadline) take no notice, and neither does a kernel that refuses.
// Source: ioprio_set(2).
func idly() (restore func()) {
	runtime.LockOSThread()
	before, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, ioprioWhoProcess, 0, 0)
	if errno == 0 {
		_, _, errno = unix.Syscall(unix.SYS_IOPRIO_SET, ioprioWhoProcess, 0, ioprioIdle)
	}
	return func() {
		if errno == 0 {
			unix.Syscall(unix.SYS_IOPRIO_SET, ioprioWhoProcess, 0, before)
		}
		runtime.UnlockOSThread()
	}
}
