package emulator

import (
	"regexp"
	"slices"
	"strconv"
	"time"
)

// imageName is what EC2 takes. Source: EC2 API reference, CreateImage.
var imageName = regexp.MustCompile(`^[A-Za-z0-9()\[\] ./'@_-]{3,128}$`)

type image struct {
	id, name, description, instance, architecture string
	created                                       time.Time
	noReboot                                      bool
	snapshots                                     []*snapshot // one per volume, in the order of the devices
}

type snapshot struct {
	id, volume, image string
	created           time.Time
}

// ready says when what was made at a time is complete.
func (a *account) ready(created time.Time) bool {
	return !a.now().Before(created.Add(a.cfg.ImagePending))
}

func (a *account) imageState(i *image) string {
	if a.ready(i.created) {
		return "available"
	}
	return "pending"
}

func (a *account) snapshotState(s *snapshot) (state, progress string) {
	if a.ready(s.created) {
		return "completed", "100%"
	}
	passed := int(100 * a.now().Sub(s.created) / a.cfg.ImagePending)
	return "pending", strconv.Itoa(min(max(passed, 0), 99)) + "%"
}

func createImage(p *params) func(a *account) (any, *Error) {
	id, name, description := p.id("InstanceId", anInstance), p.required("Name"), p.text("Description")
	noReboot, _ := p.flag("NoReboot")
	tags := p.tagSpecifications("image", "snapshot")
	if !imageName.MatchString(name) {
		p.fail("InvalidAMIName.Malformed", "AMI names must be 3 to 128 characters of letters, digits, ( ) [ ] space . / - ' @ and _")
	}
	if len(description) > 255 {
		p.fail("InvalidParameterValue", "the description exceeds 255 characters")
	}
	return func(a *account) (any, *Error) {
		m := a.instance(id)
		switch {
		case m == nil:
			return nil, anInstance.missing(id)
		case m.State != "running" && m.State != "stopped":
			return nil, refuse("IncorrectState", "instance %s is %s, not running or stopped", id, m.State)
		}
		if other := find(a.images, func(i *image) bool { return i.name == name }); other != nil {
			a.act("CreateImage", id, "image", name, false)
			return nil, refuse("InvalidAMIName.Duplicate", "AMI name %s is already in use by AMI %s", name, other.id)
		}
		made := &image{id: anImage.newID(), name: name, description: description, instance: id, architecture: m.Architecture,
			created: a.now(), noReboot: noReboot}
		for _, v := range m.Volumes {
			s := &snapshot{id: aSnapshot.newID(), volume: v, image: made.id, created: made.created}
			made.snapshots, a.snapshots = append(made.snapshots, s), append(a.snapshots, s)
			_ = a.tag(s.id, tags["snapshot"]) // the reader has counted them
			a.hide(s.id)
		}
		a.images = append(a.images, made)
		_ = a.tag(made.id, tags["image"]) // as above
		a.hide(made.id)
		a.counters.made("image")
		a.act("CreateImage", id, "image", name, true)
		return &struct {
			meta
			ID string `xml:"imageId"`
		}{stamp(), made.id}, nil
	}
}

type imageItem struct {
	ID           string       `xml:"imageId"`
	State        string       `xml:"imageState"`
	Owner        string       `xml:"imageOwnerId"`
	Public       bool         `xml:"isPublic"`
	Architecture string       `xml:"architecture"`
	Type         string       `xml:"imageType"`
	Name         string       `xml:"name"`
	Description  string       `xml:"description,omitempty"`
	Instance     string       `xml:"sourceInstanceId"`
	Created      string       `xml:"creationDate"`
	RootType     string       `xml:"rootDeviceType"`
	RootDevice   string       `xml:"rootDeviceName"`
	Devices      []deviceItem `xml:"blockDeviceMapping>item"`
	Tags         []tagItem    `xml:"tagSet>item"`
}

