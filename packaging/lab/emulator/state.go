package emulator

import (
	"maps"
	"slices"
)

// State is a copy of the whole account. What was just made is in it at once,
// also where the API does not show it yet.
type State struct {
	Instances  []InstanceState
	Interfaces []InterfaceState
	Groups     []GroupState
	Images     []ImageState
	Snapshots  []SnapshotState
	Queue      QueueState
	Calls      map[string]int // by service and action, as in "ec2.CreateImage"; also those that failed; imds.Credentials are requests for a role's
	Created    map[string]int // "image", "group"
}

// InstanceState is an instance and its protection.
type InstanceState struct {
	ID                   string
	TerminationProtected bool
	ShutdownBehavior     string // stop or terminate
	Tags                 map[string]string
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
	Ingress, Egress []Rule
	Tags            map[string]string
}

// Rule is one rule: one protocol, one range of ports and one target.
type Rule struct {
	Protocol         string
	FromPort, ToPort int    // -1: all
	Target           string // CIDR, prefix list or group
}

// ImageState is an AMI of the account.
type ImageState struct {
	ID, Name, State, Instance string
	NoReboot                  bool
	Snapshots                 []string
	Tags                      map[string]string
}

// SnapshotState is a snapshot of the account.
type SnapshotState struct {
	ID, Volume, State string
	Tags              map[string]string
}

// QueueState is what the rule's queue holds.
type QueueState struct {
	Visible     int
	InFlight    int      // delayed messages too
	DeadLetters []string // bodies
}

// State gives the account as it is now.
func (e *Emulator) State() State {
	a := e.account
	a.mu.Lock()
	defer a.mu.Unlock()
	var s State
	for _, m := range a.instances {
		s.Instances = append(s.Instances, InstanceState{m.ID, m.protected, m.shutdown, a.tagsOf(m.ID)})
	}
	for _, f := range a.interfaces {
		s.Interfaces = append(s.Interfaces, InterfaceState{f.ID, f.instance, f.vpc, slices.Clone(f.Groups), a.tagsOf(f.ID)})
	}
	for _, g := range a.groups {
		s.Groups = append(s.Groups, GroupState{g.id, g.name, g.vpc, rules(g.in), rules(g.out), a.tagsOf(g.id)})
	}
	for _, i := range a.images {
		var ids []string
		for _, s := range i.snapshots {
			ids = append(ids, s.id)
		}
		s.Images = append(s.Images, ImageState{i.id, i.name, a.imageState(i), i.instance, i.noReboot, ids, a.tagsOf(i.id)})
	}
	for _, one := range a.snapshots {
		state, _ := a.snapshotState(one)
		s.Snapshots = append(s.Snapshots, SnapshotState{one.id, one.volume, state, a.tagsOf(one.id)})
	}
	visible, inFlight, delayed := e.queues.main.count()
	s.Queue = QueueState{visible, inFlight + delayed, e.queues.dead.bodies()}
	s.Calls, s.Created = e.counters.snapshot()
	return s
}

func (a *account) tagsOf(id string) map[string]string { return maps.Clone(a.tags[id]) }

func rules(all []permission) []Rule {
	var out []Rule
	for _, r := range all {
		out = append(out, Rule{r.protocol, r.from, r.to, r.target})
	}
	return out
}
