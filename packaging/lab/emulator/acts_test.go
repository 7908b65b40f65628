package emulator_test

import (
	"context"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/google/go-cmp/cmp"

	"github.com/quicklime-ir/quicklime/packaging/lab/emulator"
)

// TestWhatIsAskedForTwiceIsDoneOnce, and the second time is told from the
// first.
func TestWhatIsAskedForTwiceIsDoneOnce(t *testing.T) {
	tests := []struct {
		do   func(context.Context, *ec2.Client) error
		want emulator.Act
	}{
		{func(ctx context.Context, api *ec2.Client) error {
			_, err := api.CreateImage(ctx, &ec2.CreateImageInput{InstanceId: aws.String(host), Name: aws.String("a name")})
			return err
		}, emulator.Act{Action: "CreateImage", Subject: host, What: "image", Value: "a name"}},
		{func(ctx context.Context, api *ec2.Client) error {
			_, err := api.ModifyInstanceAttribute(ctx, &ec2.ModifyInstanceAttributeInput{InstanceId: aws.String(host), DisableApiTermination: &types.AttributeBooleanValue{Value: aws.Bool(true)}})
			return err
		}, emulator.Act{Action: "ModifyInstanceAttribute", Subject: host, What: "disableApiTermination", Value: "true"}},
		{func(ctx context.Context, api *ec2.Client) error {
			_, err := api.ModifyNetworkInterfaceAttribute(ctx, &ec2.ModifyNetworkInterfaceAttributeInput{NetworkInterfaceId: aws.String(eniA), Groups: []string{sg2}})
			return err
		}, emulator.Act{Action: "ModifyNetworkInterfaceAttribute", Subject: eniA, What: "groups", Value: "[" + sg2 + "]"}},
		{func(ctx context.Context, api *ec2.Client) error {
			_, err := api.CreateTags(ctx, &ec2.CreateTagsInput{Resources: []string{eniB}, Tags: []types.Tag{{Key: aws.String("k"), Value: aws.String("v")}}})
			return err
		}, emulator.Act{Action: "CreateTags", Subject: eniB, What: "tag k", Value: "v"}},
	}
	for _, tt := range tests {
		t.Run(tt.want.Action, func(t *testing.T) {
			l := start(t, nil)
			if err := tt.do(t.Context(), l.ec2); err != nil {
				t.Fatal(err)
			}
			_ = tt.do(t.Context(), l.ec2) // an image is refused, the others are fine
			done, again := tt.want, tt.want
			done.Changed = true
			got := l.Acts()
			for i := range got {
				got[i].Time = time.Time{}
			}
			if diff := cmp.Diff([]emulator.Act{done, again}, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
