package main

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/quicklime-ir/quicklime/packaging/lab/guest/pact"
)

// line is the serial line to the lab: the second port, so that kernel messages
// and the agent's log on the console never cut a report in two.
type line struct {
	tty *os.File

	mu sync.Mutex // one report at a time
}

func openLine() (*line, error) {
	fd, err := unix.Open("/dev/ttyS1", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open the serial line /dev/ttyS1: %w", err)
	}
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("cannot read the serial line's settings: %w", err)
	}
	// Bytes as they are: no echo, no line editing, no signals, 8 bits.
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cflag = unix.B115200 | unix.CS8 | unix.CREAD | unix.CLOCAL
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, t); err != nil {
		return nil, fmt.Errorf("cannot set the serial line raw: %w", err)
	}
	return &line{tty: os.NewFile(uintptr(fd), "/dev/ttyS1")}, nil
}

func (l *line) send(r pact.Report) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return pact.Write(l.tty, r)
}
