// Package locker is the evidence bucket: what is put there is there to stay,
// and only the collector decides what that is.
//
// An instance that was broken into must be able to store its evidence and do
// nothing else. So the collector begins and completes every object itself,
// and gives the agent one URL for each part, which stores exactly the bytes
// whose hash and length the collector has recorded, and reads, replaces or
// deletes nothing. No object is ever written over: every write is
// conditional, and where an answer was lost the bucket is asked what it
// holds before anything is done again.
//
// Those URLs are secrets while they live. They are in no error and no log.
package locker

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// Errors that callers branch on.
var (
	// ErrNoUpload says that an upload was completed, aborted, or never begun.
	ErrNoUpload = errors.New("no such upload")
	// ErrNoObject says that there is no object under a key.
	ErrNoObject = errors.New("no such object")
	// ErrExists says that there is another object under a key. It stays.
	ErrExists = errors.New("another object is stored there already")
)

// How long a grant lives. A bucket policy may refuse signatures older than
// ten minutes (s3:signatureAge), so no grant may outlive that.
const (
	defaultGrantLife = 5 * time.Minute
	maxGrantLife     = 10 * time.Minute
)

// Config says which bucket, and how objects are kept in it.
type Config struct {
	Bucket string
	// GrantEndpoint is the S3 endpoint in the agents' URLs, where they reach
	// S3 by another name than the collector does (a VPC interface endpoint).
	// Empty: the collector's own.
	GrantEndpoint string
	// Retention locks every object of a case (Object Lock, compliance mode)
	// for this long from the time it is begun. 0: the bucket's default.
	Retention time.Duration
	// KMSKeyID encrypts every object with this key. Empty: the bucket's
	// default.
	KMSKeyID string
	// GrantLife is how long an agent may use a URL, 10 minutes at most.
	// 0: 5 minutes. It also ends when the collector's credentials do.
	GrantLife time.Duration
}

// Locker is one evidence bucket. It may be used by many goroutines.
type Locker struct {
	cfg    Config
	s3     *s3.Client
	grants *s3.PresignClient
	log    *slog.Logger
	now    func() time.Time
	pause  time.Duration // between tries
}

// New returns the locker of a bucket. Where an S3 endpoint is configured the
// bucket is named in the path, not in the host name. It makes no call.
func New(sdk aws.Config, cfg Config, log *slog.Logger) (*Locker, error) {
	if cfg.GrantLife == 0 {
		cfg.GrantLife = defaultGrantLife
	}
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("cannot open locker: %w", err)
	}
	client := s3.NewFromConfig(sdk, options)
	granter := s3.NewFromConfig(sdk, options, func(o *s3.Options) {
		if cfg.GrantEndpoint != "" {
			o.BaseEndpoint, o.UsePathStyle = aws.String(cfg.GrantEndpoint), true
		}
	})
	return &Locker{cfg: cfg, s3: client, grants: s3.NewPresignClient(granter), log: log, now: time.Now, pause: time.Second}, nil
}

func options(o *s3.Options) {
	o.UsePathStyle = o.UsePathStyle || o.BaseEndpoint != nil
	o.DisableLogOutputChecksumValidationSkipped = true // composite hashes are checked part by part, elsewhere
}

func (c Config) check() error {
	switch {
	case c.Bucket == "":
		return errors.New("no bucket is named")
	case c.Retention < 0:
		return fmt.Errorf("retention of %v, want 0 or more", c.Retention)
	case c.GrantLife < time.Second || c.GrantLife > maxGrantLife:
		return fmt.Errorf("grants of %v, want 1s to %v", c.GrantLife, maxGrantLife)
	}
	if c.GrantEndpoint == "" {
		return nil
	}
	u, err := url.Parse(c.GrantEndpoint)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" {
		return fmt.Errorf("grant endpoint %q, want one like https://HOST", c.GrantEndpoint)
	}
	return nil
}

// lockedUntil is the date to put on an object that is begun now, nil for the
// bucket's default. Snapshots of the state are no evidence: the next one is in
// their place soon.
func (l *Locker) lockedUntil(key string) *time.Time {
	if l.cfg.Retention == 0 || strings.HasPrefix(key, StatePrefix) {
		return nil
	}
	return aws.Time(l.now().UTC().Add(l.cfg.Retention))
}
