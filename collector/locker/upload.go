package locker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/url"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// signedHeaders is what a grant must sign. S3 ignores a checksum that is in
// the query: only as a signed header does it bind the bytes.
const signedHeaders = "content-length;host;x-amz-checksum-sha256"

const checksumHeader = "X-Amz-Checksum-Sha256"

// Grant is the right to store one part: a PUT to URL with Headers and a body
// of the granted length. Whoever has it can store exactly those bytes.
type Grant struct {
	URL     string
	Headers map[string]string // without Host and Content-Length
}

// String keeps the secret.
func (g Grant) String() string { return "grant (secret)" }

// GoString keeps the secret.
func (g Grant) GoString() string { return g.String() }

// LogValue keeps the secret.
func (g Grant) LogValue() slog.Value { return slog.StringValue(g.String()) }

// StoredPart is a part as S3 has it. S3 has checked the bytes against Digest.
type StoredPart struct {
	Number int32
	Size   uint64
	Digest evidence.Digest // zero where S3 keeps none
	ETag   string
}

// Begin begins an object of parts. Source: Amazon S3 API Reference,
// CreateMultipartUpload.
func (l *Locker) Begin(ctx context.Context, key string) (uploadID string, err error) {
	if err := checkKey(key); err != nil {
		return "", fmt.Errorf("cannot begin upload: %w", err)
	}
	in := &s3.CreateMultipartUploadInput{
		Bucket: &l.cfg.Bucket, Key: &key,
		ChecksumAlgorithm: types.ChecksumAlgorithmSha256, ChecksumType: types.ChecksumTypeComposite,
	}
	if until := l.lockedUntil(key); until != nil {
		in.ObjectLockMode, in.ObjectLockRetainUntilDate = types.ObjectLockModeCompliance, until
	}
	if l.cfg.KMSKeyID != "" {
		in.ServerSideEncryption, in.SSEKMSKeyId = types.ServerSideEncryptionAwsKms, &l.cfg.KMSKeyID
	}
	out, err := l.s3.CreateMultipartUpload(ctx, in)
	if err != nil {
		return "", fmt.Errorf("cannot begin upload of %s: %w", key, err)
	}
	if aws.ToString(out.UploadId) == "" {
		return "", fmt.Errorf("cannot begin upload of %s: S3 gave it no id", key)
	}
	return *out.UploadId, nil
}

// Grant gives the right to store one part of an upload: these bytes, by
// their hash, and none else. It makes no call.
func (l *Locker) Grant(ctx context.Context, key, uploadID string, number int32, size uint64, digest evidence.Digest) (Grant, error) {
	if err := checkPart(key, uploadID, number, size); err != nil {
		return Grant{}, fmt.Errorf("cannot grant part %d: %w", number, err)
	}
	signed, err := l.grants.PresignUploadPart(ctx, &s3.UploadPartInput{
		Bucket: &l.cfg.Bucket, Key: &key, UploadId: &uploadID, PartNumber: &number,
		ContentLength: aws.Int64(int64(size)), ChecksumSHA256: aws.String(digest.Base64()),
	}, s3.WithPresignExpires(l.cfg.GrantLife))
	if err != nil {
		return Grant{}, fmt.Errorf("cannot grant part %d of %s: %w", number, key, err)
	}
	if err := checkSigned(signed, size, digest); err != nil {
		return Grant{}, fmt.Errorf("cannot grant part %d of %s: %w", number, key, err)
	}
	return Grant{URL: signed.URL, Headers: map[string]string{checksumHeader: digest.Base64()}}, nil
}

// PutPart stores one part of an upload itself, where no agent has its bytes.
// Storing it again puts the same in its place. ErrNoUpload: the upload is
// completed, aborted, or was never begun.
func (l *Locker) PutPart(ctx context.Context, key, uploadID string, number int32, body []byte) (StoredPart, error) {
	if err := checkPart(key, uploadID, number, uint64(len(body))); err != nil {
		return StoredPart{}, fmt.Errorf("cannot put part %d: %w", number, err)
	}
	digest := evidence.Digest(sha256.Sum256(body))
	out, err := l.s3.UploadPart(ctx, &s3.UploadPartInput{
		Bucket: &l.cfg.Bucket, Key: &key, UploadId: &uploadID, PartNumber: &number,
		Body: bytes.NewReader(body), ContentLength: aws.Int64(int64(len(body))), ChecksumSHA256: aws.String(digest.Base64()),
	})
	if err != nil {
		return StoredPart{}, fmt.Errorf("cannot put part %d of %s: %w", number, key, noUpload(err))
	}
	if got := aws.ToString(out.ChecksumSHA256); got != "" && got != digest.Base64() || aws.ToString(out.ETag) == "" {
		return StoredPart{}, fmt.Errorf("cannot put part %d of %s: S3 answers with hash %.80q and ETag %.80q, want hash %s", number, key, got, aws.ToString(out.ETag), digest.Base64())
	}
	return StoredPart{Number: number, Size: uint64(len(body)), Digest: digest, ETag: *out.ETag}, nil
}

