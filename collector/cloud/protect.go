package cloud

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

const shutdownStops = "stop"

// Protection is what keeps an instance from being lost.
type Protection struct {
	TerminationProtected bool   // the API refuses to terminate it
	ShutdownBehavior     string // stop or terminate: what a shutdown from inside does
}

// Protection reads the instance's protection. Record it before Protect: once
// that has run, EC2 knows the previous values no more.
func (e *EC2) Protection(ctx context.Context, id string) (Protection, error) {
	termination, err := e.attribute(ctx, id, types.InstanceAttributeNameDisableApiTermination)
	if err != nil {
		return Protection{}, err
	}
	shutdown, err := e.attribute(ctx, id, types.InstanceAttributeNameInstanceInitiatedShutdownBehavior)
	if err != nil {
		return Protection{}, err
	}
	var p Protection
	if v := termination.DisableApiTermination; v != nil {
		p.TerminationProtected = aws.ToBool(v.Value)
	}
	if v := shutdown.InstanceInitiatedShutdownBehavior; v != nil {
		p.ShutdownBehavior = aws.ToString(v.Value)
	}
	return p, nil
}

// Protect turns termination protection on and makes a shutdown from inside stop
// the instance. before is what it found. Done already is fine. One of the two
// failing (spot instances refuse) does not keep the other from being done.
func (e *EC2) Protect(ctx context.Context, id string) (before Protection, err error) {
	before, err = e.Protection(ctx, id)
	if err != nil {
		return Protection{}, err
	}
	var termination, shutdown error
	if !before.TerminationProtected {
		termination = e.modify(ctx, "termination protection", &ec2.ModifyInstanceAttributeInput{
			InstanceId: &id, DisableApiTermination: &types.AttributeBooleanValue{Value: aws.Bool(true)}})
	}
	if before.ShutdownBehavior != shutdownStops {
		shutdown = e.modify(ctx, "shutdown behaviour", &ec2.ModifyInstanceAttributeInput{
			InstanceId: &id, InstanceInitiatedShutdownBehavior: &types.AttributeValue{Value: aws.String(shutdownStops)}})
	}
	return before, errors.Join(termination, shutdown)
}

func (e *EC2) attribute(ctx context.Context, id string, name types.InstanceAttributeName) (*ec2.DescribeInstanceAttributeOutput, error) {
	out, err := call(ctx, e.api.DescribeInstanceAttribute, &ec2.DescribeInstanceAttributeInput{InstanceId: &id, Attribute: name})
	if err != nil {
		return nil, fmt.Errorf("cannot read %s of %s: %w", name, id, err)
	}
	return out, nil
}

func (e *EC2) modify(ctx context.Context, what string, in *ec2.ModifyInstanceAttributeInput) error {
	if _, err := call(ctx, e.api.ModifyInstanceAttribute, in); err != nil {
		return fmt.Errorf("cannot set %s of %s: %w", what, aws.ToString(in.InstanceId), err)
	}
	return nil
}
