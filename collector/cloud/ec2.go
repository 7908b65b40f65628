package cloud

import (
	"context"
	"log/slog"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// Times of the calls.
const (
	callLimit    = 3 * time.Minute  // for one call; the SDK's seven waits add up to 71 s at most
	settleLimit  = time.Minute      // for EC2 to show what was just made
	settleFirst  = time.Second / 2  // between two looks, growing by half
	settleMost   = 5 * time.Second  // between two looks
	imageAppears = 5 * time.Minute  // for a new image to be found by its id
	imageMost    = 15 * time.Second // between two looks at an image
)

// Instances is the part of the EC2 client that reads and protects instances.
type Instances interface {
	DescribeInstances(context.Context, *ec2.DescribeInstancesInput, ...func(*ec2.Options)) (*ec2.DescribeInstancesOutput, error)
	DescribeInstanceAttribute(context.Context, *ec2.DescribeInstanceAttributeInput, ...func(*ec2.Options)) (*ec2.DescribeInstanceAttributeOutput, error)
	ModifyInstanceAttribute(context.Context, *ec2.ModifyInstanceAttributeInput, ...func(*ec2.Options)) (*ec2.ModifyInstanceAttributeOutput, error)
}

// Images is the part of the EC2 client that makes images, and tags anything.
type Images interface {
	CreateImage(context.Context, *ec2.CreateImageInput, ...func(*ec2.Options)) (*ec2.CreateImageOutput, error)
	DescribeImages(context.Context, *ec2.DescribeImagesInput, ...func(*ec2.Options)) (*ec2.DescribeImagesOutput, error)
	CreateTags(context.Context, *ec2.CreateTagsInput, ...func(*ec2.Options)) (*ec2.CreateTagsOutput, error)
}

// SecurityGroups is the part of the EC2 client that makes and empties groups.
type SecurityGroups interface {
	CreateSecurityGroup(context.Context, *ec2.CreateSecurityGroupInput, ...func(*ec2.Options)) (*ec2.CreateSecurityGroupOutput, error)
	DescribeSecurityGroups(context.Context, *ec2.DescribeSecurityGroupsInput, ...func(*ec2.Options)) (*ec2.DescribeSecurityGroupsOutput, error)
	RevokeSecurityGroupIngress(context.Context, *ec2.RevokeSecurityGroupIngressInput, ...func(*ec2.Options)) (*ec2.RevokeSecurityGroupIngressOutput, error)
	RevokeSecurityGroupEgress(context.Context, *ec2.RevokeSecurityGroupEgressInput, ...func(*ec2.Options)) (*ec2.RevokeSecurityGroupEgressOutput, error)
}

// Interfaces is the part of the EC2 client that reads and changes network
// interfaces.
type Interfaces interface {
	DescribeNetworkInterfaces(context.Context, *ec2.DescribeNetworkInterfacesInput, ...func(*ec2.Options)) (*ec2.DescribeNetworkInterfacesOutput, error)
	ModifyNetworkInterfaceAttribute(context.Context, *ec2.ModifyNetworkInterfaceAttributeInput, ...func(*ec2.Options)) (*ec2.ModifyNetworkInterfaceAttributeOutput, error)
}

// API is all of the EC2 client that this package uses; *ec2.Client has it.
type API interface {
	Instances
	Images
	SecurityGroups
	Interfaces
}

// EC2 makes the calls in one account and region. Its methods may be called at
// once from several goroutines.
type EC2 struct {
	api API
	log *slog.Logger
}

// New makes an EC2 over a client.
func New(client API, log *slog.Logger) *EC2 { return &EC2{api: client, log: log} }

// Retry sets a client to the SDK's standard retry, with eight tries where it
// has three: a case that is throttled should wait rather than fail. Use it as
// ec2.NewFromConfig(cfg, cloud.Retry).
func Retry(o *ec2.Options) {
	o.Retryer = retry.NewStandard(func(s *retry.StandardOptions) { s.MaxAttempts = 8 })
}

// call bounds one call.
func call[In, Out any](ctx context.Context, do func(context.Context, *In, ...func(*ec2.Options)) (*Out, error), in *In) (*Out, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	return do(ctx, in)
}

// settle repeats look while it says again, for at most settleLimit, and returns
// its last error.
func settle(ctx context.Context, look func() (again bool, err error)) error {
	limit := time.Now().Add(settleLimit)
	for wait := settleFirst; ; wait = min(wait*3/2, settleMost) {
		again, err := look()
		if !again || time.Now().After(limit) {
			return err
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func filter(name, value string) types.Filter {
	return types.Filter{Name: aws.String(name), Values: []string{value}}
}
