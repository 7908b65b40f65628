package locker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// tries is how often a write is begun whose failure may pass, after the
// SDK's own retries. The pauses between them double, so they are 31 s.
const tries = 6

// Complete makes an object of the stored parts, ascending by number and with
// their ETags. On a nil error the bucket holds an object of exactly these
// parts; completing twice gives the same one. ErrExists: the key has another
// object. ErrNoUpload: there is neither upload nor object. After any other
// error it may be called again.
func (l *Locker) Complete(ctx context.Context, key, uploadID string, parts []evidence.Part) (Object, error) {
	want, completed, err := plan(key, parts)
	if err != nil {
		return Object{}, fmt.Errorf("cannot complete upload of %.200q: %w", key, err)
	}
	object, err := l.settle(ctx, want, func() (answer, error) {
		out, err := l.s3.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
			Bucket: &l.cfg.Bucket, Key: &key, UploadId: &uploadID, IfNoneMatch: aws.String("*"),
			MpuObjectSize: aws.Int64(int64(want.Size)), MultipartUpload: &types.CompletedMultipartUpload{Parts: completed},
		})
		if err != nil {
			return answer{}, noUpload(err)
		}
		return answer{sha256: aws.ToString(out.ChecksumSHA256)}, nil
	})
	if err != nil {
		return Object{}, fmt.Errorf("cannot complete upload of %s: %w", key, err)
	}
	return object, nil
}

// plan gives the object that parts make, and S3's list of them.
func plan(key string, parts []evidence.Part) (want Object, completed []types.CompletedPart, err error) {
	if err := checkKey(key); err != nil {
		return Object{}, nil, err
	}
	if len(parts) == 0 || len(parts) > evidence.MaxParts {
		return Object{}, nil, fmt.Errorf("it has %d parts, want 1 to %d", len(parts), evidence.MaxParts)
	}
	want = Object{Key: key, SHA256: evidence.Composite(parts)}
	last := int32(0)
	for _, p := range parts {
		if p.Number <= last || p.Number > evidence.MaxParts || p.ETag == "" {
			return Object{}, nil, fmt.Errorf("part %d after %d, with ETag %.40q: want ascending numbers to %d, and an ETag", p.Number, last, p.ETag, evidence.MaxParts)
		}
		last = p.Number
		want.Size += p.Size
		completed = append(completed, types.CompletedPart{PartNumber: aws.Int32(p.Number), ETag: aws.String(p.ETag), ChecksumSHA256: aws.String(p.SHA256.Base64())})
	}
	return want, completed, nil
}

// Put stores a small object: a manifest, a journal entry. On a nil error the
// bucket holds exactly body; putting it twice gives the same object.
// ErrExists: the key has another object.
func (l *Locker) Put(ctx context.Context, key string, body []byte) (Object, error) {
	if err := checkKey(key); err != nil {
		return Object{}, fmt.Errorf("cannot put object: %w", err)
	}
	digest := evidence.Digest(sha256.Sum256(body))
	want := Object{Key: key, Size: uint64(len(body)), SHA256: digest.Base64()}
	in := s3.PutObjectInput{Bucket: &l.cfg.Bucket, Key: &key, IfNoneMatch: aws.String("*"), ChecksumSHA256: &want.SHA256}
	if until := l.lockedUntil(key); until != nil {
		in.ObjectLockMode, in.ObjectLockRetainUntilDate = types.ObjectLockModeCompliance, until
	}
	if l.cfg.KMSKeyID != "" {
		in.ServerSideEncryption, in.SSEKMSKeyId = types.ServerSideEncryptionAwsKms, &l.cfg.KMSKeyID
	}
	object, err := l.settle(ctx, want, func() (answer, error) {
		in := in
		in.Body = bytes.NewReader(body)
		out, err := l.s3.PutObject(ctx, &in)
		if err != nil {
			return answer{}, err
		}
		a := answer{sha256: aws.ToString(out.ChecksumSHA256)}
		if version := aws.ToString(out.VersionId); version != "" && a.sha256 == want.SHA256 {
			stored := want
			stored.VersionID, stored.LockedUntil = version, aws.ToTime(in.ObjectLockRetainUntilDate)
			a.stored = &stored
		}
		return a, nil
	})
	if err != nil {
		return Object{}, fmt.Errorf("cannot put object %s: %w", key, err)
	}
	return object, nil
}

// answer is what S3 said of a write that succeeded.
type answer struct {
	sha256 string // "" where it did not say
	// stored is the object, where there is no need to ask for it: PutObject
	// answers once, when all is stored, and said of which version and hash. An
	// act waits for its journal entry, so each request counts.
	stored *Object
}

// settle writes an object and asks the bucket what it holds, unless the answer
// told already. Whatever the
// answer to the write was, the object that is wanted being there is success,
// and another one there is the end. Only where there is none is the write
// done again, also where it was said to be done: a server may answer a
// repeated write at once while it still works on the first.
func (l *Locker) settle(ctx context.Context, want Object, write func() (answer, error)) (Object, error) {
	for try := 1; ; try++ {
		answered, failed := write()
		if failed == nil && answered.sha256 != "" && answered.sha256 != want.SHA256 {
			return Object{}, fmt.Errorf("S3 stored hash %.80q, want %s: do not trust this object", answered.sha256, want.SHA256)
		}
		if failed == nil && answered.stored != nil {
			return *answered.stored, nil
		}
		object, err := l.holds(ctx, want)
		switch {
		case err == nil:
			if failed != nil {
				l.log.Info("write had been done although it failed", "key", want.Key, "error", failed)
			}
			return object, nil
		case !errors.Is(err, ErrNoObject):
			return Object{}, errors.Join(err, failed)
		case failed == nil:
			failed = fmt.Errorf("S3 said that it was done, but: %w", err)
		}
		if try == tries || !Passing(failed) {
			return Object{}, failed
		}
		l.log.Warn("write failed, it will be tried again", "key", want.Key, "try", try, "error", failed)
		if err := l.wait(ctx, try); err != nil {
			return Object{}, errors.Join(failed, err)
		}
	}
}

// holds gives the object under a key if it is the wanted one.
func (l *Locker) holds(ctx context.Context, want Object) (Object, error) {
	got, err := l.Head(ctx, want.Key)
	if err != nil {
		return Object{}, err
	}
	if got.Size != want.Size || got.SHA256 != want.SHA256 {
		return Object{}, fmt.Errorf("%w: version %q of %s has %d bytes and hash %q, want %d and %q",
			ErrExists, got.VersionID, got.Key, got.Size, got.SHA256, want.Size, want.SHA256)
	}
	return got, nil
}

func (l *Locker) wait(ctx context.Context, try int) error {
	timer := time.NewTimer(l.pause << (try - 1))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
