package emulator

import (
	"regexp"
	"slices"
	"time"
)

// imageName is what EC2 takes. Source: Amazon EC2 API Reference, CreateImage.
var imageName = regexp.MustCompile(`^[A-Za-z0-9()\[\] ./\-'@_]{3,128}$`)

func (c *call) createImage() (deed, *fault) {
	id, name, description := c.text("InstanceId"), c.text("Name"), c.text("Description")
	noReboot := c.boolean("NoReboot")
	imageTags, bad := c.tagsFor("image")
	if bad != nil {
		return nil, bad
	}
	snapshotTags, bad := c.tagsFor("snapshot")
	if bad == nil {
		bad = checkIDs("InstanceID", "i", id)
	}
	if bad == nil && !imageName.MatchString(name) {
		bad = refusal("InvalidAMIName.Malformed", "AMI names must be between 3 and 128 characters long, and may contain letters, numbers, and ()[] ./-'@_")
	}
	if bad == nil && len(description) > 255 {
		bad = refusal("InvalidParameterValue", "Description is too long")
	}
	if bad != nil {
		return nil, bad
	}
	return func() (any, *fault) {
		i := c.cloud.instance(id)
		if i == nil {
			return nil, refusal("InvalidInstanceID.NotFound", "The instance ID '%s' does not exist", id)
		}
		if old := find(c.cloud.images, func(x *image) bool { return x.name == name }); old != nil {
			return nil, refusal("InvalidAMIName.Duplicate", "AMI name %s is already in use by AMI %s", name, old.id)
		}
		x := &image{id: newID("ami-"), name: name, description: description, instance: id, made: time.Now(), noReboot: noReboot, tags: imageTags}
		for _, volume := range i.Volumes {
			tags := map[string]string{}
			for k, v := range snapshotTags {
				tags[k] = v
			}
			s := &snapshot{id: newID("snap-"), volume: volume, made: time.Now(), tags: tags}
			x.snapshots = append(x.snapshots, s)
			c.cloud.snapshots = append(c.cloud.snapshots, s)
		}
		c.cloud.images = append(c.cloud.images, x)
		c.cloud.missed[x.id] = c.cfg.MissReads
		c.made["image"]++
		return struct {
			ID string `xml:"imageId"`
		}{x.id}, nil
	}, nil
}

func (c *call) describeImages() (deed, *fault) {
	ids, owners := c.list("ImageId"), c.list("Owner")
	filters, bad := c.filters("name", "state", "tag:")
	if bad == nil {
		bad = checkIDs("AMIID", "ami", ids...)
	}
	if bad == nil && len(ids) == 0 && !slices.Equal(owners, []string{"self"}) {
		bad = refusal("InvalidParameterValue", "The lab describes images by id, or with owner self")
	}
	if bad != nil {
		return nil, bad
	}
	type imageXML struct {
		ID       string      `xml:"imageId"`
		Name     string      `xml:"name"`
		State    string      `xml:"imageState"`
		Owner    string      `xml:"imageOwnerId"`
		Created  string      `xml:"creationDate"`
		Instance string      `xml:"sourceInstanceId"`
		Devices  []deviceXML `xml:"blockDeviceMapping>item"`
		Tags     []tagXML    `xml:"tagSet>item"`
	}
	return func() (any, *fault) {
		var out struct {
			Images []imageXML `xml:"imagesSet>item"`
		}
		for _, id := range ids {
			if c.cloud.image(id) == nil || c.cloud.hidden(id) {
				return nil, refusal("InvalidAMIID.NotFound", "The image id '[%s]' does not exist", id)
			}
		}
		for _, i := range c.cloud.images {
			state := c.cloud.imageState(i)
			ok := len(ids) == 0 || slices.Contains(ids, i.id)
			for _, f := range filters {
				value := map[string]string{"name": i.name, "state": state}[f.name]
				if tag, is := trimTag(f.name); is {
					value = i.tags[tag]
				}
				ok = ok && slices.Contains(f.values, value)
			}
			if !ok || len(ids) == 0 && c.cloud.hidden(i.id) {
				continue
			}
			x := imageXML{ID: i.id, Name: i.name, State: state, Owner: c.cfg.AccountID, Created: instant(i.made), Instance: i.instance, Tags: tagList(i.tags)}
			for n, s := range i.snapshots {
				d := deviceXML{Name: "/dev/xvd" + string(rune('a'+n))}
				d.EBS.Snapshot = s.id
				x.Devices = append(x.Devices, d)
			}
			out.Images = append(out.Images, x)
		}
		return out, nil
	}, nil
}

func (c *call) describeSnapshots() (deed, *fault) {
	ids := c.list("SnapshotId")
	if bad := checkIDs("Snapshot", "snap", ids...); bad != nil {
		return nil, bad
	}
	if len(ids) == 0 {
		return nil, refusal("MissingParameter", "The lab describes snapshots by id alone")
	}
	type snapshotXML struct {
		ID      string   `xml:"snapshotId"`
		Volume  string   `xml:"volumeId"`
		Status  string   `xml:"status"`
		Started string   `xml:"startTime"`
		Owner   string   `xml:"ownerId"`
		Tags    []tagXML `xml:"tagSet>item"`
	}
	return func() (any, *fault) {
		var out struct {
			Snapshots []snapshotXML `xml:"snapshotSet>item"`
		}
		for _, id := range ids {
			s := find(c.cloud.snapshots, func(s *snapshot) bool { return s.id == id })
			if s == nil {
				return nil, refusal("InvalidSnapshot.NotFound", "The snapshot '%s' does not exist.", id)
			}
			out.Snapshots = append(out.Snapshots, snapshotXML{s.id, s.volume, c.cloud.snapshotState(s), instant(s.made), c.cfg.AccountID, tagList(s.tags)})
		}
		return out, nil
	}, nil
}
