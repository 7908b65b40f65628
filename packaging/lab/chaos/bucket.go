package chaos

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/custody"
	"github.com/quicklime-ir/quicklime/collector/proof"
	"github.com/quicklime-ir/quicklime/packaging/lab/bucket"
)

// maxEntry bounds a journal entry that is read back, in bytes.
const maxEntry = 4 << 20

// observer notes what comes into the bucket.
type observer struct {
	mu    sync.Mutex
	marks []Mark // owned by mu; one for each write that S3 took

	sealed map[string]bool // instances whose manifest is there, owned by mu
}

// see takes each of S3's answers.
func (o *observer) see(a bucket.Answer) {
	switch a.Operation {
	case "PutObject", "UploadPart", "CreateMultipartUpload", "CompleteMultipartUpload":
	default:
		return
	}
	// /BUCKET/cases/CASE/INSTANCE/…
	words := strings.SplitN(a.Path, "/", 6)
	if a.Status != 200 || len(words) < 6 || words[2] != "cases" {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	m := Mark{Instance: words[4], At: a.Time, What: words[5]}
	if o.marks = append(o.marks, m); m.What == manifest {
		o.sealed[m.Instance] = true
	}
}

// objects is the bucket as anyone sees it who may read it.
type objects struct {
	api    *s3.Client
	bucket string
}

func (o objects) Open(ctx context.Context, key string) (io.ReadCloser, error) {
	return o.get(ctx, &s3.GetObjectInput{Bucket: &o.bucket, Key: &key})
}

func (o objects) OpenRange(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if length == 0 {
		return io.NopCloser(strings.NewReader("")), nil
	}
	return o.get(ctx, &s3.GetObjectInput{Bucket: &o.bucket, Key: &key, Range: aws.String(fmt.Sprintf("bytes=%d-%d", offset, offset+length-1))})
}

func (o objects) get(ctx context.Context, in *s3.GetObjectInput) (io.ReadCloser, error) {
	out, err := o.api.GetObject(ctx, in)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", *in.Key, err)
	}
	return out.Body, nil
}

func (o objects) Keys(ctx context.Context, prefix string) ([]string, error) {
	var keys []string
	pages := s3.NewListObjectsV2Paginator(o.api, &s3.ListObjectsV2Input{Bucket: &o.bucket, Prefix: &prefix})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("cannot list %s: %w", prefix, err)
		}
		for _, object := range page.Contents {
			keys = append(keys, *object.Key)
		}
	}
	return keys, nil
}

// read gives what the bucket holds of a case.
func (o objects) read(ctx context.Context, key ed25519.PublicKey, id string) (Papers, error) {
	var out Papers
	proofs, err := proof.Prove(ctx, o, key, id)
	if ctx.Err() != nil {
		return out, context.Cause(ctx)
	}
	if err != nil {
		out.Problems = append(out.Problems, err.Error())
	}
	if len(proofs) > 1 {
		out.Problems = append(out.Problems, fmt.Sprintf("%d manifests", len(proofs)))
	}
	for _, p := range proofs {
		if !p.OK() {
			var said strings.Builder
			_ = p.WriteText(&said) // a Builder takes all
			out.Problems = append(out.Problems, said.String())
		}
	}
	out.Journal, err = o.journal(ctx, id)
	return out, err
}

func (o objects) journal(ctx context.Context, id string) ([]casefile.Event, error) {
	keys, err := o.Keys(ctx, "cases/"+id+"/")
	if err != nil {
		return nil, err
	}
	var out []casefile.Event
	for _, k := range keys {
		if !strings.Contains(k, "/journal/") {
			continue
		}
		r, err := o.Open(ctx, k)
		if err != nil {
			return nil, err
		}
		var entry custody.Entry
		err = json.NewDecoder(io.LimitReader(r, maxEntry)).Decode(&entry)
		r.Close()
		var event casefile.Event
		if err == nil {
			err = json.Unmarshal(entry.Event, &event)
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read %s: %w", k, err)
		}
		out = append(out, event)
	}
	return out, nil
}

// far gives how many instances' manifests are there, and when S3 took a write
// last.
func (o *observer) far() (sealed int, last time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if n := len(o.marks); n > 0 {
		last = o.marks[n-1].At
	}
	return len(o.sealed), last
}

// taken gives the marks so far.
func (o *observer) taken() []Mark {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]Mark(nil), o.marks...)
}
