package cloud

import (
	"context"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// IsolationGroupName is the name of the group without rules, one per VPC.
const IsolationGroupName = "quicklime-isolation"

const isolationText = "Quicklime: no traffic in or out. Rules put here are removed."

// IsolationGroup returns the id of the VPC's isolation group, makes it where it
// is missing, and proves by reading it again that it has no rule in either
// direction.
//
// A group of that name that somebody else made is emptied and used as well:
// refusing it would let an intruder with EC2 rights prevent every isolation in
// the VPC by planting one.
func (e *EC2) IsolationGroup(ctx context.Context, vpc string) (string, error) {
	group, err := e.groupIn(ctx, vpc)
	if err != nil {
		return "", err
	}
	id, fresh := "", false
	if group != nil {
		id = aws.ToString(group.GroupId)
		e.adopt(ctx, id, group.Tags)
	} else if id, err = e.makeGroup(ctx, vpc); err != nil {
		return "", err
	} else {
		fresh = true
	}
	if err := e.empty(ctx, id, fresh); err != nil {
		return "", fmt.Errorf("cannot empty isolation group %s of %s: %w", id, vpc, err)
	}
	return id, nil
}

func (e *EC2) groupIn(ctx context.Context, vpc string) (*types.SecurityGroup, error) {
	out, err := call(ctx, e.api.DescribeSecurityGroups, &ec2.DescribeSecurityGroupsInput{
		Filters: []types.Filter{filter("vpc-id", vpc), filter("group-name", IsolationGroupName)}})
	if err != nil {
		return nil, fmt.Errorf("cannot look for the isolation group of %s: %w", vpc, err)
	}
	for _, g := range out.SecurityGroups {
		if aws.ToString(g.VpcId) == vpc && aws.ToString(g.GroupName) == IsolationGroupName {
			return &g, nil
		}
	}
	return nil, nil
}

// makeGroup creates the group, or finds it where another was faster.
func (e *EC2) makeGroup(ctx context.Context, vpc string) (string, error) {
	out, err := call(ctx, e.api.CreateSecurityGroup, &ec2.CreateSecurityGroupInput{
		GroupName: aws.String(IsolationGroupName), Description: aws.String(isolationText), VpcId: &vpc,
		TagSpecifications: []types.TagSpecification{{ResourceType: types.ResourceTypeSecurityGroup,
			Tags: tagList(map[string]string{TagRole: RoleIsolation})}},
	})
	if err == nil {
		return aws.ToString(out.GroupId), nil
	}
	if !hasCode(err, "InvalidGroup.Duplicate") {
		return "", fmt.Errorf("cannot create the isolation group of %s: %w", vpc, err)
	}
	id := ""
	err = settle(ctx, func() (bool, error) {
		group, err := e.groupIn(ctx, vpc)
		if err != nil {
			return false, err
		}
		if group == nil {
			return true, fmt.Errorf("cannot find the isolation group of %s: %w", vpc, errMissing)
		}
		id = aws.ToString(group.GroupId)
		return false, nil
	})
	return id, err
}

// adopt tags a group that lacks our tag. The tag is a label only: without it
// the group serves as well.
func (e *EC2) adopt(ctx context.Context, id string, tags []types.Tag) {
	if tagMap(tags)[TagRole] == RoleIsolation {
		return
	}
	e.log.Warn("the isolation group was not made by Quicklime or lost its tag; emptying and using it", "group", id)
	if err := e.Tag(ctx, []string{id}, map[string]string{TagRole: RoleIsolation}); err != nil {
		e.log.Warn("cannot tag the isolation group; using it without", "group", id, "error", err)
	}
}

// empty revokes every rule and reads again until there is none. A fresh group
// has EC2's default rules, everything out, also while EC2 does not show them
// yet; so those are revoked unseen.
func (e *EC2) empty(ctx context.Context, id string, fresh bool) error {
	return settle(ctx, func() (again bool, err error) {
		if fresh {
			if err := e.revokeDefaults(ctx, id); err != nil {
				return groupUnseen(err), err
			}
			fresh = false
		}
		in, out, err := e.rules(ctx, id)
		if err != nil {
			return groupUnseen(err) || err == errMissing, err
		}
		if len(in) == 0 && len(out) == 0 {
			return false, nil
		}
		if err := e.revoke(ctx, id, in, out); err != nil {
			return groupUnseen(err), err
		}
		return true, errNotEmpty
	})
}

func (e *EC2) rules(ctx context.Context, id string) (in, out []types.IpPermission, err error) {
	answer, err := call(ctx, e.api.DescribeSecurityGroups, &ec2.DescribeSecurityGroupsInput{GroupIds: []string{id}})
	if err != nil {
		return nil, nil, err
	}
	for _, g := range answer.SecurityGroups {
		if aws.ToString(g.GroupId) == id {
			return g.IpPermissions, g.IpPermissionsEgress, nil
		}
	}
	return nil, nil, errMissing
}

func (e *EC2) revokeDefaults(ctx context.Context, id string) error {
	v4 := types.IpPermission{IpProtocol: aws.String("-1"), IpRanges: []types.IpRange{{CidrIp: aws.String("0.0.0.0/0")}}}
	v6 := types.IpPermission{IpProtocol: aws.String("-1"), Ipv6Ranges: []types.Ipv6Range{{CidrIpv6: aws.String("::/0")}}}
	for _, p := range []types.IpPermission{v4, v6} { // apart, since one that is missing refuses the whole call
		if err := e.revoke(ctx, id, nil, []types.IpPermission{p}); err != nil {
			return err
		}
	}
	return nil
}

// revoke removes rules; those that are gone already are fine.
func (e *EC2) revoke(ctx context.Context, id string, in, out []types.IpPermission) error {
	gone := func(err error) bool { return err == nil || hasCode(err, "InvalidPermission.NotFound") }
	if len(in) > 0 {
		_, err := call(ctx, e.api.RevokeSecurityGroupIngress, &ec2.RevokeSecurityGroupIngressInput{GroupId: &id, IpPermissions: bare(in)})
		if !gone(err) {
			return err
		}
	}
	if len(out) > 0 {
		_, err := call(ctx, e.api.RevokeSecurityGroupEgress, &ec2.RevokeSecurityGroupEgressInput{GroupId: &id, IpPermissions: bare(out)})
		if !gone(err) {
			return err
		}
	}
	return nil
}

// bare keeps of each rule what identifies it: EC2 refuses a group's name beside
// its id, and descriptions are no part of a rule.
func bare(rules []types.IpPermission) []types.IpPermission {
	out := make([]types.IpPermission, len(rules))
	for i, r := range rules {
		b := types.IpPermission{IpProtocol: r.IpProtocol, FromPort: r.FromPort, ToPort: r.ToPort}
		for _, x := range r.IpRanges {
			b.IpRanges = append(b.IpRanges, types.IpRange{CidrIp: x.CidrIp})
		}
		for _, x := range r.Ipv6Ranges {
			b.Ipv6Ranges = append(b.Ipv6Ranges, types.Ipv6Range{CidrIpv6: x.CidrIpv6})
		}
		for _, x := range r.PrefixListIds {
			b.PrefixListIds = append(b.PrefixListIds, types.PrefixListId{PrefixListId: x.PrefixListId})
		}
		for _, x := range r.UserIdGroupPairs {
			b.UserIdGroupPairs = append(b.UserIdGroupPairs, types.UserIdGroupPair{GroupId: x.GroupId, UserId: x.UserId,
				VpcId: x.VpcId, VpcPeeringConnectionId: x.VpcPeeringConnectionId})
		}
		out[i] = b
	}
	return out
}

// Isolate puts a network interface into one group and out of every other. Save
// its groups first. A group made a moment ago is waited for. That the call went
// through is no proof of the cut: read the interface again with Groups.
func (e *EC2) Isolate(ctx context.Context, face, group string) error {
	err := settle(ctx, func() (bool, error) {
		_, err := call(ctx, e.api.ModifyNetworkInterfaceAttribute, &ec2.ModifyNetworkInterfaceAttributeInput{
			NetworkInterfaceId: &face, Groups: []string{group}})
		return groupUnseen(err), err
	})
	if err != nil {
		return fmt.Errorf("cannot move interface %s into group %s: %w", face, group, err)
	}
	return nil
}
