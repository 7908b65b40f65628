package emulator

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"

	"github.com/quicklime-ir/quicklime/collector/cloud"
	"github.com/quicklime-ir/quicklime/collector/finding"
)

const (
	victim = "i-0123456789abcdef0"
	vpc    = "vpc-0123456789abcdef0"
	web    = "sg-00000000000000001"
)

func start(t *testing.T, change func(*Config)) (*Emulator, aws.Config) {
	t.Helper()
	cfg := Config{Region: "eu-central-1", AccountID: "111122223333", AccessKeyID: "AKIALAB", SecretAccessKey: "secret", Log: slog.New(slog.DiscardHandler),
		ImagePending: 300 * time.Millisecond, Rule: finding.RulePattern,
		Instances: []Instance{{ID: victim, VPC: vpc, Subnet: "subnet-0123456789abcdef0", AZ: "eu-central-1a", ImageID: "ami-0123456789abcdef0", PrivateIP: "10.0.2.15",
			Volumes: []string{"vol-0123456789abcdef0", "vol-0123456789abcdef1"}, Interfaces: []Interface{
				{ID: "eni-0123456789abcdef0", Subnet: "subnet-0123456789abcdef0", PrivateIP: "10.0.2.15", Groups: []string{web}},
				{ID: "eni-0123456789abcdef1", Subnet: "subnet-0123456789abcdef0", PrivateIP: "10.0.2.16", Groups: []string{web, "sg-00000000000000002"}}}}}}
	if change != nil {
		change(&cfg)
	}
	e, err := Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e, aws.Config{Region: cfg.Region, BaseEndpoint: aws.String(e.URL()), Credentials: credentials.NewStaticCredentialsProvider("AKIALAB", "secret", "")}
}

