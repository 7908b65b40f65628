package locker

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
)

// fault is how a write goes wrong.
type fault struct {
	status  int    // of the answer; 0 with a code: the connection breaks, no answer comes
	code    string // S3's code
	persist bool   // the write is done all the same
	answer  string // instead of the true hash, where the write succeeds
	lies    bool   // the answer is that it is done, and it is not
}

// bucket is as much of S3 as one key and one upload need, and breaks when it
// is told to. A real server is tested elsewhere; this one shows what a real
// one does once in a year.
type bucket struct {
	t *testing.T

	mu      sync.Mutex
	object  *held
	upload  bool        // there is one, with id "u1"
	faults  []fault     // of the next writes
	heads   []int       // statuses of the next HEADs, 0 for the truth
	writes  int         // writes that were asked for
	tells   bool        // a PUT is answered with the version, as where a bucket keeps versions
	headers http.Header // of the last call but HEAD
}

type held struct {
	sum     string
	body    []byte
	size    int64
	version string
}

func newBucket(t *testing.T) (*bucket, *Locker) {
	b := &bucket{t: t, upload: true}
	server := httptest.NewServer(b)
	t.Cleanup(server.Close)
	return b, newLocker(t, server.URL, Config{Bucket: "evidence"})
}

func newLocker(t *testing.T, endpoint string, cfg Config) *Locker {
	t.Helper()
	l, err := New(sdk(endpoint), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	l.pause = time.Millisecond
	return l
}

// sdk is a configuration without retries, so that a test sees every call.
func sdk(endpoint string) aws.Config {
	cfg := aws.Config{Region: "eu-west-1", Retryer: func() aws.Retryer { return aws.NopRetryer{} },
		Credentials: credentials.NewStaticCredentialsProvider("AKIDEXAMPLE", "SECRETEXAMPLE", "SESSIONEXAMPLE")}
	if endpoint != "" {
		cfg.BaseEndpoint = &endpoint
	}
	return cfg
}

func (b *bucket) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if r.Method != "HEAD" {
		b.headers = r.Header.Clone()
	}
	if !strings.HasPrefix(r.URL.Path, "/evidence/cases/c1/i-1/") {
		b.t.Errorf("%s %s is not in the bucket's path", r.Method, r.URL.Path)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		b.t.Error(err)
	}
	query := r.URL.Query()
	switch {
	case r.Method == "HEAD":
		b.head(w, r)
	case r.Method == "GET":
		b.get(w)
	case r.Method == "POST" && query.Has("uploads"):
		fmt.Fprint(w, "<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>")
	case r.Method == "POST" && query.Get("uploadId") != "":
		b.write(w, r, b.completed(body), query.Get("uploadId") == "u1" && b.upload)
	case r.Method == "PUT":
		b.write(w, r, b.put(r, body), true)
	case r.Method == "DELETE" && b.upload:
		b.upload = false
		w.WriteHeader(http.StatusNoContent)
	case r.Method == "DELETE":
		refuse(w, 404, "NoSuchUpload")
	default:
		b.t.Errorf("unexpected %s %s", r.Method, r.URL)
		refuse(w, 501, "NotImplemented")
	}
}

// write does a conditional write, or fails as it is told.
func (b *bucket) write(w http.ResponseWriter, r *http.Request, object *held, allowed bool) {
	b.writes++
	if r.Header.Get("If-None-Match") != "*" {
		b.t.Error("a write without If-None-Match")
	}
	var f fault
	if len(b.faults) > 0 {
		f, b.faults = b.faults[0], b.faults[1:]
	}
	fails := f != fault{} && f.answer == "" && !f.lies
	switch {
	case fails && !f.persist:
	case !allowed:
		refuse(w, 404, "NoSuchUpload")
		return
	case b.object != nil:
		refuse(w, 412, "PreconditionFailed")
		return
	case !f.lies:
		b.object, b.upload = object, false
	}
	switch {
	case fails && f.status == 0:
		panic(http.ErrAbortHandler)
	case fails:
		refuse(w, f.status, f.code)
		return
	}
	sum := object.sum
	if f.answer != "" {
		sum = f.answer
	}
	w.Header().Set("X-Amz-Checksum-Sha256", sum)
	if b.tells {
		w.Header().Set("X-Amz-Version-Id", object.version)
	}
	if r.Method == "POST" {
		fmt.Fprintf(w, "<CompleteMultipartUploadResult><ETag>e</ETag><ChecksumSHA256>%s</ChecksumSHA256></CompleteMultipartUploadResult>", sum)
	}
}

// completed is the object that a list of parts makes.
func (b *bucket) completed(body []byte) *held {
	var list struct {
		Part []struct {
			PartNumber     int
			ETag           string
			ChecksumSHA256 string
		}
	}
	if err := xml.Unmarshal(body, &list); err != nil {
		b.t.Error(err)
	}
	all := sha256.New()
	var size int64
	for _, p := range list.Part {
		sum, err := base64.StdEncoding.DecodeString(p.ChecksumSHA256)
		if err != nil || p.ETag == "" {
			b.t.Errorf("part %+v: %v", p, err)
		}
		all.Write(sum)
		size += partSize
	}
	return &held{sum: fmt.Sprintf("%s-%d", base64.StdEncoding.EncodeToString(all.Sum(nil)), len(list.Part)), size: size, version: "v1"}
}

func (b *bucket) put(r *http.Request, body []byte) *held {
	sum := sha256.Sum256(body)
	o := &held{sum: base64.StdEncoding.EncodeToString(sum[:]), body: body, size: int64(len(body)), version: "v1"}
	if r.Header.Get("X-Amz-Checksum-Sha256") != o.sum {
		b.t.Errorf("put with hash %q, its body has %q", r.Header.Get("X-Amz-Checksum-Sha256"), o.sum)
	}
	return o
}

func (b *bucket) head(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("X-Amz-Checksum-Mode") != "ENABLED" {
		b.t.Error("HEAD does not ask for the hash")
	}
	var status int
	if len(b.heads) > 0 {
		status, b.heads = b.heads[0], b.heads[1:]
	}
	switch {
	case status != 0:
		w.WriteHeader(status)
	case b.object == nil:
		w.WriteHeader(404)
	default:
		w.Header().Set("X-Amz-Checksum-Sha256", b.object.sum)
		w.Header().Set("X-Amz-Version-Id", b.object.version)
		w.Header().Set("X-Amz-Object-Lock-Retain-Until-Date", "2027-01-02T03:04:05Z")
		w.Header().Set("Content-Length", fmt.Sprint(b.object.size))
	}
}

func (b *bucket) get(w http.ResponseWriter) {
	if b.object == nil {
		refuse(w, 404, "NoSuchKey")
		return
	}
	w.Write(b.object.body)
}

func refuse(w http.ResponseWriter, status int, code string) {
	w.WriteHeader(status)
	fmt.Fprintf(w, "<?xml version=\"1.0\"?><Error><Code>%s</Code><Message>as told</Message></Error>", code)
}
