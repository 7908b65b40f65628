package locker

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/config"

	"github.com/quicklime-ir/quicklime/proto/evidence"
)

var digest = evidence.Digest{0xab, 0xcd}

func TestGrant(t *testing.T) {
	for name, test := range map[string]struct {
		endpoint string
		cfg      Config
		host     string
		path     string
		life     string
	}{
		"AWS":             {"", Config{}, "evidence.s3.eu-west-1.amazonaws.com", "/" + key, "300"},
		"own endpoint":    {"http://127.0.0.1:7070", Config{GrantLife: time.Minute}, "127.0.0.1:7070", "/evidence/" + key, "60"},
		"agents' own":     {"", Config{GrantEndpoint: "https://bucket.vpce-1.s3.eu-west-1.vpce.amazonaws.com"}, "bucket.vpce-1.s3.eu-west-1.vpce.amazonaws.com", "/evidence/" + key, "300"},
		"both, different": {"http://127.0.0.1:7070", Config{GrantEndpoint: "http://10.0.2.2:7070"}, "10.0.2.2:7070", "/evidence/" + key, "300"},
	} {
		t.Run(name, func(t *testing.T) {
			test.cfg.Bucket = "evidence"
			g, err := newLocker(t, test.endpoint, test.cfg).Grant(t.Context(), key, "u1", 7, 12345, digest)
			if err != nil {
				t.Fatal(err)
			}
			u, err := url.Parse(g.URL)
			if err != nil {
				t.Fatal(err)
			}
			q := u.Query()
			if u.Host != test.host || u.Path != test.path || q.Get("X-Amz-Expires") != test.life || q.Get("partNumber") != "7" || q.Get("uploadId") != "u1" {
				t.Errorf("granted %s", g.URL)
			}
			if q.Get("X-Amz-SignedHeaders") != "content-length;host;x-amz-checksum-sha256" {
				t.Errorf("signed headers are %q", q.Get("X-Amz-SignedHeaders"))
			}
			if want := map[string]string{"X-Amz-Checksum-Sha256": digest.Base64()}; !maps.Equal(g.Headers, want) {
				t.Errorf("headers to send are %v, want %v", g.Headers, want)
			}
		})
	}
}

// TestGrantByEnvironment is how the lab and other S3 servers are reached.
func TestGrantByEnvironment(t *testing.T) {
	for _, name := range []string{"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(name, "http://127.0.0.1:7070")
			t.Setenv("AWS_REGION", "eu-west-1")
			t.Setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
			t.Setenv("AWS_SECRET_ACCESS_KEY", "SECRETEXAMPLE")
			sdk, err := config.LoadDefaultConfig(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			l, err := New(sdk, Config{Bucket: "evidence"}, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			g, err := l.Grant(t.Context(), key, "u1", 1, 1, digest)
			if err != nil || !strings.HasPrefix(g.URL, "http://127.0.0.1:7070/evidence/"+key+"?") {
				t.Errorf("granted %s (%v)", g.URL, err)
			}
		})
	}
}

func TestGrantIsNotPrinted(t *testing.T) {
	g, err := newLocker(t, "", Config{Bucket: "evidence"}).Grant(t.Context(), key, "u1", 1, 1, digest)
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("granted", "grant", g)
	slog.New(slog.NewTextHandler(&log, nil)).Info("granted", "grant", g)
	printed := fmt.Sprint(g) + fmt.Sprintf("%+v %#v %s %v", g, g, g, struct{ G Grant }{g}) + log.String()
	if strings.Contains(printed, "Signature") || !strings.Contains(printed, "secret") {
		t.Errorf("printed as %s", printed)
	}
}

