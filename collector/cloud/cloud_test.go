package cloud

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/google/go-cmp/cmp"
)

var errCut = errors.New("connection reset by peer")

func story(t *testing.T, name string, tell func(t *testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, tell) })
}

func TestInstance(t *testing.T) {
	want := Instance{ID: host, Account: "111122223333", VPC: vpc, Subnet: "subnet-1", AZ: "eu-central-1b", ImageID: "ami-base", State: "running",
		LaunchTime: time.Date(2026, 10, 2, 6, 12, 44, 0, time.UTC), PrivateIP: "10.0.0.10", Platform: "Linux/UNIX", Architecture: "x86_64",
		Tags: map[string]string{"Name": "shop-web-3"}, Volumes: []string{"vol-1", "vol-2"},
		Interfaces: []Interface{
			{ID: "eni-a", VPC: vpc, Subnet: "subnet-1", PrivateIP: "10.0.0.10", Groups: []string{"sg-1"}},
			{ID: "eni-b", VPC: vpc, Subnet: "subnet-1", PrivateIP: "10.0.0.11", Groups: []string{"sg-2", "sg-3"}, DeviceIndex: 1},
		}}
	f := newFake()
	got, err := f.ec2(t).Instance(t.Context(), host)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	if _, err := f.ec2(t).Instance(t.Context(), "i-00000000"); !errors.Is(err, ErrNoInstance) || !Final(err) {
		t.Errorf("unknown instance: %v", err)
	}
	f.instance.State.Name = types.InstanceStateNameTerminated
	if _, err := f.ec2(t).Instance(t.Context(), host); !errors.Is(err, ErrNoInstance) {
		t.Errorf("terminated instance: %v", err)
	}
	f.faults["DescribeInstances"] = []fault{{err: errCut}}
	if _, err := f.ec2(t).Instance(t.Context(), host); !errors.Is(err, errCut) || Final(err) {
		t.Errorf("cut connection: %v", err)
	}
	bare := New(f, f.ec2(t).log)
	f.instance = types.Instance{InstanceId: aws.String(host)}
	if _, err := bare.Instance(t.Context(), host); err != nil {
		t.Errorf("an answer without details: %v", err)
	}
}

func TestProtect(t *testing.T) {
	open, done := Protection{false, "terminate"}, Protection{true, "stop"}
	for _, c := range []struct {
		name     string
		start    Protection
		faults   map[string][]fault
		modifies int
		end      Protection
		says     string // of the error; empty: none
		final    bool
	}{
		{name: "open instance", start: open, modifies: 2, end: done},
		{name: "done already", start: done, modifies: 0, end: done},
		{name: "half done", start: Protection{true, "terminate"}, modifies: 1, end: done},
		{name: "a spot instance refuses protection: the shutdown behaviour is still set", start: open, modifies: 2,
			faults: map[string][]fault{"ModifyInstanceAttribute": {{err: code("UnsupportedOperation")}}},
			end:    Protection{false, "stop"}, says: "termination protection", final: true},
		{name: "one refused for good, one throttled: worth a retry", start: open, modifies: 2,
			faults: map[string][]fault{"ModifyInstanceAttribute": {{err: code("UnsupportedOperation")}, {err: code("RequestLimitExceeded")}}},
			end:    open, says: "shutdown behaviour", final: false},
		{name: "an answer is lost", start: open, modifies: 2,
			faults: map[string][]fault{"ModifyInstanceAttribute": {{err: errCut, lost: true}}},
			end:    done, says: "connection reset"},
		{name: "reading is refused: nothing is changed", start: open, modifies: 0,
			faults: map[string][]fault{"DescribeInstanceAttribute": {{err: code("UnauthorizedOperation")}}},
			end:    open, says: "UnauthorizedOperation", final: true},
		{name: "the second read fails: nothing is changed", start: open, modifies: 0,
			faults: map[string][]fault{"DescribeInstanceAttribute": {{}, {err: errCut}}}, end: open, says: "connection reset"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake()
			f.termination, f.shutdown = c.start.TerminationProtected, c.start.ShutdownBehavior
			if c.faults != nil {
				f.faults = c.faults
			}
			before, err := f.ec2(t).Protect(t.Context(), host)
			if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) || Final(err) != c.final {
				t.Errorf("error %v, final %t", err, Final(err))
			}
			if f.calls["ModifyInstanceAttribute"] != c.modifies || (Protection{f.termination, f.shutdown}) != c.end {
				t.Errorf("%d changes, ends %t %s", f.calls["ModifyInstanceAttribute"], f.termination, f.shutdown)
			}
			if read := c.modifies > 0 || c.says == ""; read && before != c.start {
				t.Errorf("before is %+v, want %+v", before, c.start)
			}
		})
	}
}