func code(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

// TestTheCollectorsCalls runs the collector's own package against the
// account, which answers late, throttles and loses replies.
func TestTheCollectorsCalls(t *testing.T) {
	e, sdk := start(t, func(c *Config) { c.MissReads = 2 })
	c := cloud.New(ec2.NewFromConfig(sdk, cloud.Retry), slog.New(slog.DiscardHandler))
	ctx := t.Context()
	instance, err := c.Instance(ctx, victim)
	if err != nil || instance.VPC != vpc || len(instance.Interfaces) != 2 || len(instance.Volumes) != 2 {
		t.Fatalf("instance %+v, %v", instance, err)
	}
	if before, err := c.Protect(ctx, victim); err != nil || before.TerminationProtected || before.ShutdownBehavior != "terminate" {
		t.Errorf("before %+v, %v", before, err)
	}
	e.Inject(Fault{Service: "ec2", Action: "CreateImage", Kind: LostReply, Times: 1})
	image, err := c.Image(ctx, victim, "quicklime-c1-"+victim, map[string]string{cloud.TagCase: "c1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Image(ctx, victim, "quicklime-c1-"+victim, map[string]string{cloud.TagCase: "c1"}); err != nil {
		t.Error(err)
	}
	if image, err = c.AwaitImage(ctx, image.ID, nil); err != nil || image.State != "available" || len(image.Snapshots) != 2 {
		t.Errorf("image %+v, %v", image, err)
	}
	e.Inject(Fault{Service: "ec2", Kind: Throttle, Times: 3})
	group, err := c.IsolationGroup(ctx, vpc)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range instance.Interfaces {
		if err := c.Isolate(ctx, f.ID, group); err != nil {
			t.Error(err)
		}
	}
	if err := c.Tag(ctx, []string{instance.Interfaces[1].ID}, map[string]string{cloud.TagPreviousGroups: cloud.PreviousGroups(instance.Interfaces[1].Groups)}); err != nil {
		t.Error(err)
	}
	s := e.State()
	if s.Created["image"] != 1 || s.Created["group"] != 1 {
		t.Errorf("created %v, want one image and one group", s.Created)
	}
	if !s.Instances[0].TerminationProtected || s.Instances[0].ShutdownBehavior != "stop" || !slices.Equal(s.Instances[0].Groups, []string{group}) {
		t.Errorf("instance %+v; want protected, and in %s alone", s.Instances[0], group)
	}
	for _, g := range s.Groups {
		if g.ID == group && g.Ingress+g.Egress != 0 {
			t.Errorf("the isolation group has rules: %+v", g)
		}
	}
	if !s.Images[0].NoReboot || s.Images[0].Tags[cloud.TagCase] != "c1" || s.Snapshots[0].Tags[cloud.TagCase] != "c1" {
		t.Errorf("image %+v, snapshot %+v", s.Images[0], s.Snapshots[0])
	}
}

func TestWhatEC2Refuses(t *testing.T) {
	_, sdk := start(t, nil)
	api := ec2.NewFromConfig(sdk, func(o *ec2.Options) { o.RetryMaxAttempts = 1 })
	ctx := t.Context()
	tests := []struct {
		name string
		want string
		call func() error
	}{
		{"an action that the lab does not have", "InvalidAction", func() error {
			_, err := api.DescribeVpcs(ctx, &ec2.DescribeVpcsInput{})
			return err
		}},
		{"a parameter that nobody reads", "UnknownParameter", func() error {
			_, err := api.CreateImage(ctx, &ec2.CreateImageInput{InstanceId: aws.String(victim), Name: aws.String("abc"),
				BlockDeviceMappings: []types.BlockDeviceMapping{{DeviceName: aws.String("/dev/xvda")}}})
			return err
		}},
		{"an instance id of the wrong shape", "InvalidInstanceID.Malformed", func() error {
			_, err := api.DescribeInstances(ctx, &ec2.DescribeInstancesInput{InstanceIds: []string{"i-xyz"}})
			return err
		}},
		{"an instance that is not there", "InvalidInstanceID.NotFound", func() error {
			_, err := api.DescribeInstances(ctx, &ec2.DescribeInstancesInput{InstanceIds: []string{"i-0fedcba9876543210"}})
			return err
		}},
		{"groups for an instance of two interfaces", "InvalidInstanceID", func() error {
			_, err := api.ModifyInstanceAttribute(ctx, &ec2.ModifyInstanceAttributeInput{InstanceId: aws.String(victim), Groups: []string{web}})
			return err
		}},
		{"a group that is not there", "InvalidGroup.NotFound", func() error {
			_, err := api.ModifyNetworkInterfaceAttribute(ctx, &ec2.ModifyNetworkInterfaceAttributeInput{
				NetworkInterfaceId: aws.String("eni-0123456789abcdef0"), Groups: []string{"sg-0fedcba9876543210"}})
			return err
		}},
		{"a rule that is not there", "InvalidPermission.NotFound", func() error {
			_, err := api.RevokeSecurityGroupEgress(ctx, &ec2.RevokeSecurityGroupEgressInput{GroupId: aws.String(web),
				IpPermissions: []types.IpPermission{{IpProtocol: aws.String("-1"), Ipv6Ranges: []types.Ipv6Range{{CidrIpv6: aws.String("::/0")}}}}})
			return err
		}},
		{"a filter that is not known", "InvalidParameterValue", func() error {
			_, err := api.DescribeImages(ctx, &ec2.DescribeImagesInput{Owners: []string{"self"}, Filters: []types.Filter{{Name: aws.String("colour"), Values: []string{"red"}}}})
			return err
		}},
		{"a tag of AWS's own", "InvalidParameterValue", func() error {
			_, err := api.CreateTags(ctx, &ec2.CreateTagsInput{Resources: []string{victim}, Tags: []types.Tag{{Key: aws.String("aws:x"), Value: aws.String("y")}}})
			return err
		}},
		{"a dry run that would have worked", "DryRunOperation", func() error {
			_, err := api.CreateTags(ctx, &ec2.CreateTagsInput{DryRun: aws.Bool(true), Resources: []string{victim}, Tags: []types.Tag{{Key: aws.String("x"), Value: aws.String("y")}}})
			return err
		}},
	}
	for _, tt := range tests {
		if err := tt.call(); code(err) != tt.want {
			t.Errorf("%s: error %v, want %s", tt.name, err, tt.want)
		}
	}
}

func TestAWrongSignatureIsRefused(t *testing.T) {
	_, sdk := start(t, nil)
	sdk.Credentials = credentials.NewStaticCredentialsProvider("AKIALAB", "guessed", "")
	if _, err := ec2.NewFromConfig(sdk).DescribeInstances(t.Context(), &ec2.DescribeInstancesInput{InstanceIds: []string{victim}}); code(err) != "AuthFailure" {
		t.Errorf("EC2: %v", err)
	}
	if _, err := sts.NewFromConfig(sdk).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{}); code(err) != "SignatureDoesNotMatch" {
		t.Errorf("STS: %v", err)
	}
}

func TestSTS(t *testing.T) {
	_, sdk := start(t, nil)
	if who, err := sts.NewFromConfig(sdk).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{}); err != nil || aws.ToString(who.Account) != "111122223333" {
		t.Errorf("%+v, %v", who, err)
	}
}

