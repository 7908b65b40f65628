// Package container reads what container runtimes write down of containers, as
// bytes alone.
package container

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Bounds of one container.
const (
	MaxBytes = 4 << 20 // of a file that is parsed
	MaxList  = 256     // elements of each list
	MaxText  = 4096    // bytes of each text
)

// Container is what files tell of a container.
type Container struct {
	ID, Name, Image, ImageID string
	Command                  []string
	User                     string
	Hostname                 string
	RootFS                   string
	Created, Started         time.Time
	PID                      int // of its first process; 0 is unknown or ended
	State                    string
	Privileged               bool     // docker's own flag
	Capabilities             []string // effective; of docker those added, each with +, and dropped, with -
	Masked                   int      // paths hidden from it or read-only; 0 in privileged ones
	Namespaces               []string // KIND, or KIND=PATH where it joins another's; docker's modes
	Mounts                   []Mount
	Pod, PodNamespace        string
	Labels                   map[string]string
	Cut                      bool // a list or text was longer than its bound
}

// Mount is a part of the host that a container sees.
type Mount struct {
	Source, Target, Type string
	Options              string // parted by commas
}

// Docker reads config.v2.json of a container of docker.
func Docker(data []byte) (Container, error) {
	var v struct {
		ID, Name, Image string
		Created         time.Time
		Path            string
		Args            []string
		State           struct {
			Running, Paused bool
			Pid             int
			StartedAt       time.Time
		}
		Config struct {
			User, Image, Hostname string
			Labels                map[string]string
		}
		MountPoints map[string]struct {
			Source, Destination, Type, Name string
			RW                              bool
		}
	}
	if err := decode(data, &v); err != nil {
		return Container{}, fmt.Errorf("cannot read container of docker: %w", err)
	}
	c := Container{ID: v.ID, Name: strings.TrimPrefix(v.Name, "/"), Image: v.Config.Image, ImageID: v.Image, User: v.Config.User, Hostname: v.Config.Hostname,
		Created: sane(v.Created), Started: sane(v.State.StartedAt), PID: v.State.Pid, State: "stopped", Labels: v.Config.Labels}
	if v.Path != "" {
		c.Command = append([]string{v.Path}, v.Args...)
	}
	if v.State.Paused {
		c.State = "paused"
	} else if v.State.Running {
		c.State = "running"
	}
	for _, m := range v.MountPoints {
		mode := "rw"
		if !m.RW {
			mode = "ro"
		}
		c.Mounts = append(c.Mounts, Mount{m.Source, m.Destination, m.Type, mode})
	}
	c.bound()
	return c, nil
}

// DockerHost adds what hostconfig.json of a container of docker says.
func (c *Container) DockerHost(data []byte) error {
	var v struct {
		Privileged                                                       bool
		CapAdd, CapDrop, Binds, MaskedPaths, ReadonlyPaths               []string
		NetworkMode, PidMode, IpcMode, UTSMode, UsernsMode, CgroupnsMode string
	}
	if err := decode(data, &v); err != nil {
		return fmt.Errorf("cannot read settings of docker: %w", err)
	}
	c.Privileged, c.Masked = v.Privileged, len(v.MaskedPaths)+len(v.ReadonlyPaths)
	for _, name := range v.CapAdd {
		c.Capabilities = append(c.Capabilities, "+"+name)
	}
	for _, name := range v.CapDrop {
		c.Capabilities = append(c.Capabilities, "-"+name)
	}
	for _, ns := range [][2]string{{"network", v.NetworkMode}, {"pid", v.PidMode}, {"ipc", v.IpcMode}, {"uts", v.UTSMode}, {"user", v.UsernsMode}, {"cgroup", v.CgroupnsMode}} {
		if ns[1] != "" {
			c.Namespaces = append(c.Namespaces, ns[0]+"="+ns[1])
		}
	}
	c.bound()
	return nil
}

// OCI reads config.json of a bundle, as containerd, CRI-O and podman leave it.
// Source: OCI runtime specification, config.md; annotations of containerd's
// CRI, CRI-O and podman.
func OCI(data []byte) (Container, error) {
	var v struct {
		Hostname string `json:"hostname"`
		Process  struct {
			Args []string `json:"args"`
			User struct {
				UID uint32 `json:"uid"`
				GID uint32 `json:"gid"`
			} `json:"user"`
			Capabilities struct {
				Effective []string `json:"effective"`
			} `json:"capabilities"`
		} `json:"process"`
		Root struct {
			Path string `json:"path"`
		} `json:"root"`
		Mounts []struct {
			Destination string   `json:"destination"`
			Type        string   `json:"type"`
			Source      string   `json:"source"`
			Options     []string `json:"options"`
		} `json:"mounts"`
		Annotations map[string]string `json:"annotations"`
		Linux       struct {
			Namespaces []struct {
				Type string `json:"type"`
				Path string `json:"path"`
			} `json:"namespaces"`
			MaskedPaths   []string `json:"maskedPaths"`
			ReadonlyPaths []string `json:"readonlyPaths"`
		} `json:"linux"`
	}
	if err := decode(data, &v); err != nil {
		return Container{}, fmt.Errorf("cannot read bundle: %w", err)
	}
	a := v.Annotations
	c := Container{Command: v.Process.Args, User: fmt.Sprintf("%d:%d", v.Process.User.UID, v.Process.User.GID), Hostname: v.Hostname, RootFS: v.Root.Path,
		Capabilities: v.Process.Capabilities.Effective, Masked: len(v.Linux.MaskedPaths) + len(v.Linux.ReadonlyPaths), Labels: a,
		Name:         first(a, "io.kubernetes.cri.container-name", "io.kubernetes.cri-o.ContainerName", "io.kubernetes.container.name", "io.container.manager.name"),
		Image:        first(a, "io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName", "io.podman.annotations.image"),
		Pod:          first(a, "io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name", "io.kubernetes.cri-o.KubeName"),
		PodNamespace: first(a, "io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace", "io.kubernetes.cri-o.Namespace")}
	for _, ns := range v.Linux.Namespaces {
		text := ns.Type
		if ns.Path != "" {
			text += "=" + ns.Path
		}
		c.Namespaces = append(c.Namespaces, text)
	}
	for _, m := range v.Mounts {
		c.Mounts = append(c.Mounts, Mount{m.Source, m.Destination, m.Type, strings.Join(m.Options, ",")})
	}
	c.bound()
	return c, nil
}