var caseTags = map[string]string{TagCase: "c-1", TagInstance: host}

const imageTitle = "quicklime c-1 (i-0c3f9a5b7d1e24680)"

func TestImageIsMadeOnce(t *testing.T) {
	story(t, "made, tagged, awaited", func(t *testing.T) {
		f := newFake()
		start := time.Now()
		made, err := f.ec2(t).Image(t.Context(), host, imageTitle, caseTags)
		if err != nil || made.ID != "ami-1" || made.State != "pending" {
			t.Fatalf("%+v, %v", made, err)
		}
		var states []string
		ready, err := f.ec2(t).AwaitImage(t.Context(), made.ID, func(i Image) { states = append(states, i.State) })
		want := Image{ID: "ami-1", Name: imageTitle, State: "available", Created: start.UTC(), Snapshots: []string{"snap-1", "snap-2"}}
		if diff := cmp.Diff(want, ready); err != nil || diff != "" {
			t.Errorf("%v %s", err, diff)
		}
		if n := len(states); n < 5 || n > 30 || states[0] != "pending" || states[n-1] != "available" {
			t.Errorf("progress %v", states)
		}
		if diff := cmp.Diff(caseTags, tagMap(f.images[0].Tags)); diff != "" {
			t.Error(diff)
		}
	})
	story(t, "asked for again, it is found", func(t *testing.T) {
		f := newFake()
		f.ec2(t).Image(t.Context(), host, imageTitle, caseTags)
		again, err := f.ec2(t).Image(t.Context(), host, imageTitle, caseTags)
		if err != nil || again.ID != "ami-1" || f.calls["CreateImage"] != 1 {
			t.Errorf("%+v, %v after %d creations", again, err, f.calls["CreateImage"])
		}
	})
	story(t, "the answer is lost: the next try finds it, even before EC2 shows it", func(t *testing.T) {
		f := newFake()
		f.lag = 20 * time.Second
		f.faults["CreateImage"] = []fault{{err: errCut, lost: true}}
		if _, err := f.ec2(t).Image(t.Context(), host, imageTitle, caseTags); !errors.Is(err, errCut) || Final(err) {
			t.Fatalf("first: %v", err)
		}
		found, err := f.ec2(t).Image(t.Context(), host, imageTitle, caseTags)
		if err != nil || found.ID != "ami-1" || len(f.images) != 1 {
			t.Errorf("second: %+v, %v, %d images", found, err, len(f.images))
		}
	})
	story(t, "another node is faster", func(t *testing.T) {
		f := newFake()
		f.lag = 5 * time.Second
		f.beforeMake = func() { f.addImage(imageTitle, host, tagList(caseTags)) }
		found, err := f.ec2(t).Image(t.Context(), host, imageTitle, caseTags)
		if err != nil || found.ID != "ami-1" || len(f.images) != 1 {
			t.Errorf("%+v, %v", found, err)
		}
	})
	story(t, "a duplicate that never shows is an error after a minute, worth a retry", func(t *testing.T) {
		f := newFake()
		f.faults["CreateImage"] = []fault{{err: code("InvalidAMIName.Duplicate")}}
		start := time.Now()
		_, err := f.ec2(t).Image(t.Context(), host, imageTitle, caseTags)
		if !errors.Is(err, errMissing) || Final(err) || time.Since(start) > settleLimit+settleMost {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
	for name, i := range map[string]types.Image{
		"another instance's": {SourceInstanceId: aws.String("i-12ab34cd"), Tags: tagList(caseTags)},
		"another case's":     {SourceInstanceId: aws.String(host), Tags: tagList(map[string]string{TagCase: "c-0"})},
		"nobody's":           {},
	} {
		story(t, "the name is taken by an image that is "+name, func(t *testing.T) {
			f := newFake()
			i.ImageId, i.Name = aws.String("ami-planted"), aws.String(imageTitle)
			f.images = []types.Image{i}
			_, err := f.ec2(t).Image(t.Context(), host, imageTitle, caseTags)
			if !errors.Is(err, ErrForeignImage) || !Final(err) || !strings.Contains(err.Error(), "ami-planted") {
				t.Errorf("%v", err)
			}
		})
	}
	for _, name := range []string{"", "a*", "quicklime?", "x\ny", strings.Repeat("a", 129)} {
		f := newFake()
		if _, err := f.ec2(t).Image(t.Context(), host, name, caseTags); !Final(err) || len(f.calls) != 0 {
			t.Errorf("name %q: %v", name, err)
		}
	}
}

func TestAwaitImage(t *testing.T) {
	story(t, "not shown at first, then throttled, then cut off", func(t *testing.T) {
		f := newFake()
		f.lag = 30 * time.Second
		id := f.addImage(imageTitle, host, nil)
		f.faults["DescribeImages"] = []fault{{}, {}, {err: code("RequestLimitExceeded")}, {err: errCut}, {err: code("Unavailable")}}
		if ready, err := f.ec2(t).AwaitImage(t.Context(), id, nil); err != nil || ready.State != "available" {
			t.Errorf("%+v, %v", ready, err)
		}
	})
	for _, state := range []types.ImageState{"failed", "error", "invalid", "deregistered", "disabled"} {
		story(t, string(state), func(t *testing.T) {
			f := newFake()
			f.imageEnds = state
			_, err := f.ec2(t).AwaitImage(t.Context(), f.addImage(imageTitle, host, nil), nil)
			if !errors.Is(err, ErrImageFailed) || !Final(err) || !strings.Contains(err.Error(), `"Client.InternalError a volume is\ngone"`) {
				t.Errorf("%v", err)
			}
		})
	}
	story(t, "never shown", func(t *testing.T) {
		f, start := newFake(), time.Now()
		_, err := f.ec2(t).AwaitImage(t.Context(), "ami-9", nil)
		if !Final(err, "InvalidAMIID.NotFound") || time.Since(start) < imageAppears || time.Since(start) > imageAppears+imageMost {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
	story(t, "not allowed to look", func(t *testing.T) {
		f := newFake()
		f.faults["DescribeImages"] = []fault{{err: code("UnauthorizedOperation")}}
		if _, err := f.ec2(t).AwaitImage(t.Context(), "ami-9", nil); !Final(err) || f.calls["DescribeImages"] != 1 {
			t.Errorf("%v", err)
		}
	})
	story(t, "the deadline passes", func(t *testing.T) {
		f := newFake()
		f.imageReady = time.Hour
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := f.ec2(t).AwaitImage(ctx, f.addImage(imageTitle, host, nil), nil)
		if !errors.Is(err, context.DeadlineExceeded) || Final(err) || !strings.Contains(err.Error(), `last seen "pending"`) {
			t.Errorf("%v", err)
		}
	})
}

func TestIsolationGroup(t *testing.T) {
	ours := []types.Tag{{Key: aws.String(TagRole), Value: aws.String(RoleIsolation)}}
	ssh := types.IpPermission{IpProtocol: aws.String("tcp"), FromPort: aws.Int32(22), ToPort: aws.Int32(22),
		IpRanges: []types.IpRange{{CidrIp: aws.String("198.51.100.0/24"), Description: aws.String("office")}}}
	pair := types.IpPermission{IpProtocol: aws.String("-1"), PrefixListIds: []types.PrefixListId{{PrefixListId: aws.String("pl-1")}},
		UserIdGroupPairs: []types.UserIdGroupPair{{GroupId: aws.String("sg-9"), GroupName: aws.String("web"), UserId: aws.String("1")}}}
	for _, c := range []struct {
		name    string
		prepare func(f *fakeEC2)
		creates int
		says    string
	}{
		{"missing: made and emptied, IPv4 and IPv6", func(*fakeEC2) {}, 1, ""},
		{"made, but shown late", func(f *fakeEC2) { f.lag = 15 * time.Second }, 1, ""},
		{"there and empty", func(f *fakeEC2) { f.addGroup(ours, nil, nil) }, 0, ""},
		{"there with rules", func(f *fakeEC2) {
			f.addGroup(ours, []types.IpPermission{ssh, pair}, []types.IpPermission{everywhere(false), pair})
		}, 0, ""},
		{"planted without our tag", func(f *fakeEC2) { f.addGroup(nil, []types.IpPermission{ssh}, []types.IpPermission{everywhere(false)}) }, 0, ""},
		{"planted, and tagging is not allowed", func(f *fakeEC2) {
			f.addGroup(nil, []types.IpPermission{ssh}, nil)
			f.faults["CreateTags"] = []fault{{err: code("UnauthorizedOperation")}}
		}, 0, ""},
		{"another node is faster and its group is shown late", func(f *fakeEC2) {
			f.lag = 10 * time.Second
			f.beforeMake = func() { f.addGroup(ours, nil, []types.IpPermission{everywhere(false)}) }
		}, 1, ""},
		{"the answer of the revocation is lost, then it fails", func(f *fakeEC2) {
			f.addGroup(ours, []types.IpPermission{ssh}, nil)
			f.faults["RevokeSecurityGroupIngress"] = []fault{{err: code("InvalidPermission.NotFound")}}
		}, 0, ""},
		{"creating is not allowed", func(f *fakeEC2) { f.faults["CreateSecurityGroup"] = []fault{{err: code("UnauthorizedOperation")}} }, 1, "UnauthorizedOperation"},
		{"looking is not allowed", func(f *fakeEC2) { f.faults["DescribeSecurityGroups"] = []fault{{err: code("UnauthorizedOperation")}} }, 0, "UnauthorizedOperation"},
		{"revoking is not allowed", func(f *fakeEC2) {
			f.addGroup(ours, nil, []types.IpPermission{everywhere(false)})
			f.faults["RevokeSecurityGroupEgress"] = []fault{{err: code("UnauthorizedOperation")}}
		}, 0, "UnauthorizedOperation"},
		{"revocations that do nothing are noticed", func(f *fakeEC2) {
			f.addGroup(ours, nil, []types.IpPermission{everywhere(false)})
			f.faults["RevokeSecurityGroupEgress"] = slices.Repeat([]fault{{err: code("InvalidPermission.NotFound")}}, 100)
		}, 0, "security group has rules"},
	} {
		story(t, c.name, func(t *testing.T) {
			f := newFake()
			c.prepare(f)
			id, err := f.ec2(t).IsolationGroup(t.Context(), vpc)
			if f.calls["CreateSecurityGroup"] != c.creates {
				t.Errorf("%d creations, want %d", f.calls["CreateSecurityGroup"], c.creates)
			}
			if c.says != "" {
				if err == nil || !strings.Contains(err.Error(), c.says) || id != "" {
					t.Errorf("%q, %v, want %q", id, err, c.says)
				}
				return
			}
			if err != nil || id != "sg-made-1" || len(f.groups) != 1 {
				t.Fatalf("%q, %v, %d groups", id, err, len(f.groups))
			}
			if g := f.groups[0]; len(g.IpPermissions)+len(g.IpPermissionsEgress) != 0 {
				t.Errorf("rules are left: %+v %+v", g.IpPermissions, g.IpPermissionsEgress)
			}
		})
	}
	story(t, "the lost answer of the creation: the next try finds it", func(t *testing.T) {
		f := newFake()
		f.faults["CreateSecurityGroup"] = []fault{{err: errCut, lost: true}}
		if _, err := f.ec2(t).IsolationGroup(t.Context(), vpc); !errors.Is(err, errCut) {
			t.Fatalf("first: %v", err)
		}
		if id, err := f.ec2(t).IsolationGroup(t.Context(), vpc); err != nil || id != "sg-made-1" || len(f.groups[0].IpPermissionsEgress) != 0 {
			t.Errorf("second: %q, %v", id, err)
		}
	})
}

func TestIsolateAndLookAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.lag = 10 * time.Second
		group := f.addGroup(nil, nil, nil)
		before, err := f.ec2(t).Groups(t.Context(), host)
		want := []Interface{
			{ID: "eni-a", VPC: vpc, Subnet: "subnet-1", PrivateIP: "10.0.0.10", Groups: []string{"sg-1"}},
			{ID: "eni-b", VPC: vpc, Subnet: "subnet-1", PrivateIP: "10.0.0.11", Groups: []string{"sg-2", "sg-3"}, DeviceIndex: 1},
		}
		if diff := cmp.Diff(want, before); err != nil || diff != "" {
			t.Fatalf("%v %s", err, diff)
		}
		for range 2 { // twice: done already is fine
			for _, face := range before {
				if err := f.ec2(t).Isolate(t.Context(), face.ID, group); err != nil {
					t.Fatal(err)
				}
			}
		}
		after, err := f.ec2(t).Groups(t.Context(), host)
		for _, face := range after {
			if !slices.Equal(face.Groups, []string{group}) {
				t.Errorf("%s is in %v", face.ID, face.Groups)
			}
		}
		if err != nil || len(after) != 2 {
			t.Errorf("%d interfaces, %v", len(after), err)
		}
	})
}

func TestIsolateFaults(t *testing.T) {
	for _, c := range []struct {
		name, face, group string
		fault             error
		final             bool
	}{
		{"interface gone", "eni-x", "sg-made-1", nil, false},
		{"group gone", "eni-a", "sg-x", nil, false},
		{"not allowed", "eni-a", "sg-made-1", code("UnauthorizedOperation"), true},
		{"throttled", "eni-a", "sg-made-1", code("RequestLimitExceeded"), false},
	} {
		story(t, c.name, func(t *testing.T) {
			f := newFake()
			f.addGroup(nil, nil, nil)
			f.faults["ModifyNetworkInterfaceAttribute"] = []fault{{err: c.fault}}
			err := f.ec2(t).Isolate(t.Context(), c.face, c.group)
			if err == nil || Final(err) != c.final || !strings.Contains(err.Error(), c.face) {
				t.Errorf("%v, final %t", err, Final(err))
			}
		})
	}
}

func TestGroupsNeverProvesACutWithNothing(t *testing.T) {
	f := newFake()
	if faces, err := f.ec2(t).Groups(t.Context(), "i-12ab34cd"); !errors.Is(err, ErrNoInstance) {
		t.Errorf("%v, %v", faces, err)
	}
	f.faults["DescribeNetworkInterfaces"] = []fault{{}, {err: errCut}}
	if faces, err := f.ec2(t).Groups(t.Context(), host); !errors.Is(err, errCut) || faces != nil {
		t.Errorf("half an answer passes for a whole one: %v, %v", faces, err)
	}
}

func TestTag(t *testing.T) {
	story(t, "resources that are shown late", func(t *testing.T) {
		f := newFake()
		f.faults["CreateTags"] = []fault{{err: code("InvalidSnapshot.NotFound")}, {err: code("InvalidAMIID.NotFound")}}
		if err := f.ec2(t).Tag(t.Context(), []string{"snap-1", "ami-1"}, caseTags); err != nil || cmp.Diff(f.tags["ami-1"], caseTags) != "" {
			t.Errorf("%v, tags %v", err, f.tags)
		}
	})
	story(t, "an instance that is gone", func(t *testing.T) {
		f := newFake()
		f.faults["CreateTags"] = []fault{{err: code("InvalidInstanceID.NotFound")}}
		if err := f.ec2(t).Tag(t.Context(), []string{host}, caseTags); !Final(err, "InvalidInstanceID.NotFound") || f.calls["CreateTags"] != 1 {
			t.Errorf("%v", err)
		}
	})
	for name, tags := range map[string]map[string]string{
		"value of 257 characters": {TagCase: strings.Repeat("x", 257)},
		"reserved key":            {"aws:x": "y"},
		"empty key":               {"": "y"},
		"key of 129 characters":   {strings.Repeat("k", 129): "y"},
	} {
		f := newFake()
		if err := f.ec2(t).Tag(t.Context(), []string{host}, tags); !Final(err) || f.calls["CreateTags"] != 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	f := newFake()
	if err := f.ec2(t).Tag(t.Context(), nil, caseTags); err != nil || f.calls["CreateTags"] != 0 {
		t.Errorf("nothing to tag: %v", err)
	}
}

func TestPreviousGroupsFitsATag(t *testing.T) {
	var groups []string
	for i := range 16 {
		groups = append(groups, fmt.Sprintf("sg-%017x", i))
	}
	if got := PreviousGroups(groups[:2]); got != groups[0]+" "+groups[1] {
		t.Errorf("two groups: %q", got)
	}
	got := PreviousGroups(groups)
	if len(got) > maxTagValue || !strings.HasPrefix(got, groups[0]+" ") || !strings.HasSuffix(got, groups[11]+" +4") {
		t.Errorf("sixteen groups: %q", got)
	}
	if got := PreviousGroups(nil); got != "" {
		t.Errorf("no group: %q", got)
	}
}

func TestFinal(t *testing.T) {
	throttle, refused := code("RequestLimitExceeded"), code("UnauthorizedOperation")
	for _, c := range []struct {
		name  string
		err   error
		codes []string
		want  bool
	}{
		{"none", nil, nil, false},
		{"refused", fmt.Errorf("cannot x: %w", refused), nil, true},
		{"throttled", fmt.Errorf("cannot x: %w", throttle), nil, false},
		{"unknown code", code("SomethingNew"), nil, false},
		{"the asker's own code", fmt.Errorf("cannot x: %w", code("SnapshotLimitExceeded")), []string{"SnapshotLimitExceeded"}, true},
		{"another asker's code", code("SnapshotLimitExceeded"), []string{"TagLimitExceeded"}, false},
		{"cut", errCut, nil, false},
		{"stopped", context.Canceled, nil, false},
		{"both final", errors.Join(refused, ErrNoInstance), nil, true},
		{"one worth a retry", errors.Join(refused, throttle), nil, false},
		{"wrapped sentinel", fmt.Errorf("x: %w: y", ErrImageFailed), nil, true},
	} {
		if got := Final(c.err, c.codes...); got != c.want {
			t.Errorf("%s: %t", c.name, got)
		}
	}
}
