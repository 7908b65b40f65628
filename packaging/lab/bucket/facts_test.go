package bucket

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// These tests are what the collector's locker may take for granted of S3,
// shown with the SDK alone.

// bench is a client of one bucket, and an upload that was begun in it.
type bench struct {
	t      *testing.T
	server *Server
	client *s3.Client
	key    string
	upload *string
	until  time.Time // objects are locked
}

func newBench(t *testing.T, s *Server, key string) *bench {
	t.Helper()
	b := &bench{t: t, server: s, client: s.Client(), key: key, until: time.Now().Add(time.Hour).Truncate(time.Second)}
	b.upload = b.begin()
	return b
}

func (b *bench) begin() *string {
	b.t.Helper()
	out, err := b.client.CreateMultipartUpload(b.t.Context(), &s3.CreateMultipartUploadInput{
		Bucket: &b.server.Bucket, Key: &b.key,
		ChecksumAlgorithm: types.ChecksumAlgorithmSha256, ChecksumType: types.ChecksumTypeComposite,
		ObjectLockMode: types.ObjectLockModeCompliance, ObjectLockRetainUntilDate: &b.until,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return out.UploadId
}

// presign signs the upload of a part for clients that reach S3 at endpoint.
func (b *bench) presign(endpoint string, number int32, body []byte) *v4.PresignedHTTPRequest {
	b.t.Helper()
	options := b.client.Options()
	options.BaseEndpoint = &endpoint
	signed, err := s3.NewPresignClient(s3.New(options)).PresignUploadPart(b.t.Context(), &s3.UploadPartInput{
		Bucket: &b.server.Bucket, Key: &b.key, UploadId: b.upload, PartNumber: &number,
		ContentLength: aws.Int64(int64(len(body))), ChecksumSHA256: aws.String(digest(body)),
	}, s3.WithPresignExpires(5*time.Minute))
	if err != nil {
		b.t.Fatal(err)
	}
	return signed
}

// send plays an agent, which has nothing but what was signed. It gives the
// status, S3's code, and the ETag.
func (b *bench) send(client *http.Client, signed *v4.PresignedHTTPRequest, body []byte, change func(*http.Request)) (int, string, string) {
	b.t.Helper()
	q, err := http.NewRequestWithContext(b.t.Context(), signed.Method, signed.URL, bytes.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	q.Header.Set("X-Amz-Checksum-Sha256", signed.SignedHeader.Get("X-Amz-Checksum-Sha256"))
	q.Header.Set("Expect", "100-continue")
	if change != nil {
		change(q)
	}
	answer, err := client.Do(q)
	if err != nil {
		b.t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	code := ""
	if found := regexp.MustCompile(`<Code>(\w+)</Code>`).FindSubmatch(text); found != nil {
		code = string(found[1])
	}
	return answer.StatusCode, code, answer.Header.Get("ETag")
}

// store stores parts as they must be stored, numbered from 1.
func (b *bench) store(bodies ...[]byte) []types.CompletedPart {
	b.t.Helper()
	var parts []types.CompletedPart
	for i, body := range bodies {
		number := int32(i + 1)
		status, code, etag := b.send(b.server.http, b.presign(b.server.URL(), number, body), body, nil)
		if status != http.StatusOK {
			b.t.Fatalf("part %d: %d %s", number, status, code)
		}
		parts = append(parts, types.CompletedPart{PartNumber: &number, ETag: &etag, ChecksumSHA256: aws.String(digest(body))})
	}
	return parts
}

func (b *bench) complete(parts []types.CompletedPart, change func(*s3.CompleteMultipartUploadInput)) (*s3.CompleteMultipartUploadOutput, error) {
	in := &s3.CompleteMultipartUploadInput{
		Bucket: &b.server.Bucket, Key: &b.key, UploadId: b.upload, IfNoneMatch: aws.String("*"),
		ChecksumType: types.ChecksumTypeComposite, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
	}
	if change != nil {
		change(in)
	}
	return b.client.CompleteMultipartUpload(b.t.Context(), in)
}

func digest(body []byte) string {
	sum := sha256.Sum256(body)
	return base64.StdEncoding.EncodeToString(sum[:])
}

// composite is the hash of an object of parts. Source: Amazon S3 User Guide,
// "Checking object integrity", composite checksums.
func composite(bodies ...[]byte) string {
	all := sha256.New()
	for _, body := range bodies {
		sum := sha256.Sum256(body)
		all.Write(sum[:])
	}
	return fmt.Sprintf("%s-%d", base64.StdEncoding.EncodeToString(all.Sum(nil)), len(bodies))
}

// wantRefused wants an error with a status and a code of S3.
func wantRefused(t *testing.T, what string, err error, status int, code string) {
	t.Helper()
	var answer *smithyhttp.ResponseError
	var api smithy.APIError
	if !errors.As(err, &answer) || !errors.As(err, &api) || answer.HTTPStatusCode() != status || api.ErrorCode() != code {
		t.Errorf("%s: %v, want %d %s", what, err, status, code)
	}
}

func TestTheBucketIsVersionedAndLocked(t *testing.T) {
	s, _ := serverAt(t, t.TempDir())
	versioning, err := s.Client().GetBucketVersioning(t.Context(), &s3.GetBucketVersioningInput{Bucket: &s.Bucket})
	if err != nil || versioning.Status != types.BucketVersioningStatusEnabled {
		t.Errorf("versioning %+v, %v", versioning, err)
	}
	lock, err := s.Client().GetObjectLockConfiguration(t.Context(), &s3.GetObjectLockConfigurationInput{Bucket: &s.Bucket})
	if err != nil || lock.ObjectLockConfiguration.ObjectLockEnabled != types.ObjectLockEnabledEnabled {
		t.Errorf("Object Lock %+v, %v", lock, err)
	}
}

func TestAPresignedPartStoresTheSignedBytesAlone(t *testing.T) {
	s, _ := serverAt(t, t.TempDir())
	b := newBench(t, s, "cases/c1/i-1/memory/image.lime")
	body := randomBytes(5 << 20)
	other := bytes.Clone(body)
	other[len(other)/2] ^= 1
	signed := b.presign(s.URL(), 1, body)
	query, err := url.Parse(signed.URL)
	if err != nil {
		t.Fatal(err)
	}
	if got := query.Query().Get("X-Amz-SignedHeaders"); got != "content-length;host;x-amz-checksum-sha256" {
		t.Errorf("signed headers %q", got)
	}
	for _, tt := range []struct {
		name   string
		body   []byte
		change func(*http.Request)
		status int
		code   string
	}{
		{"other bytes", other, nil, 400, "BadDigest"},
		{"other bytes with their own hash", other, func(q *http.Request) { q.Header.Set("X-Amz-Checksum-Sha256", digest(other)) }, 403, "SignatureDoesNotMatch"},
		{"no hash", body, func(q *http.Request) { q.Header.Del("X-Amz-Checksum-Sha256") }, 403, "SignatureDoesNotMatch"},
		{"fewer bytes", body[1:], nil, 403, "SignatureDoesNotMatch"},
		{"more bytes", append(bytes.Clone(body), 'x'), nil, 403, "SignatureDoesNotMatch"},
		{"another part's number", body, func(q *http.Request) {
			q.URL.RawQuery = strings.Replace(q.URL.RawQuery, "partNumber=1", "partNumber=2", 1)
		}, 403, "SignatureDoesNotMatch"},
		{"another key", body, func(q *http.Request) { q.URL.Path += "x" }, 403, "SignatureDoesNotMatch"},
		{"another host", body, func(q *http.Request) { q.Host = "10.0.2.2" }, 403, "SignatureDoesNotMatch"},
		{"reading", nil, func(q *http.Request) { q.Method = http.MethodGet }, 403, "SignatureDoesNotMatch"},
	} {
		if status, code, _ := b.send(s.http, signed, tt.body, tt.change); status != tt.status || code != tt.code {
			t.Errorf("%s: %d %s, want %d %s", tt.name, status, code, tt.status, tt.code)
		}
	}
	listed, err := b.client.ListParts(t.Context(), &s3.ListPartsInput{Bucket: &s.Bucket, Key: &b.key, UploadId: b.upload})
	if err != nil || len(listed.Parts) != 0 {
		t.Fatalf("parts %+v, %v", listed.Parts, err)
	}
	for range 2 { // a part may be stored again
		if status, code, _ := b.send(s.http, signed, body, nil); status != http.StatusOK {
			t.Errorf("the signed bytes: %d %s", status, code)
		}
	}
	listed, err = b.client.ListParts(t.Context(), &s3.ListPartsInput{Bucket: &s.Bucket, Key: &b.key, UploadId: b.upload})
	if err != nil || len(listed.Parts) != 1 || listed.ChecksumAlgorithm != types.ChecksumAlgorithmSha256 || listed.ChecksumType != types.ChecksumTypeComposite {
		t.Fatalf("parts %+v, %v", listed, err)
	}
	if p := listed.Parts[0]; *p.PartNumber != 1 || *p.Size != int64(len(body)) || *p.ChecksumSHA256 != digest(body) || *p.ETag == "" {
		t.Errorf("part %+v", p)
	}
}

func TestAPresignedPartExpires(t *testing.T) {
	s, _ := serverAt(t, t.TempDir())
	b := newBench(t, s, "k")
	signed, err := s3.NewPresignClient(b.client).PresignUploadPart(t.Context(), &s3.UploadPartInput{Bucket: &s.Bucket, Key: &b.key,
		UploadId: b.upload, PartNumber: aws.Int32(1), ContentLength: aws.Int64(1), ChecksumSHA256: aws.String(digest([]byte("x")))},
		s3.WithPresignExpires(time.Second))
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(2100 * time.Millisecond)
	if status, code, _ := b.send(s.http, signed, []byte("x"), nil); status != 403 || code != "AccessDenied" {
		t.Errorf("%d %s", status, code)
	}
}

// TestHostsThatAreSigned sends parts by each name under which clients reach
// the proxy, and to the server itself.
func TestHostsThatAreSigned(t *testing.T) {
	s, authority := serverAt(t, t.TempDir())
	b := newBench(t, s, "k")
	direct := &net.Dialer{}
	guest := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: authority.Pool()},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) { // the guest's network leads 10.0.2.2 to loopback
			return direct.DialContext(ctx, network, fmt.Sprintf("127.0.0.1:%d", s.Port()))
		}}}
	defer guest.CloseIdleConnections()
	for i, tt := range []struct {
		endpoint string
		client   *http.Client
	}{{s.URL(), s.http}, {s.GuestURL(), guest}, {s.Endpoint(), s.http}} {
		body := randomBytes(1000 + i)
		if status, code, _ := b.send(tt.client, b.presign(tt.endpoint, int32(i+1), body), body, nil); status != http.StatusOK {
			t.Errorf("%s: %d %s", tt.endpoint, status, code)
		}
	}
}