func TestAQueueRedrives(t *testing.T) {
	e, sdk := start(t, nil)
	q := sqs.NewFromConfig(sdk)
	url := aws.String(e.QueueURL())
	time.AfterFunc(100*time.Millisecond, func() { e.SendRaw("poison") })
	for n := range 3 {
		got, err := q.ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{QueueUrl: url, WaitTimeSeconds: 5, VisibilityTimeout: 60})
		if err != nil || len(got.Messages) != 1 {
			t.Fatalf("receive %d: %+v, %v", n, got, err)
		}
		if _, err := q.ChangeMessageVisibility(t.Context(), &sqs.ChangeMessageVisibilityInput{QueueUrl: url, ReceiptHandle: got.Messages[0].ReceiptHandle, VisibilityTimeout: 0}); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := q.ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{QueueUrl: url}); err != nil || len(got.Messages) != 0 {
		t.Errorf("a fourth receive gave %+v, %v", got, err)
	}
	if s := e.State(); !slices.Equal(s.DeadLetters, []string{"poison"}) || s.Waiting != 0 {
		t.Errorf("dead letters %v, %d waiting", s.DeadLetters, s.Waiting)
	}
	e.SendRaw("fine")
	got, err := q.ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{QueueUrl: url})
	if err != nil || len(got.Messages) != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, err := q.DeleteMessage(t.Context(), &sqs.DeleteMessageInput{QueueUrl: url, ReceiptHandle: got.Messages[0].ReceiptHandle}); err != nil {
		t.Error(err)
	}
	if _, err := q.DeleteMessage(t.Context(), &sqs.DeleteMessageInput{QueueUrl: url, ReceiptHandle: aws.String("stale")}); code(err) != "ReceiptHandleIsInvalid" {
		t.Errorf("a stale receipt: %v", err)
	}
}

func TestGuardDutyReachesTheQueueByTheRule(t *testing.T) {
	e, _ := start(t, nil)
	for severity, want := range map[string]bool{"8": true, "7.0": true, "9.5": true, "6.9": false, "2": false} {
		if _, matched, err := e.DeliverGuardDuty(json.RawMessage(`{"severity":` + severity + `}`)); err != nil || matched != want {
			t.Errorf("severity %s: matched %v, %v", severity, matched, err)
		}
	}
}

func TestPutEventsIsNotForAWSsOwnSources(t *testing.T) {
	e, sdk := start(t, nil)
	body := `{"Entries":[{"Source":"aws.guardduty","DetailType":"GuardDuty Finding","Detail":"{\"severity\":8}"},{"Source":"lab.test","DetailType":"x","Detail":"{}"}]}`
	q, _ := http.NewRequest(http.MethodPost, e.URL(), strings.NewReader(body))
	q.Header.Set("X-Amz-Target", "AWSEvents.PutEvents")
	q.Header.Set("Content-Type", "application/x-amz-json-1.1")
	credentials, _ := sdk.Credentials.Retrieve(t.Context())
	if err := v4.NewSigner().SignHTTP(t.Context(), credentials, q, hexSum(body), "events", sdk.Region, time.Now()); err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, _ := io.ReadAll(answer.Body)
	if !strings.Contains(string(text), "NotAuthorizedForSourceException") || !strings.Contains(string(text), `"FailedEntryCount":1`) {
		t.Errorf("%s", text)
	}
}

