package emulator

import (
	"slices"
	"strconv"
	"unicode"
)

// defaultEgress is EC2's rule of a new group: everything out, by IPv4.
var defaultEgress = rule{protocol: "-1", cidr: "0.0.0.0/0"}

type (
	rangeXML struct {
		CIDR string `xml:"cidrIp"`
	}
	range6XML struct {
		CIDR string `xml:"cidrIpv6"`
	}
	ruleXML struct {
		Protocol string      `xml:"ipProtocol"`
		From     string      `xml:"fromPort,omitempty"`
		To       string      `xml:"toPort,omitempty"`
		Ranges   []rangeXML  `xml:"ipRanges>item"`
		Ranges6  []range6XML `xml:"ipv6Ranges>item"`
	}
	securityGroupXML struct {
		Owner       string    `xml:"ownerId"`
		ID          string    `xml:"groupId"`
		Name        string    `xml:"groupName"`
		Description string    `xml:"groupDescription"`
		VPC         string    `xml:"vpcId"`
		In          []ruleXML `xml:"ipPermissions>item"`
		Out         []ruleXML `xml:"ipPermissionsEgress>item"`
		Tags        []tagXML  `xml:"tagSet>item"`
	}
)

func rulesXML(rules []rule) []ruleXML {
	var out []ruleXML
	for _, r := range rules {
		x := ruleXML{Protocol: r.protocol, From: r.from, To: r.to}
		if r.cidr != "" {
			x.Ranges = []rangeXML{{r.cidr}}
		}
		if r.cidr6 != "" {
			x.Ranges6 = []range6XML{{r.cidr6}}
		}
		out = append(out, x)
	}
	return out
}

func (c *call) describeSecurityGroups() (deed, *fault) {
	ids := c.list("GroupId")
	filters, bad := c.filters("vpc-id", "group-name", "tag:")
	if bad == nil {
		bad = checkIDs("GroupId", "sg", ids...)
	}
	if bad != nil {
		return nil, bad
	}
	return func() (any, *fault) {
		var out struct {
			Groups []securityGroupXML `xml:"securityGroupInfo>item"`
		}
		for _, id := range ids {
			if c.cloud.group(id) == nil || c.cloud.hidden(id) {
				return nil, refusal("InvalidGroup.NotFound", "The security group '%s' does not exist", id)
			}
		}
		for _, g := range c.cloud.groups {
			ok := len(ids) == 0 || slices.Contains(ids, g.id)
			for _, f := range filters {
				value := map[string]string{"vpc-id": g.vpc, "group-name": g.name}[f.name]
				if tag, is := trimTag(f.name); is {
					value = g.tags[tag]
				}
				ok = ok && slices.Contains(f.values, value)
			}
			if ok && (len(ids) > 0 || !c.cloud.hidden(g.id)) {
				out.Groups = append(out.Groups, securityGroupXML{Owner: c.cfg.AccountID, ID: g.id, Name: g.name, Description: g.description, VPC: g.vpc,
					In: rulesXML(g.ingress), Out: rulesXML(g.egress), Tags: tagList(g.tags)})
			}
		}
		return out, nil
	}, nil
}

func trimTag(name string) (string, bool) {
	if len(name) > 4 && name[:4] == "tag:" {
		return name[4:], true
	}
	return "", false
}

func (c *call) createSecurityGroup() (deed, *fault) {
	name, description, vpc := c.text("GroupName"), c.text("GroupDescription"), c.text("VpcId")
	tags, bad := c.tagsFor("security-group")
	if bad == nil {
		bad = checkIDs("VpcID", "vpc", vpc)
	}
	if bad == nil && (!plain(name) || !plain(description)) {
		bad = refusal("InvalidParameterValue", "Name and description have 1 to 255 characters of a-z, A-Z, 0-9, spaces, and ._-:/()#,@[]+=&;{}!$*")
	}
	if bad != nil {
		return nil, bad
	}
	return func() (any, *fault) {
		if find(c.cloud.instances, func(i *instance) bool { return i.VPC == vpc }) == nil {
			return nil, refusal("InvalidVpcID.NotFound", "The vpc ID '%s' does not exist", vpc)
		}
		if find(c.cloud.groups, func(g *group) bool { return g.vpc == vpc && g.name == name }) != nil {
			return nil, refusal("InvalidGroup.Duplicate", "The security group '%s' already exists for VPC '%s'", name, vpc)
		}
		g := &group{id: newID("sg-"), name: name, description: description, vpc: vpc, egress: []rule{defaultEgress}, tags: tags}
		c.cloud.groups = append(c.cloud.groups, g)
		c.cloud.missed[g.id] = c.cfg.MissReads
		c.made["group"]++
		return struct {
			Return bool     `xml:"return"`
			ID     string   `xml:"groupId"`
			Tags   []tagXML `xml:"tagSet>item"`
		}{true, g.id, tagList(tags)}, nil
	}, nil
}

// plain reports whether EC2 takes a group's name or description.
func plain(s string) bool {
	if len(s) == 0 || len(s) > 255 {
		return false
	}
	for _, r := range s {
		if r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r) && !slices.Contains([]rune(" ._-:/()#,@[]+=&;{}!$*"), r) {
			return false
		}
	}
	return true
}

// revoke removes rules; one that is not there refuses the whole call.
func (c *call) revoke(ingress bool) (deed, *fault) {
	id := c.text("GroupId")
	if bad := checkIDs("GroupId", "sg", id); bad != nil {
		return nil, bad
	}
	rules := c.rules()
	if len(rules) == 0 {
		return nil, refusal("MissingParameter", "The request must contain rules")
	}
	return func() (any, *fault) {
		g := c.cloud.group(id)
		if g == nil || c.cloud.hidden(id) {
			return nil, refusal("InvalidGroup.NotFound", "The security group '%s' does not exist", id)
		}
		list := &g.egress
		if ingress {
			list = &g.ingress
		}
		left := slices.Clone(*list)
		for _, r := range rules {
			i := slices.Index(left, r)
			if i < 0 {
				return nil, refusal("InvalidPermission.NotFound", "The specified rule does not exist in this security group.")
			}
			left = slices.Delete(left, i, i+1)
		}
		*list = left
		return returned{true}, nil
	}, nil
}

// rules reads IpPermissions.N, one rule for each range of addresses.
func (c *call) rules() []rule {
	var out []rule
	for n := 1; ; n++ {
		prefix := "IpPermissions." + strconv.Itoa(n)
		if !c.params.Has(prefix + ".IpProtocol") {
			return out
		}
		base := rule{protocol: c.text(prefix + ".IpProtocol"), from: c.text(prefix + ".FromPort"), to: c.text(prefix + ".ToPort")}
		for m := 1; c.params.Has(prefix + ".IpRanges." + strconv.Itoa(m) + ".CidrIp"); m++ {
			r := base
			r.cidr = c.text(prefix + ".IpRanges." + strconv.Itoa(m) + ".CidrIp")
			out = append(out, r)
		}
		for m := 1; c.params.Has(prefix + ".Ipv6Ranges." + strconv.Itoa(m) + ".CidrIpv6"); m++ {
			r := base
			r.cidr6 = c.text(prefix + ".Ipv6Ranges." + strconv.Itoa(m) + ".CidrIpv6")
			out = append(out, r)
		}
	}
}
