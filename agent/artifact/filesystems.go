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

// refuseMounts finds the mounted file systems that are not entered, by the
// mountinfo of a process that has the walker's root. That of the root itself
// always is.
func (w *walker) refuseMounts(mountinfo string, s *sheet) error {
	w.refused, w.points = map[uint64]string{}, map[string]string{}
	err := s.lines(mountinfo, func(line []byte) error {
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

// mountPlan says of each mount point whether a walk of everything enters it:
// "" does, anything else is why not.
type mountPlan map[string]string

// maxPoints bounds a mountPlan.
const maxPoints = 64 << 10

// bodyPoints plans the walk for a bodyfile. The root itself is always walked.
func bodyPoints(h *Host, s *sheet) (mountPlan, error) {
	var mounts []*Mount
	err := s.lines(h.path("proc/self/mountinfo"), func(line []byte) error {
		m := parseMount(line)
		switch {
		case m == nil:
			s.note("/proc/self/mountinfo", NoteOdd, string(clip(line, maxWord)))
		case len(mounts) < maxPoints:
			mounts = append(mounts, m)
		case len(mounts) == maxPoints:
			s.note("/proc/self/mountinfo", NoteCut, "mounts")
			mounts = append(mounts, m)
		}
		return nil
	})
	return planMounts(mounts), err
}

// planMounts enters each local file system by the mounts that show the most of
// it: one that shows a folder which another shows too is left out. Of
// several mounts on one point the last is what one sees.
func planMounts(mounts []*Mount) mountPlan {
	visible := map[string]*Mount{}
	for _, m := range mounts {
		visible[string(m.Point)] = m
	}
	byDevice := map[string][]*Mount{}
	for _, m := range mounts {
		if visible[string(m.Point)] == m {
			byDevice[m.Device] = append(byDevice[m.Device], m)
		}
	}
	plan := mountPlan{}
	for point, m := range visible {
		if point != "/" {
			plan[point] = whyNot(m, byDevice[m.Device])
		}
	}
	return plan
}

// whyNot gives the reason not to enter a mount, "" for none. same are the
// visible mounts of its file system, in the kernel's order.
func whyNot(m *Mount, same []*Mount) string {
	if refuse(string(m.Type)) {
		return string(m.Type)
	}
	if m.Type == "overlay" {
		return "overlay: its layers are walked where they lie"
	}
	earlier := true
	for _, o := range same {
		if o == m {
			earlier = false
			continue
		}
		if below(string(m.Root), string(o.Root)) || earlier && m.Root == o.Root {
			return "walked at " + string(o.Point)
		}
	}
	return ""
}

// below reports whether a path is truly inside of a folder.
func below(p, folder string) bool {
	return p != folder && (folder == "/" || strings.HasPrefix(p, folder+"/"))
}