func TestNobodySpeaksPlaintextOrToStrangers(t *testing.T) {
	s, _ := serverAt(t, t.TempDir())
	for _, endpoint := range []string{s.URL(), s.Endpoint()} {
		if answer, err := http.Get(strings.Replace(endpoint, "https:", "http:", 1)); err == nil {
			answer.Body.Close()
			if answer.StatusCode < 400 {
				t.Errorf("%s answers plaintext with %d", endpoint, answer.StatusCode)
			}
		}
		var unknown *tls.CertificateVerificationError
		if _, err := http.Get(endpoint); !errors.As(err, &unknown) {
			t.Errorf("%s without the lab's authority: %v", endpoint, err)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestAnObjectIsCompletedOnceAndStays(t *testing.T) {
	s, _ := serverAt(t, t.TempDir())
	wantCompletedOnce(t, s)
}

// TestMetadataBeside does the same where files have no extended attributes.
func TestMetadataBeside(t *testing.T) {
	t.Setenv(besideRole, "1")
	s, _ := serverAt(t, t.TempDir())
	wantCompletedOnce(t, s)
}

func wantCompletedOnce(t *testing.T, s *Server) {
	b := newBench(t, s, "cases/c1/i-1/memory/image.lime")
	one, two := randomBytes(5<<20), randomBytes(1000)
	parts := b.store(one, two)
	wrong := []types.CompletedPart{parts[0], {PartNumber: parts[1].PartNumber, ETag: parts[1].ETag, ChecksumSHA256: aws.String(digest(one))}}
	_, err := b.complete(wrong, nil)
	wantRefused(t, "complete with another hash of a part", err, 400, "InvalidPart")
	object, err := b.complete(parts, func(in *s3.CompleteMultipartUploadInput) {
		in.MpuObjectSize = aws.Int64(int64(len(one) + len(two)))
	})
	if err != nil {
		t.Fatal(err)
	}
	if *object.ChecksumSHA256 != composite(one, two) || aws.ToString(object.VersionId) == "" {
		t.Errorf("completed %+v, want hash %s", object, composite(one, two))
	}
	head, err := b.client.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &s.Bucket, Key: &b.key, ChecksumMode: types.ChecksumModeEnabled})
	if err != nil {
		t.Fatal(err)
	}
	if *head.ChecksumSHA256 != composite(one, two) || head.ChecksumType != types.ChecksumTypeComposite || *head.ContentLength != int64(len(one)+len(two)) ||
		head.ObjectLockMode != types.ObjectLockModeCompliance || !head.ObjectLockRetainUntilDate.Equal(b.until) || *head.VersionId != *object.VersionId {
		t.Errorf("head %+v", head)
	}
	wantWrittenOnce(t, b, one)
	wantLocked(t, b, *object.VersionId, append(bytes.Clone(one), two...))
}

// wantWrittenOnce tries to write over an object.
func wantWrittenOnce(t *testing.T, b *bench, body []byte) {
	t.Helper()
	b.upload = b.begin()
	parts := b.store(body)
	_, err := b.complete(parts, nil)
	wantRefused(t, "complete a second upload", err, 412, "PreconditionFailed")
	_, err = b.client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &b.server.Bucket, Key: &b.key, Body: strings.NewReader("x"), IfNoneMatch: aws.String("*")})
	wantRefused(t, "put", err, 412, "PreconditionFailed")
	if _, err := b.client.AbortMultipartUpload(t.Context(), &s3.AbortMultipartUploadInput{Bucket: &b.server.Bucket, Key: &b.key, UploadId: b.upload}); err != nil {
		t.Error(err)
	}
	_, err = b.client.ListParts(t.Context(), &s3.ListPartsInput{Bucket: &b.server.Bucket, Key: &b.key, UploadId: b.upload})
	wantRefused(t, "list an aborted upload", err, 404, "NoSuchUpload")
}

