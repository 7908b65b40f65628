package emulator

import (
	"fmt"
	"slices"
	"strings"
)

const stamps = "2006-01-02T15:04:05.000Z" // of EC2, in UTC

// maxFaceGroups is how many groups an interface can have, where the quota was
// raised as far as AWS raises it.
const maxFaceGroups = 16

type (
	instanceItem struct {
		ID           string        `xml:"instanceId"`
		ImageID      string        `xml:"imageId"`
		StateCode    int           `xml:"instanceState>code"`
		StateName    string        `xml:"instanceState>name"`
		Type         string        `xml:"instanceType"`
		LaunchTime   string        `xml:"launchTime"`
		AZ           string        `xml:"placement>availabilityZone"`
		PrivateIP    string        `xml:"privateIpAddress,omitempty"`
		Subnet       string        `xml:"subnetId"`
		VPC          string        `xml:"vpcId"`
		Architecture string        `xml:"architecture"`
		RootType     string        `xml:"rootDeviceType"`
		RootDevice   string        `xml:"rootDeviceName"`
		Devices      []deviceItem  `xml:"blockDeviceMapping>item"`
		Platform     string        `xml:"platformDetails"`
		Groups       []groupItem   `xml:"groupSet>item"`
		Interfaces   []*facingItem `xml:"networkInterfaceSet>item"`
		Tags         []tagItem     `xml:"tagSet>item"`
	}
	deviceItem struct {
		Name string   `xml:"deviceName"`
		EBS  *ebsItem `xml:"ebs"`
	}
	ebsItem struct {
		Volume   string `xml:"volumeId,omitempty"`
		Snapshot string `xml:"snapshotId,omitempty"`
		Status   string `xml:"status,omitempty"`
		Size     int    `xml:"volumeSize,omitempty"`
		Type     string `xml:"volumeType,omitempty"`
		Delete   bool   `xml:"deleteOnTermination"`
	}
	facingItem struct {
		ID              string      `xml:"networkInterfaceId"`
		Subnet          string      `xml:"subnetId"`
		VPC             string      `xml:"vpcId"`
		AZ              string      `xml:"availabilityZone"`
		Description     string      `xml:"description"`
		Owner           string      `xml:"ownerId"`
		Status          string      `xml:"status"`
		PrivateIP       string      `xml:"privateIpAddress,omitempty"`
		SourceDestCheck bool        `xml:"sourceDestCheck"`
		Groups          []groupItem `xml:"groupSet>item"`
		Attachment      attachItem  `xml:"attachment"`
		Tags            []tagItem   `xml:"tagSet>item"`
	}
	attachItem struct {
		ID       string `xml:"attachmentId"`
		Instance string `xml:"instanceId"`
		Owner    string `xml:"instanceOwnerId"`
		Index    int    `xml:"deviceIndex"`
		Status   string `xml:"status"`
	}
	reservationItem struct {
		ID        string         `xml:"reservationId"`
		Owner     string         `xml:"ownerId"`
		Instances []instanceItem `xml:"instancesSet>item"`
	}
)

