package emulator

import (
	"fmt"
	"slices"
	"time"
)

// regroup puts an interface into groups of its VPC, and out of all others.
func (a *account) regroup(action string, f *face, ids []string) *Error {
	if len(ids) > maxFaceGroups {
		return refuse("SecurityGroupsPerInterfaceLimitExceeded", "%d groups are more than %d", len(ids), maxFaceGroups)
	}
	for n, id := range ids {
		g := a.group(id)
		switch {
		case g == nil || !a.seen(id):
			return aGroup.missing(id)
		case g.vpc != f.vpc:
			return refuse("InvalidParameterValue", "you have specified two resources that belong to different networks: %s and %s", id, f.ID)
		case slices.Contains(ids[:n], id):
			return refuse("InvalidParameterValue", "group %s comes twice", id)
		}
	}
	before, after := slices.Sorted(slices.Values(f.Groups)), slices.Sorted(slices.Values(ids))
	a.act(action, f.ID, "groups", after, !slices.Equal(before, after))
	f.Groups = slices.Clone(ids)
	return nil
}

func describeNetworkInterfaces(p *params) func(a *account) (any, *Error) {
	ids, at := p.ids("NetworkInterfaceId", anInterface), p.page()
	filters := p.filters("attachment.instance-id", "network-interface-id", "vpc-id", "subnet-id", "group-id", "private-ip-address", "attachment.device-index")
	return func(a *account) (any, *Error) {
		for _, id := range ids {
			if a.face(id) == nil {
				return nil, anInterface.missing(id)
			}
		}
		var found []*facingItem
		for _, f := range a.interfaces {
			attributes := map[string][]string{"attachment.instance-id": {f.instance}, "network-interface-id": {f.ID}, "vpc-id": {f.vpc},
				"subnet-id": {f.Subnet}, "group-id": f.Groups, "private-ip-address": {f.PrivateIP}, "attachment.device-index": {fmt.Sprint(f.index)}}
			if (len(ids) == 0 || slices.Contains(ids, f.ID)) && matches(filters, attributes, a.tags[f.ID]) {
				found = append(found, a.facingItem(f))
			}
		}
		out := struct {
			meta
			Interfaces []*facingItem `xml:"networkInterfaceSet>item"`
			NextToken  string        `xml:"nextToken,omitempty"`
		}{meta: stamp()}
		out.Interfaces, out.NextToken = cut(found, at)
		return out, nil
	}
}

func modifyNetworkInterfaceAttribute(p *params) func(a *account) (any, *Error) {
	id, groups := p.id("NetworkInterfaceId", anInterface), p.ids("SecurityGroupId", aGroup)
	check, hasCheck := p.flag("SourceDestCheck.Value")
	description, hasDescription := p.text("Description.Value"), p.has("Description.Value")
	switch count(len(groups) > 0, hasCheck, hasDescription) {
	case 0:
		p.fail("MissingParameter", "no attributes specified")
	case 1:
	default:
		p.fail("InvalidParameterCombination", "fields for multiple attribute types specified")
	}
	return func(a *account) (any, *Error) {
		f := a.face(id)
		switch {
		case f == nil:
			return nil, anInterface.missing(id)
		case hasCheck:
			f.sourceDestCheck = check
		case hasDescription:
			f.description = description
		default:
			if err := a.regroup("ModifyNetworkInterfaceAttribute", f, groups); err != nil {
				return nil, err
			}
		}
		return wasDone(), nil
	}
}

func (a *account) clock(t time.Time) string { return t.UTC().Format(stamps) }
