// Command small is a process whose memory a test takes: it has a mapping of
// four pages of which three lie beyond the end of their file, between pages
// that nobody may read. It is built without the race detector, under which a
// process has gigabytes of memory.
package main

import (
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	if err := mapBeyondEnd(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Stdout.WriteString("ready\n")
	io.Copy(io.Discard, os.Stdin)
}

func mapBeyondEnd() error {
	fd, err := unix.MemfdCreate("short", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	if _, err := unix.Write(fd, []byte("x")); err != nil {
		return err
	}
	page := uintptr(os.Getpagesize())
	around, err := unix.MmapPtr(-1, 0, nil, 6*page, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	_, err = unix.MmapPtr(fd, 0, unsafe.Add(around, page), 4*page, unix.PROT_READ, unix.MAP_SHARED|unix.MAP_FIXED)
	return err
}
