package cloud

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

const maxPages = 100 // of one listing

// Instance is what a case records of an instance.
type Instance struct {
	ID           string
	Account      string // 12 digits, the owner
	VPC          string
	Subnet       string
	AZ           string // availability zone
	ImageID      string // what it was launched from
	State        string // as EC2 spells it: pending, running, stopping, stopped, shutting-down
	LaunchTime   time.Time
	PrivateIP    string
	Platform     string // as in "Linux/UNIX"
	Architecture string // as in "x86_64"
	Tags         map[string]string
	Interfaces   []Interface // in the order of their device index
	Volumes      []string    // EBS volume ids, in the order of the block devices
}

// Interface is a network interface of an instance.
type Interface struct {
	ID          string
	VPC         string
	Subnet      string
	PrivateIP   string
	Groups      []string // security group ids
	DeviceIndex int
}

// Instance reads one instance. ErrNoInstance: it does not exist in this account
// and region, or is terminated.
func (e *EC2) Instance(ctx context.Context, id string) (Instance, error) {
	out, err := call(ctx, e.api.DescribeInstances, &ec2.DescribeInstancesInput{InstanceIds: []string{id}})
	if hasCode(err, "InvalidInstanceID.NotFound") {
		return Instance{}, fmt.Errorf("cannot read instance %s: %w: check the account and the region", id, ErrNoInstance)
	}
	if err != nil {
		return Instance{}, fmt.Errorf("cannot read instance %s: %w", id, err)
	}
	for _, r := range out.Reservations {
		for _, i := range r.Instances {
			if aws.ToString(i.InstanceId) != id {
				continue
			}
			if i.State != nil && i.State.Name == types.InstanceStateNameTerminated {
				return Instance{}, fmt.Errorf("cannot read instance %s: %w: it is terminated", id, ErrNoInstance)
			}
			return instance(i, aws.ToString(r.OwnerId)), nil
		}
	}
	return Instance{}, fmt.Errorf("cannot read instance %s: %w: check the account and the region", id, ErrNoInstance)
}

func instance(i types.Instance, owner string) Instance {
	out := Instance{
		ID: aws.ToString(i.InstanceId), Account: owner, VPC: aws.ToString(i.VpcId), Subnet: aws.ToString(i.SubnetId),
		ImageID: aws.ToString(i.ImageId), LaunchTime: aws.ToTime(i.LaunchTime), PrivateIP: aws.ToString(i.PrivateIpAddress),
		Platform:     cmp.Or(aws.ToString(i.PlatformDetails), string(i.Platform)),
		Architecture: string(i.Architecture), Tags: tagMap(i.Tags),
	}
	if i.State != nil {
		out.State = string(i.State.Name)
	}
	if i.Placement != nil {
		out.AZ = aws.ToString(i.Placement.AvailabilityZone)
	}
	for _, n := range i.NetworkInterfaces {
		face := Interface{ID: aws.ToString(n.NetworkInterfaceId), VPC: aws.ToString(n.VpcId), Subnet: aws.ToString(n.SubnetId),
			PrivateIP: aws.ToString(n.PrivateIpAddress), Groups: groupIDs(n.Groups)}
		if n.Attachment != nil {
			face.DeviceIndex = int(aws.ToInt32(n.Attachment.DeviceIndex))
		}
		out.Interfaces = append(out.Interfaces, face)
	}
	sortInterfaces(out.Interfaces)
	for _, b := range i.BlockDeviceMappings {
		if b.Ebs != nil && b.Ebs.VolumeId != nil {
			out.Volumes = append(out.Volumes, *b.Ebs.VolumeId)
		}
	}
	return out
}

// Groups reads the instance's network interfaces and their security groups anew,
// in the order of their device index. This is what proves a cut, so an empty
// answer is an error: ErrNoInstance.
func (e *EC2) Groups(ctx context.Context, id string) ([]Interface, error) {
	in := &ec2.DescribeNetworkInterfacesInput{Filters: []types.Filter{filter("attachment.instance-id", id)}}
	var faces []Interface
	for range maxPages {
		out, err := call(ctx, e.api.DescribeNetworkInterfaces, in)
		if err != nil {
			return nil, fmt.Errorf("cannot read the network interfaces of %s: %w", id, err)
		}
		for _, n := range out.NetworkInterfaces {
			if n.Attachment == nil || aws.ToString(n.Attachment.InstanceId) != id {
				continue
			}
			faces = append(faces, Interface{ID: aws.ToString(n.NetworkInterfaceId), VPC: aws.ToString(n.VpcId),
				Subnet: aws.ToString(n.SubnetId), PrivateIP: aws.ToString(n.PrivateIpAddress),
				Groups: groupIDs(n.Groups), DeviceIndex: int(aws.ToInt32(n.Attachment.DeviceIndex))})
		}
		if aws.ToString(out.NextToken) == "" {
			if len(faces) == 0 {
				return nil, fmt.Errorf("cannot read the network interfaces of %s: %w: EC2 shows none", id, ErrNoInstance)
			}
			sortInterfaces(faces)
			return faces, nil
		}
		in.NextToken = out.NextToken
	}
	return nil, fmt.Errorf("cannot read the network interfaces of %s: more than %d pages", id, maxPages)
}

func sortInterfaces(faces []Interface) {
	slices.SortFunc(faces, func(a, b Interface) int {
		return cmp.Or(cmp.Compare(a.DeviceIndex, b.DeviceIndex), cmp.Compare(a.ID, b.ID))
	})
}

func groupIDs(groups []types.GroupIdentifier) []string {
	var ids []string
	for _, g := range groups {
		ids = append(ids, aws.ToString(g.GroupId))
	}
	return ids
}
