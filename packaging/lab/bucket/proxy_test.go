package bucket

import (
	"crypto/sha256"
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/quicklime-ir/quicklime/collector/locker"
	"github.com/quicklime-ir/quicklime/packaging/lab/pki"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

func TestFaults(t *testing.T) {
	s, l := start(t)
	key := locker.Key("c1", "i-0123456789abcdef0", evidence.Item{Kind: evidence.Live, Name: "files", Format: evidence.Tar})
	upload, err := l.Begin(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	body := randomBytes(1 << 20)
	g, err := l.Grant(t.Context(), key, upload, 1, uint64(len(body)), sha256.Sum256(body))
	if err != nil {
		t.Fatal(err)
	}
	for i, tt := range []struct {
		name   string
		fault  Fault
		code   int
		text   string
		stored int
	}{
		{"slow down", Fault{Kind: SlowDown}, 503, "SlowDown", 0},
		{"the request's time over", Fault{Kind: Expired}, 403, "Request has expired", 0},
		{"the first byte flipped on the way", Fault{Kind: FlipByte}, 400, "BadDigest", 0},
		{"the last byte flipped on the way", Fault{Kind: FlipByte, Offset: int64(len(body) - 1)}, 400, "BadDigest", 0},
		{"the connection cut", Fault{Kind: Reset}, 0, "", 0},
		{"the connection cut after the first byte", Fault{Kind: Reset, Offset: 1}, 0, "", 0},
		{"the answer lost", Fault{Kind: LostReply}, 0, "", 1},
		{"a byte flipped that is not there", Fault{Kind: FlipByte, Offset: int64(len(body))}, 200, "", 1},
	} {
		tt.fault.Match = PartUpload
		s.Inject(tt.fault)
		if code, text := put(t, s, g, body); code != tt.code || !strings.Contains(text, tt.text) {
			t.Errorf("%s: answer %d %s, want %d %s", tt.name, code, text, tt.code, tt.text)
		}
		if stored, err := l.Stored(t.Context(), key, upload); err != nil || len(stored) != tt.stored {
			t.Errorf("%s: %d parts stored, %v", tt.name, len(stored), err)
		}
		if s.Struck() != i+1 {
			t.Errorf("%s: %d faults struck, want %d", tt.name, s.Struck(), i+1)
		}
	}
	if n := s.PartsOf(key); n != 2 {
		t.Errorf("%d parts, want the two that were stored", n)
	}
}

// TestWrongETag: the part is stored, with the ETag that it has; its answer has
// another.
func TestWrongETag(t *testing.T) {
	s, l := start(t)
	key := locker.Key("c1", "i-0123456789abcdef0", evidence.Item{Kind: evidence.Live, Name: "files", Format: evidence.Tar})
	upload, err := l.Begin(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	store := func() string {
		out, err := s.Client().UploadPart(t.Context(), &s3.UploadPartInput{Bucket: &s.Bucket, Key: &key, UploadId: &upload, PartNumber: aws.Int32(1),
			Body: strings.NewReader("x"), ChecksumAlgorithm: types.ChecksumAlgorithmSha256})
		if err != nil {
			t.Fatal(err)
		}
		return aws.ToString(out.ETag)
	}
	s.Inject(Fault{Kind: WrongETag, Match: PartUpload})
	wrong, right := store(), store()
	if wrong == right || wrong == "" {
		t.Errorf("the answers' ETags are %s with the fault and %s without", wrong, right)
	}
	list, err := s.Client().ListParts(t.Context(), &s3.ListPartsInput{Bucket: &s.Bucket, Key: &key, UploadId: &upload})
	if err != nil || len(list.Parts) != 1 || aws.ToString(list.Parts[0].ETag) != right {
		t.Errorf("S3 has %+v, %v; want the ETag %s", list, err, right)
	}
}

// TestOnAnswer tells what the server answered, and not what a fault did.
func TestOnAnswer(t *testing.T) {
	s, _ := serverAt(t, t.TempDir())
	b := newBench(t, s, "k")
	options := s.Client().Options()
	options.RetryMaxAttempts = 1
	var answers []Answer
	s.OnAnswer(func(a Answer) { answers = append(answers, a) })
	s.Inject(Fault{Kind: SlowDown, Match: Operation("ListObjectsV2")})
	if _, err := s3.New(options).ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: &s.Bucket}); err == nil {
		t.Fatal("the fault did not strike")
	}
	b.store(randomBytes(10))
	if len(answers) != 1 || answers[0].Operation != "UploadPart" || answers[0].Path != "/"+s.Bucket+"/k" || answers[0].Part != "1" || answers[0].Status != 200 || answers[0].Time.IsZero() {
		t.Errorf("answers %+v", answers)
	}
}

func TestSlow(t *testing.T) {
	s, _ := serverAt(t, t.TempDir())
	b := newBench(t, s, "k")
	body := randomBytes(50_000)
	s.Inject(Fault{Kind: Slow, Match: PartUpload, Rate: 100_000})
	began := time.Now()
	b.store(body)
	if took := time.Since(began); took < 400*time.Millisecond || took > 5*time.Second {
		t.Errorf("half a second's bytes took %v", took)
	}
	began = time.Now()
	b.store(body)
	if took := time.Since(began); took > 400*time.Millisecond {
		t.Errorf("without a fault they took %v", took)
	}
}

// TestWhichRequestIsStruck has faults for one operation, and for a number of
// requests.
func TestWhichRequestIsStruck(t *testing.T) {
	s, _ := serverAt(t, t.TempDir())
	options := s.Client().Options()
	options.RetryMaxAttempts = 1
	client := s3.New(options)
	s.Inject(Fault{Kind: SlowDown, Match: Operation("PutObject"), Times: 2})
	put := func() error {
		_, err := client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &s.Bucket, Key: aws.String("k"), Body: strings.NewReader("x")})
		return err
	}
	if _, err := client.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: &s.Bucket}); err != nil {
		t.Errorf("another operation was struck: %v", err)
	}
	for range 2 {
		wantRefused(t, "put", put(), 503, "SlowDown")
	}
	if err := put(); err != nil {
		t.Errorf("a third was struck: %v", err)
	}
}

