package emulator_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/google/go-cmp/cmp"

	"github.com/quicklime-ir/quicklime/packaging/lab/emulator"
)

func cond(name string, values ...string) types.Filter {
	return types.Filter{Name: &name, Values: values}
}

func tcp(port int32, cidr string) []types.IpPermission {
	return []types.IpPermission{{IpProtocol: aws.String("tcp"), FromPort: &port, ToPort: &port, IpRanges: []types.IpRange{{CidrIp: &cidr}}}}
}

func all(cidr string) []types.IpPermission {
	return []types.IpPermission{{IpProtocol: aws.String("-1"), IpRanges: []types.IpRange{{CidrIp: &cidr}}}}
}

func TestWhatEC2Refuses(t *testing.T) {
	l := start(t, nil)
	ctx := t.Context()
	long := strings.Repeat("x", 257)
	many := func(n int) (tags []types.Tag) {
		for i := range n {
			tags = append(tags, types.Tag{Key: aws.String(fmt.Sprint("k", i)), Value: aws.String("")})
		}
		return tags
	}
	tag := func(id string, tags ...types.Tag) error {
		_, err := l.ec2.CreateTags(ctx, &ec2.CreateTagsInput{Resources: []string{id}, Tags: tags})
		return err
	}
	group := func(name, vpc string) error {
		_, err := l.ec2.CreateSecurityGroup(ctx, &ec2.CreateSecurityGroupInput{GroupName: &name, Description: aws.String("d"), VpcId: &vpc})
		return err
	}
	move := func(face string, groups ...string) error {
		_, err := l.ec2.ModifyNetworkInterfaceAttribute(ctx, &ec2.ModifyNetworkInterfaceAttributeInput{NetworkInterfaceId: &face, Groups: groups})
		return err
	}
	modify := func(in ec2.ModifyInstanceAttributeInput) error {
		_, err := l.ec2.ModifyInstanceAttribute(ctx, &in)
		return err
	}
	image := func(id, name string, dry bool) error {
		_, err := l.ec2.CreateImage(ctx, &ec2.CreateImageInput{InstanceId: &id, Name: &name, DryRun: &dry})
		return err
	}
	describe := func(in ec2.DescribeInstancesInput) error { _, err := l.ec2.DescribeInstances(ctx, &in); return err }
	revoke := func(id string, rules []types.IpPermission) error {
		_, err := l.ec2.RevokeSecurityGroupEgress(ctx, &ec2.RevokeSecurityGroupEgressInput{GroupId: &id, IpPermissions: rules})
		return err
	}
	yes := types.AttributeBooleanValue{Value: aws.Bool(true)}
	text := func(s string) *types.AttributeValue { return &types.AttributeValue{Value: &s} }
	for _, c := range []struct {
		name, want string
		do         func() error
	}{
		{"unknown instance", "InvalidInstanceID.NotFound", func() error { return describe(ec2.DescribeInstancesInput{InstanceIds: []string{nobody}}) }},
		{"malformed instance", "InvalidInstanceID.Malformed", func() error { return describe(ec2.DescribeInstancesInput{InstanceIds: []string{"i-xyz"}}) }},
		{"unknown filter", "InvalidParameterValue", func() error {
			return describe(ec2.DescribeInstancesInput{Filters: []types.Filter{cond("colour", "red")}})
		}},
		{"parameter that it does not read", "UnknownParameter", func() error {
			_, err := l.ec2.CreateImage(ctx, &ec2.CreateImageInput{InstanceId: aws.String(host), Name: aws.String("name"), SnapshotLocation: "local"})
			return err
		}},
		{"action that it does not know", "InvalidAction", func() error {
			_, err := l.ec2.TerminateInstances(ctx, &ec2.TerminateInstancesInput{InstanceIds: []string{host}})
			return err
		}},
		{"dry run", "DryRunOperation", func() error { return image(host, "name", true) }},
		{"ids with a page size", "InvalidParameterCombination", func() error {
			return describe(ec2.DescribeInstancesInput{InstanceIds: []string{host}, MaxResults: aws.Int32(5)})
		}},
		{"token of nobody", "InvalidParameterValue", func() error { return describe(ec2.DescribeInstancesInput{NextToken: aws.String("x")}) }},
		{"attribute of an unknown instance", "InvalidInstanceID.NotFound", func() error {
			_, err := l.ec2.DescribeInstanceAttribute(ctx, &ec2.DescribeInstanceAttributeInput{InstanceId: aws.String(nobody), Attribute: "groupSet"})
			return err
		}},
		{"unknown attribute", "InvalidParameterValue", func() error {
			_, err := l.ec2.DescribeInstanceAttribute(ctx, &ec2.DescribeInstanceAttributeInput{InstanceId: aws.String(host), Attribute: "colour"})
			return err
		}},
		{"two attributes at once", "InvalidParameterCombination", func() error {
			return modify(ec2.ModifyInstanceAttributeInput{InstanceId: aws.String(host), DisableApiTermination: &yes, InstanceInitiatedShutdownBehavior: text("stop")})
		}},
		{"no attribute", "MissingParameter", func() error { return modify(ec2.ModifyInstanceAttributeInput{InstanceId: aws.String(host)}) }},
		{"shutdown that is no word", "InvalidParameterValue", func() error {
			return modify(ec2.ModifyInstanceAttributeInput{InstanceId: aws.String(host), InstanceInitiatedShutdownBehavior: text("sleep")})
		}},
		{"groups of an instance with two interfaces", "InvalidInstanceID", func() error {
			return modify(ec2.ModifyInstanceAttributeInput{InstanceId: aws.String(host), Groups: []string{sg1}})
		}},
		{"unknown interface", "InvalidNetworkInterfaceID.NotFound", func() error { return move("eni-0ffffffffffffffff", sg1) }},
		{"malformed interface", "InvalidNetworkInterfaceId.Malformed", func() error { return move("eni-x", sg1) }},
		{"unknown group", "InvalidGroup.NotFound", func() error { return move(eniA, "sg-0ffffffffffffffff") }},
		{"group of another VPC", "InvalidParameterValue", func() error { return move(eniA, sg3) }},
		{"malformed group", "InvalidGroupId.Malformed", func() error { return move(eniA, "sg-x") }},
		{"group in an unknown VPC", "InvalidVpcID.NotFound", func() error { return group("g", "vpc-0ffffffffffffffff") }},
		{"group that is there", "InvalidGroup.Duplicate", func() error { return group("lab-"+sg1, vpc) }},
		{"name of groups that is reserved", "InvalidGroup.Reserved", func() error { return group("default", vpc) }},
		{"name of groups that is an id", "InvalidParameterValue", func() error { return group("sg-1", vpc) }},
		{"name of groups that is too long", "InvalidParameterValue", func() error { return group(long, vpc) }},
		{"rule that is not there", "InvalidPermission.NotFound", func() error { return revoke(sg1, tcp(22, "10.0.0.0/8")) }},
		{"rules of an unknown group", "InvalidGroup.NotFound", func() error { return revoke("sg-0ffffffffffffffff", tcp(22, "10.0.0.0/8")) }},
		{"rule that is no range", "InvalidParameterValue", func() error { return revoke(sg1, all("here")) }},
		{"image of an unknown instance", "InvalidInstanceID.NotFound", func() error { return image(nobody, "name", false) }},
		{"short image name", "InvalidAMIName.Malformed", func() error { return image(host, "ab", false) }},
		{"image name with a star", "InvalidAMIName.Malformed", func() error { return image(host, "abc*", false) }},
		{"unknown image", "InvalidAMIID.NotFound", func() error {
			_, err := l.ec2.DescribeImages(ctx, &ec2.DescribeImagesInput{ImageIds: []string{"ami-0ffffffffffffffff"}})
			return err
		}},
		{"unknown snapshot", "InvalidSnapshot.NotFound", func() error {
			_, err := l.ec2.DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{SnapshotIds: []string{"snap-0ffffffffffffffff"}})
			return err
		}},
		{"long tag value", "InvalidParameterValue", func() error { return tag(host, types.Tag{Key: aws.String("k"), Value: &long}) }},
		{"long tag key", "InvalidParameterValue", func() error { return tag(host, types.Tag{Key: aws.String(long[:129])}) }},
		{"reserved tag", "InvalidParameterValue", func() error { return tag(host, types.Tag{Key: aws.String("aws:k")}) }},
		{"51 tags", "TagLimitExceeded", func() error { return tag(host, many(51)...) }},
		{"50 more tags", "TagLimitExceeded", func() error { return tag(host, many(50)...) }},
		{"tag on an unknown volume", "InvalidVolume.NotFound", func() error { return tag("vol-0ffffffffffffffff", many(1)...) }},
		{"tag on nonsense", "InvalidID", func() error { return tag("thing", many(1)...) }},
	} {
		if err := c.do(); codeOf(err) != c.want {
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		}
	}
	if s := l.State(); len(s.Images) > 0 || s.Created["group"] > 0 || len(s.Groups) != 3 || s.Calls["ec2.TerminateInstances"] != 1 || len(s.Instances[0].Tags) != 1 {
		t.Errorf("a refused call did something: %+v", s)
	}
}

