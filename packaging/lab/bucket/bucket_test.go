package bucket

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/quicklime-ir/quicklime/collector/locker"
	"github.com/quicklime-ir/quicklime/packaging/lab/pki"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// TestMain lets the test binary play the server's process, as quicklime-lab
// does.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "s3" {
		arg := func(name string) string {
			for i, a := range os.Args {
				if a == name {
					return os.Args[i+1]
				}
			}
			return ""
		}
		fmt.Println(Serve(context.Background(), Config{Root: arg("--root"), Addr: arg("--addr"), Region: arg("--region"),
			AccessKey: os.Getenv("AWS_ACCESS_KEY_ID"), SecretKey: os.Getenv("AWS_SECRET_ACCESS_KEY")}))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// start gives a server, and a locker on its bucket.
func start(t *testing.T) (*Server, *locker.Locker) {
	t.Helper()
	authority, err := pki.New()
	if err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(ca, authority.PEM, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Start(t.Context(), os.Args[0], "evidence", Config{Root: t.TempDir(), Region: "eu-central-1", AccessKey: "AKIALAB", SecretKey: "secret"}, authority, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	sdk := aws.Config{Region: "eu-central-1", Credentials: credentials.NewStaticCredentialsProvider("AKIALAB", "secret", ""),
		BaseEndpoint: aws.String(s.URL()), HTTPClient: s.Client().Options().HTTPClient}
	l, err := locker.New(sdk, locker.Config{Bucket: "evidence", Retention: time.Hour}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s, l
}

// put stores a part by its grant and gives S3's answer.
func put(t *testing.T, s *Server, g locker.Grant, body []byte) (int, string) {
	t.Helper()
	q, err := http.NewRequest(http.MethodPut, g.URL, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range g.Headers {
		q.Header.Set(name, value)
	}
	answer, err := s.Client().Options().HTTPClient.Do(q)
	if err != nil {
		return 0, err.Error()
	}
	defer answer.Body.Close()
	text, _ := io.ReadAll(answer.Body)
	return answer.StatusCode, string(text)
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// TestTheServerHoldsWhatTheLockerRelieson runs the locker against the real
// server: what S3 must refuse is refused, and what is stored stays.
func TestTheServerHoldsWhatTheLockerReliesOn(t *testing.T) {
	s, l := start(t)
	ctx := t.Context()
	key := locker.Key("c1", "i-0123456789abcdef0", evidence.Item{Kind: evidence.Memory, Name: "memory", Format: evidence.LiME})
	upload, err := l.Begin(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	bodies := [][]byte{randomBytes(evidence.MinPartBytes), randomBytes(100)}
	var parts []evidence.Part
	for i, body := range bodies {
		p := evidence.Part{Number: int32(2*i + 1), Size: uint64(len(body)), SHA256: sha256.Sum256(body)} // numbers may have gaps
		g, err := l.Grant(ctx, key, upload, p.Number, p.Size, p.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		if code, text := put(t, s, g, randomBytes(len(body))); code != http.StatusBadRequest {
			t.Errorf("other bytes than granted: %d %s", code, text)
		}
		if code, text := put(t, s, g, body[1:]); code == http.StatusOK {
			t.Errorf("fewer bytes than granted: %d %s", code, text)
		}
		if code, text := put(t, s, g, body); code != http.StatusOK {
			t.Fatalf("the granted bytes: %d %s", code, text)
		}
		parts = append(parts, p)
	}
	stored, err := l.Stored(ctx, key, upload)
	if err != nil || len(stored) != 2 {
		t.Fatalf("stored %+v, %v", stored, err)
	}
	for i := range stored {
		parts[i].ETag = stored[i].ETag
	}
	object, err := l.Complete(ctx, key, upload, parts)
	if err != nil || object.SHA256 != evidence.Composite(parts) || object.Size != uint64(len(bodies[0])+len(bodies[1])) {
		t.Fatalf("object %+v, %v", object, err)
	}
	if again, err := l.Complete(ctx, key, upload, parts); err != nil || again.VersionID != object.VersionID {
		t.Errorf("completing twice gave %+v, %v", again, err)
	}
	if _, err := s.Client().DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: aws.String("evidence"), Key: &key, VersionId: &object.VersionID}); err == nil {
		t.Error("a locked version was deleted")
	}
	if _, err := l.Put(ctx, key, []byte("other")); !errors.Is(err, locker.ErrExists) {
		t.Errorf("writing over an object: %v", err)
	}
}

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
	for _, tt := range []struct {
		name   string
		kind   FaultKind
		code   int
		text   string
		stored int
	}{
		{"slow down", SlowDown, 503, "SlowDown", 0},
		{"a byte flipped on the way", FlipByte, 400, "BadDigest", 0},
		{"the connection cut", Reset, 0, "", 0},
		{"the answer lost", LostReply, 0, "", 1},
	} {
		s.Inject(Fault{Kind: tt.kind, Match: PartUpload, Times: 1})
		if code, text := put(t, s, g, body); code != tt.code || !strings.Contains(text, tt.text) {
			t.Errorf("%s: answer %d %s, want %d %s", tt.name, code, text, tt.code, tt.text)
		}
		if stored, err := l.Stored(t.Context(), key, upload); err != nil || len(stored) != tt.stored {
			t.Errorf("%s: %d parts stored, %v", tt.name, len(stored), err)
		}
	}
	if s.Struck() != 4 {
		t.Errorf("%d faults struck", s.Struck())
	}
}

func TestEncryptionIsRefusedNotIgnored(t *testing.T) {
	s, _ := start(t)
	_, err := s.Client().PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("evidence"), Key: aws.String("x"),
		ServerSideEncryption: "aws:kms", Body: strings.NewReader("x")})
	if err == nil || !strings.Contains(err.Error(), "NotImplemented") {
		t.Errorf("error %v", err)
	}
}
