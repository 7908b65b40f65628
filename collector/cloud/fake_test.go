package cloud

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	host = "i-0c3f9a5b7d1e24680"
	vpc  = "vpc-0fedcba9876543210"
)

// fault is what happens to one call: it is refused with err, or, when lost, it
// is done and its answer is err nevertheless.
type fault struct {
	err  error
	lost bool
}

func code(c string) error { return &smithy.GenericAPIError{Code: c, Message: "as EC2 says it"} }

// fakeEC2 is one region of EC2: one instance, images, groups, interfaces. New
// things can be seen only after lag.
type fakeEC2 struct {
	mu     sync.Mutex
	lag    time.Duration
	faults map[string][]fault // by operation, used up in order
	calls  map[string]int

	instance    types.Instance
	termination bool
	shutdown    string
	images      []types.Image
	imageBorn   map[string]time.Time
	imageReady  time.Duration // from pending to available
	imageEnds   types.ImageState
	groups      []types.SecurityGroup
	groupBorn   map[string]time.Time
	faces       []types.NetworkInterface
	tags        map[string]map[string]string
	beforeMake  func() // runs within CreateSecurityGroup and CreateImage, before they look
}

func newFake() *fakeEC2 {
	f := &fakeEC2{faults: map[string][]fault{}, calls: map[string]int{}, shutdown: "terminate",
		imageBorn: map[string]time.Time{}, groupBorn: map[string]time.Time{}, tags: map[string]map[string]string{},
		imageReady: 3 * time.Minute, imageEnds: types.ImageStateAvailable}
	face := func(id string, index int32, groups ...string) types.NetworkInterface {
		n := types.NetworkInterface{NetworkInterfaceId: &id, VpcId: aws.String(vpc), SubnetId: aws.String("subnet-1"),
			PrivateIpAddress: aws.String(fmt.Sprintf("10.0.0.%d", index+10)),
			Attachment:       &types.NetworkInterfaceAttachment{InstanceId: aws.String(host), DeviceIndex: &index}}
		for _, g := range groups {
			n.Groups = append(n.Groups, types.GroupIdentifier{GroupId: aws.String(g)})
		}
		return n
	}
	f.faces = []types.NetworkInterface{face("eni-b", 1, "sg-2", "sg-3"), face("eni-a", 0, "sg-1")}
	f.instance = types.Instance{InstanceId: aws.String(host), VpcId: aws.String(vpc), SubnetId: aws.String("subnet-1"),
		ImageId: aws.String("ami-base"), LaunchTime: aws.Time(time.Date(2026, 10, 2, 6, 12, 44, 0, time.UTC)),
		PrivateIpAddress: aws.String("10.0.0.10"), PlatformDetails: aws.String("Linux/UNIX"), Architecture: types.ArchitectureValuesX8664,
		State: &types.InstanceState{Name: types.InstanceStateNameRunning}, Placement: &types.Placement{AvailabilityZone: aws.String("eu-central-1b")},
		Tags: []types.Tag{{Key: aws.String("Name"), Value: aws.String("shop-web-3")}},
		BlockDeviceMappings: []types.InstanceBlockDeviceMapping{{Ebs: &types.EbsInstanceBlockDevice{VolumeId: aws.String("vol-1")}},
			{}, {Ebs: &types.EbsInstanceBlockDevice{VolumeId: aws.String("vol-2")}}},
	}
	for _, n := range f.faces {
		f.instance.NetworkInterfaces = append(f.instance.NetworkInterfaces, types.InstanceNetworkInterface{NetworkInterfaceId: n.NetworkInterfaceId,
			VpcId: n.VpcId, SubnetId: n.SubnetId, PrivateIpAddress: n.PrivateIpAddress, Groups: n.Groups,
			Attachment: &types.InstanceNetworkInterfaceAttachment{DeviceIndex: n.Attachment.DeviceIndex}})
	}
	return f
}

func (f *fakeEC2) ec2(t *testing.T) *EC2 {
	return New(f, slog.New(slog.NewTextHandler(t.Output(), nil)))
}

// op does one call under the lock, with its fault.
func op[Out any](ctx context.Context, f *fakeEC2, name string, do func() (*Out, error)) (*Out, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	f.calls[name]++
	if waiting := f.faults[name]; len(waiting) > 0 {
		f.faults[name] = waiting[1:]
		if next := waiting[0]; next.lost {
			if _, err := do(); err != nil {
				return nil, err
			}
			return nil, next.err
		} else if next.err != nil {
			return nil, next.err
		}
	}
	return do()
}

