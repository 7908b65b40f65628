package emulator

import (
	"regexp"
	"slices"
	"strings"
)

// targetKind says what a rule's target is.
type targetKind int

const (
	ipv4 targetKind = iota
	ipv6
	prefixList
	fromGroup
)

// permission is one rule of a group: one protocol, one range of ports and one
// target. Equal permissions are the same rule.
type permission struct {
	protocol string // tcp, udp, icmp, icmpv6, -1 or a number
	from, to int    // -1 both: all
	kind     targetKind
	target   string // CIDR, prefix list or group
}

// everywhere is the rule that a new group has for what goes out.
// Source: VPC user guide, "Default security groups for your VPCs".
var everywhere = permission{protocol: "-1", from: -1, to: -1, kind: ipv4, target: "0.0.0.0/0"}

type group struct {
	id, name, description, vpc string
	in, out                    []permission
}

func (g *group) ingress() *[]permission { return &g.in }
func (g *group) egress() *[]permission  { return &g.out }

// maxRules is the quota of rules of one direction.
const maxRules = 60

// groupText is what EC2 takes in names and descriptions of groups. Source: EC2
// API reference, CreateSecurityGroup.
var groupText = regexp.MustCompile(`^[a-zA-Z0-9 ._\-:/()#,@\[\]+=&;{}!$*]{1,255}$`)

type (
	groupDetail struct {
		Owner       string           `xml:"ownerId"`
		ID          string           `xml:"groupId"`
		Name        string           `xml:"groupName"`
		Description string           `xml:"groupDescription"`
		VPC         string           `xml:"vpcId"`
		In          []permissionItem `xml:"ipPermissions>item"`
		Out         []permissionItem `xml:"ipPermissionsEgress>item"`
		Tags        []tagItem        `xml:"tagSet>item"`
	}
	permissionItem struct {
		Protocol string       `xml:"ipProtocol"`
		From     *int         `xml:"fromPort"`
		To       *int         `xml:"toPort"`
		Groups   []pairItem   `xml:"groups>item"`
		IPv4     []cidrItem   `xml:"ipRanges>item"`
		IPv6     []cidr6Item  `xml:"ipv6Ranges>item"`
		Lists    []prefixItem `xml:"prefixListIds>item"`
	}
	pairItem struct {
		User string `xml:"userId"`
		ID   string `xml:"groupId"`
	}
	cidrItem struct {
		CIDR string `xml:"cidrIp"`
	}
	cidr6Item struct {
		CIDR string `xml:"cidrIpv6"`
	}
	prefixItem struct {
		ID string `xml:"prefixListId"`
	}
)

// items puts rules that differ in their target only together, as EC2 does.
func items(rules []permission, owner string) []permissionItem {
	var out []permissionItem
	var heads []permission
	for _, r := range rules {
		head := permission{protocol: r.protocol, from: r.from, to: r.to}
		at := slices.Index(heads, head)
		if at < 0 {
			at = len(heads)
			heads, out = append(heads, head), append(out, permissionItem{Protocol: r.protocol})
			if r.protocol != "-1" {
				out[at].From, out[at].To = &r.from, &r.to
			}
		}
		switch item := &out[at]; r.kind {
		case ipv4:
			item.IPv4 = append(item.IPv4, cidrItem{r.target})
		case ipv6:
			item.IPv6 = append(item.IPv6, cidr6Item{r.target})
		case prefixList:
			item.Lists = append(item.Lists, prefixItem{r.target})
		case fromGroup:
			item.Groups = append(item.Groups, pairItem{owner, r.target})
		}
	}
	return out
}

func describeSecurityGroups(p *params) func(a *account) (any, *Error) {
	ids, names, at := p.ids("GroupId", aGroup), p.list("GroupName"), p.page()
	filters := p.filters("vpc-id", "group-name", "group-id", "description", "owner-id")
	if len(names) > 0 {
		p.fail("InvalidParameterValue", "groups of a VPC are asked for by id or by the filter group-name")
	}
	return func(a *account) (any, *Error) {
		seen := map[string]bool{}
		for _, g := range a.groups {
			asked := slices.Contains(ids, g.id) || len(ids) == 0 && matches(filters, a.groupAttributes(g), a.tags[g.id])
			seen[g.id] = asked && a.seen(g.id)
		}
		for _, id := range ids {
			if !seen[id] {
				return nil, aGroup.missing(id)
			}
		}
		var found []groupDetail
		for _, g := range a.groups {
			if seen[g.id] && matches(filters, a.groupAttributes(g), a.tags[g.id]) {
				found = append(found, groupDetail{a.cfg.AccountID, g.id, g.name, g.description, g.vpc,
					items(g.in, a.cfg.AccountID), items(g.out, a.cfg.AccountID), a.tagItems(g.id)})
			}
		}
		out := struct {
			meta
			Groups    []groupDetail `xml:"securityGroupInfo>item"`
			NextToken string        `xml:"nextToken,omitempty"`
		}{meta: stamp()}
		out.Groups, out.NextToken = cut(found, at)
		return out, nil
	}
}

func (a *account) groupAttributes(g *group) map[string][]string {
	return map[string][]string{"vpc-id": {g.vpc}, "group-name": {g.name}, "group-id": {g.id}, "description": {g.description},
		"owner-id": {a.cfg.AccountID}}
}

func createSecurityGroup(p *params) func(a *account) (any, *Error) {
	name, description, vpc := p.required("GroupName"), p.required("GroupDescription"), p.id("VpcId", aVPC)
	tags := p.tagSpecifications("security-group")["security-group"]
	switch {
	case !groupText.MatchString(name) || strings.HasPrefix(name, aGroup.prefix) || strings.TrimSpace(name) != name:
		p.fail("InvalidParameterValue", "value (%.300q) for parameter GroupName is invalid", name)
	case !groupText.MatchString(description):
		p.fail("InvalidParameterValue", "value (%.300q) for parameter GroupDescription is invalid", description)
	case name == "default":
		p.fail("InvalidGroup.Reserved", "the name 'default' is reserved")
	}
	return func(a *account) (any, *Error) {
		if !a.hasVPC(vpc) {
			return nil, aVPC.missing(vpc)
		}
		if other := find(a.groups, func(g *group) bool { return g.vpc == vpc && g.name == name }); other != nil {
			a.act("CreateSecurityGroup", vpc, "group "+name, other.id, false)
			return nil, refuse("InvalidGroup.Duplicate", "the security group '%s' already exists for VPC '%s'", name, vpc)
		}
		g := &group{id: aGroup.newID(), name: name, description: description, vpc: vpc, out: []permission{everywhere}}
		a.groups = append(a.groups, g)
		_ = a.tag(g.id, tags) // the reader has counted them
		a.hide(g.id)
		a.counters.made("group")
		a.act("CreateSecurityGroup", vpc, "group "+name, g.id, true)
		return &struct {
			done
			ID   string    `xml:"groupId"`
			Tags []tagItem `xml:"tagSet>item"`
		}{*wasDone(), g.id, a.tagItems(g.id)}, nil
	}
}