// wantLocked tries to be rid of a version.
func wantLocked(t *testing.T, b *bench, version string, body []byte) {
	t.Helper()
	bucket, ctx := &b.server.Bucket, t.Context()
	_, err := b.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: bucket, Key: &b.key, VersionId: &version})
	wantRefused(t, "delete", err, 403, "AccessDenied")
	_, err = b.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: bucket, Key: &b.key, VersionId: &version, BypassGovernanceRetention: aws.Bool(true)})
	wantRefused(t, "delete with bypass", err, 403, "AccessDenied")
	_, err = b.client.PutObjectRetention(ctx, &s3.PutObjectRetentionInput{Bucket: bucket, Key: &b.key, VersionId: &version,
		Retention: &types.ObjectLockRetention{Mode: types.ObjectLockRetentionModeCompliance, RetainUntilDate: aws.Time(b.until.Add(-30 * time.Minute))}})
	wantRefused(t, "shorten the lock", err, 403, "AccessDenied")
	marker, err := b.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: bucket, Key: &b.key})
	if err != nil || !aws.ToBool(marker.DeleteMarker) {
		t.Errorf("delete without a version: %+v, %v, want a marker", marker, err)
	}
	got, err := b.client.GetObject(ctx, &s3.GetObjectInput{Bucket: bucket, Key: &b.key, VersionId: &version})
	if err != nil {
		t.Fatal(err)
	}
	defer got.Body.Close()
	if stored, err := io.ReadAll(got.Body); err != nil || !bytes.Equal(stored, body) {
		t.Errorf("%d bytes, %v, want the %d that were stored", len(stored), err, len(body))
	}
}

