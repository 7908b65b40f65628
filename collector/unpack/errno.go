package unpack

import "golang.org/x/sys/unix"

// Errors that a name may bring, whatever the disk.
var (
	errNotDir      error = unix.ENOTDIR
	errIsDir       error = unix.EISDIR
	errNameTooLong error = unix.ENAMETOOLONG
)
