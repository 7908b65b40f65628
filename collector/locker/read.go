package locker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// maxListed bounds a listing.
const maxListed = 1 << 20

// Object is an object as the bucket has it.
type Object struct {
	Key       string
	VersionID string // "" where the bucket keeps no versions
	Size      uint64 // bytes
	// SHA256 is base64: of the bytes, or for an object of parts, of their
	// hashes, with a dash and their number; "" where S3 keeps none.
	SHA256      string
	LockedUntil time.Time // zero where it is not locked, or that may not be seen
}

// Head gives what the bucket says of an object, or ErrNoObject. With a KMS
// key it needs kms:Decrypt, as S3 gives the hash to readers only.
func (l *Locker) Head(ctx context.Context, key string) (Object, error) {
	out, err := l.s3.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &l.cfg.Bucket, Key: &key, ChecksumMode: types.ChecksumModeEnabled})
	if err != nil {
		return Object{}, fmt.Errorf("cannot look at object %s: %w", key, noObject(err))
	}
	return Object{Key: key, VersionID: aws.ToString(out.VersionId), Size: uint64(aws.ToInt64(out.ContentLength)),
		SHA256: aws.ToString(out.ChecksumSHA256), LockedUntil: aws.ToTime(out.ObjectLockRetainUntilDate)}, nil
}

// Get opens an object's bytes, or gives ErrNoObject. The caller closes it.
func (l *Locker) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	out, err := l.s3.GetObject(ctx, &s3.GetObjectInput{Bucket: &l.cfg.Bucket, Key: &key})
	if err != nil {
		return nil, fmt.Errorf("cannot get object %s: %w", key, noObject(err))
	}
	return out.Body, nil
}

// GetRange opens length bytes of an object from offset on, and fewer where
// the object ends before, down to none at or after its end. ErrNoObject: there
// is no such object. The caller closes it. Source: Amazon S3 API Reference,
// GetObject, "Range"; RFC 9110, section 14.
func (l *Locker) GetRange(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if offset < 0 || length < 1 || offset > math.MaxInt64-length {
		return nil, fmt.Errorf("cannot get object %s: %d bytes from %d on are no range", key, length, offset)
	}
	out, err := l.s3.GetObject(ctx, &s3.GetObjectInput{Bucket: &l.cfg.Bucket, Key: &key,
		Range: aws.String(fmt.Sprintf("bytes=%d-%d", offset, offset+length-1))})
	if status(err) == http.StatusRequestedRangeNotSatisfiable {
		return io.NopCloser(bytes.NewReader(nil)), nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot get object %s: %w", key, noObject(err))
	}
	if got := aws.ToString(out.ContentRange); !strings.HasPrefix(got, fmt.Sprintf("bytes %d-", offset)) {
		return nil, errors.Join(fmt.Errorf("cannot get object %s: asked for bytes from %d on, S3 gave %.80q", key, offset, got), out.Body.Close())
	}
	return out.Body, nil
}

// Read gives all bytes of an object that has no more than limit, or
// ErrNoObject.
func (l *Locker) Read(ctx context.Context, key string, limit int64) ([]byte, error) {
	body, err := l.Get(ctx, key)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	all, err := io.ReadAll(io.LimitReader(body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read object %s: %w", key, err)
	}
	if int64(len(all)) > limit {
		return nil, fmt.Errorf("cannot read object %s: it has over %d bytes", key, limit)
	}
	return all, nil
}

// List gives the objects whose keys begin with prefix, ascending by key:
// keys and sizes only. There may be a million at most.
func (l *Locker) List(ctx context.Context, prefix string) ([]Object, error) {
	var out []Object
	pages := s3.NewListObjectsV2Paginator(l.s3, &s3.ListObjectsV2Input{Bucket: &l.cfg.Bucket, Prefix: &prefix})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("cannot list objects under %q: %w", prefix, err)
		}
		for _, o := range page.Contents {
			out = append(out, Object{Key: aws.ToString(o.Key), Size: uint64(aws.ToInt64(o.Size))})
		}
		if len(out) > maxListed {
			return nil, fmt.Errorf("cannot list objects under %q: there are over %d; give a longer prefix", prefix, maxListed)
		}
	}
	return out, nil
}
