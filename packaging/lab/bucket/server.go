package bucket

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
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

// How long the server may take to begin and to end.
const (
	startLimit = 30 * time.Second
	stopGrace  = 5 * time.Second
)

// Server is a running S3 with one bucket, reached through its proxy.
type Server struct {
	*Proxy
	Bucket string

	child *process.Child
	cfg   Config
	http  *http.Client // trusts the lab's authority alone
}

// Start starts the server as a child process, exe with the arguments
// "s3 --root … --addr … --region …" and its keys in the environment, puts the
// proxy in front of it, and makes the bucket with versioning and Object Lock
// on. c.Addr is chosen here. A root that was used before keeps its objects.
func Start(ctx context.Context, exe, name string, c Config, authority *pki.Authority, log io.Writer) (_ *Server, err error) {
	if c.Addr, err = freeAddr(); err != nil {
		return nil, err
	}
	if err := writeCertificate(c.Root, authority); err != nil {
		return nil, err
	}
	s := &Server{Bucket: name, cfg: c, http: &http.Client{Transport: transport(authority)}}
	s.child, err = process.Start(process.Spec{Path: exe, Log: log, Name: "S3 server",
		Args: []string{"s3", "--root", c.Root, "--addr", c.Addr, "--region", c.Region},
		Env:  append(os.Environ(), "AWS_ACCESS_KEY_ID="+c.AccessKey, "AWS_SECRET_ACCESS_KEY="+c.SecretKey)})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	limited, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if err := s.child.Await(limited, func() bool { return s.healthy(limited) }); err != nil {
		return nil, err
	}
	if s.Proxy, err = newProxy(cmp.Or(c.Host, "127.0.0.1"), c.Addr, authority); err != nil {
		return nil, err
	}
	if err := s.makeBucket(limited); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Server) makeBucket(ctx context.Context) error {
	in := &s3.CreateBucketInput{Bucket: &s.Bucket, ObjectLockEnabledForBucket: aws.Bool(true)}
	if s.cfg.Region != "us-east-1" { // which must not be named
		in.CreateBucketConfiguration = &types.CreateBucketConfiguration{LocationConstraint: types.BucketLocationConstraint(s.cfg.Region)}
	}
	_, err := s.Client().CreateBucket(ctx, in)
	var owned *types.BucketAlreadyOwnedByYou
	if err != nil && !errors.As(err, &owned) {
		return fmt.Errorf("cannot make bucket %s: %w", s.Bucket, err)
	}
	return nil
}

// Endpoint is the server itself, without the proxy and its faults.
func (s *Server) Endpoint() string { return "https://" + s.cfg.Addr }

// Client is an S3 client of the lab's own, through the proxy.
func (s *Server) Client() *s3.Client {
	return s3.New(s3.Options{Region: s.cfg.Region, BaseEndpoint: aws.String(s.URL()), UsePathStyle: true, HTTPClient: s.http,
		Credentials: credentials.NewStaticCredentialsProvider(s.cfg.AccessKey, s.cfg.SecretKey, "")})
}

// Close ends the proxy and the server. The data stay.
func (s *Server) Close() error {
	s.http.CloseIdleConnections()
	var err error
	if s.Proxy != nil {
		err = s.Proxy.close()
	}
	return errors.Join(err, s.child.Stop(stopGrace))
}

func (s *Server) healthy(ctx context.Context) bool {
	limited, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	q, err := http.NewRequestWithContext(limited, http.MethodGet, s.Endpoint()+healthPath, nil)
	if err != nil {
		return false
	}
	answer, err := s.http.Do(q)
	if err != nil {
		return false
	}
	defer answer.Body.Close()
	return answer.StatusCode == http.StatusOK
}

// transport reaches servers with the authority's certificates, by no other
// proxy. It asks for nothing that the client has not asked for.
func transport(authority *pki.Authority) *http.Transport {
	return &http.Transport{TLSClientConfig: &tls.Config{RootCAs: authority.Pool(), MinVersion: tls.VersionTLS12},
		MaxIdleConnsPerHost: 64, DisableCompression: true, ExpectContinueTimeout: time.Second}
}

// writeCertificate puts the server's certificate where the child finds it.
func writeCertificate(root string, authority *pki.Authority) error {
	if err := makeFolder(root); err != nil {
		return err
	}
	pair, err := authority.Server()
	if err != nil {
		return err
	}
	_, _, err = pair.Write(root, certName)
	return err
}

// freeAddr gives an address that nobody listens on now.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("cannot find a free port: %w", err)
	}
	return l.Addr().String(), l.Close()
}
