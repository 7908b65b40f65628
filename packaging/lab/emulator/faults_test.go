package emulator_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/quicklime-ir/quicklime/packaging/lab/emulator"
)

// calls is one call of each service.
func (l *lab) calls(ctx context.Context) map[string]func() error {
	return map[string]func() error{
		"ec2": func() error {
			_, err := l.ec2.CreateImage(ctx, &ec2.CreateImageInput{InstanceId: aws.String(host), Name: aws.String("name")})
			return err
		},
		"sqs": func() error {
			_, err := l.sqs.SendMessage(ctx, &sqs.SendMessageInput{QueueUrl: aws.String(l.QueueURL()), MessageBody: aws.String("m")})
			return err
		},
		"sts": func() error { _, err := l.sts.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{}); return err },
		"events": func() error {
			_, err := l.events.PutEvents(ctx, &eventbridge.PutEventsInput{Entries: entries("lab", "{}")})
			return err
		},
	}
}

func TestFaults(t *testing.T) {
	words := map[string]map[emulator.FaultKind]string{
		"ec2":    {emulator.Throttle: "RequestLimitExceeded", emulator.Unavailable: "Unavailable"},
		"sqs":    {emulator.Throttle: "ThrottlingException", emulator.Unavailable: "ServiceUnavailable"},
		"sts":    {emulator.Throttle: "Throttling", emulator.Unavailable: "ServiceUnavailable"},
		"events": {emulator.Throttle: "ThrottlingException", emulator.Unavailable: "ServiceUnavailable"},
	}
	for service, codes := range words {
		l := start(t, nil)
		for _, kind := range []emulator.FaultKind{emulator.Throttle, emulator.Unavailable} {
			l.Inject(emulator.Fault{Service: service, Kind: kind, Times: 2})
			for range 2 {
				if err := l.calls(t.Context())[service](); codeOf(err) != codes[kind] {
					t.Errorf("%s: %v, want %s", service, err, codes[kind])
				}
			}
		}
		if s := l.State(); len(s.Images)+s.Queue.Visible != 0 {
			t.Errorf("%s: a refused call did something: %+v", service, s)
		}
		if err := l.calls(t.Context())[service](); err != nil {
			t.Errorf("%s: the faults are over: %v", service, err)
		}
	}
}

func TestALostReplyIsDone(t *testing.T) {
	l := start(t, nil)
	l.Inject(emulator.Fault{Service: "ec2", Action: "CreateImage", Kind: emulator.LostReply})
	create := l.calls(t.Context())["ec2"]
	if err := create(); codeOf(err) != "cut" {
		t.Errorf("%v", err)
	}
	if n := len(l.State().Images); n != 1 {
		t.Errorf("%d images", n)
	}
	if err := create(); codeOf(err) != "InvalidAMIName.Duplicate" {
		t.Errorf("again: %v", err)
	}
}

func TestASlowReplyIsLate(t *testing.T) {
	l := start(t, nil)
	l.Inject(emulator.Fault{Service: "sts", Kind: emulator.Slow, Delay: 300 * time.Millisecond})
	from := time.Now()
	if err := l.calls(t.Context())["sts"](); err != nil || time.Since(from) < 300*time.Millisecond {
		t.Errorf("%v after %v", err, time.Since(from))
	}
	l.Inject(emulator.Fault{Service: "ec2", Kind: emulator.Slow, Delay: time.Hour})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := l.calls(ctx)["ec2"](); err == nil || len(l.State().Images) != 0 {
		t.Errorf("who goes away is not served: %v", err)
	}
}

func TestFaultsAreForTheirAction(t *testing.T) {
	l := start(t, nil)
	l.Inject(emulator.Fault{Service: "ec2", Action: "DescribeImages", Kind: emulator.Throttle})
	if err := l.calls(t.Context())["ec2"](); err != nil {
		t.Error(err)
	}
	if _, err := l.ec2.DescribeImages(t.Context(), &ec2.DescribeImagesInput{}); codeOf(err) != "RequestLimitExceeded" {
		t.Error(err)
	}
}

