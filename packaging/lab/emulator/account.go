package emulator

import (
	"maps"
	"slices"
	"time"
)

// account is the state of EC2. The groups of an instance are those of its
// interfaces: there is one truth. The emulator's mutex guards it.
type account struct {
	cfg       Config
	instances []*instance
	groups    []*group
	images    []*image
	snapshots []*snapshot
	missed    map[string]int // how often a describe still misses a new id
}

type instance struct {
	Instance
	launched   time.Time
	protected  bool
	shutdown   string
	interfaces []*face
	tags       map[string]string
}

type face struct {
	Interface
	instance *instance
	tags     map[string]string
}

type group struct {
	id, name, description, vpc string
	ingress, egress            []rule
	tags                       map[string]string
}

// rule is one protocol and one range of addresses.
type rule struct{ protocol, cidr, cidr6, from, to string }

type image struct {
	id, name, description, instance string
	made                            time.Time
	noReboot                        bool
	snapshots                       []*snapshot
	tags                            map[string]string
}

type snapshot struct {
	id, volume string
	made       time.Time
	tags       map[string]string
}

func newAccount(cfg Config) *account {
	c := &account{cfg: cfg, missed: map[string]int{}}
	for _, spec := range cfg.Instances {
		i := &instance{Instance: spec, launched: time.Now().Add(-time.Hour), shutdown: "terminate", tags: map[string]string{"Name": "victim"}}
		for _, f := range spec.Interfaces {
			i.interfaces = append(i.interfaces, &face{Interface: f, instance: i, tags: map[string]string{}})
			for _, id := range f.Groups {
				c.ensureGroup(id, spec.VPC)
			}
		}
		c.instances = append(c.instances, i)
	}
	return c
}

// ensureGroup makes a group that an instance was launched with: a web
// server's, with its rules.
func (c *account) ensureGroup(id, vpc string) {
	if c.group(id) == nil {
		c.groups = append(c.groups, &group{id: id, name: "launched-" + id, description: "as launched", vpc: vpc, tags: map[string]string{},
			ingress: []rule{{protocol: "tcp", cidr: "0.0.0.0/0", from: "443", to: "443"}},
			egress:  []rule{{protocol: "-1", cidr: "0.0.0.0/0"}}})
	}
}

func find[T any](list []*T, is func(*T) bool) *T {
	if i := slices.IndexFunc(list, is); i >= 0 {
		return list[i]
	}
	return nil
}

func (c *account) instance(id string) *instance {
	return find(c.instances, func(i *instance) bool { return i.ID == id })
}

func (c *account) group(id string) *group {
	return find(c.groups, func(g *group) bool { return g.id == id })
}

func (c *account) image(id string) *image {
	return find(c.images, func(i *image) bool { return i.id == id })
}

func (c *account) face(id string) *face {
	return find(c.faces(), func(f *face) bool { return f.ID == id })
}

func (c *account) faces() []*face {
	var out []*face
	for _, i := range c.instances {
		out = append(out, i.interfaces...)
	}
	return out
}

// tagsOf gives the tags of any resource, nil where there is none.
func (c *account) tagsOf(id string) map[string]string {
	if i := c.instance(id); i != nil {
		return i.tags
	}
	if f := c.face(id); f != nil {
		return f.tags
	}
	if g := c.group(id); g != nil {
		return g.tags
	}
	if i := c.image(id); i != nil {
		return i.tags
	}
	if s := find(c.snapshots, func(s *snapshot) bool { return s.id == id }); s != nil {
		return s.tags
	}
	return nil
}

// hidden counts a describe that misses a new id, as EC2 is eventually
// consistent.
func (c *account) hidden(id string) bool {
	if c.missed[id] <= 0 {
		return false
	}
	c.missed[id]--
	return true
}

// groupsOf gives the groups of all interfaces of an instance.
func (i *instance) groupsOf() []string {
	var out []string
	for _, f := range i.interfaces {
		for _, g := range f.Groups {
			if !slices.Contains(out, g) {
				out = append(out, g)
			}
		}
	}
	return out
}

func (c *account) imageState(i *image) string {
	if time.Since(i.made) < c.cfg.ImagePending {
		return "pending"
	}
	return "available"
}

func (c *account) snapshotState(s *snapshot) string {
	if time.Since(s.made) < c.cfg.ImagePending {
		return "pending"
	}
	return "completed"
}

// State is a copy of what there is, for tests and for people.
type State struct {
	Instances   []InstanceState
	Interfaces  []InterfaceState
	Groups      []GroupState
	Images      []ImageState
	Snapshots   []SnapshotState
	Waiting     int      // messages in the queue, those in flight included
	DeadLetters []string // bodies
	Calls       map[string]int
	Created     map[string]int // image, group
}

// InstanceState is an instance.
type InstanceState struct {
	ID                   string
	TerminationProtected bool
	ShutdownBehavior     string
	Groups               []string
}

// InterfaceState is a network interface.
type InterfaceState struct {
	ID, Instance, VPC string
	Groups            []string
	Tags              map[string]string
}

// GroupState is a security group.
type GroupState struct {
	ID, Name, VPC   string
	Ingress, Egress int // rules
}

// ImageState is an AMI.
type ImageState struct {
	ID, Name, State, Instance string
	NoReboot                  bool
	Snapshots                 []string
	Tags                      map[string]string
}

// SnapshotState is a snapshot.
type SnapshotState struct {
	ID, Volume, State string
	Tags              map[string]string
}

// State gives a copy of what there is.
func (e *Emulator) State() State {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := State{Calls: maps.Clone(e.calls), Created: maps.Clone(e.made), Waiting: len(e.queue.messages)}
	for _, m := range e.queue.dead {
		s.DeadLetters = append(s.DeadLetters, m.body)
	}
	for _, i := range e.cloud.instances {
		s.Instances = append(s.Instances, InstanceState{i.ID, i.protected, i.shutdown, i.groupsOf()})
	}
	for _, f := range e.cloud.faces() {
		s.Interfaces = append(s.Interfaces, InterfaceState{f.ID, f.instance.ID, f.instance.VPC, slices.Clone(f.Groups), maps.Clone(f.tags)})
	}
	for _, g := range e.cloud.groups {
		s.Groups = append(s.Groups, GroupState{g.id, g.name, g.vpc, len(g.ingress), len(g.egress)})
	}
	for _, i := range e.cloud.images {
		one := ImageState{i.id, i.name, e.cloud.imageState(i), i.instance, i.noReboot, nil, maps.Clone(i.tags)}
		for _, snap := range i.snapshots {
			one.Snapshots = append(one.Snapshots, snap.id)
		}
		s.Images = append(s.Images, one)
	}
	for _, snap := range e.cloud.snapshots {
		s.Snapshots = append(s.Snapshots, SnapshotState{snap.id, snap.volume, e.cloud.snapshotState(snap), maps.Clone(snap.tags)})
	}
	return s
}