func TestGroupsOfAnInstanceAndItsInterfaceAreOneState(t *testing.T) {
	l, ctx := start(t, nil), t.Context()
	made, err := l.ec2.CreateSecurityGroup(ctx, &ec2.CreateSecurityGroupInput{GroupName: aws.String("iso"), Description: aws.String("d"), VpcId: aws.String(vpc2),
		TagSpecifications: []types.TagSpecification{{ResourceType: "security-group", Tags: []types.Tag{{Key: aws.String("role"), Value: aws.String("x")}}}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.ec2.ModifyInstanceAttribute(ctx, &ec2.ModifyInstanceAttributeInput{InstanceId: aws.String(other), Groups: []string{*made.GroupId}}); err != nil {
		t.Fatal(err)
	}
	faces, err := l.ec2.DescribeNetworkInterfaces(ctx, &ec2.DescribeNetworkInterfacesInput{Filters: []types.Filter{cond("attachment.instance-id", other)}})
	if err != nil || len(faces.NetworkInterfaces) != 1 || *faces.NetworkInterfaces[0].Groups[0].GroupId != *made.GroupId {
		t.Fatalf("%+v, %v", faces, err)
	}
	if _, err := l.ec2.ModifyNetworkInterfaceAttribute(ctx, &ec2.ModifyNetworkInterfaceAttributeInput{NetworkInterfaceId: aws.String(eniC), Groups: []string{sg3}}); err != nil {
		t.Fatal(err)
	}
	got, err := l.ec2.DescribeInstances(ctx, &ec2.DescribeInstancesInput{InstanceIds: []string{other}})
	if err != nil {
		t.Fatal(err)
	}
	i := got.Reservations[0].Instances[0]
	if len(i.SecurityGroups) != 1 || *i.SecurityGroups[0].GroupId != sg3 || *i.NetworkInterfaces[0].Groups[0].GroupId != sg3 {
		t.Errorf("%+v and %+v", i.SecurityGroups, i.NetworkInterfaces[0].Groups)
	}
	s := l.State()
	want := emulator.GroupState{ID: *made.GroupId, Name: "iso", VPC: vpc2, Egress: []emulator.Rule{{Protocol: "-1", FromPort: -1, ToPort: -1, Target: "0.0.0.0/0"}},
		Tags: map[string]string{"role": "x"}}
	if diff := cmp.Diff(want, s.Groups[len(s.Groups)-1]); diff != "" {
		t.Error(diff)
	}
}

func TestRules(t *testing.T) {
	l, ctx := start(t, nil), t.Context()
	in := &ec2.AuthorizeSecurityGroupIngressInput{GroupId: aws.String(sg1), IpPermissions: append(tcp(22, "198.51.100.7/24"), types.IpPermission{IpProtocol: aws.String("-1"),
		Ipv6Ranges: []types.Ipv6Range{{CidrIpv6: aws.String("::/0")}}, UserIdGroupPairs: []types.UserIdGroupPair{{GroupId: aws.String(sg2)}},
		PrefixListIds: []types.PrefixListId{{PrefixListId: aws.String("pl-1")}}})}
	if _, err := l.ec2.AuthorizeSecurityGroupIngress(ctx, in); err != nil {
		t.Fatal(err)
	}
	if _, err := l.ec2.AuthorizeSecurityGroupIngress(ctx, in); codeOf(err) != "InvalidPermission.Duplicate" {
		t.Errorf("twice: %v", err)
	}
	shown, err := l.ec2.DescribeSecurityGroups(ctx, &ec2.DescribeSecurityGroupsInput{GroupIds: []string{sg1}})
	if err != nil {
		t.Fatal(err)
	}
	rules := shown.SecurityGroups[0].IpPermissions
	if len(rules) != 2 || *rules[0].FromPort != 22 || *rules[0].IpRanges[0].CidrIp != "198.51.100.0/24" || rules[1].FromPort != nil {
		t.Fatalf("%+v", rules)
	}
	// One rule that is missing refuses the whole call.
	if _, err := l.ec2.RevokeSecurityGroupIngress(ctx, &ec2.RevokeSecurityGroupIngressInput{GroupId: aws.String(sg1), IpPermissions: append(tcp(23, "10.0.0.0/8"), rules...)}); codeOf(err) != "InvalidPermission.NotFound" {
		t.Errorf("%v", err)
	}
	if n := len(l.State().Groups[0].Ingress); n != 4 {
		t.Fatalf("%d rules, want 4", n)
	}
	if _, err := l.ec2.RevokeSecurityGroupIngress(ctx, &ec2.RevokeSecurityGroupIngressInput{GroupId: aws.String(sg1), IpPermissions: rules}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.ec2.RevokeSecurityGroupEgress(ctx, &ec2.RevokeSecurityGroupEgressInput{GroupId: aws.String(sg1), IpPermissions: all("0.0.0.0/0")}); err != nil {
		t.Fatal(err)
	}
	if g := l.State().Groups[0]; len(g.Ingress)+len(g.Egress) != 0 {
		t.Errorf("rules are left: %+v", g)
	}
}

func TestAnImageIsPendingThenAvailable(t *testing.T) {
	l, ctx := start(t, func(c *emulator.Config) { c.ImagePending = time.Second }), t.Context()
	tags := []types.Tag{{Key: aws.String("case"), Value: aws.String("c-1")}}
	in := &ec2.CreateImageInput{InstanceId: aws.String(host), Name: aws.String("quicklime c-1"), NoReboot: aws.Bool(true),
		TagSpecifications: []types.TagSpecification{{ResourceType: "image", Tags: tags}, {ResourceType: "snapshot", Tags: tags}}}
	made, err := l.ec2.CreateImage(ctx, in)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.ec2.CreateImage(ctx, in); codeOf(err) != "InvalidAMIName.Duplicate" {
		t.Errorf("twice: %v", err)
	}
	look := func() types.Image {
		got, err := l.ec2.DescribeImages(ctx, &ec2.DescribeImagesInput{Owners: []string{"self"}, Filters: []types.Filter{cond("name", "quicklime c-?"), cond("tag:case", "c-*")}})
		if err != nil || len(got.Images) != 1 {
			t.Fatalf("%+v, %v", got, err)
		}
		return got.Images[0]
	}
	first := look()
	if first.State != "pending" || *first.ImageId != *made.ImageId || *first.SourceInstanceId != host || len(first.BlockDeviceMappings) != 0 {
		t.Errorf("%+v", first)
	}
	waited := time.Now()
	for first.State == "pending" && time.Since(waited) < 10*time.Second {
		time.Sleep(50 * time.Millisecond)
		first = look()
	}
	if first.State != "available" || len(first.BlockDeviceMappings) != 2 || *first.Tags[0].Value != "c-1" {
		t.Errorf("%+v", first)
	}
	snaps, err := l.ec2.DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{OwnerIds: []string{"self"}, Filters: []types.Filter{cond("tag-key", "case")}})
	if err != nil || len(snaps.Snapshots) != 2 || snaps.Snapshots[0].State != "completed" || *snaps.Snapshots[1].Tags[0].Value != "c-1" {
		t.Errorf("%+v, %v", snaps, err)
	}
	if none, err := l.ec2.DescribeImages(ctx, &ec2.DescribeImagesInput{Owners: []string{"amazon"}}); err != nil || len(none.Images) != 0 {
		t.Errorf("%+v, %v", none, err)
	}
	s := l.State()
	if s.Created["image"] != 1 || !s.Images[0].NoReboot || s.Images[0].State != "available" || len(s.Images[0].Snapshots) != 2 || s.Snapshots[0].State != "completed" {
		t.Errorf("%+v", s)
	}
}

func TestNewIDsAreShownLate(t *testing.T) {
	l, ctx := start(t, func(c *emulator.Config) { c.MissReads = 2 }), t.Context()
	made, err := l.ec2.CreateSecurityGroup(ctx, &ec2.CreateSecurityGroupInput{GroupName: aws.String("iso"), Description: aws.String("d"), VpcId: aws.String(vpc)})
	if err != nil {
		t.Fatal(err)
	}
	byName := &ec2.DescribeSecurityGroupsInput{Filters: []types.Filter{cond("group-name", "iso")}}
	if got, err := l.ec2.DescribeSecurityGroups(ctx, byName); err != nil || len(got.SecurityGroups) != 0 {
		t.Errorf("first look: %+v, %v", got, err)
	}
	if _, err := l.ec2.DescribeSecurityGroups(ctx, &ec2.DescribeSecurityGroupsInput{GroupIds: []string{*made.GroupId}}); codeOf(err) != "InvalidGroup.NotFound" {
		t.Errorf("second look: %v", err)
	}
	if got, err := l.ec2.DescribeSecurityGroups(ctx, byName); err != nil || len(got.SecurityGroups) != 1 {
		t.Errorf("third look: %+v, %v", got, err)
	}
	image, err := l.ec2.CreateImage(ctx, &ec2.CreateImageInput{InstanceId: aws.String(host), Name: aws.String("name")})
	if err != nil {
		t.Fatal(err)
	}
	tag := &ec2.CreateTagsInput{Resources: []string{*image.ImageId}, Tags: []types.Tag{{Key: aws.String("k"), Value: aws.String("v")}}}
	for n, want := range []string{"InvalidAMIID.NotFound", "InvalidAMIID.NotFound", ""} {
		if _, err := l.ec2.CreateTags(ctx, tag); codeOf(err) != want {
			t.Errorf("try %d: %v, want %q", n+1, err, want)
		}
	}
}

func TestPages(t *testing.T) {
	l, ctx := start(t, func(c *emulator.Config) {
		c.Instances = nil
		for n := range 12 {
			c.Instances = append(c.Instances, emulator.Instance{ID: fmt.Sprintf("i-%017x", n), VPC: vpc, Subnet: "subnet-0123456789abcdef0", ImageID: "ami-0123456789abcdef0"})
		}
	}), t.Context()
	var ids []string
	pages := ec2.NewDescribeInstancesPaginator(l.ec2, &ec2.DescribeInstancesInput{MaxResults: aws.Int32(5)})
	count := 0
	for ; pages.HasMorePages(); count++ {
		page, err := pages.NextPage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range page.Reservations {
			ids = append(ids, *r.Instances[0].InstanceId)
		}
	}
	slices.Sort(ids)
	if ids = slices.Compact(ids); count != 3 || len(ids) != 12 {
		t.Errorf("%d pages, %d instances", count, len(ids))
	}
	if g := l.State().Groups; len(g) != 1 || g[0].Name != "default" {
		t.Errorf("instances without groups are in %+v", g)
	}
}
