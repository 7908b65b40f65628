package locker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// Reachable says whether S3 answers and the collector may see the bucket: one
// request, which is not tried again. The error says what helps. It needs
// s3:ListBucket. Source: Amazon S3 API Reference, HeadBucket.
func (l *Locker) Reachable(ctx context.Context) error {
	_, err := l.s3.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &l.cfg.Bucket}, func(o *s3.Options) { o.Retryer = aws.NopRetryer{} })
	if err != nil {
		return fmt.Errorf("cannot reach bucket %s: %s: %w", l.cfg.Bucket, remedy(ctx, err), err)
	}
	return nil
}

// remedy says what an error of a bucket means, and what to do about it. The
// answer to HEAD has no body: there is only its status.
func remedy(ctx context.Context, err error) string {
	switch s := status(err); {
	case s == http.StatusForbidden:
		return "S3 refuses the collector: allow its role s3:ListBucket on it, and see the bucket's and the VPC endpoint's policies, and the host's clock"
	case s == http.StatusNotFound:
		return "there is no such bucket: see --bucket"
	case s == http.StatusMovedPermanently, s == http.StatusTemporaryRedirect, s == http.StatusBadRequest:
		return "S3 wants another request: see whether the bucket is in the collector's region (AWS_REGION), and its credentials have not expired"
	case s == http.StatusTooManyRequests, s >= 500:
		return "S3 has a fault, or wants fewer requests: this passes by itself"
	case s != 0:
		return "S3 gives an unexpected answer"
	}
	var name *net.DNSError
	switch {
	case errors.As(err, new(*tls.CertificateVerificationError)):
		return "the endpoint's certificate is not trusted: see AWS_CA_BUNDLE and AWS_ENDPOINT_URL_S3, and whether somebody stands in between"
	case errors.As(err, &name) && !name.IsTimeout:
		return "the endpoint's name is not known: see DNS, AWS_REGION and AWS_ENDPOINT_URL_S3"
	case ctx.Err() != nil:
		return "S3 gives no answer: see the route to it, the VPC endpoint and the security groups"
	case errors.As(err, new(*smithyhttp.RequestSendError)):
		return "there is no connection to S3: see the route to it, the VPC endpoint and the security groups"
	}
	return "there is nothing to sign a request with: see the instance's role, or the AWS_ variables"
}