func checkPart(key, uploadID string, number int32, size uint64) error {
	if err := checkKey(key); err != nil {
		return err
	}
	switch {
	case uploadID == "":
		return fmt.Errorf("%w: it has no id", ErrNoUpload)
	case number < 1 || number > evidence.MaxParts:
		return fmt.Errorf("parts are numbered from 1 to %d", evidence.MaxParts)
	case size < 1 || size > evidence.MaxPartBytes:
		return fmt.Errorf("it has %d bytes, want 1 to %d", size, int64(evidence.MaxPartBytes))
	}
	return nil
}

// checkSigned wants a signature that binds the length and the hash. An SDK
// that puts the hash into the query would make grants worthless, and nothing
// else would tell. The error has no part of the URL but the headers' names.
func checkSigned(signed *v4.PresignedHTTPRequest, size uint64, digest evidence.Digest) error {
	u, err := url.Parse(signed.URL)
	if err != nil {
		return errors.New("the SDK gave no URL")
	}
	if got := u.Query().Get("X-Amz-SignedHeaders"); got != signedHeaders || signed.Method != "PUT" {
		return fmt.Errorf("the SDK signs %.20q with headers %.200q, want \"PUT\" with %q; use the version of the AWS SDK that this program was built with", signed.Method, got, signedHeaders)
	}
	if signed.SignedHeader.Get(checksumHeader) != digest.Base64() || signed.SignedHeader.Get("Content-Length") != fmt.Sprint(size) {
		return errors.New("the SDK signs another hash or length than was granted")
	}
	return nil
}

// Stored gives the parts that S3 has of an upload, ascending, or
// ErrNoUpload. There are 10,000 at most.
func (l *Locker) Stored(ctx context.Context, key, uploadID string) ([]StoredPart, error) {
	var out []StoredPart
	pages := s3.NewListPartsPaginator(l.s3, &s3.ListPartsInput{Bucket: &l.cfg.Bucket, Key: &key, UploadId: &uploadID})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("cannot list stored parts of %s: %w", key, noUpload(err))
		}
		for _, p := range page.Parts {
			part, err := storedPart(p)
			if err != nil {
				return nil, fmt.Errorf("cannot list stored parts of %s: %w", key, err)
			}
			out = append(out, part)
		}
		if len(out) > evidence.MaxParts {
			return nil, fmt.Errorf("cannot list stored parts of %s: S3 has over %d", key, evidence.MaxParts)
		}
	}
	return out, nil
}

func storedPart(p types.Part) (StoredPart, error) {
	out := StoredPart{Number: aws.ToInt32(p.PartNumber), Size: uint64(aws.ToInt64(p.Size)), ETag: aws.ToString(p.ETag)}
	if p.ChecksumSHA256 == nil {
		return out, nil
	}
	digest, err := base64.StdEncoding.DecodeString(*p.ChecksumSHA256)
	if err != nil || len(digest) != len(out.Digest) {
		return StoredPart{}, fmt.Errorf("part %d has hash %.80q, want a SHA-256 in base64", out.Number, *p.ChecksumSHA256)
	}
	copy(out.Digest[:], digest)
	return out, nil
}

// Abort gives an upload and its parts up. That it is gone already is no
// error.
func (l *Locker) Abort(ctx context.Context, key, uploadID string) error {
	_, err := l.s3.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &l.cfg.Bucket, Key: &key, UploadId: &uploadID})
	if err = noUpload(err); err != nil && !errors.Is(err, ErrNoUpload) {
		return fmt.Errorf("cannot abort upload of %s: %w", key, err)
	}
	return nil
}
