package artifact

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/quicklime-ir/quicklime/agent/artifact/container"
)

// Bounds of the table containers.
const (
	maxContainers     = 10_000
	maxContainerPIDs  = 1024
	maxContainerFiles = 16
	containersBytes   = 32 << 20 // of runtimes' files, as what they say is held until all are read
)

// Container is a row of the table containers: one that a runtime's files tell
// of, that a control group is named after, or both.
type Container struct {
	Runtime string `json:"runtime"` // docker, containerd, cri-o, podman, crun, runc; "" where a control group alone tells of it, and does not name it
	ID      Text   `json:"id"`
	Name    Text   `json:"name,omitempty"`
	Image   Text   `json:"image,omitempty"`
	ImageID Text   `json:"image_id,omitempty"`
	Command []Text `json:"command,omitempty"`
	User    Text   `json:"user,omitempty"` // within it
	// Hostname and RootFS are as the runtime set them.
	Hostname Text       `json:"hostname,omitempty"`
	RootFS   Text       `json:"rootfs,omitempty"`
	Created  *time.Time `json:"created,omitempty"`
	Started  *time.Time `json:"started,omitempty"`
	State    string     `json:"state,omitempty"`    // as docker's file says
	InitPID  int        `json:"init_pid,omitempty"` // as a file says, in the host's numbers
	// Privileged is docker's own flag. Of the others what it stands for is
	// told: capabilities, and how many paths are masked or read-only.
	Privileged   bool             `json:"privileged"`
	Capabilities []Text           `json:"capabilities,omitempty"` // effective; of docker +added and -dropped
	MaskedPaths  int              `json:"masked_paths"`
	Namespaces   []Text           `json:"namespaces,omitempty"` // KIND, or KIND=what it joins
	Mounts       []ContainerMount `json:"mounts,omitempty"`
	Pod          Text             `json:"pod,omitempty"`
	PodNamespace Text             `json:"pod_namespace,omitempty"`
	Labels       map[string]Text  `json:"labels,omitempty"` // and annotations; keys are escaped as Text is
	Files        []Text           `json:"files,omitempty"`  // that tell of it
	Cgroup       Text             `json:"cgroup,omitempty"` // of its first process
	PIDs         []int            `json:"pids,omitempty"`   // that are in its control group
	NetNS        uint64           `json:"net_ns,omitempty"` // of the first of them; as in the table sockets
	HostNetNS    bool             `json:"host_net_ns"`      // it is that of the host's first process
	Truncated    bool             `json:"truncated,omitempty"`
}

// ContainerMount is a part of the host that a container sees.
type ContainerMount struct {
	Source  Text `json:"source"`
	Target  Text `json:"target"`
	Type    Text `json:"type,omitempty"`
	Options Text `json:"options,omitempty"`
}

type containerReader struct {
	t    *tree
	all  map[string]*Container
	left int // of containersBytes
}

// fillContainers writes the table containers. Runtimes are not asked: their
// files and the kernel's control groups also tell of those that a runtime
// would not name.
func fillContainers(h *Host, s *sheet) error {
	t, err := h.openTree(s)
	if err != nil {
		return err
	}
	defer t.close()
	r := &containerReader{t, map[string]*Container{}, containersBytes}
	r.docker("/var/lib/docker/containers")
	r.containerd("/run/containerd/io.containerd.runtime.v2.task")
	r.store("/var/lib/containers/storage", "/run/containers/storage")
	accounts, err := t.accounts(h)
	if err != nil {
		return err
	}
	for _, a := range accounts {
		store := path.Join(string(a.home), ".local/share/containers/storage")
		r.store(store, path.Join("/run/user", strconv.Itoa(int(a.uid)), "containers"))
		r.docker(path.Join(string(a.home), ".local/share/docker/containers"))
	}
	r.running(h)
	if len(r.all) == 0 {
		s.note("/var/lib/docker/containers", NoteNone, "")
	}
	for _, id := range slices.Sorted(maps.Keys(r.all)) {
		if err := s.put(r.all[id]); err != nil {
			return err
		}
	}
	return s.ctx.Err()
}

// of gives the row of a container; nil is one too many.
func (r *containerReader) of(id, runtime, file string) *Container {
	row := r.all[id]
	if row == nil {
		if len(r.all) == maxContainers {
			r.t.s.note(file, NoteCut, fmt.Sprintf("more than %d containers", maxContainers))
			return nil
		}
		row = &Container{Runtime: runtime, ID: clip(id, maxPath)}
		r.all[id] = row
	}
	if len(row.Files) < maxContainerFiles && file != "" {
		row.Files = append(row.Files, clip(file, maxPath))
	}
	return row
}