func TestGrantRefuses(t *testing.T) {
	l := newLocker(t, "", Config{Bucket: "evidence"})
	for name, call := range map[string]func() (Grant, error){
		"part 0":          func() (Grant, error) { return l.Grant(t.Context(), key, "u1", 0, 1, digest) },
		"part 10001":      func() (Grant, error) { return l.Grant(t.Context(), key, "u1", 10_001, 1, digest) },
		"no bytes":        func() (Grant, error) { return l.Grant(t.Context(), key, "u1", 1, 0, digest) },
		"too many bytes":  func() (Grant, error) { return l.Grant(t.Context(), key, "u1", 1, 5<<30+1, digest) },
		"no upload":       func() (Grant, error) { return l.Grant(t.Context(), key, "", 1, 1, digest) },
		"no key":          func() (Grant, error) { return l.Grant(t.Context(), "", "u1", 1, 1, digest) },
		"a key elsewhere": func() (Grant, error) { return l.Grant(t.Context(), "cases/c1/../../x", "u1", 1, 1, digest) },
	} {
		if g, err := call(); err == nil || g.URL != "" {
			t.Errorf("%s is granted", name)
		}
	}
}

// TestUnboundSignatureIsRefused holds what other versions of the SDK sign
// against what must be signed.
func TestUnboundSignatureIsRefused(t *testing.T) {
	const all = "content-length;host;x-amz-checksum-sha256"
	headers := func(sum, length string) http.Header {
		return http.Header{"X-Amz-Checksum-Sha256": {sum}, "Content-Length": {length}}
	}
	for name, test := range map[string]struct {
		method, signed string
		headers        http.Header
		ok             bool
	}{
		"bound":                       {"PUT", all, headers(digest.Base64(), "5"), true},
		"hash in the query":           {"PUT", "content-length;host&x-amz-checksum-sha256=" + digest.Base64(), headers("", "5"), false},
		"length left out":             {"PUT", "host;x-amz-checksum-sha256", headers(digest.Base64(), ""), false},
		"an algorithm header besides": {"PUT", all + ";x-amz-sdk-checksum-algorithm", headers(digest.Base64(), "5"), false},
		"another hash":                {"PUT", all, headers(evidence.Digest{}.Base64(), "5"), false},
		"another length":              {"PUT", all, headers(digest.Base64(), "6"), false},
		"another method":              {"GET", all, headers(digest.Base64(), "5"), false},
		"nothing":                     {"PUT", "", nil, false},
	} {
		request := &v4.PresignedHTTPRequest{Method: test.method, SignedHeader: test.headers,
			URL: "https://evidence/x?X-Amz-Signature=SECRET&X-Amz-SignedHeaders=" + strings.ReplaceAll(test.signed, ";", "%3B")}
		err := checkSigned(request, 5, digest)
		if (err == nil) != test.ok {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "SECRET") {
			t.Errorf("%s: the error has the secret: %v", name, err)
		}
	}
}

func TestBeginAndAbort(t *testing.T) {
	_, l := newBucket(t)
	id, err := l.Begin(t.Context(), key)
	if err != nil || id != "u1" {
		t.Fatalf("%q, %v", id, err)
	}
	for range 2 { // the second time it is gone already
		if err := l.Abort(t.Context(), key, id); err != nil {
			t.Error(err)
		}
	}
	if _, err := l.Begin(t.Context(), "elsewhere/x"); err == nil {
		t.Error("an upload is begun outside the cases")
	}
}

// TestStored reads a list that S3 gives in pages.
func TestStored(t *testing.T) {
	entry := func(n int, sum string) string {
		return fmt.Sprintf("<Part><PartNumber>%d</PartNumber><ETag>e%d</ETag><Size>%d</Size>%s</Part>", n, n, partSize, sum)
	}
	sum := "<ChecksumSHA256>" + digest.Base64() + "</ChecksumSHA256>"
	pages := map[string]string{
		"":  "<IsTruncated>true</IsTruncated><NextPartNumberMarker>2</NextPartNumberMarker>" + entry(1, sum) + entry(2, sum),
		"2": "<IsTruncated>false</IsTruncated>" + entry(4, ""),
	}
	l := newLocker(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "<ListPartsResult>%s</ListPartsResult>", pages[r.URL.Query().Get("part-number-marker")])
	}), Config{Bucket: "evidence"})
	want := []StoredPart{{1, partSize, digest, "e1"}, {2, partSize, digest, "e2"}, {4, partSize, evidence.Digest{}, "e4"}}
	if got, err := l.Stored(t.Context(), key, "u1"); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v\nwant %v", got, err, want)
	}
}

