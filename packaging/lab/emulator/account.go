package emulator

import (
	"cmp"
	"crypto/rand"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

const maxTags = 50 // of one resource

var accountID = regexp.MustCompile(`^\d{12}$`)

// resource is a kind of thing with ids, and EC2's codes for wrong ones.
// Source: EC2 API reference, "Error codes for the Amazon EC2 API".
type resource struct{ prefix, malformed, notFound string }

var (
	anInstance  = resource{"i-", "InvalidInstanceID.Malformed", "InvalidInstanceID.NotFound"}
	anInterface = resource{"eni-", "InvalidNetworkInterfaceId.Malformed", "InvalidNetworkInterfaceID.NotFound"}
	aGroup      = resource{"sg-", "InvalidGroupId.Malformed", "InvalidGroup.NotFound"}
	anImage     = resource{"ami-", "InvalidAMIID.Malformed", "InvalidAMIID.NotFound"}
	aSnapshot   = resource{"snap-", "InvalidSnapshotID.Malformed", "InvalidSnapshot.NotFound"}
	aVolume     = resource{"vol-", "InvalidVolumeID.Malformed", "InvalidVolume.NotFound"}
	aVPC        = resource{"vpc-", "InvalidVpcID.Malformed", "InvalidVpcID.NotFound"}
	aSubnet     = resource{"subnet-", "InvalidSubnetID.Malformed", "InvalidSubnetID.NotFound"}
)

var hexadecimal = regexp.MustCompile(`^([0-9a-f]{8}|[0-9a-f]{17})$`)

func (r resource) wellFormed(id string) bool {
	digits, ok := strings.CutPrefix(id, r.prefix)
	return ok && hexadecimal.MatchString(digits)
}

func (r resource) missing(id string) *Error {
	return refuse(r.notFound, "the id '%.100s' does not exist", id)
}

// newID gives an id with 17 random hexadecimal digits.
func (r resource) newID() string {
	var b [9]byte
	_, _ = rand.Read(b[:]) // never fails, says crypto/rand
	return r.prefix + fmt.Sprintf("%x", b)[:17]
}

// newUUID gives a random UUID. Source: RFC 9562, section 5.4.
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, says crypto/rand
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// account is everything that EC2 knows.
type account struct {
	cfg      *Config
	counters *counters
	now      func() time.Time

	mu         sync.Mutex
	instances  []*machine // under mu, and all below it
	interfaces []*face
	groups     []*group
	images     []*image
	snapshots  []*snapshot
	volumes    map[string]string            // instance by volume
	tags       map[string]map[string]string // by resource id
	unseen     map[string]int               // by id: how many calls still miss it
	acts       []Act                        // in their order; maxActs and those of one call at most
}

type machine struct {
	Instance
	protected bool   // termination protection
	shutdown  string // stop or terminate
}

type face struct {
	Interface
	instance, vpc, az string
	index             int
	description       string
	sourceDestCheck   bool
}

func newAccount(cfg *Config, counters *counters) (*account, error) {
	a := &account{cfg: cfg, counters: counters, now: time.Now,
		volumes: map[string]string{}, tags: map[string]map[string]string{}, unseen: map[string]int{}}
	for _, i := range cfg.Instances {
		if err := a.launch(i); err != nil {
			return nil, fmt.Errorf("cannot place instance %q: %w", i.ID, err)
		}
	}
	return a, nil
}

// launch puts an instance of the configuration into the account.
func (a *account) launch(i Instance) error {
	i.Type, i.Architecture, i.State = cmp.Or(i.Type, "m5.large"), cmp.Or(i.Architecture, "x86_64"), cmp.Or(i.State, "running")
	if i.LaunchTime.IsZero() {
		i.LaunchTime = a.now().Add(-time.Hour)
	}
	if len(i.Interfaces) == 0 {
		i.Interfaces = []Interface{{ID: anInterface.newID(), PrivateIP: i.PrivateIP}}
	}
	if err := checkIDs(i); err != nil {
		return err
	}
	if a.instance(i.ID) != nil {
		return fmt.Errorf("it is there twice")
	}
	i.Volumes, i.Interfaces = slices.Clone(i.Volumes), slices.Clone(i.Interfaces)
	for n, f := range i.Interfaces {
		f.Subnet = cmp.Or(f.Subnet, i.Subnet)
		if err := a.attach(i, n, f); err != nil {
			return err
		}
	}
	for _, v := range i.Volumes {
		if a.volumes[v] != "" {
			return fmt.Errorf("volume %s is attached twice", v)
		}
		a.volumes[v] = i.ID
	}
	a.instances = append(a.instances, &machine{Instance: i, shutdown: "terminate"})
	for key, value := range i.Tags {
		if err := checkTag(key, value); err != nil {
			return err
		}
	}
	return a.tag(i.ID, i.Tags)
}

func (a *account) attach(i Instance, index int, f Interface) error {
	if a.face(f.ID) != nil {
		return fmt.Errorf("interface %s is attached twice", f.ID)
	}
	f.Groups = slices.Clone(f.Groups)
	if len(f.Groups) == 0 {
		f.Groups = []string{a.defaultGroup(i.VPC)}
	}
	for _, id := range f.Groups {
		if g := a.group(id); g == nil {
			a.groups = append(a.groups, &group{id: id, name: "lab-" + id, description: "of the lab", vpc: i.VPC, out: []permission{everywhere}})
		} else if g.vpc != i.VPC {
			return fmt.Errorf("group %s is in %s and %s", id, g.vpc, i.VPC)
		}
	}
	a.interfaces = append(a.interfaces, &face{Interface: f, instance: i.ID, vpc: i.VPC, az: i.AZ, index: index, sourceDestCheck: true})
	return nil
}

func (a *account) defaultGroup(vpc string) string {
	for _, g := range a.groups {
		if g.vpc == vpc && g.name == "default" {
			return g.id
		}
	}
	g := &group{id: aGroup.newID(), name: "default", description: "default VPC security group", vpc: vpc, out: []permission{everywhere}}
	g.in = []permission{{protocol: "-1", from: -1, to: -1, kind: fromGroup, target: g.id}}
	a.groups = append(a.groups, g)
	return g.id
}

func checkIDs(i Instance) error {
	type named struct {
		kind resource
		id   string
	}
	all := []named{{anInstance, i.ID}, {aVPC, i.VPC}, {aSubnet, i.Subnet}, {anImage, i.ImageID}}
	for _, v := range i.Volumes {
		all = append(all, named{aVolume, v})
	}
	for _, f := range i.Interfaces {
		all = append(all, named{anInterface, f.ID}, named{aSubnet, cmp.Or(f.Subnet, i.Subnet)})
		for _, g := range f.Groups {
			all = append(all, named{aGroup, g})
		}
	}
	for _, n := range all {
		if !n.kind.wellFormed(n.id) {
			return fmt.Errorf("%q is not %s and 8 or 17 hexadecimal digits", n.id, n.kind.prefix)
		}
	}
	return nil
}

func (a *account) instance(id string) *machine {
	return find(a.instances, func(m *machine) bool { return m.ID == id })
}
func (a *account) face(id string) *face {
	return find(a.interfaces, func(f *face) bool { return f.ID == id })
}
func (a *account) group(id string) *group {
	return find(a.groups, func(g *group) bool { return g.id == id })
}
func (a *account) image(id string) *image {
	return find(a.images, func(i *image) bool { return i.id == id })
}
func (a *account) snapshot(id string) *snapshot {
	return find(a.snapshots, func(s *snapshot) bool { return s.id == id })
}

func find[T any](all []*T, is func(*T) bool) *T {
	if at := slices.IndexFunc(all, is); at >= 0 {
		return all[at]
	}
	return nil
}

// facesOf gives the interfaces of an instance in the order of their index.
func (a *account) facesOf(instance string) []*face {
	var out []*face
	for _, f := range a.interfaces {
		if f.instance == instance {
			out = append(out, f)
		}
	}
	return out
}

func (a *account) hasVPC(id string) bool {
	return slices.ContainsFunc(a.instances, func(m *machine) bool { return m.VPC == id })
}

// hide makes a new id one that the next calls miss.
func (a *account) hide(id string) {
	if a.cfg.MissReads > 0 {
		a.unseen[id] = a.cfg.MissReads
	}
}

// seen says whether a call sees an id; each call that does not brings it
// nearer.
func (a *account) seen(id string) bool {
	if a.unseen[id] == 0 {
		return true
	}
	if a.unseen[id]--; a.unseen[id] == 0 {
		delete(a.unseen, id)
	}
	return false
}

// tag sets tags and refuses what would be too many.
func (a *account) tag(id string, tags map[string]string) error {
	merged := maps.Clone(a.tags[id])
	if merged == nil {
		merged = map[string]string{}
	}
	maps.Copy(merged, tags)
	if len(merged) > maxTags {
		return refuse("TagLimitExceeded", "resource %s would have %d tags, more than %d", id, len(merged), maxTags)
	}
	a.tags[id] = merged
	return nil
}