func (f *fakeEC2) seen(born time.Time) bool { return time.Since(born) >= f.lag }

func wanted(filters []types.Filter, name string) string {
	for _, x := range filters {
		if *x.Name == name {
			return x.Values[0]
		}
	}
	return ""
}

func (f *fakeEC2) DescribeInstances(ctx context.Context, in *ec2.DescribeInstancesInput, _ ...func(*ec2.Options)) (*ec2.DescribeInstancesOutput, error) {
	return op(ctx, f, "DescribeInstances", func() (*ec2.DescribeInstancesOutput, error) {
		if in.InstanceIds[0] != *f.instance.InstanceId {
			return nil, code("InvalidInstanceID.NotFound")
		}
		return &ec2.DescribeInstancesOutput{Reservations: []types.Reservation{{OwnerId: aws.String("111122223333"), Instances: []types.Instance{f.instance}}}}, nil
	})
}

func (f *fakeEC2) DescribeInstanceAttribute(ctx context.Context, in *ec2.DescribeInstanceAttributeInput, _ ...func(*ec2.Options)) (*ec2.DescribeInstanceAttributeOutput, error) {
	return op(ctx, f, "DescribeInstanceAttribute", func() (*ec2.DescribeInstanceAttributeOutput, error) {
		switch in.Attribute {
		case types.InstanceAttributeNameDisableApiTermination:
			return &ec2.DescribeInstanceAttributeOutput{DisableApiTermination: &types.AttributeBooleanValue{Value: aws.Bool(f.termination)}}, nil
		case types.InstanceAttributeNameInstanceInitiatedShutdownBehavior:
			return &ec2.DescribeInstanceAttributeOutput{InstanceInitiatedShutdownBehavior: &types.AttributeValue{Value: aws.String(f.shutdown)}}, nil
		}
		return nil, code("InvalidParameterValue")
	})
}

func (f *fakeEC2) ModifyInstanceAttribute(ctx context.Context, in *ec2.ModifyInstanceAttributeInput, _ ...func(*ec2.Options)) (*ec2.ModifyInstanceAttributeOutput, error) {
	return op(ctx, f, "ModifyInstanceAttribute", func() (*ec2.ModifyInstanceAttributeOutput, error) {
		switch {
		case in.DisableApiTermination != nil && in.InstanceInitiatedShutdownBehavior != nil:
			return nil, code("InvalidParameterCombination")
		case in.DisableApiTermination != nil:
			f.termination = *in.DisableApiTermination.Value
		case in.InstanceInitiatedShutdownBehavior != nil:
			f.shutdown = *in.InstanceInitiatedShutdownBehavior.Value
		}
		return &ec2.ModifyInstanceAttributeOutput{}, nil
	})
}

func (f *fakeEC2) CreateImage(ctx context.Context, in *ec2.CreateImageInput, _ ...func(*ec2.Options)) (*ec2.CreateImageOutput, error) {
	return op(ctx, f, "CreateImage", func() (*ec2.CreateImageOutput, error) {
		if f.beforeMake != nil {
			f.beforeMake()
		}
		if !aws.ToBool(in.NoReboot) || len(in.TagSpecifications) != 2 || in.TagSpecifications[0].ResourceType != "image" || in.TagSpecifications[1].ResourceType != "snapshot" {
			return nil, code("InvalidParameterCombination")
		}
		if slices.ContainsFunc(f.images, func(i types.Image) bool { return *i.Name == *in.Name }) {
			return nil, code("InvalidAMIName.Duplicate")
		}
		return &ec2.CreateImageOutput{ImageId: aws.String(f.addImage(*in.Name, *in.InstanceId, in.TagSpecifications[0].Tags))}, nil
	})
}

func (f *fakeEC2) addImage(name, instance string, tags []types.Tag) string {
	id := fmt.Sprintf("ami-%d", len(f.images)+1)
	f.images = append(f.images, types.Image{ImageId: &id, Name: &name, SourceInstanceId: &instance, Tags: tags,
		State: types.ImageStatePending, CreationDate: aws.String(time.Now().UTC().Format("2006-01-02T15:04:05.000Z"))})
	f.imageBorn[id] = time.Now()
	return id
}

