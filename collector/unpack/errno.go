package unpack

import "golang.org/x/sys/unix"

// diskErrors are errors that the next member would meet too.
var diskErrors = []error{unix.ENOSPC, unix.EDQUOT, unix.EIO, unix.EROFS, unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ESTALE}
