package emulator

import (
	"encoding/xml"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// apiVersion is the only version of the EC2 API that is spoken.
const apiVersion = "2016-11-15"

// deed is what an action will do, once its parameters are read and found
// right. It runs under the emulator's mutex.
type deed func() (any, *fault)

// actions are EC2's, by name. Each reads its parameters and gives its deed.
var ec2Actions = map[string]func(*call) (deed, *fault){
	"DescribeInstances":               (*call).describeInstances,
	"DescribeInstanceAttribute":       (*call).describeInstanceAttribute,
	"ModifyInstanceAttribute":         (*call).modifyInstanceAttribute,
	"DescribeNetworkInterfaces":       (*call).describeNetworkInterfaces,
	"ModifyNetworkInterfaceAttribute": (*call).modifyNetworkInterfaceAttribute,
	"DescribeSecurityGroups":          (*call).describeSecurityGroups,
	"CreateSecurityGroup":             (*call).createSecurityGroup,
	"RevokeSecurityGroupEgress":       func(c *call) (deed, *fault) { return c.revoke(false) },
	"RevokeSecurityGroupIngress":      func(c *call) (deed, *fault) { return c.revoke(true) },
	"CreateImage":                     (*call).createImage,
	"DescribeImages":                  (*call).describeImages,
	"DescribeSnapshots":               (*call).describeSnapshots,
	"CreateTags":                      (*call).createTags,
}

// serveEC2 speaks EC2's query protocol.
func (c *call) serveEC2() {
	action, ok := ec2Actions[c.action]
	if !ok || c.params.Get("Version") != apiVersion {
		c.fail(http.StatusBadRequest, "InvalidAction", "The action "+c.action+" is not valid for this web service.")
		return
	}
	dry := c.boolean("DryRun")
	do, bad := action(c)
	if bad == nil {
		if left := c.unread(); len(left) > 0 {
			bad = refusal("UnknownParameter", "The parameter %s is not recognized", strings.Join(left, ", "))
		}
	}
	if bad == nil && dry {
		c.fail(http.StatusPreconditionFailed, "DryRunOperation", "Request would have succeeded, but DryRun flag is set.")
		return
	}
	if bad == nil {
		c.mu.Lock()
		var result any
		result, bad = do()
		c.mu.Unlock()
		if bad == nil {
			c.answer(c.action+"Response", result)
			return
		}
	}
	c.fail(http.StatusBadRequest, bad.code, bad.message)
}

// checkIDs holds ids against their shape; name is as in InvalidNAME.Malformed.
func checkIDs(name, prefix string, ids ...string) *fault {
	shape := regexp.MustCompile(`^` + prefix + `-([0-9a-f]{8}|[0-9a-f]{17})$`)
	for _, id := range ids {
		if !shape.MatchString(id) {
			return refusal("Invalid"+name+".Malformed", "Invalid id: %q", id)
		}
	}
	return nil
}

// The XML of answers. Source: Amazon EC2 API Reference.
type (
	returned struct {
		Return bool `xml:"return"`
	}
	tagXML   struct{ Key, Value string }
	groupXML struct {
		ID   string `xml:"groupId"`
		Name string `xml:"groupName"`
	}
	attachmentXML struct {
		ID       string `xml:"attachmentId"`
		Instance string `xml:"instanceId,omitempty"`
		Index    int    `xml:"deviceIndex"`
		Status   string `xml:"status"`
	}
	interfaceXML struct {
		ID         string        `xml:"networkInterfaceId"`
		Subnet     string        `xml:"subnetId"`
		VPC        string        `xml:"vpcId"`
		Owner      string        `xml:"ownerId"`
		Status     string        `xml:"status"`
		IP         string        `xml:"privateIpAddress"`
		Groups     []groupXML    `xml:"groupSet>item"`
		Attachment attachmentXML `xml:"attachment"`
		Tags       []tagXML      `xml:"tagSet>item"`
	}
	deviceXML struct {
		Name string `xml:"deviceName"`
		EBS  struct {
			Volume   string `xml:"volumeId,omitempty"`
			Snapshot string `xml:"snapshotId,omitempty"`
			Status   string `xml:"status,omitempty"`
		} `xml:"ebs"`
	}
	instanceXML struct {
		ID    string `xml:"instanceId"`
		Image string `xml:"imageId"`
		State struct {
			Code int    `xml:"code"`
			Name string `xml:"name"`
		} `xml:"instanceState"`
		Placement struct {
			AZ string `xml:"availabilityZone"`
		} `xml:"placement"`
		Type         string         `xml:"instanceType"`
		Launched     string         `xml:"launchTime"`
		Subnet       string         `xml:"subnetId"`
		VPC          string         `xml:"vpcId"`
		IP           string         `xml:"privateIpAddress"`
		Architecture string         `xml:"architecture"`
		Platform     string         `xml:"platformDetails"`
		Devices      []deviceXML    `xml:"blockDeviceMapping>item"`
		Interfaces   []interfaceXML `xml:"networkInterfaceSet>item"`
		Groups       []groupXML     `xml:"groupSet>item"`
		Tags         []tagXML       `xml:"tagSet>item"`
	}
)

// MarshalXML writes a tag's lower-case names.
func (t tagXML) MarshalXML(e *xml.Encoder, start xml.StartElement) error {
	return e.EncodeElement(struct {
		Key   string `xml:"key"`
		Value string `xml:"value"`
	}{t.Key, t.Value}, start)
}

func tagList(tags map[string]string) []tagXML {
	var out []tagXML
	for _, key := range slices.Sorted(maps.Keys(tags)) {
		out = append(out, tagXML{key, tags[key]})
	}
	return out
}

func (c *call) groupList(ids []string) []groupXML {
	var out []groupXML
	for _, id := range ids {
		out = append(out, groupXML{id, c.cloud.group(id).name})
	}
	return out
}

func instant(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

func (c *call) interfaceXML(f *face) interfaceXML {
	return interfaceXML{ID: f.ID, Subnet: f.Subnet, VPC: f.instance.VPC, Owner: c.cfg.AccountID, Status: "in-use", IP: f.PrivateIP,
		Groups: c.groupList(f.Groups), Tags: tagList(f.tags),
		Attachment: attachmentXML{ID: strings.Replace(f.ID, "eni-", "eni-attach-", 1), Instance: f.instance.ID,
			Index: slices.Index(f.instance.interfaces, f), Status: "attached"}}
}

func (c *call) describeInstances() (deed, *fault) {
	ids := c.list("InstanceId")
	if bad := checkIDs("InstanceID", "i", ids...); bad != nil {
		return nil, bad
	}
	if len(ids) == 0 {
		return nil, refusal("MissingParameter", "The lab describes instances by id alone")
	}
	type reservation struct {
		ID        string        `xml:"reservationId"`
		Owner     string        `xml:"ownerId"`
		Instances []instanceXML `xml:"instancesSet>item"`
	}
	return func() (any, *fault) {
		var out struct {
			Reservations []reservation `xml:"reservationSet>item"`
		}
		for _, id := range ids {
			i := c.cloud.instance(id)
			if i == nil {
				return nil, refusal("InvalidInstanceID.NotFound", "The instance ID '%s' does not exist", id)
			}
			x := instanceXML{ID: i.ID, Image: i.ImageID, Type: "m5.large", Launched: instant(i.launched), Subnet: i.Subnet, VPC: i.VPC,
				IP: i.PrivateIP, Architecture: "x86_64", Platform: "Linux/UNIX", Groups: c.groupList(i.interfaces[0].Groups), Tags: tagList(i.tags)}
			x.State.Code, x.State.Name, x.Placement.AZ = 16, "running", i.AZ
			for _, f := range i.interfaces {
				one := c.interfaceXML(f)
				one.Tags, one.Attachment.Instance = nil, ""
				x.Interfaces = append(x.Interfaces, one)
			}
			for n, volume := range i.Volumes {
				d := deviceXML{Name: "/dev/xvd" + string(rune('a'+n))}
				d.EBS.Volume, d.EBS.Status = volume, "attached"
				x.Devices = append(x.Devices, d)
			}
			out.Reservations = append(out.Reservations, reservation{strings.Replace(id, "i-", "r-", 1), c.cfg.AccountID, []instanceXML{x}})
		}
		return out, nil
	}, nil
}

func (c *call) describeInstanceAttribute() (deed, *fault) {
	id, attribute := c.text("InstanceId"), c.text("Attribute")
	if bad := checkIDs("InstanceID", "i", id); bad != nil {
		return nil, bad
	}
	type value struct {
		Value string `xml:"value"`
	}
	return func() (any, *fault) {
		i := c.cloud.instance(id)
		if i == nil {
			return nil, refusal("InvalidInstanceID.NotFound", "The instance ID '%s' does not exist", id)
		}
		var out struct {
			ID          string `xml:"instanceId"`
			Termination *value `xml:"disableApiTermination"`
			Shutdown    *value `xml:"instanceInitiatedShutdownBehavior"`
		}
		out.ID = id
		switch attribute {
		case "disableApiTermination":
			out.Termination = &value{strconv.FormatBool(i.protected)}
		case "instanceInitiatedShutdownBehavior":
			out.Shutdown = &value{i.shutdown}
		default:
			return nil, refusal("InvalidParameterValue", "Value (%s) for parameter attribute is invalid.", attribute)
		}
		return out, nil
	}, nil
}

func (c *call) modifyInstanceAttribute() (deed, *fault) {
	id, groups := c.text("InstanceId"), c.list("GroupId")
	termination, shutdown := c.text("DisableApiTermination.Value"), c.text("InstanceInitiatedShutdownBehavior.Value")
	if bad := checkIDs("InstanceID", "i", id); bad != nil {
		return nil, bad
	}
	if !slices.Contains([]string{"", "true", "false"}, termination) || !slices.Contains([]string{"", "stop", "terminate"}, shutdown) {
		return nil, refusal("InvalidParameterValue", "Invalid value for attribute")
	}
	given := 0
	for _, is := range []bool{termination != "", shutdown != "", len(groups) > 0} {
		if is {
			given++
		}
	}
	if given != 1 {
		return nil, refusal("InvalidParameterCombination", "You must specify exactly one attribute")
	}
	return func() (any, *fault) {
		i := c.cloud.instance(id)
		if i == nil {
			return nil, refusal("InvalidInstanceID.NotFound", "The instance ID '%s' does not exist", id)
		}
		switch {
		case len(groups) > 0 && len(i.interfaces) > 1:
			return nil, refusal("InvalidInstanceID", "There are multiple interfaces attached to instance '%s'. Please specify an interface ID for the operation instead.", id)
		case len(groups) > 0:
			return returned{true}, c.setGroups(i.interfaces[0], groups)
		case termination != "":
			i.protected = termination == "true"
		default:
			i.shutdown = shutdown
		}
		return returned{true}, nil
	}, nil
}

func (c *call) describeNetworkInterfaces() (deed, *fault) {
	ids := c.list("NetworkInterfaceId")
	filters, bad := c.filters("attachment.instance-id", "vpc-id", "group-id")
	if bad == nil {
		bad = checkIDs("NetworkInterfaceID", "eni", ids...)
	}
	if bad != nil {
		return nil, bad
	}
	return func() (any, *fault) {
		var out struct {
			Interfaces []interfaceXML `xml:"networkInterfaceSet>item"`
		}
		for _, id := range ids {
			if c.cloud.face(id) == nil {
				return nil, refusal("InvalidNetworkInterfaceID.NotFound", "The networkInterface ID '%s' does not exist", id)
			}
		}
		for _, f := range c.cloud.faces() {
			ok := len(ids) == 0 || slices.Contains(ids, f.ID)
			for _, x := range filters {
				switch x.name {
				case "attachment.instance-id":
					ok = ok && slices.Contains(x.values, f.instance.ID)
				case "vpc-id":
					ok = ok && slices.Contains(x.values, f.instance.VPC)
				case "group-id":
					ok = ok && slices.ContainsFunc(f.Groups, func(g string) bool { return slices.Contains(x.values, g) })
				}
			}
			if ok {
				out.Interfaces = append(out.Interfaces, c.interfaceXML(f))
			}
		}
		return out, nil
	}, nil
}

func (c *call) modifyNetworkInterfaceAttribute() (deed, *fault) {
	id, groups := c.text("NetworkInterfaceId"), c.list("SecurityGroupId")
	if bad := checkIDs("NetworkInterfaceID", "eni", id); bad != nil {
		return nil, bad
	}
	if bad := checkIDs("GroupId", "sg", groups...); bad != nil {
		return nil, bad
	}
	return func() (any, *fault) {
		f := c.cloud.face(id)
		if f == nil {
			return nil, refusal("InvalidNetworkInterfaceID.NotFound", "The networkInterface ID '%s' does not exist", id)
		}
		return returned{true}, c.setGroups(f, groups)
	}, nil
}

// setGroups changes an interface's groups, if they are of its VPC.
func (c *call) setGroups(f *face, groups []string) *fault {
	if len(groups) == 0 || len(groups) > 16 {
		return refusal("SecurityGroupsPerInterfaceLimitExceeded", "An interface has 1 to 16 groups")
	}
	for _, id := range groups {
		g := c.cloud.group(id)
		if g == nil || c.cloud.hidden(id) {
			return refusal("InvalidGroup.NotFound", "The security group '%s' does not exist", id)
		}
		if g.vpc != f.instance.VPC {
			return refusal("InvalidParameterValue", "You have specified two resources that belong to different networks.")
		}
	}
	f.Groups = slices.Clone(groups)
	return nil
}

func (c *call) createTags() (deed, *fault) {
	ids := c.list("ResourceId")
	tags, bad := c.tags("Tag")
	if bad != nil {
		return nil, bad
	}
	if len(ids) == 0 || len(tags) == 0 {
		return nil, refusal("MissingParameter", "The request must contain resources and tags")
	}
	return func() (any, *fault) {
		for _, id := range ids {
			if c.cloud.tagsOf(id) == nil {
				return nil, refusal("InvalidID", "The ID '%s' is not valid", id)
			}
		}
		for _, id := range ids {
			maps.Copy(c.cloud.tagsOf(id), tags)
		}
		return returned{true}, nil
	}, nil
}