func TestSignatures(t *testing.T) {
	l := start(t, nil)
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	wrongKey, wrongRegion := connect(t, l.Emulator, transport, "guess", region), connect(t, l.Emulator, transport, "secret", "eu-west-1")
	for service, call := range wrongKey.calls(t.Context()) {
		want := map[string]string{"ec2": "AuthFailure"}[service]
		if want == "" {
			want = "SignatureDoesNotMatch"
		}
		if err := call(); codeOf(err) != want {
			t.Errorf("wrong secret, %s: %v", service, err)
		}
		if err := wrongRegion.calls(t.Context())[service](); codeOf(err) != want {
			t.Errorf("wrong region, %s: %v", service, err)
		}
	}
	if s := l.State(); len(s.Images)+s.Queue.Visible+len(s.Calls) != 0 {
		t.Errorf("a call that is not signed did something: %+v", s)
	}
}

// recorder keeps the last request of the SDK, so that it can be changed and
// sent again.
type recorder struct {
	next   http.RoundTripper
	header http.Header
	body   string
}

func (r *recorder) RoundTrip(q *http.Request) (*http.Response, error) {
	raw, err := io.ReadAll(q.Body)
	if err != nil {
		return nil, err
	}
	r.header, r.body = q.Header.Clone(), string(raw)
	again := q.Clone(q.Context())
	again.Body = io.NopCloser(strings.NewReader(r.body))
	return r.next.RoundTrip(again)
}

func TestAChangedRequestIsRefused(t *testing.T) {
	l := start(t, nil)
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	seen := &recorder{next: transport}
	cfg := l.cfg.Copy()
	cfg.HTTPClient = &http.Client{Transport: seen}
	if _, err := sts.NewFromConfig(cfg).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func(h http.Header, path, body *string)
		status int
	}{
		{"as it was", func(http.Header, *string, *string) {}, 200},
		{"another body of that length", func(_ http.Header, _, b *string) { *b = strings.Replace(*b, "Get", "Got", 1) }, 403},
		{"another path", func(_ http.Header, p, _ *string) { *p = "/x" }, 403},
		{"a query", func(_ http.Header, p, _ *string) { *p = "/?a=b" }, 403},
		{"no authorization", func(h http.Header, _, _ *string) { h.Del("Authorization") }, 403},
		{"half an authorization", func(h http.Header, _, _ *string) { h.Set("Authorization", "AWS4-HMAC-SHA256 Credential=x") }, 403},
		{"another date", func(h http.Header, _, _ *string) {
			h.Set("X-Amz-Date", time.Now().UTC().Add(time.Minute).Format("20060102T150405Z"))
		}, 403},
		{"an old date", func(h http.Header, _, _ *string) { h.Set("X-Amz-Date", "20200101T000000Z") }, 403},
		{"a token of nobody", func(h http.Header, _, _ *string) { h.Set("X-Amz-Security-Token", "t") }, 403},
		{"another service", func(h http.Header, _, _ *string) {
			h.Set("Authorization", strings.Replace(h.Get("Authorization"), "/sts/", "/ec2/", 1))
		}, 403},
		{"a service that is not there", func(h http.Header, _, _ *string) {
			h.Set("Authorization", strings.Replace(h.Get("Authorization"), "/sts/", "/iam/", 1))
		}, 403},
	} {
		header, path, body := seen.header.Clone(), "/", seen.body
		c.change(header, &path, &body)
		q, err := http.NewRequestWithContext(t.Context(), http.MethodPost, l.URL()+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		q.Header = header
		answer, err := transport.RoundTrip(q)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != c.status {
			t.Errorf("%s: %s, want %d", c.name, answer.Status, c.status)
		}
	}
}

func TestSTS(t *testing.T) {
	l := start(t, nil)
	who, err := l.sts.GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
	if err != nil || *who.Account != account || !strings.HasPrefix(*who.Arn, "arn:aws:iam::"+account+":") {
		t.Errorf("%+v, %v", who, err)
	}
	if _, err := l.sts.GetSessionToken(t.Context(), &sts.GetSessionTokenInput{}); codeOf(err) != "InvalidAction" {
		t.Errorf("%v", err)
	}
}
