package artifact

import (
	"fmt"
	"io"
	"path"
	"strconv"

	"golang.org/x/sys/unix"
)

// Bounds of the files of containers.
const (
	maxContainerRoots = 1000
	containerBytes    = 1 << 30 // of one; and a quarter of what is left at most
)

// inContainers names the definitions that are looked for in containers too: who
// may enter, what was typed, what runs by itself, what was dropped and logged.
// A container's other files are its image's.
var inContainers = map[string]bool{
	"SharedMemory": true, "ShellHistories": true, "LoginRecords": true, "TemporaryFiles": true, "AuthenticationLogs": true, "SystemLogs": true,
	"WebServerLogs": true, "SSHUsers": true, "SSHServer": true, "ScheduledJobs": true, "Accounts": true, "Loader": true, "StartFiles": true,
	"UserStartFiles": true, "NameResolution": true, "Release": true,
}

// containers takes files of each mount namespace whose root is not the host's,
// as its processes see them, through /proc/PID/root. Nothing is entered or
// joined: the walk stays below that root as it does below the host's.
func (c *collection) containers(h *Host, hostRoot int, definitions []Definition) error {
	s := newSheet(c.ctx, "containers", io.Discard, c.rec)
	s.entry.Source = "files"
	if !h.running() {
		return nil // the processes of a folder's /proc, if any, have their roots elsewhere
	}
	host, err := openNode(hostRoot, ".")
	if err != nil {
		return err
	}
	defer host.close()
	spaces, err := h.namespaces(s, "mnt")
	if err != nil {
		return err
	}
	var some []Definition
	for _, d := range definitions {
		if inContainers[d.Name] {
			some = append(some, d)
		}
	}
	taken := map[string]bool{}
	for _, ns := range spaces {
		box, err := h.openBox(s, ns, host.id())
		if err != nil {
			return err
		}
		if box == nil {
			continue
		}
		if len(taken) == maxContainerRoots {
			unix.Close(box.root)
			s.note("/proc/*/root", NoteCut, fmt.Sprintf("more than %d containers", maxContainerRoots))
			return nil
		}
		if taken[box.name] { // a second namespace of one container, as of a process that was put into it
			box.name = fmt.Sprintf("%s-%d", box.name, ns.id)
		}
		taken[box.name] = true
		if err := c.box(h, box, some); err != nil {
			return err
		}
	}
	return nil
}

// box is a container's root.
type box struct {
	name string // of its folder
	root int    // handle
	pid  int    // that has it
}

// openBox gives nil where the namespace's root is the host's, or where none of
// its processes is left.
func (h *Host) openBox(s *sheet, ns namespace, host [2]uint64) (*box, error) {
	for _, pid := range ns.pids {
		if err := s.ctx.Err(); err != nil {
			return nil, err
		}
		at := path.Join("/proc", strconv.Itoa(pid), "root")
		root, err := unix.Open(h.path(at), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if gone(err) {
			continue
		}
		if err != nil {
			s.failed(at, err)
			return nil, nil
		}
		n, err := openNode(root, ".")
		if err != nil {
			unix.Close(root)
			s.failed(at, err)
			return nil, nil
		}
		id := n.id()
		n.close()
		if id == host {
			unix.Close(root)
			return nil, nil
		}
		return &box{h.boxName(pid, ns.id), root, pid}, nil
	}
	return nil, nil
}

// boxName is the container's id, or where no control group tells one the mount
// namespace's.
func (h *Host) boxName(pid int, ns uint64) string {
	if dir, err := h.openProc(strconv.Itoa(pid)); err == nil {
		defer dir.close()
		if groups, _, err := dir.read("cgroup", nil, maxCgroup); err == nil {
			if id := containerOf(string(groups)); id != "" {
				return id
			}
		}
	}
	return fmt.Sprintf("mntns-%d", ns)
}

// box takes one container's files, within its share of what is left.
func (c *collection) box(h *Host, b *box, definitions []Definition) error {
	defer unix.Close(b.root)
	all := c.left
	c.left = min(all/4, containerBytes)
	share := c.left
	defer func() { c.left = all - (share - c.left) }()
	walker := c.walkerOf(b.root, path.Join(tarBoxes, b.name))
	if err := c.prepare(walker, h.path("proc", strconv.Itoa(b.pid), "mountinfo")); err != nil {
		return err
	}
	return c.collect(h, walker, definitions)
}