// TestADoneThatIsNot shows where versitygw is not as S3 is, which answers 404
// NoSuchUpload: to complete an upload that is gone, or never was, under the
// key of another object is answered with 200, If-None-Match or not. Only that
// the answer has no hash and no version tells it.
func TestADoneThatIsNot(t *testing.T) {
	s, _ := serverAt(t, t.TempDir())
	b := newBench(t, s, "k")
	gone := *b.upload
	parts := b.store([]byte("other"))
	if _, err := b.client.AbortMultipartUpload(t.Context(), &s3.AbortMultipartUploadInput{Bucket: &s.Bucket, Key: &b.key, UploadId: &gone}); err != nil {
		t.Fatal(err)
	}
	_, err := b.complete(parts, nil)
	wantRefused(t, "without an object there", err, 404, "NoSuchUpload")
	b.upload = b.begin()
	object, err := b.complete(b.store([]byte("one")), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, upload := range []string{gone, *b.upload, "00000000-0000-4000-8000-000000000000"} {
		b.upload = &upload
		if again, err := b.complete(parts, nil); err != nil || again.VersionId != nil || again.ChecksumSHA256 != nil {
			t.Errorf("upload %s: %+v, %v; if versitygw refuses it now, so should this test", upload, again, err)
		}
	}
	head, err := b.client.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &s.Bucket, Key: &b.key, ChecksumMode: types.ChecksumModeEnabled})
	if err != nil || *head.VersionId != *object.VersionId || *head.ChecksumSHA256 != composite([]byte("one")) {
		t.Errorf("the object has changed: %+v, %v", head, err)
	}
}