// add fills in what a row does not have yet.
func (row *Container) add(c container.Container) {
	for _, field := range []struct {
		to   *Text
		from string
	}{{&row.Name, c.Name}, {&row.Image, c.Image}, {&row.ImageID, c.ImageID}, {&row.User, c.User}, {&row.Hostname, c.Hostname}, {&row.RootFS, c.RootFS},
		{&row.Pod, c.Pod}, {&row.PodNamespace, c.PodNamespace}} {
		if *field.to == "" {
			*field.to = Text(field.from)
		}
	}
	for _, field := range []struct {
		to   *[]Text
		from []string
	}{{&row.Command, c.Command}, {&row.Capabilities, c.Capabilities}, {&row.Namespaces, c.Namespaces}} {
		if len(*field.to) == 0 {
			for _, s := range field.from {
				*field.to = append(*field.to, Text(s))
			}
		}
	}
	if row.Created == nil && !c.Created.IsZero() {
		row.Created = &c.Created
	}
	if row.Started == nil && !c.Started.IsZero() {
		row.Started = &c.Started
	}
	if row.InitPID == 0 {
		row.InitPID = c.PID
	}
	if row.State == "" {
		row.State = c.State
	}
	row.Privileged = row.Privileged || c.Privileged
	row.MaskedPaths = max(row.MaskedPaths, c.Masked)
	if len(row.Mounts) == 0 {
		for _, m := range c.Mounts {
			row.Mounts = append(row.Mounts, ContainerMount{Text(m.Source), Text(m.Target), Text(m.Type), Text(m.Options)})
		}
		slices.SortFunc(row.Mounts, func(a, b ContainerMount) int { return strings.Compare(string(a.Target), string(b.Target)) })
	}
	if len(row.Labels) == 0 && len(c.Labels) > 0 {
		row.Labels = map[string]Text{}
		for key, value := range c.Labels {
			escaped, _ := Text(key).MarshalText() // never fails
			row.Labels[string(escaped)] = Text(value)
		}
	}
	row.Truncated = row.Truncated || c.Cut
}

// json reads a file that a runtime wrote; nil is none, or on record.
func (r *containerReader) json(at string) []byte {
	f := r.t.file(at, container.MaxBytes)
	if f == nil || f.cut {
		return nil
	}
	if len(f.data) > r.left {
		r.t.s.note(at, NoteCut, fmt.Sprintf("not read: %d bytes of such files were", containersBytes))
		return nil
	}
	r.left -= len(f.data)
	return f.data
}

func (r *containerReader) docker(dir string) {
	for _, id := range r.t.names(dir) {
		at := path.Join(dir, id, "config.v2.json")
		data := r.json(at)
		if data == nil {
			continue
		}
		c, err := container.Docker(data)
		if err != nil {
			r.t.s.note(at, NoteOdd, err.Error())
			continue
		}
		host := path.Join(dir, id, "hostconfig.json")
		if data := r.json(host); data != nil {
			if err := c.DockerHost(data); err != nil {
				r.t.s.note(host, NoteOdd, err.Error())
			}
		}
		if row := r.of(id, "docker", at); row != nil {
			row.add(c)
		}
	}
}

// bundle reads config.json of a bundle.
func (r *containerReader) bundle(id, runtime, dir string) *Container {
	at := path.Join(dir, "config.json")
	data := r.json(at)
	if data == nil {
		return nil
	}
	c, err := container.OCI(data)
	if err != nil {
		r.t.s.note(at, NoteOdd, err.Error())
		return nil
	}
	row := r.of(id, runtime, at)
	if row != nil {
		row.add(c)
	}
	return row
}

// containerd reads the bundles of running tasks, by namespace: moby is
// docker's, k8s.io is the kubelet's.
func (r *containerReader) containerd(dir string) {
	for _, space := range r.t.names(dir) {
		for _, id := range r.t.names(path.Join(dir, space)) {
			bundle := path.Join(dir, space, id)
			row := r.bundle(id, "containerd", bundle)
			if row == nil || row.InitPID != 0 {
				continue
			}
			if f := r.t.file(path.Join(bundle, "init.pid"), maxWord); f != nil {
				row.InitPID, _ = strconv.Atoi(strings.TrimSpace(string(f.data)))
			}
		}
	}
}

// store reads the store that podman and CRI-O share, and the bundles that are
// in use.
func (r *containerReader) store(dir, run string) {
	for _, driver := range []string{"overlay", "vfs", "btrfs"} {
		at := path.Join(dir, driver+"-containers", "containers.json")
		if data := r.json(at); data != nil {
			all, err := container.Storage(data)
			if err != nil {
				r.t.s.note(at, NoteOdd, err.Error())
			}
			for _, c := range all {
				if row := r.of(c.ID, "podman", at); row != nil {
					row.add(c)
				}
			}
		}
		for _, base := range []string{path.Join(dir, driver+"-containers"), path.Join(run, driver+"-containers")} {
			for _, id := range r.t.names(base) {
				if row := r.bundle(id, "podman", path.Join(base, id, "userdata")); row != nil && row.Labels["io.kubernetes.cri-o.ContainerID"] != "" {
					row.Runtime = "cri-o"
				}
			}
		}
	}
}

// running adds the processes, by their control groups.
func (r *containerReader) running(h *Host) {
	hostNS, hostErr := h.namespaceOf("1", "net")
	h.eachCgroup(r.t.s, func(pid int, group string) {
		id, runtime := container.OfCgroup(group)
		if id == "" {
			return
		}
		row := r.of(id, runtime, "")
		if row == nil {
			return
		}
		if len(row.PIDs) == maxContainerPIDs {
			row.Truncated = true
			return
		}
		row.PIDs = append(row.PIDs, pid)
		if row.Cgroup == "" {
			row.Cgroup = clip(group, maxPath)
		}
		if row.NetNS == 0 {
			row.NetNS, _ = h.namespaceOf(strconv.Itoa(pid), "net") // 0 where it may not be asked
			row.HostNetNS = hostErr == nil && row.NetNS == hostNS
		}
	})
}