func (f *fakeEC2) DescribeImages(ctx context.Context, in *ec2.DescribeImagesInput, _ ...func(*ec2.Options)) (*ec2.DescribeImagesOutput, error) {
	return op(ctx, f, "DescribeImages", func() (*ec2.DescribeImagesOutput, error) {
		if len(in.ImageIds) == 0 && !slices.Equal(in.Owners, []string{"self"}) {
			return nil, code("InvalidParameterValue")
		}
		out := &ec2.DescribeImagesOutput{}
		for _, i := range f.images {
			born := f.imageBorn[*i.ImageId]
			if !f.seen(born) || len(in.ImageIds) > 0 && in.ImageIds[0] != *i.ImageId || len(in.Filters) > 0 && wanted(in.Filters, "name") != *i.Name {
				continue
			}
			if time.Since(born) >= f.imageReady {
				i.State = f.imageEnds
				i.StateReason = &types.StateReason{Code: aws.String("Client.InternalError"), Message: aws.String("a volume is\ngone")}
				i.BlockDeviceMappings = []types.BlockDeviceMapping{{Ebs: &types.EbsBlockDevice{SnapshotId: aws.String("snap-1")}}, {},
					{Ebs: &types.EbsBlockDevice{SnapshotId: aws.String("snap-2")}}}
			}
			out.Images = append(out.Images, i)
		}
		if len(in.ImageIds) > 0 && len(out.Images) == 0 {
			return nil, code("InvalidAMIID.NotFound")
		}
		return out, nil
	})
}

func (f *fakeEC2) CreateTags(ctx context.Context, in *ec2.CreateTagsInput, _ ...func(*ec2.Options)) (*ec2.CreateTagsOutput, error) {
	return op(ctx, f, "CreateTags", func() (*ec2.CreateTagsOutput, error) {
		for _, r := range in.Resources {
			if f.tags[r] == nil {
				f.tags[r] = map[string]string{}
			}
			for _, t := range in.Tags {
				f.tags[r][*t.Key] = *t.Value
			}
		}
		return &ec2.CreateTagsOutput{}, nil
	})
}

func everywhere(v6 bool) types.IpPermission {
	if v6 {
		return types.IpPermission{IpProtocol: aws.String("-1"), Ipv6Ranges: []types.Ipv6Range{{CidrIpv6: aws.String("::/0")}}}
	}
	return types.IpPermission{IpProtocol: aws.String("-1"), IpRanges: []types.IpRange{{CidrIp: aws.String("0.0.0.0/0")}}}
}

func (f *fakeEC2) addGroup(tags []types.Tag, in, out []types.IpPermission) string {
	id := fmt.Sprintf("sg-made-%d", len(f.groups)+1)
	f.groups = append(f.groups, types.SecurityGroup{GroupId: &id, GroupName: aws.String(IsolationGroupName), VpcId: aws.String(vpc),
		Tags: tags, IpPermissions: in, IpPermissionsEgress: out})
	f.groupBorn[id] = time.Now()
	return id
}

func (f *fakeEC2) CreateSecurityGroup(ctx context.Context, in *ec2.CreateSecurityGroupInput, _ ...func(*ec2.Options)) (*ec2.CreateSecurityGroupOutput, error) {
	return op(ctx, f, "CreateSecurityGroup", func() (*ec2.CreateSecurityGroupOutput, error) {
		if f.beforeMake != nil {
			f.beforeMake()
		}
		if len(f.groups) > 0 {
			return nil, code("InvalidGroup.Duplicate")
		}
		id := f.addGroup(in.TagSpecifications[0].Tags, nil, []types.IpPermission{everywhere(false), everywhere(true)})
		return &ec2.CreateSecurityGroupOutput{GroupId: &id}, nil
	})
}

func (f *fakeEC2) DescribeSecurityGroups(ctx context.Context, in *ec2.DescribeSecurityGroupsInput, _ ...func(*ec2.Options)) (*ec2.DescribeSecurityGroupsOutput, error) {
	return op(ctx, f, "DescribeSecurityGroups", func() (*ec2.DescribeSecurityGroupsOutput, error) {
		out := &ec2.DescribeSecurityGroupsOutput{}
		for _, g := range f.groups {
			byID := len(in.GroupIds) > 0 && in.GroupIds[0] == *g.GroupId
			byName := wanted(in.Filters, "vpc-id") == *g.VpcId && wanted(in.Filters, "group-name") == *g.GroupName
			if f.seen(f.groupBorn[*g.GroupId]) && (byID || byName) {
				out.SecurityGroups = append(out.SecurityGroups, g)
			}
		}
		if len(in.GroupIds) > 0 && len(out.SecurityGroups) == 0 {
			return nil, code("InvalidGroup.NotFound")
		}
		return out, nil
	})
}