// stateCodes are the codes of instance states. Source: EC2 API reference,
// InstanceState.
var stateCodes = map[string]int{"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}

func describeInstances(p *params) func(a *account) (any, *Error) {
	ids, at := p.ids("InstanceId", anInstance), p.page()
	filters := p.filters("instance-id", "vpc-id", "subnet-id", "instance-state-name", "private-ip-address", "image-id", "instance.group-id")
	if len(ids) > 0 && p.has("MaxResults") {
		p.fail("InvalidParameterCombination", "the parameter instancesSet cannot be used with the parameter maxResults")
	}
	return func(a *account) (any, *Error) {
		for _, id := range ids {
			if a.instance(id) == nil {
				return nil, anInstance.missing(id)
			}
		}
		var found []reservationItem
		for _, m := range a.instances {
			if len(ids) > 0 && !slices.Contains(ids, m.ID) || !matches(filters, a.instanceAttributes(m), a.tags[m.ID]) {
				continue
			}
			found = append(found, reservationItem{"r-" + strings.TrimPrefix(m.ID, anInstance.prefix), a.cfg.AccountID, []instanceItem{a.instanceItem(m)}})
		}
		out := struct {
			meta
			Reservations []reservationItem `xml:"reservationSet>item"`
			NextToken    string            `xml:"nextToken,omitempty"`
		}{meta: stamp()}
		out.Reservations, out.NextToken = cut(found, at)
		return out, nil
	}
}

func (a *account) instanceAttributes(m *machine) map[string][]string {
	var groups []string
	for _, f := range a.facesOf(m.ID) {
		groups = append(groups, f.Groups...)
	}
	return map[string][]string{"instance-id": {m.ID}, "vpc-id": {m.VPC}, "subnet-id": {m.Subnet}, "instance-state-name": {m.State},
		"private-ip-address": {m.PrivateIP}, "image-id": {m.ImageID}, "instance.group-id": groups}
}

// The instance's groups are those of its first interface: one state.
func (a *account) instanceItem(m *machine) instanceItem {
	faces := a.facesOf(m.ID)
	out := instanceItem{ID: m.ID, ImageID: m.ImageID, StateCode: stateCodes[m.State], StateName: m.State, Type: m.Type,
		LaunchTime: m.LaunchTime.UTC().Format(stamps), AZ: m.AZ, PrivateIP: m.PrivateIP, Subnet: m.Subnet, VPC: m.VPC,
		Architecture: m.Architecture, RootType: "ebs", RootDevice: deviceName(0), Platform: "Linux/UNIX",
		Groups: a.groupItems(faces[0].Groups), Tags: a.tagItems(m.ID)}
	for n, v := range m.Volumes {
		out.Devices = append(out.Devices, deviceItem{deviceName(n), &ebsItem{Volume: v, Status: "attached", Delete: n == 0}})
	}
	for _, f := range faces {
		out.Interfaces = append(out.Interfaces, a.facingItem(f))
	}
	return out
}

func deviceName(n int) string {
	if n == 0 {
		return "/dev/xvda"
	}
	return fmt.Sprintf("/dev/sd%c", 'a'+n%26)
}

func (a *account) facingItem(f *face) *facingItem {
	return &facingItem{ID: f.ID, Subnet: f.Subnet, VPC: f.vpc, AZ: f.az, Description: f.description, Owner: a.cfg.AccountID, Status: "in-use",
		PrivateIP: f.PrivateIP, SourceDestCheck: f.sourceDestCheck, Groups: a.groupItems(f.Groups), Tags: a.tagItems(f.ID),
		Attachment: attachItem{"eni-attach-" + strings.TrimPrefix(f.ID, anInterface.prefix), f.instance, a.cfg.AccountID, f.index, "attached"}}
}

type attributeAnswer struct {
	meta
	ID          string      `xml:"instanceId"`
	Termination *attribute  `xml:"disableApiTermination"`
	Shutdown    *attribute  `xml:"instanceInitiatedShutdownBehavior"`
	Type        *attribute  `xml:"instanceType"`
	Groups      []groupItem `xml:"groupSet>item"`
}

func describeInstanceAttribute(p *params) func(a *account) (any, *Error) {
	id, name := p.id("InstanceId", anInstance), p.required("Attribute")
	if !slices.Contains([]string{"disableApiTermination", "instanceInitiatedShutdownBehavior", "instanceType", "groupSet"}, name) {
		p.fail("InvalidParameterValue", "value (%.100q) for parameter attribute is invalid: unknown attribute", name)
	}
	return func(a *account) (any, *Error) {
		m := a.instance(id)
		if m == nil {
			return nil, anInstance.missing(id)
		}
		out := &attributeAnswer{meta: stamp(), ID: id}
		switch name {
		case "disableApiTermination":
			out.Termination = &attribute{fmt.Sprint(m.protected)}
		case "instanceInitiatedShutdownBehavior":
			out.Shutdown = &attribute{m.shutdown}
		case "instanceType":
			out.Type = &attribute{m.Type}
		case "groupSet":
			out.Groups = a.groupItems(a.facesOf(id)[0].Groups)
		}
		return out, nil
	}
}

// modifyInstanceAttribute changes one attribute; EC2 refuses several at once.
func modifyInstanceAttribute(p *params) func(a *account) (any, *Error) {
	id := p.id("InstanceId", anInstance)
	protect, hasProtect := p.flag("DisableApiTermination.Value")
	shutdown := p.text("InstanceInitiatedShutdownBehavior.Value")
	groups := p.ids("GroupId", aGroup)
	switch {
	case count(hasProtect, shutdown != "", len(groups) > 0) > 1:
		p.fail("InvalidParameterCombination", "fields for multiple attribute types specified")
	case count(hasProtect, shutdown != "", len(groups) > 0) == 0:
		p.fail("MissingParameter", "no attributes specified")
	case shutdown != "" && shutdown != "stop" && shutdown != "terminate":
		p.fail("InvalidParameterValue", "value (%.100q) for parameter instanceInitiatedShutdownBehavior is invalid", shutdown)
	}
	return func(a *account) (any, *Error) {
		m := a.instance(id)
		if m == nil {
			return nil, anInstance.missing(id)
		}
		if m.State == "terminated" {
			return nil, refuse("IncorrectInstanceState", "the instance '%s' is not in a state in which it can be changed", id)
		}
		faces := a.facesOf(id)
		switch {
		case hasProtect:
			a.act("ModifyInstanceAttribute", id, "disableApiTermination", protect, m.protected != protect)
			m.protected = protect
		case shutdown != "":
			a.act("ModifyInstanceAttribute", id, "instanceInitiatedShutdownBehavior", shutdown, m.shutdown != shutdown)
			m.shutdown = shutdown
		case len(faces) > 1:
			return nil, refuse("InvalidInstanceID", "there are multiple interfaces attached to instance '%s'; specify an interface ID for the operation instead", id)
		default:
			if err := a.regroup("ModifyInstanceAttribute", faces[0], groups); err != nil {
				return nil, err
			}
		}
		return wasDone(), nil
	}
}

func count(conditions ...bool) (n int) {
	for _, c := range conditions {
		if c {
			n++
		}
	}
	return n
}