func TestEncryptionIsRefusedNotIgnored(t *testing.T) {
	s, _ := serverAt(t, t.TempDir())
	for _, endpoint := range []string{s.URL(), s.Endpoint()} {
		options := s.Client().Options()
		options.BaseEndpoint, options.RetryMaxAttempts = &endpoint, 1
		client := s3.New(options)
		_, err := client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &s.Bucket, Key: aws.String("x"), ServerSideEncryption: "aws:kms", Body: strings.NewReader("x")})
		wantRefused(t, "put", err, 501, "NotImplemented")
		_, err = client.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{Bucket: &s.Bucket, Key: aws.String("x"), ServerSideEncryption: "AES256"})
		wantRefused(t, "begin an upload", err, 501, "NotImplemented")
		key := base64.StdEncoding.EncodeToString(randomBytes(32))
		_, err = client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &s.Bucket, Key: aws.String("x"), SSECustomerAlgorithm: aws.String("AES256"), SSECustomerKey: &key, Body: strings.NewReader("x")})
		wantRefused(t, "put with a key of the client's", err, 501, "NotImplemented")
		signed, err := s3.NewPresignClient(client).PresignPutObject(t.Context(), &s3.PutObjectInput{Bucket: &s.Bucket, Key: aws.String("x"), ServerSideEncryption: "aws:kms"})
		if err != nil {
			t.Fatal(err)
		}
		b := &bench{t: t, server: s}
		if status, code, _ := b.send(s.http, signed, nil, func(q *http.Request) { q.Header = signed.SignedHeader }); status != 501 || code != "NotImplemented" {
			t.Errorf("put by URL: %d %s", status, code)
		}
	}
	if _, err := s.Client().HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &s.Bucket, Key: aws.String("x")}); err == nil {
		t.Error("it was stored all the same")
	}
}

// TestAUsedRootKeepsItsObjects kills a server between two parts and starts
// another one on its data.
func TestAUsedRootKeepsItsObjects(t *testing.T) {
	root := t.TempDir()
	s, _ := serverAt(t, root)
	b := newBench(t, s, "k")
	one, two := randomBytes(5<<20), randomBytes(100)
	first := b.store(one)
	if err := s.child.Kill(); err != nil {
		t.Fatal(err)
	}
	again, _ := serverAt(t, root)
	b.server, b.client = again, again.Client()
	status, code, etag := b.send(again.http, b.presign(again.URL(), 2, two), two, nil)
	if status != http.StatusOK {
		t.Fatalf("part 2: %d %s", status, code)
	}
	object, err := b.complete(append(first, types.CompletedPart{PartNumber: aws.Int32(2), ETag: &etag, ChecksumSHA256: aws.String(digest(two))}), nil)
	if err != nil || *object.ChecksumSHA256 != composite(one, two) {
		t.Errorf("completed %+v, %v", object, err)
	}
}