func (f *fakeEC2) RevokeSecurityGroupIngress(ctx context.Context, in *ec2.RevokeSecurityGroupIngressInput, _ ...func(*ec2.Options)) (*ec2.RevokeSecurityGroupIngressOutput, error) {
	return op(ctx, f, "RevokeSecurityGroupIngress", func() (*ec2.RevokeSecurityGroupIngressOutput, error) {
		return &ec2.RevokeSecurityGroupIngressOutput{}, f.revoke(*in.GroupId, in.IpPermissions, func(g *types.SecurityGroup) *[]types.IpPermission { return &g.IpPermissions })
	})
}

func (f *fakeEC2) RevokeSecurityGroupEgress(ctx context.Context, in *ec2.RevokeSecurityGroupEgressInput, _ ...func(*ec2.Options)) (*ec2.RevokeSecurityGroupEgressOutput, error) {
	return op(ctx, f, "RevokeSecurityGroupEgress", func() (*ec2.RevokeSecurityGroupEgressOutput, error) {
		return &ec2.RevokeSecurityGroupEgressOutput{}, f.revoke(*in.GroupId, in.IpPermissions, func(g *types.SecurityGroup) *[]types.IpPermission { return &g.IpPermissionsEgress })
	})
}

// revoke refuses the whole call when one rule is not there, as EC2 does, and
// refuses what is no part of a rule.
func (f *fakeEC2) revoke(id string, rules []types.IpPermission, of func(*types.SecurityGroup) *[]types.IpPermission) error {
	for i := range f.groups {
		g := &f.groups[i]
		if *g.GroupId != id || !f.seen(f.groupBorn[id]) {
			continue
		}
		left := slices.Clone(*of(g))
		for _, r := range rules {
			if slices.ContainsFunc(r.UserIdGroupPairs, func(p types.UserIdGroupPair) bool { return p.GroupName != nil }) {
				return code("InvalidParameterCombination")
			}
			at := slices.IndexFunc(left, func(l types.IpPermission) bool { return ruleText(l) == ruleText(r) })
			if at < 0 {
				return code("InvalidPermission.NotFound")
			}
			left = slices.Delete(left, at, at+1)
		}
		*of(g) = left
		return nil
	}
	return code("InvalidGroup.NotFound")
}

func ruleText(p types.IpPermission) string {
	s := fmt.Sprintf("%s %d-%d", aws.ToString(p.IpProtocol), aws.ToInt32(p.FromPort), aws.ToInt32(p.ToPort))
	for _, r := range p.IpRanges {
		s += " " + *r.CidrIp
	}
	for _, r := range p.Ipv6Ranges {
		s += " " + *r.CidrIpv6
	}
	for _, r := range p.PrefixListIds {
		s += " " + *r.PrefixListId
	}
	for _, r := range p.UserIdGroupPairs {
		s += " " + *r.GroupId
	}
	return s
}

func (f *fakeEC2) DescribeNetworkInterfaces(ctx context.Context, in *ec2.DescribeNetworkInterfacesInput, _ ...func(*ec2.Options)) (*ec2.DescribeNetworkInterfacesOutput, error) {
	return op(ctx, f, "DescribeNetworkInterfaces", func() (*ec2.DescribeNetworkInterfacesOutput, error) {
		if wanted(in.Filters, "attachment.instance-id") != host { // answers one interface a page
			return &ec2.DescribeNetworkInterfacesOutput{}, nil
		}
		page := 0
		fmt.Sscan(aws.ToString(in.NextToken), &page)
		out := &ec2.DescribeNetworkInterfacesOutput{NetworkInterfaces: f.faces[page : page+1]}
		if page+1 < len(f.faces) {
			out.NextToken = aws.String(fmt.Sprint(page + 1))
		}
		return out, nil
	})
}

func (f *fakeEC2) ModifyNetworkInterfaceAttribute(ctx context.Context, in *ec2.ModifyNetworkInterfaceAttributeInput, _ ...func(*ec2.Options)) (*ec2.ModifyNetworkInterfaceAttributeOutput, error) {
	return op(ctx, f, "ModifyNetworkInterfaceAttribute", func() (*ec2.ModifyNetworkInterfaceAttributeOutput, error) {
		born, ok := f.groupBorn[in.Groups[0]]
		if !ok || !f.seen(born) {
			return nil, code("InvalidGroup.NotFound")
		}
		for i := range f.faces {
			if *f.faces[i].NetworkInterfaceId == *in.NetworkInterfaceId {
				f.faces[i].Groups = []types.GroupIdentifier{{GroupId: &in.Groups[0]}}
				return &ec2.ModifyNetworkInterfaceAttributeOutput{}, nil
			}
		}
		return nil, code("InvalidNetworkInterfaceID.NotFound")
	})
}