func TestCounts(t *testing.T) {
	s, _ := serverAt(t, t.TempDir())
	b := newBench(t, s, "k")
	one := randomBytes(2000)
	called := ""
	s.OnPart(func(path string) { called += path })
	before := s.Counts().Bytes
	parts := b.store(one)
	if sent := s.Counts().Bytes - before; sent != int64(len(one)) {
		t.Errorf("%d bytes sent, want %d", sent, len(one))
	}
	if s.PartsOf("") != 1 || s.PartsOf("k") != 1 || s.PartsOf("other") != 0 || called != "/evidence/k" {
		t.Errorf("%d parts, called with %s", s.PartsOf(""), called)
	}
	if _, err := b.complete(parts, nil); err != nil {
		t.Fatal(err)
	}
	want := map[string]int{"PUT bucket": 1, "CreateMultipartUpload": 1, "UploadPart": 1, "CompleteMultipartUpload": 1}
	if got := s.Counts().Requests; !reflect.DeepEqual(got, want) {
		t.Errorf("requests %v, want %v", got, want)
	}
}

func TestOperations(t *testing.T) {
	for request, want := range map[string]string{
		"PUT /b/k?partNumber=1&uploadId=u": "UploadPart",
		"POST /b/k?uploads":                "CreateMultipartUpload",
		"POST /b/k?uploadId=u":             "CompleteMultipartUpload",
		"DELETE /b/k?uploadId=u":           "AbortMultipartUpload",
		"GET /b/k?uploadId=u":              "ListParts",
		"GET /b?list-type=2":               "ListObjectsV2",
		"GET /b?uploads":                   "GET uploads",
		"PUT /b/k":                         "PutObject",
		"PUT /b/k/partNumber":              "PutObject",
		"GET /b/k":                         "GetObject",
		"HEAD /b/k":                        "HeadObject",
		"DELETE /b/k":                      "DeleteObject",
		"PUT /b/k?retention":               "PUT retention",
		"GET /b?versions":                  "GET versions",
		"HEAD /b":                          "HEAD bucket",
		"HEAD /b/":                         "HEAD bucket",
	} {
		method, target, _ := strings.Cut(request, " ")
		r := httptest.NewRequest(method, target, nil)
		if got := operation(r); got != want {
			t.Errorf("%s: %q, want %q", request, got, want)
		}
		if PartUploadOf("/k")(r) != PartUpload(r) || PartUploadOf("/other")(r) {
			t.Errorf("%s matches another key", request)
		}
		if !Operation(want)(r) || PartUpload(r) != (want == "UploadPart") {
			t.Errorf("%s does not match %s", request, want)
		}
	}
}