func TestStoredFaults(t *testing.T) {
	for name, test := range map[string]struct {
		status int
		answer string
		kind   error
	}{
		"gone":        {404, "<Error><Code>NoSuchUpload</Code></Error>", ErrNoUpload},
		"busy":        {503, "<Error><Code>SlowDown</Code></Error>", nil},
		"broken hash": {200, "<ListPartsResult><Part><PartNumber>1</PartNumber><ChecksumSHA256>AAAA</ChecksumSHA256></Part></ListPartsResult>", nil},
		"endless": {200, "<ListPartsResult><IsTruncated>true</IsTruncated><NextPartNumberMarker>1</NextPartNumberMarker>" +
			strings.Repeat("<Part><PartNumber>1</PartNumber></Part>", 1000) + "</ListPartsResult>", nil},
	} {
		l := newLocker(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(test.status)
			fmt.Fprint(w, test.answer)
		}), Config{Bucket: "evidence"})
		got, err := l.Stored(t.Context(), key, "u1")
		if err == nil || got != nil || errors.Is(err, ErrNoUpload) != (test.kind != nil) {
			t.Errorf("%s: %d parts, %v", name, len(got), err)
		}
	}
}

// TestPutPart: the collector's own part is bound to its hash as an agent's is.
func TestPutPart(t *testing.T) {
	body := []byte("a seek table")
	sum := evidence.Digest(sha256.Sum256(body))
	for name, test := range map[string]struct {
		status   int
		sum, tag string
		says     string // "" for stored
		kind     error
	}{
		"stored":                    {200, sum.Base64(), "e7", "", nil},
		"stored by a server of old": {200, "", "e7", "", nil},
		"stored with another hash":  {200, digest.Base64(), "e7", "S3 answers with hash", nil},
		"stored without an ETag":    {200, sum.Base64(), "", "ETag", nil},
		"the upload is gone":        {404, "", "", "NoSuchUpload", ErrNoUpload},
	} {
		l := newLocker(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
			got, _ := io.ReadAll(r.Body)
			if r.Method != "PUT" || r.URL.Query().Get("partNumber") != "7" || r.URL.Query().Get("uploadId") != "u1" ||
				r.Header.Get("X-Amz-Checksum-Sha256") != sum.Base64() || string(got) != string(body) {
				t.Errorf("%s: asked %s %s with %v", name, r.Method, r.URL, r.Header)
			}
			if test.status != 200 {
				refuse(w, test.status, "NoSuchUpload")
				return
			}
			w.Header().Set("X-Amz-Checksum-Sha256", test.sum)
			w.Header().Set("ETag", test.tag)
		}), Config{Bucket: "evidence"})
		part, err := l.PutPart(t.Context(), key, "u1", 7, body)
		if test.says == "" && (err != nil || part != StoredPart{7, uint64(len(body)), sum, "e7"}) {
			t.Errorf("%s: %+v, %v", name, part, err)
		}
		if test.says != "" && (err == nil || !strings.Contains(err.Error(), test.says) || test.kind != nil && !errors.Is(err, test.kind)) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	l := newLocker(t, "", Config{Bucket: "evidence"})
	if _, err := l.PutPart(t.Context(), key, "u1", 10_001, body); err == nil {
		t.Error("part 10,001 is put")
	}
}

