package steps

import (
	"context"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/playbook"
)

// protect looks the instance up, and turns on its termination protection, so
// that a long capture is not cut short; how it was before is kept.
func (s *Story) protect(ctx context.Context, run *playbook.Run) error {
	c, ec2, err := s.open(ctx, run)
	if err != nil {
		return err
	}
	instance, err := ec2.Instance(ctx, c.Instance.ID)
	if err != nil {
		return retry(Protect, err)
	}
	known := c.Instance
	known.ImageID, known.VPC = instance.ImageID, instance.VPC
	if err := learn(ctx, run, casefile.Event{Instance: &known}); err != nil {
		return err
	}
	before, err := ec2.Protection(ctx, c.Instance.ID)
	if err != nil {
		return retry(Protect, err)
	}
	if err := learn(ctx, run, casefile.Event{Protection: &casefile.Protection{
		TerminationProtected: before.TerminationProtected, ShutdownBehavior: before.ShutdownBehavior}}); err != nil {
		return err
	}
	_, err = ec2.Protect(ctx, c.Instance.ID)
	return retry(Protect, err)
}
