package emulator_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
	"go.uber.org/goleak"

	"github.com/quicklime-ir/quicklime/packaging/lab/emulator"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	region  = "eu-central-1"
	account = "111122223333"
	host    = "i-0c3f9a5b7d1e24680" // two interfaces, two volumes
	other   = "i-0aaaaaaaaaaaaaaaa" // one interface, in another VPC
	nobody  = "i-0ffffffffffffffff"
	vpc     = "vpc-0123456789abcdef0"
	vpc2    = "vpc-0123456789abcdef1"
	eniA    = "eni-00000000000000001"
	eniB    = "eni-00000000000000002"
	eniC    = "eni-00000000000000003"
	sg1     = "sg-00000000000000001"
	sg2     = "sg-00000000000000002"
	sg3     = "sg-00000000000000003"
)

func instances() []emulator.Instance {
	return []emulator.Instance{
		{ID: host, VPC: vpc, Subnet: "subnet-0123456789abcdef0", AZ: region + "b", ImageID: "ami-0123456789abcdef0", PrivateIP: "10.0.0.10",
			Tags: map[string]string{"Name": "shop-web-3"}, Role: "shop-web", UserData: "#cloud-config\n", LaunchTime: time.Date(2026, 10, 2, 6, 12, 44, 0, time.UTC),
			Volumes: []string{"vol-00000000000000001", "vol-00000000000000002"},
			Interfaces: []emulator.Interface{{ID: eniA, PrivateIP: "10.0.0.10", Groups: []string{sg1}},
				{ID: eniB, PrivateIP: "10.0.0.11", Groups: []string{sg1, sg2}}}},
		{ID: other, VPC: vpc2, Subnet: "subnet-0123456789abcdef1", AZ: region + "b", ImageID: "ami-0123456789abcdef0", PrivateIP: "10.1.0.10",
			Volumes: []string{"vol-00000000000000003"}, Interfaces: []emulator.Interface{{ID: eniC, PrivateIP: "10.1.0.10", Groups: []string{sg3}}}},
	}
}

// lab is an emulator and the real SDK's clients of it. The clients try once,
// so that each test sees each answer.
type lab struct {
	*emulator.Emulator
	cfg    aws.Config
	ec2    *ec2.Client
	sqs    *sqs.Client
	sts    *sts.Client
	events *eventbridge.Client
}

func start(t *testing.T, change func(*emulator.Config)) *lab {
	t.Helper()
	cfg := emulator.Config{Region: region, AccountID: account, AccessKeyID: "AKIALAB", SecretAccessKey: "secret",
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Instances: instances()}
	if change != nil {
		change(&cfg)
	}
	e, err := emulator.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, name := range []string{"AWS_CA_BUNDLE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_PROFILE"} {
		t.Setenv(name, "") // so that the tests are the same everywhere
	}
	t.Setenv("AWS_ENDPOINT_URL", e.URL())
	t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", e.IMDSURL())
	return connect(t, e, transport, "secret", region)
}

func connect(t *testing.T, e *emulator.Emulator, transport *http.Transport, secret, region string) *lab {
	t.Helper()
	sdk, err := config.LoadDefaultConfig(t.Context(), config.WithRegion(region), config.WithHTTPClient(&http.Client{Transport: transport}),
		config.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} }),
		config.WithCredentialsProvider(credentials.NewStaticCredentialsProvider("AKIALAB", secret, "")))
	if err != nil {
		t.Fatal(err)
	}
	return &lab{e, sdk, ec2.NewFromConfig(sdk), sqs.NewFromConfig(sdk), sts.NewFromConfig(sdk), eventbridge.NewFromConfig(sdk)}
}

// codeOf is AWS's code of an error; "cut" where no answer came; "" for none.
func codeOf(err error) string {
	var api smithy.APIError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &api):
		return api.ErrorCode()
	}
	return "cut"
}

func TestStartRefusesAWrongAccount(t *testing.T) {
	for name, change := range map[string]func(*emulator.Config){
		"no region":           func(c *emulator.Config) { c.Region = "" },
		"no secret":           func(c *emulator.Config) { c.SecretAccessKey = "" },
		"short account":       func(c *emulator.Config) { c.AccountID = "1" },
		"negative misses":     func(c *emulator.Config) { c.MissReads = -1 },
		"bad rule":            func(c *emulator.Config) { c.Rule = `{"a":[{"like":"b"}]}` },
		"malformed instance":  func(c *emulator.Config) { c.Instances[0].ID = "host" },
		"malformed interface": func(c *emulator.Config) { c.Instances[0].Interfaces[0].ID = "eni-x" },
		"instance twice":      func(c *emulator.Config) { c.Instances = append(c.Instances, instances()[0]) },
		"group in two VPCs":   func(c *emulator.Config) { c.Instances[1].Interfaces[0].Groups = []string{sg1} },
		"volume twice":        func(c *emulator.Config) { c.Instances[1].Volumes = c.Instances[0].Volumes },
		"reserved tag":        func(c *emulator.Config) { c.Instances[0].Tags = map[string]string{"aws:x": "y"} },
	} {
		cfg := emulator.Config{Region: region, AccountID: account, AccessKeyID: "k", SecretAccessKey: "s", Instances: instances()}
		change(&cfg)
		if e, err := emulator.Start(t.Context(), cfg); err == nil {
			t.Errorf("%s: started", name)
			e.Close()
		}
	}
}

func TestItEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	e, err := emulator.Start(ctx, emulator.Config{Region: region, AccountID: account, AccessKeyID: "k", SecretAccessKey: "s"})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		r, err := http.Get(e.IMDSURL() + "/")
		if err != nil {
			break
		}
		r.Body.Close()
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		if time.Now().After(end) {
			t.Fatal("it still serves")
		}
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}