// TestGetRange: a stretch of an object, down to nothing at its end.
func TestGetRange(t *testing.T) {
	const object = "0123456789"
	l := newLocker(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(object))
	}), Config{Bucket: "evidence"})
	for _, test := range []struct {
		offset, length int64
		want           string
	}{{0, 3, "012"}, {4, 1, "4"}, {8, 100, "89"}, {10, 1, ""}, {1 << 40, 5, ""}} {
		r, err := l.GetRange(t.Context(), key, test.offset, test.length)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || string(got) != test.want || r.Close() != nil {
			t.Errorf("%d bytes from %d on are %q, %v; want %q", test.length, test.offset, got, err, test.want)
		}
	}
	for _, bad := range [][2]int64{{-1, 5}, {0, 0}, {0, -1}, {math.MaxInt64, 2}} {
		if _, err := l.GetRange(t.Context(), key, bad[0], bad[1]); err == nil {
			t.Errorf("%d bytes from %d on are a range", bad[1], bad[0])
		}
	}
	deaf := newLocker(t, serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, object) }), Config{Bucket: "evidence"})
	if _, err := deaf.GetRange(t.Context(), key, 4, 1); err == nil || !strings.Contains(err.Error(), "asked for bytes from 4 on") {
		t.Errorf("a server that gives the whole object: %v", err)
	}
	gone := newLocker(t, serve(t, func(w http.ResponseWriter, _ *http.Request) { refuse(w, 404, "NoSuchKey") }), Config{Bucket: "evidence"})
	if _, err := gone.GetRange(t.Context(), key, 0, 1); !errors.Is(err, ErrNoObject) {
		t.Errorf("no object: %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	for name, cfg := range map[string]Config{
		"no bucket":             {},
		"negative retention":    {Bucket: "b", Retention: -1},
		"grants that live long": {Bucket: "b", GrantLife: time.Hour},
		"grants without life":   {Bucket: "b", GrantLife: -1},
		"no endpoint":           {Bucket: "b", GrantEndpoint: "example.com"},
		"another protocol":      {Bucket: "b", GrantEndpoint: "ftp://example.com"},
		"endpoint with secrets": {Bucket: "b", GrantEndpoint: "https://user:pass@example.com"},
	} {
		if _, err := New(sdk(""), cfg, slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func serve(t *testing.T, h http.HandlerFunc) string {
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server.URL
}

func TestReading(t *testing.T) {
	b, l := newBucket(t)
	for name, read := range map[string]func() error{
		"head": func() error { _, err := l.Head(t.Context(), key); return err },
		"get":  func() error { _, err := l.Get(t.Context(), key); return err },
		"read": func() error { _, err := l.Read(t.Context(), key, 9); return err },
	} {
		if err := read(); !errors.Is(err, ErrNoObject) {
			t.Errorf("%s: %v", name, err)
		}
	}
	b.object = &held{body: []byte("12345")}
	if got, err := l.Read(t.Context(), key, 5); err != nil || string(got) != "12345" {
		t.Errorf("read %q, %v", got, err)
	}
	if _, err := l.Read(t.Context(), key, 4); err == nil {
		t.Error("more was read than was allowed")
	}
	b.heads = []int{403}
	if _, err := l.Head(t.Context(), key); err == nil || errors.Is(err, ErrNoObject) || !strings.Contains(err.Error(), "s3:ListBucket") {
		t.Errorf("forbidden: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Head(ended, key); !errors.Is(err, context.Canceled) {
		t.Errorf("ended: %v", err)
	}
}

func TestList(t *testing.T) {
	pages := map[string]string{
		"":   "<IsTruncated>true</IsTruncated><NextContinuationToken>t2</NextContinuationToken><Contents><Key>cases/a</Key><Size>1</Size></Contents>",
		"t2": "<IsTruncated>false</IsTruncated><Contents><Key>cases/b</Key><Size>2</Size></Contents>",
	}
	l := newLocker(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("prefix") != "cases/" {
			t.Errorf("asked for %s", r.URL)
		}
		fmt.Fprintf(w, "<ListBucketResult>%s</ListBucketResult>", pages[r.URL.Query().Get("continuation-token")])
	}), Config{Bucket: "evidence"})
	got, err := l.List(t.Context(), "cases/")
	if want := []Object{{Key: "cases/a", Size: 1}, {Key: "cases/b", Size: 2}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
}
