package cloud

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf16"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"
)

// Tag keys. Tags are for people and for finding things again; whoever may write
// tags may forge them, so nothing is believed because of a tag.
const (
	TagCase           = "quicklime:case"            // on everything a case makes or touches: its id
	TagInstance       = "quicklime:instance"        // on images and snapshots: the instance they are of
	TagFinding        = "quicklime:finding"         // on the instance: GuardDuty's id of the first finding
	TagState          = "quicklime:state"           // on the instance: how far its case is
	TagPreviousGroups = "quicklime:previous-groups" // on a network interface: see PreviousGroups
	TagRole           = "quicklime:role"            // on an isolation group: RoleIsolation
	RoleIsolation     = "isolation"
)

// EC2's bounds of tags. Source: EC2 user guide, "Tag your Amazon EC2 resources".
const (
	maxTagKey    = 128 // characters
	maxTagValue  = 256
	maxTags      = 50
	maxResources = 1000
)

// Tag puts tags on resources, over what they had under the same keys. Resources
// made a moment ago are waited for.
func (e *EC2) Tag(ctx context.Context, resources []string, tags map[string]string) error {
	if len(resources) == 0 || len(tags) == 0 {
		return nil
	}
	if err := checkTags(tags); err != nil {
		return fmt.Errorf("cannot tag %s: %w", strings.Join(resources, ", "), err)
	}
	if len(resources) > maxResources {
		return fmt.Errorf("cannot tag %d resources: %w: EC2 takes %d at once", len(resources), errUnusable, maxResources)
	}
	err := settle(ctx, func() (bool, error) {
		_, err := call(ctx, e.api.CreateTags, &ec2.CreateTagsInput{Resources: resources, Tags: tagList(tags)})
		return notFound(err), err
	})
	if err != nil {
		return fmt.Errorf("cannot tag %s: %w", strings.Join(resources, ", "), err)
	}
	return nil
}

// PreviousGroups is the value of TagPreviousGroups: group ids with blanks
// between them. Where they are too many for a tag, whole ids are left out and
// their number is put at the end, as in "sg-1 sg-2 +3"; the case has them all.
func PreviousGroups(groups []string) string {
	for shown := len(groups); shown > 0; shown-- {
		value := strings.Join(groups[:shown], " ")
		if left := len(groups) - shown; left > 0 {
			value += fmt.Sprintf(" +%d", left)
		}
		if length(value) <= maxTagValue {
			return value
		}
	}
	return ""
}

func checkTags(tags map[string]string) error {
	if len(tags) > maxTags {
		return fmt.Errorf("%w: %d tags, EC2 takes %d", errUnusable, len(tags), maxTags)
	}
	for _, key := range slices.Sorted(maps.Keys(tags)) {
		switch {
		case key == "" || length(key) > maxTagKey || strings.HasPrefix(strings.ToLower(key), "aws:"):
			return fmt.Errorf("%w: tag key %.200q is empty, begins with aws: or is longer than %d characters", errUnusable, key, maxTagKey)
		case length(tags[key]) > maxTagValue:
			return fmt.Errorf("%w: the value of tag %q is longer than %d characters", errUnusable, key, maxTagValue)
		}
	}
	return nil
}

func length(s string) int { return len(utf16.Encode([]rune(s))) }

// tagList sorts, so that the same tags make the same request.
func tagList(tags map[string]string) []types.Tag {
	var list []types.Tag
	for _, key := range slices.Sorted(maps.Keys(tags)) {
		list = append(list, types.Tag{Key: aws.String(key), Value: aws.String(tags[key])})
	}
	return list
}

func tagMap(list []types.Tag) map[string]string {
	tags := make(map[string]string, len(list))
	for _, t := range list {
		tags[aws.ToString(t.Key)] = aws.ToString(t.Value)
	}
	return tags
}

// notFound holds for every code of the form InvalidThing.NotFound but the
// instance's: an instance is never made by a case.
func notFound(err error) bool {
	var api smithy.APIError
	return errors.As(err, &api) && strings.HasSuffix(api.ErrorCode(), ".NotFound") && !hasCode(err, "InvalidInstanceID.NotFound")
}
