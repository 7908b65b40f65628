package cloud

import (
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
)

// wire answers the real SDK's requests from a script of one answer per request
// and remembers what was sent.
type wire struct {
	answers []answer
	sent    []url.Values
}

type answer struct {
	status int // 0: the connection is cut
	xml    string
}

func (w *wire) Do(r *http.Request) (*http.Response, error) {
	body, _ := io.ReadAll(r.Body)
	form, _ := url.ParseQuery(string(body))
	w.sent = append(w.sent, form)
	if len(w.sent) > len(w.answers) {
		return nil, io.EOF
	}
	a := w.answers[len(w.sent)-1]
	if a.status == 0 {
		return nil, io.ErrUnexpectedEOF
	}
	return &http.Response{StatusCode: a.status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(a.xml)), Request: r}, nil
}

func refusal(status int, code string) answer {
	return answer{status, "<Response><Errors><Error><Code>" + code + "</Code><Message>m</Message></Error></Errors><RequestID>r</RequestID></Response>"}
}

func (w *wire) ec2(t *testing.T) *EC2 {
	client := ec2.New(ec2.Options{Region: "eu-central-1", BaseEndpoint: aws.String("http://ec2.invalid"), HTTPClient: w,
		Credentials: aws.AnonymousCredentials{}}, Retry)
	return New(client, slog.New(slog.NewTextHandler(t.Output(), nil)))
}

// The real SDK, with Retry: throttled five times, then the connection is cut
// after EC2 made the image, then the SDK's own repetition meets the duplicate.
func TestImageThroughTheSDK(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		none := answer{200, "<DescribeImagesResponse><imagesSet/></DescribeImagesResponse>"}
		found := answer{200, "<DescribeImagesResponse><imagesSet><item><imageId>ami-1</imageId><name>" + imageTitle + "</name><imageState>pending</imageState>" +
			"<sourceInstanceId>" + host + "</sourceInstanceId></item></imagesSet></DescribeImagesResponse>"}
		slow := refusal(503, "RequestLimitExceeded")
		w := &wire{answers: []answer{none, slow, slow, slow, slow, slow, {}, refusal(400, "InvalidAMIName.Duplicate"), none, found}}
		got, err := w.ec2(t).Image(t.Context(), host, imageTitle, caseTags)
		if err != nil || got.ID != "ami-1" || len(w.sent) != len(w.answers) {
			t.Fatalf("%+v, %v after %d requests", got, err, len(w.sent))
		}
		create := w.sent[7]
		for key, want := range map[string]string{"Action": "CreateImage", "NoReboot": "true", "Name": imageTitle, "InstanceId": host,
			"TagSpecification.1.ResourceType": "image", "TagSpecification.2.ResourceType": "snapshot",
			"TagSpecification.2.Tag.1.Key": TagCase, "TagSpecification.2.Tag.1.Value": "c-1"} {
			if create.Get(key) != want {
				t.Errorf("%s is %q, want %q", key, create.Get(key), want)
			}
		}
	})
}

// Error codes come through the real SDK as Final reads them.
func TestFinalThroughTheSDK(t *testing.T) {
	for code, want := range map[string]bool{"InvalidInstanceID.NotFound": true, "UnauthorizedOperation": true, "RequestLimitExceeded": false} {
		synctest.Test(t, func(t *testing.T) {
			w := &wire{}
			for range 8 {
				w.answers = append(w.answers, refusal(400, code))
			}
			if _, err := w.ec2(t).Instance(t.Context(), host); err == nil || Final(err) != want {
				t.Errorf("%s: %v, final %t", code, err, Final(err))
			}
		})
	}
}