// Storage reads containers.json of the store that podman and CRI-O share.
func Storage(data []byte) ([]Container, error) {
	var all []struct {
		ID       string    `json:"id"`
		Names    []string  `json:"names"`
		Image    string    `json:"image"`
		Metadata string    `json:"metadata"`
		Created  time.Time `json:"created"`
	}
	if err := decode(data, &all); err != nil {
		return nil, fmt.Errorf("cannot read store of containers: %w", err)
	}
	var out []Container
	for _, v := range all {
		c := Container{ID: v.ID, ImageID: v.Image, Created: sane(v.Created)}
		if len(v.Names) > 0 {
			c.Name = v.Names[0]
		}
		var more struct {
			Image string `json:"image-name"`
			Name  string `json:"name"`
			Pod   string `json:"pod-name"`
		}
		if decode([]byte(v.Metadata), &more) == nil {
			c.Image, c.Pod = more.Image, more.Pod
			if more.Name != "" {
				c.Name = more.Name
			}
		}
		c.bound()
		out = append(out, c)
	}
	return out, nil
}

func decode(data []byte, v any) error {
	if len(data) > MaxBytes {
		return fmt.Errorf("it has more than %d bytes", MaxBytes)
	}
	return json.Unmarshal(data, v)
}

func first(from map[string]string, keys ...string) string {
	for _, key := range keys {
		if from[key] != "" {
			return from[key]
		}
	}
	return ""
}

// sane keeps a time within the years that JSON can tell.
func sane(t time.Time) time.Time {
	if t.Year() < 1970 || t.Year() > 9998 {
		return time.Time{}
	}
	return t.UTC()
}

// bound cuts every text and list.
func (c *Container) bound() {
	text := func(s *string) {
		if len(*s) > MaxText {
			*s, c.Cut = (*s)[:MaxText], true
		}
	}
	list := func(l *[]string) {
		if len(*l) > MaxList {
			*l, c.Cut = (*l)[:MaxList], true
		}
		for i := range *l {
			text(&(*l)[i])
		}
	}
	for _, s := range []*string{&c.ID, &c.Name, &c.Image, &c.ImageID, &c.User, &c.Hostname, &c.RootFS, &c.Pod, &c.PodNamespace} {
		text(s)
	}
	list(&c.Command)
	list(&c.Capabilities)
	list(&c.Namespaces)
	if len(c.Mounts) > MaxList {
		c.Mounts, c.Cut = c.Mounts[:MaxList], true
	}
	for i := range c.Mounts {
		for _, s := range []*string{&c.Mounts[i].Source, &c.Mounts[i].Target, &c.Mounts[i].Type, &c.Mounts[i].Options} {
			text(s)
		}
	}
	labels := map[string]string{}
	for key, value := range c.Labels {
		if len(labels) == MaxList {
			c.Cut = true
			break
		}
		text(&key)
		text(&value)
		labels[key] = value
	}
	c.Labels = labels
}

// prefixes of the scopes that runtimes put containers into, by runtime.
var prefixes = []struct{ prefix, runtime string }{
	{"docker-", "docker"}, {"cri-containerd-", "containerd"}, {"crio-", "cri-o"}, {"libpod-", "podman"}, {"nerdctl-", "containerd"},
}

// OfCgroup gives the container that a process's control group is of, and its
// runtime as far as the name tells it; "" is none.
func OfCgroup(path string) (id, runtime string) {
	parts := strings.Split(path, "/")
	for i := len(parts) - 1; i >= 0; i-- {
		name := strings.TrimSuffix(parts[i], ".scope")
		for _, p := range prefixes {
			if rest, ok := strings.CutPrefix(name, p.prefix); ok && isID(rest) {
				return rest, p.runtime
			}
		}
		if at := strings.LastIndexByte(name, ':'); at >= 0 { // POD.slice:cri-containerd:ID
			name = name[at+1:]
		}
		if isID(name) {
			if i > 0 && parts[i-1] == "docker" {
				return name, "docker"
			}
			return name, ""
		}
	}
	return "", ""
}

// isID tells the 64 hex digits that runtimes name containers with.
func isID(s string) bool { return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == "" }
