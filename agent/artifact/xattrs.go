package artifact

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Bounds of extended attributes, in bytes. Linux has 64 KiB for a list and for
// a value; archive/tar reads 1 MiB of PAX records.
const (
	maxXattr  = 64 << 10
	maxXattrs = 256 << 10 // of one file's names and values
)

var errXattrs = errors.New("bytes of extended attributes")

// xattrKeys escapes what a key of a PAX record cannot hold, as GNU tar does.
var xattrKeys = strings.NewReplacer("%", "%25", "=", "%3D")

// xattrs adds the extended attributes to PAX records: those of user, trusted
// and security (file capabilities, SELinux) and ACLs. The handle cannot be
// asked itself, so it is by its name in /proc/self/fd. A file system that has
// none is no error.
func (n *node) xattrs(records map[string]string) error {
	self := fmt.Sprintf("/proc/self/fd/%d", n.fd)
	buf := make([]byte, maxXattr)
	size, err := unix.Listxattr(self, buf)
	if err != nil {
		return xattrError("list", err)
	}
	names, left := string(buf[:size]), maxXattrs
	for name := range strings.SplitSeq(strings.TrimSuffix(names, "\x00"), "\x00") {
		if name == "" {
			continue
		}
		size, err := unix.Getxattr(self, name, buf)
		if err == unix.ENODATA {
			continue // removed since
		}
		if err != nil {
			return xattrError("read", err)
		}
		if left -= len(name) + size; left < 0 {
			return errXattrs
		}
		records["SCHILY.xattr."+xattrKeys.Replace(name)] = string(buf[:size])
	}
	return nil
}

func xattrError(verb string, err error) error {
	if err == unix.EOPNOTSUPP || err == unix.ENOSYS {
		return nil
	}
	return fmt.Errorf("cannot %s extended attributes: %w", verb, err)
}

// attributes names what chattr(1) sets, as far as statx(2) tells it.
func (n *node) attributes() string {
	var names []string
	for _, a := range []struct {
		bit  uint64
		name string
	}{
		{unix.STATX_ATTR_IMMUTABLE, "immutable"},
		{unix.STATX_ATTR_APPEND, "append"},
		{unix.STATX_ATTR_NODUMP, "nodump"},
		{unix.STATX_ATTR_ENCRYPTED, "encrypted"},
		{unix.STATX_ATTR_COMPRESSED, "compressed"},
		{unix.STATX_ATTR_VERITY, "verity"},
	} {
		if n.stat.Attributes&a.bit != 0 {
			names = append(names, a.name)
		}
	}
	return strings.Join(names, ",")
}
