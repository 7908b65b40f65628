package bucket

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/quicklime-ir/quicklime/packaging/lab/pki"
	"github.com/quicklime-ir/quicklime/packaging/lab/process"
)

// Server is a running S3 with one bucket, reached through its proxy alone.
type Server struct {
	*Proxy
	Bucket string

	child *process.Child
	cfg   Config
	ca    []byte
}

// Start starts the server as a child process, exe with the arguments
// "s3 --root … --addr …", puts the proxy in front of it, and makes the bucket
// with versioning and Object Lock on.
func Start(ctx context.Context, exe, name string, c Config, authority *pki.Authority, log io.Writer) (_ *Server, err error) {
	if c.Addr, err = freeAddr(); err != nil {
		return nil, err
	}
	s := &Server{Bucket: name, cfg: c, ca: authority.PEM}
	s.child, err = process.Start(process.Spec{Path: exe, Log: log,
		Args: []string{"s3", "--root", c.Root, "--addr", c.Addr, "--region", c.Region},
		Env:  append(os.Environ(), "AWS_ACCESS_KEY_ID="+c.AccessKey, "AWS_SECRET_ACCESS_KEY="+c.SecretKey)})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = s.child.Kill()
		}
	}()
	limited, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := s.child.Await(limited, func() bool { return healthy(c.Addr) }); err != nil {
		return nil, err
	}
	if s.Proxy, err = newProxy(c.Addr, authority); err != nil {
		return nil, err
	}
	client := s.Client()
	_, err = client.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: &name, ObjectLockEnabledForBucket: aws.Bool(true),
		CreateBucketConfiguration: &types.CreateBucketConfiguration{LocationConstraint: types.BucketLocationConstraint(c.Region)}})
	if err != nil {
		return nil, fmt.Errorf("cannot make bucket %s: %w", name, err)
	}
	return s, nil
}

// Client is an S3 client of the lab's own, through the proxy.
func (s *Server) Client() *s3.Client {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.ca)
	return s3.New(s3.Options{Region: s.cfg.Region, BaseEndpoint: aws.String(s.URL()), UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(s.cfg.AccessKey, s.cfg.SecretKey, ""),
		HTTPClient:  &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}})
}

// Close ends the proxy and the server.
func (s *Server) Close() error {
	err := s.Proxy.close()
	if stop := s.child.Stop(5 * time.Second); err == nil {
		err = stop
	}
	return err
}

func healthy(addr string) bool {
	client := &http.Client{Timeout: time.Second}
	defer client.CloseIdleConnections()
	answer, err := client.Get("http://" + addr + healthPath)
	if err != nil {
		return false
	}
	defer answer.Body.Close()
	return answer.StatusCode == http.StatusOK
}

// freeAddr gives an address that nobody listens on now.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("cannot find a free port: %w", err)
	}
	return l.Addr().String(), l.Close()
}
