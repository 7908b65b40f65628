package steps

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/cloud"
	"github.com/quicklime-ir/quicklime/collector/locker"
	"github.com/quicklime-ir/quicklime/collector/playbook"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// settles is how long EC2 may show interfaces as they were before they were
// changed. Source: Amazon EC2 API Reference, "Eventual consistency".
const settles = 30 * time.Second

// verify reads back what was done: the interfaces' groups from EC2, each
// object's hash and size from S3, the AMI's state. What does not hold is
// named; an answer of 200 to an earlier call proves nothing.
func (s *Story) verify(ctx context.Context, run *playbook.Run) error {
	c, ec2, err := s.open(ctx, run)
	if err != nil {
		return err
	}
	contained := s.checkInterfaces(ctx, run, c, ec2)
	if errors.As(contained, new(playbook.Again)) {
		return contained
	}
	if step, _ := c.StepNamed(Verify); contained != nil && time.Since(step.Started) < settles {
		return playbook.Again{Err: contained}
	}
	stored := s.checkObjects(ctx, c)
	if errors.As(stored, new(playbook.Again)) {
		return stored
	}
	imaged := s.awaitImage(ctx, run, c, ec2)
	if stopping(ctx) {
		return context.Cause(ctx)
	}
	switch problems := errors.Join(contained, stored, imaged); {
	case contained != nil:
		return problems
	case problems != nil:
		return playbook.Partial{Err: problems}
	}
	return nil
}

func (s *Story) checkInterfaces(ctx context.Context, run *playbook.Run, c casefile.Case, ec2 *cloud.EC2) error {
	now, err := ec2.Groups(ctx, c.Instance.ID)
	if err != nil {
		return retry(Verify, err)
	}
	after := withBefore(c.Interfaces, now)
	for i := range after {
		after[i].After = nil
		if at := slices.IndexFunc(now, func(n cloud.Interface) bool { return n.ID == after[i].ID }); at >= 0 {
			after[i].After = now[at].Groups
		}
	}
	if err := learn(ctx, run, casefile.Event{Interfaces: after}); err != nil {
		return err
	}
	if len(now) == 0 {
		return fmt.Errorf("%s has no network interface now", c.Instance.ID)
	}
	return isolated(ctx, ec2, now)
}

// checkObjects holds what S3 says of each object against the ledger. That S3 is
// away says nothing of them.
func (s *Story) checkObjects(ctx context.Context, c casefile.Case) error {
	items, err := s.Ledger.Items(ctx, c.ID)
	if err != nil {
		return err
	}
	var errs []error
	for _, item := range items {
		if item.Size == 0 {
			continue
		}
		object, err := s.Locker.Head(ctx, item.Key)
		switch {
		case err != nil && locker.Passing(err) && !errors.Is(err, locker.ErrNoObject):
			return playbook.Again{Err: err}
		case err != nil:
			errs = append(errs, err)
		case object.Size != item.Size || object.SHA256 != evidence.Composite(item.Parts):
			errs = append(errs, fmt.Errorf("object %s has %d bytes and hash %s, the ledger has %d and %s",
				item.Key, object.Size, object.SHA256, item.Size, evidence.Composite(item.Parts)))
		}
	}
	return errors.Join(errs...)
}

func (s *Story) awaitImage(ctx context.Context, run *playbook.Run, c casefile.Case, ec2 *cloud.EC2) error {
	if c.Image == nil {
		return nil // the step image has said why
	}
	limited, cancel := context.WithTimeoutCause(ctx, s.Limits.Image, fmt.Errorf("image %s is not available after %v", c.Image.ID, s.Limits.Image))
	defer cancel()
	image, err := ec2.AwaitImage(limited, c.Image.ID, func(i cloud.Image) {
		run.Log.Info("image", "image", i.ID, "state", i.State)
	})
	if err != nil {
		if cause := context.Cause(limited); cause != nil {
			err = cause
		}
		return err
	}
	last, stop := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer stop()
	return learn(last, run, casefile.Event{Image: imageOf(image)})
}
