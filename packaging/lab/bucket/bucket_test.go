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
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"go.uber.org/goleak"

	"github.com/quicklime-ir/quicklime/collector/locker"
	"github.com/quicklime-ir/quicklime/packaging/lab/pki"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// besideRole has the server keep metadata in files beside.
const besideRole = "QUICKLIME_TEST_BESIDE"

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
		attributes := keepsAttributes
		if os.Getenv(besideRole) != "" {
			attributes = func(string) (bool, error) { return false, nil }
		}
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		if err := serve(ctx, Config{Root: arg("--root"), Addr: arg("--addr"), Region: arg("--region"),
			AccessKey: os.Getenv("AWS_ACCESS_KEY_ID"), SecretKey: os.Getenv("AWS_SECRET_ACCESS_KEY")}, attributes); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// serverAt gives a server with its data in a folder, and its authority.
func serverAt(t *testing.T, root string) (*Server, *pki.Authority) {
	t.Helper()
	authority, err := pki.New()
	if err != nil {
		t.Fatal(err)
	}
	s, err := Start(t.Context(), os.Args[0], "evidence", Config{Root: root, Region: "eu-central-1", AccessKey: "AKIALAB", SecretKey: "secret"}, authority, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, authority
}

// start gives a server, and a locker on its bucket.
func start(t *testing.T) (*Server, *locker.Locker) {
	t.Helper()
	s, _ := serverAt(t, t.TempDir())
	sdk := aws.Config{Region: "eu-central-1", Credentials: credentials.NewStaticCredentialsProvider("AKIALAB", "secret", ""),
		BaseEndpoint: aws.String(s.URL()), HTTPClient: s.http}
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
	answer, err := s.http.Do(q)
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

// TestTheServerHoldsWhatTheLockerReliesOn runs the locker against the real
// server: what S3 must refuse is refused, and what is stored stays.
func TestTheServerHoldsWhatTheLockerReliesOn(t *testing.T) {
	s, l := start(t)
	ctx := t.Context()
	key := locker.Key("c1", "i-0123456789abcdef0", evidence.Item{Kind: evidence.Memory, Name: "memory", Format: evidence.LiME})
	upload, err := l.Begin(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	bodies := [][]byte{randomBytes(evidence.MinPartBytes), randomBytes(evidence.MinPartBytes + 100)}
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
	table := randomBytes(33) // the collector's own part, the last
	for range 2 {
		p, err := l.PutPart(ctx, key, upload, 7, table)
		if err != nil || p.ETag == "" || p.Digest != sha256.Sum256(table) {
			t.Fatalf("the collector's own part: %+v, %v", p, err)
		}
	}
	bodies = append(bodies, table)
	parts = append(parts, evidence.Part{Number: 7, Size: uint64(len(table)), SHA256: sha256.Sum256(table)})
	stored, err := l.Stored(ctx, key, upload)
	if err != nil || len(stored) != 3 {
		t.Fatalf("stored %+v, %v", stored, err)
	}
	for i := range stored {
		parts[i].ETag = stored[i].ETag
	}
	object, err := l.Complete(ctx, key, upload, parts)
	if err != nil || object.SHA256 != evidence.Composite(parts) || object.Size != uint64(len(bodies[0])+len(bodies[1])+len(table)) {
		t.Fatalf("object %+v, %v", object, err)
	}
	all := bytes.Join(bodies, nil)
	for _, at := range [][2]int{{0, 9}, {evidence.MinPartBytes - 1, 3}, {len(all) - 3, 9}, {len(all), 1}, {len(all) + 9, 1}} {
		r, err := l.GetRange(ctx, key, int64(at[0]), int64(at[1]))
		if err != nil {
			t.Fatal(err)
		}
		want := all[min(at[0], len(all)):min(at[0]+at[1], len(all))]
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) || r.Close() != nil {
			t.Errorf("%d bytes from %d on are %x, %v; want %x", at[1], at[0], got, err, want)
		}
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
