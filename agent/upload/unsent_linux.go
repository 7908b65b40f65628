package upload

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// maxUnsent is how many bytes may wait in the kernel, not yet sent.
const maxUnsent = 128 << 10

// keepUnsentLow lets a write to a connection wait until what was written
// before is nearly all sent, so that a slow network is seen to move, and one
// that stands still is seen to stand still. What is on its way is not
// bounded, so it costs no throughput. Source: tcp(7), Linux
// Documentation/networking/ip-sysctl, tcp_notsent_lowat.
func keepUnsentLow(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		// A kernel without it only notices a stall later.
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, maxUnsent)
	})
}