// proxyTo gives a proxy in front of a handler, and a client of it.
func proxyTo(t *testing.T, handler http.HandlerFunc) (*Proxy, *http.Client) {
	t.Helper()
	authority, err := pki.New()
	if err != nil {
		t.Fatal(err)
	}
	pair, err := authority.Server()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	backend := httptest.NewUnstartedServer(handler)
	backend.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	backend.StartTLS()
	t.Cleanup(backend.Close)
	p, err := newProxy("127.0.0.1", backend.Listener.Addr().String(), authority)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: transport(authority)}
	t.Cleanup(func() {
		client.CloseIdleConnections()
		if err := p.close(); err != nil {
			t.Error(err)
		}
	})
	return p, client
}

// TestTheRequestStaysAsItWasSigned looks at what arrives behind the proxy.
func TestTheRequestStaysAsItWasSigned(t *testing.T) {
	var got *http.Request
	p, client := proxyTo(t, func(_ http.ResponseWriter, r *http.Request) { got = r })
	target := "/b/a%20b%2Bc%25/%C3%BC?X-Amz-Signature=a%2Fb&partNumber=1"
	q, err := http.NewRequest(http.MethodPut, p.URL()+target, strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("X-Amz-Checksum-Sha256", "abc=")
	answer, err := client.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if got == nil || got.RequestURI != target || got.Host != strings.TrimPrefix(p.URL(), "https://") || got.ContentLength != 1 || got.Header.Get("X-Amz-Checksum-Sha256") != "abc=" {
		t.Errorf("behind the proxy: %+v", got)
	}
	for _, name := range []string{"X-Forwarded-For", "X-Forwarded-Host", "Accept-Encoding"} {
		if got.Header.Get(name) != "" {
			t.Errorf("%s was added: %q", name, got.Header.Get(name))
		}
	}
}

// TestBodiesAreNotHeldBack has the client wait, in the middle of its body,
// for what is behind the proxy to have read the first half.
func TestBodiesAreNotHeldBack(t *testing.T) {
	arrived := make(chan byte)
	p, client := proxyTo(t, func(_ http.ResponseWriter, r *http.Request) {
		for range 2 {
			one := make([]byte, 1)
			if _, err := io.ReadFull(r.Body, one); err != nil {
				t.Error(err)
			}
			arrived <- one[0]
		}
	})
	body, end := io.Pipe()
	done := make(chan error, 1)
	go func() {
		q, err := http.NewRequestWithContext(t.Context(), http.MethodPut, p.URL()+"/b/k", body)
		if err == nil {
			q.ContentLength = 2
			var answer *http.Response
			if answer, err = client.Do(q); err == nil {
				err = answer.Body.Close()
			}
		}
		done <- err
	}()
	for _, want := range []byte("ab") {
		if _, err := end.Write([]byte{want}); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-arrived:
			if got != want {
				t.Errorf("%q arrived, want %q", got, want)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("%q is held back", want)
		}
	}
	end.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestAServerThatCannotStart has no program, and a program that ends.
func TestAServerThatCannotStart(t *testing.T) {
	authority, err := pki.New()
	if err != nil {
		t.Fatal(err)
	}
	for exe, want := range map[string]string{"/nowhere/quicklime-lab": "cannot start S3 server", "/bin/false": "ended before it was ready"} {
		s, err := Start(t.Context(), exe, "evidence", Config{Root: t.TempDir(), Region: "eu-central-1"}, authority, os.Stderr)
		if s != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: server %v, error %v", exe, s, err)
		}
	}
	if err := Serve(t.Context(), Config{Root: "relative"}); err == nil || !strings.Contains(err.Error(), "absolute") {
		t.Errorf("a relative root: %v", err)
	}
}
