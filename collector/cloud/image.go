package cloud

import (
	"context"
	"fmt"
	"regexp"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// Image is an AMI and the snapshots under it.
type Image struct {
	ID        string
	Name      string
	State     string    // pending, available, failed, and the rarer ones that EC2 documents
	Created   time.Time // zero until EC2 says it
	Snapshots []string  // ids; EC2 shows them some time after the image
}

// imageName is what EC2 takes as a name, without the wildcards of its filters.
var imageName = regexp.MustCompile(`^[A-Za-z0-9()\[\] ./'@_-]{3,128}$`)

// Image makes an AMI of a running instance without rebooting it, with tags on
// the AMI and on its snapshots, or finds the one of that name. The name makes
// it happen once: take one that no other case has. The image is not complete
// when Image returns; see AwaitImage. ErrForeignImage: the name is taken by an
// image of another instance or case.
func (e *EC2) Image(ctx context.Context, instance, name string, tags map[string]string) (Image, error) {
	if !imageName.MatchString(name) {
		return Image{}, fmt.Errorf("cannot image %s: %w: %.200q is not a name for an image", instance, errUnusable, name)
	}
	if err := checkTags(tags); err != nil {
		return Image{}, fmt.Errorf("cannot image %s: %w", instance, err)
	}
	found, ok, err := e.imageNamed(ctx, instance, name, tags)
	if err != nil || ok {
		return found, err
	}
	in := &ec2.CreateImageInput{InstanceId: &instance, Name: &name, NoReboot: aws.Bool(true)}
	if len(tags) > 0 {
		in.TagSpecifications = []types.TagSpecification{
			{ResourceType: types.ResourceTypeImage, Tags: tagList(tags)},
			{ResourceType: types.ResourceTypeSnapshot, Tags: tagList(tags)},
		}
	}
	out, err := call(ctx, e.api.CreateImage, in)
	switch {
	case hasCode(err, "InvalidAMIName.Duplicate"):
		return e.awaitName(ctx, instance, name, tags)
	case err != nil:
		return Image{}, fmt.Errorf("cannot image %s: %w", instance, err)
	}
	return Image{ID: aws.ToString(out.ImageId), Name: name, State: string(types.ImageStatePending)}, nil
}

// awaitName finds an image that EC2 says exists: made by a call whose answer was
// lost, or by another node.
func (e *EC2) awaitName(ctx context.Context, instance, name string, tags map[string]string) (found Image, err error) {
	err = settle(ctx, func() (bool, error) {
		var ok bool
		if found, ok, err = e.imageNamed(ctx, instance, name, tags); ok || err != nil {
			return false, err
		}
		return true, fmt.Errorf("cannot find image %q of %s: %w", name, instance, errMissing)
	})
	return found, err
}

func (e *EC2) imageNamed(ctx context.Context, instance, name string, tags map[string]string) (Image, bool, error) {
	out, err := call(ctx, e.api.DescribeImages, &ec2.DescribeImagesInput{
		Owners: []string{"self"}, Filters: []types.Filter{filter("name", name)}})
	if err != nil {
		return Image{}, false, fmt.Errorf("cannot look for image %q: %w", name, err)
	}
	for _, i := range out.Images {
		if aws.ToString(i.Name) != name {
			continue
		}
		if !isOf(i, instance, tags) {
			return Image{}, false, fmt.Errorf("cannot image %s: %w: %s has the name %q; deregister it or rename the case",
				instance, ErrForeignImage, aws.ToString(i.ImageId), name)
		}
		return image(i), true, nil
	}
	return Image{}, false, nil
}

// isOf reports whether an image is of this instance and this case. EC2 itself
// writes the source instance; where it says none, the tags must agree.
func isOf(i types.Image, instance string, tags map[string]string) bool {
	has := tagMap(i.Tags)
	if other, ok := has[TagCase]; ok && other != tags[TagCase] {
		return false
	}
	if source := aws.ToString(i.SourceInstanceId); source != "" {
		return source == instance
	}
	for key, value := range tags {
		if has[key] != value {
			return false
		}
	}
	return true
}

// AwaitImage waits until the image is available, however long that takes: bound
// it by ctx. progress, unless nil, is called after each look. ErrImageFailed:
// EC2 gave up. Throttling and broken answers are waited out.
func (e *EC2) AwaitImage(ctx context.Context, id string, progress func(Image)) (Image, error) {
	appears := time.Now().Add(imageAppears)
	for wait := time.Second; ; wait = min(wait*3/2, imageMost) {
		found, err := e.imageByID(ctx, id)
		switch {
		case err == nil:
			if progress != nil {
				progress(found)
			}
			if found.State == string(types.ImageStateAvailable) {
				return found, nil
			}
		case (hasCode(err, "InvalidAMIID.NotFound") || err == errMissing) && time.Now().Before(appears):
		case Final(err, "InvalidAMIID.NotFound", "InvalidAMIID.Unavailable") || err == errMissing || ctx.Err() != nil:
			return Image{}, fmt.Errorf("cannot await image %s: %w", id, err)
		default:
			e.log.Warn("cannot look at image; looking again", "image", id, "error", err)
		}
		if err := pause(ctx, wait); err != nil {
			return Image{}, fmt.Errorf("cannot await image %s, last seen %q: %w", id, found.State, err)
		}
	}
}

// imageByID reads one image. A state that it cannot leave is ErrImageFailed.
func (e *EC2) imageByID(ctx context.Context, id string) (Image, error) {
	out, err := call(ctx, e.api.DescribeImages, &ec2.DescribeImagesInput{ImageIds: []string{id}})
	if err != nil {
		return Image{}, err
	}
	for _, i := range out.Images {
		if aws.ToString(i.ImageId) != id {
			continue
		}
		switch i.State {
		case types.ImageStateFailed, types.ImageStateError, types.ImageStateInvalid, types.ImageStateDeregistered, types.ImageStateDisabled:
			return Image{}, fmt.Errorf("%w: it is %s: %.300q", ErrImageFailed, i.State, reason(i.StateReason))
		}
		return image(i), nil
	}
	return Image{}, errMissing
}

func reason(r *types.StateReason) string {
	if r == nil {
		return "EC2 gives no reason"
	}
	return aws.ToString(r.Code) + " " + aws.ToString(r.Message)
}

func image(i types.Image) Image {
	out := Image{ID: aws.ToString(i.ImageId), Name: aws.ToString(i.Name), State: string(i.State)}
	if t, err := time.Parse(time.RFC3339, aws.ToString(i.CreationDate)); err == nil {
		out.Created = t
	}
	for _, b := range i.BlockDeviceMappings {
		if b.Ebs != nil && aws.ToString(b.Ebs.SnapshotId) != "" {
			out.Snapshots = append(out.Snapshots, *b.Ebs.SnapshotId)
		}
	}
	return out
}
