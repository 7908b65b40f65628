package emulator_test

import (
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/google/go-cmp/cmp"

	"github.com/quicklime-ir/quicklime/collector/cloud"
	"github.com/quicklime-ir/quicklime/packaging/lab/emulator"
)

// The collector's own EC2 code runs a case, on a day when EC2 is slow to show
// what is new, throttles, and loses answers.
func TestTheCollectorContainsAnInstance(t *testing.T) {
	l := start(t, func(c *emulator.Config) { c.MissReads, c.ImagePending = 2, 500*time.Millisecond })
	ctx := t.Context()
	cfg := l.cfg.Copy()
	cfg.Retryer = nil
	c := cloud.New(ec2.NewFromConfig(cfg, cloud.Retry), slog.New(slog.NewTextHandler(t.Output(), nil)))
	for _, action := range []string{"DescribeInstances", "ModifyInstanceAttribute", "CreateImage", "CreateSecurityGroup", "ModifyNetworkInterfaceAttribute"} {
		l.Inject(emulator.Fault{Service: "ec2", Action: action, Kind: emulator.Throttle})
		l.Inject(emulator.Fault{Service: "ec2", Action: action, Kind: emulator.LostReply})
	}

	i, err := c.Instance(ctx, host)
	if err != nil || i.Account != account || i.VPC != vpc || i.State != "running" || len(i.Interfaces) != 2 || len(i.Volumes) != 2 || i.Tags["Name"] != "shop-web-3" {
		t.Fatalf("%+v, %v", i, err)
	}
	if _, err := c.Instance(ctx, nobody); !errors.Is(err, cloud.ErrNoInstance) {
		t.Errorf("%v", err)
	}
	before, err := c.Protect(ctx, host)
	if err != nil || before != (cloud.Protection{ShutdownBehavior: "terminate"}) {
		t.Errorf("%+v, %v", before, err)
	}

	tags := map[string]string{cloud.TagCase: "c-1", cloud.TagInstance: host}
	made, err := c.Image(ctx, host, "quicklime c-1 ("+host+")", tags)
	if err != nil {
		t.Fatal(err)
	}
	again, err := c.Image(ctx, host, "quicklime c-1 ("+host+")", tags)
	if err != nil || again.ID != made.ID {
		t.Errorf("%+v, %v", again, err)
	}

	faces, err := c.Groups(ctx, host)
	if err != nil || len(faces) != 2 || !slices.Equal(faces[1].Groups, []string{sg1, sg2}) {
		t.Fatalf("%+v, %v", faces, err)
	}
	group, err := c.IsolationGroup(ctx, vpc)
	if err != nil {
		t.Fatal(err)
	}
	if same, err := c.IsolationGroup(ctx, vpc); err != nil || same != group {
		t.Errorf("%s, %v", same, err)
	}
	for _, f := range faces {
		previous := map[string]string{cloud.TagPreviousGroups: cloud.PreviousGroups(f.Groups)}
		if err := errors.Join(c.Tag(ctx, []string{f.ID}, previous), c.Isolate(ctx, f.ID, group)); err != nil {
			t.Fatal(err)
		}
	}
	after, err := c.Groups(ctx, host)
	if err != nil || !slices.Equal(after[0].Groups, []string{group}) || !slices.Equal(after[1].Groups, []string{group}) {
		t.Errorf("%+v, %v", after, err)
	}
	ready, err := c.AwaitImage(ctx, made.ID, nil)
	if err != nil || ready.State != "available" || len(ready.Snapshots) != 2 {
		t.Errorf("%+v, %v", ready, err)
	}

	s := l.State()
	if diff := cmp.Diff(map[string]int{"image": 1, "group": 1}, s.Created); diff != "" {
		t.Error(diff)
	}
	changed := map[string]int{}
	for _, act := range l.Acts() {
		if key := act.Subject + " " + act.What; act.Changed {
			if changed[key]++; changed[key] > 1 {
				t.Errorf("%s was changed twice: %+v", key, act)
			}
		}
	}
	if len(changed) != 9 { // two attributes, an image, a group, its rule taken away, two interfaces with a tag each
		t.Errorf("%v", changed)
	}
	if at := s.Instances[0]; !at.TerminationProtected || at.ShutdownBehavior != "stop" {
		t.Errorf("%+v", at)
	}
	iso := s.Groups[len(s.Groups)-1]
	if iso.ID != group || len(iso.Ingress)+len(iso.Egress) != 0 || iso.Tags[cloud.TagRole] != cloud.RoleIsolation {
		t.Errorf("%+v", iso)
	}
	if diff := cmp.Diff(tags, s.Images[0].Tags); diff != "" || !s.Images[0].NoReboot {
		t.Error(diff)
	}
	if diff := cmp.Diff(tags, s.Snapshots[1].Tags); diff != "" {
		t.Error(diff)
	}
	if s.Interfaces[1].Tags[cloud.TagPreviousGroups] != sg1+" "+sg2 || !slices.Equal(s.Interfaces[2].Groups, []string{sg3}) {
		t.Errorf("%+v", s.Interfaces)
	}
}