func TestPatterns(t *testing.T) {
	tests := []struct {
		pattern, event string
		want           bool
	}{
		{`{"a":["x"]}`, `{"a":"x"}`, true},
		{`{"a":["x"]}`, `{"a":["y","x"]}`, true},
		{`{"a":["x"]}`, `{}`, false},
		{`{"a":[8]}`, `{"a":8.0}`, true},
		{`{"a":[null]}`, `{"a":null}`, true},
		{`{"a":{"b":[{"prefix":"i-"}]}}`, `{"a":{"b":"i-1"}}`, true},
		{`{"a":[{"suffix":".png"}]}`, `{"a":"x.jpg"}`, false},
		{`{"a":[{"exists":false}]}`, `{"b":1}`, true},
		{`{"a":[{"anything-but":["x","y"]}]}`, `{"a":"z"}`, true},
		{`{"a":[{"anything-but":{"prefix":"x"}}]}`, `{"a":"xy"}`, false},
		{`{"a":[{"numeric":[">",0,"<=",5]}]}`, `{"a":5}`, true},
		{`{"a":[{"numeric":[">",0,"<=",5]}]}`, `{"a":5.1}`, false},
		{`{"a":[{"numeric":["=",1]}]}`, `{"a":"1"}`, false},
		{`{"a":[{"equals-ignore-case":"AbC"}]}`, `{"a":"aBc"}`, true},
		{`{"a":[{"wildcard":"a*c"}]}`, `{"a":"abbbc"}`, true},
		{`{"$or":[{"a":["x"]},{"b":["y"]}]}`, `{"b":"y"}`, true},
	}
	for _, tt := range tests {
		p, err := parsePattern([]byte(tt.pattern))
		if err != nil {
			t.Errorf("%s: %v", tt.pattern, err)
			continue
		}
		if got, err := p.matches([]byte(tt.event)); err != nil || got != tt.want {
			t.Errorf("%s on %s: %v, %v; want %v", tt.pattern, tt.event, got, err, tt.want)
		}
	}
	for _, bad := range []string{`{}`, `[]`, `{"a":"x"}`, `{"a":[]}`, `{"a":[{"almost":"x"}]}`, `{"a":[{"numeric":[">"]}]}`, `{"a":[["x"]]}`, `{"a":[{"prefix":"x","suffix":"y"}]}`} {
		if _, err := parsePattern([]byte(bad)); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}

func FuzzPattern(f *testing.F) {
	f.Add(`{"a":[{"numeric":[">",0]}]}`, `{"a":1}`)
	f.Add(`{"$or":[{"a":[{"anything-but":{"prefix":"x"}}]},{"b":[{"wildcard":"*"}]}]}`, `{"a":[1,"x"],"b":null}`)
	f.Fuzz(func(t *testing.T, rule, event string) {
		if p, err := parsePattern([]byte(rule)); err == nil {
			_, _ = p.matches([]byte(event))
		}
	})
}

func TestIMDS(t *testing.T) {
	e, _ := start(t, nil)
	get := func(method, path string, headers map[string]string) (int, string) {
		q, _ := http.NewRequest(method, e.IMDSURL()+path, nil)
		for k, v := range headers {
			q.Header.Set(k, v)
		}
		answer, err := http.DefaultClient.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		b, _ := io.ReadAll(answer.Body)
		return answer.StatusCode, string(b)
	}
	if status, _ := get("GET", "/latest/meta-data/instance-id", nil); status != 401 {
		t.Errorf("without a token: %d", status)
	}
	if status, _ := get("PUT", "/latest/api/token", map[string]string{"X-aws-ec2-metadata-token-ttl-seconds": "99999"}); status != 400 {
		t.Errorf("a token for too long: %d", status)
	}
	_, token := get("PUT", "/latest/api/token", map[string]string{"X-aws-ec2-metadata-token-ttl-seconds": "60"})
	auth := map[string]string{"X-aws-ec2-metadata-token": token}
	if status, id := get("GET", "/latest/meta-data/instance-id", auth); status != 200 || id != victim {
		t.Errorf("instance id: %d %q", status, id)
	}
	if _, p7 := get("GET", "/latest/dynamic/instance-identity/rsa2048", auth); len(p7) < 500 {
		t.Errorf("PKCS7: %q", p7)
	}
}

func hexSum(body string) string {
	sum := sha256.Sum256([]byte(body))
	return hex.EncodeToString(sum[:])
}
