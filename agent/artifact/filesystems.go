package artifact

import (
	"errors"
	"strings"
)

// refusedTypes are file systems that are not entered: those whose server, in
// the network or a user's process, can make a read hang, and the kernel's own,
// whose files are not files.
var refusedTypes = []string{
	"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "gfs2", "ocfs2", "fuse", "fuseblk", "autofs", "virtiofs", "vboxsf",
	"proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "bpf", "devpts", "mqueue", "configfs", "binfmt_misc", "efivarfs", "pstore",
	"selinuxfs", "smackfs", "fusectl", "rpc_pipefs", "nfsd", "hugetlbfs", "functionfs", "nsfs",
}

func refuse(kind string) bool {
	if strings.HasPrefix(kind, "fuse.") {
		return true
	}
	for _, t := range refusedTypes {
		if kind == t {
			return true
		}
	}
	return false
}

// refuseMounts finds the mounted file systems that are not entered. That of
// the root itself always is.
func (w *walker) refuseMounts(h *Host, s *sheet) error {
	w.refused, w.points = map[uint64]string{}, map[string]string{}
	err := s.lines(h.path("proc/self/mountinfo"), func(line []byte) error {
		m := parseMount(line)
		if m == nil || !refuse(string(m.Type)) || m.Point == "/" {
			return nil
		}
		w.points[string(m.Point)] = string(m.Type)
		if dev, ok := parseDevice(m.Device); ok {
			w.refused[dev] = string(m.Type)
		}
		return nil
	})
	root, rootErr := openNode(w.root, ".")
	if rootErr != nil {
		return errors.Join(err, rootErr)
	}
	defer root.close()
	delete(w.refused, root.dev())
	return err
}
