package steps

import (
	"context"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/cloud"
	"github.com/quicklime-ir/quicklime/collector/playbook"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// image takes the AMI. The snapshots' moment is fixed once EC2 has answered;
// the step verify waits for the copying to end, so that containment need
// not.
func (s *Story) image(ctx context.Context, run *playbook.Run) error {
	c, ec2, err := s.open(ctx, run)
	if err != nil {
		return err
	}
	image, err := ec2.Image(ctx, c.Instance.ID, "quicklime-"+c.ID+"-"+c.Instance.ID, map[string]string{
		cloud.TagCase: c.ID, cloud.TagInstance: c.Instance.ID,
	})
	if err != nil {
		return retry(Image, err)
	}
	return learn(ctx, run, casefile.Event{Image: imageOf(image)})
}

func imageOf(i cloud.Image) *evidence.Image {
	return &evidence.Image{ID: i.ID, Name: i.Name, State: i.State, Snapshots: i.Snapshots}
}

// learn records facts; a store that cannot take them now is asked again.
func learn(ctx context.Context, run *playbook.Run, fact casefile.Event) error {
	if _, err := run.Learn(ctx, fact); err != nil {
		return playbook.Again{Err: err}
	}
	return nil
}