func describeImages(p *params) func(a *account) (any, *Error) {
	ids, owners, at := p.ids("ImageId", anImage), p.list("Owner"), p.page()
	filters := p.filters("name", "image-id", "state", "owner-id", "source-instance-id")
	return func(a *account) (any, *Error) {
		found := map[string]bool{}
		for _, i := range a.images {
			asked := slices.Contains(ids, i.id) || len(ids) == 0 && matches(filters, a.imageAttributes(i), a.tags[i.id])
			found[i.id] = asked && a.owned(owners) && a.seen(i.id)
		}
		for _, id := range ids {
			if !found[id] {
				return nil, anImage.missing(id)
			}
		}
		var list []imageItem
		for _, i := range a.images {
			if found[i.id] && matches(filters, a.imageAttributes(i), a.tags[i.id]) {
				list = append(list, a.imageItem(i))
			}
		}
		out := struct {
			meta
			Images    []imageItem `xml:"imagesSet>item"`
			NextToken string      `xml:"nextToken,omitempty"`
		}{meta: stamp()}
		out.Images, out.NextToken = cut(list, at)
		return out, nil
	}
}

func (a *account) owned(owners []string) bool {
	return len(owners) == 0 || slices.Contains(owners, "self") || slices.Contains(owners, a.cfg.AccountID)
}

func (a *account) imageAttributes(i *image) map[string][]string {
	return map[string][]string{"name": {i.name}, "image-id": {i.id}, "state": {a.imageState(i)}, "owner-id": {a.cfg.AccountID},
		"source-instance-id": {i.instance}}
}

// imageItem shows the snapshots only once half of the time has passed, as EC2
// shows them later than the image.
func (a *account) imageItem(i *image) imageItem {
	out := imageItem{ID: i.id, State: a.imageState(i), Owner: a.cfg.AccountID, Architecture: i.architecture, Type: "machine", Name: i.name,
		Description: i.description, Instance: i.instance, Created: a.clock(i.created), RootType: "ebs", RootDevice: deviceName(0), Tags: a.tagItems(i.id)}
	if a.now().Before(i.created.Add(a.cfg.ImagePending / 2)) {
		return out
	}
	for n, s := range i.snapshots {
		out.Devices = append(out.Devices, deviceItem{deviceName(n), &ebsItem{Snapshot: s.id, Size: 8, Type: "gp3", Delete: true}})
	}
	return out
}

type snapshotItem struct {
	ID          string    `xml:"snapshotId"`
	Volume      string    `xml:"volumeId"`
	Status      string    `xml:"status"`
	Started     string    `xml:"startTime"`
	Progress    string    `xml:"progress"`
	Owner       string    `xml:"ownerId"`
	Size        int       `xml:"volumeSize"`
	Description string    `xml:"description"`
	Tags        []tagItem `xml:"tagSet>item"`
}

func describeSnapshots(p *params) func(a *account) (any, *Error) {
	ids, owners, at := p.ids("SnapshotId", aSnapshot), p.list("Owner"), p.page()
	filters := p.filters("snapshot-id", "status", "volume-id", "owner-id")
	return func(a *account) (any, *Error) {
		var list []snapshotItem
		shown := map[string]bool{}
		for _, s := range a.snapshots {
			state, progress := a.snapshotState(s)
			attributes := map[string][]string{"snapshot-id": {s.id}, "status": {state}, "volume-id": {s.volume}, "owner-id": {a.cfg.AccountID}}
			asked := len(ids) == 0 || slices.Contains(ids, s.id)
			passes := matches(filters, attributes, a.tags[s.id])
			if !asked || !a.owned(owners) || len(ids) == 0 && !passes || !a.seen(s.id) {
				continue
			}
			if shown[s.id] = true; passes {
				list = append(list, snapshotItem{s.id, s.volume, state, a.clock(s.created), progress, a.cfg.AccountID, 8,
					"Created by CreateImage for " + s.image, a.tagItems(s.id)})
			}
		}
		for _, id := range ids {
			if !shown[id] {
				return nil, aSnapshot.missing(id)
			}
		}
		out := struct {
			meta
			Snapshots []snapshotItem `xml:"snapshotSet>item"`
			NextToken string         `xml:"nextToken,omitempty"`
		}{meta: stamp()}
		out.Snapshots, out.NextToken = cut(list, at)
		return out, nil
	}
}
