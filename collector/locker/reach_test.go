package locker

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// TestWhyABucketIsNotReached: each cause is told from the others, with what
// helps, and S3 is asked once.
func TestWhyABucketIsNotReached(t *testing.T) {
	for _, c := range []struct {
		about  string
		status int
		want   string // "": it is reached
	}{
		{"it is there", 200, ""},
		{"it may not be seen", 403, "allow its role s3:ListBucket"},
		{"there is none", 404, "see --bucket"},
		{"it is in another region", 301, "AWS_REGION"},
		{"the credentials have expired", 400, "have not expired"},
		{"S3 has a fault", 500, "passes by itself"},
		{"S3 wants fewer requests", 503, "passes by itself"},
		{"it is another server", 418, "unexpected answer"},
	} {
		var calls atomic.Int32
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			calls.Add(1)
			if r.Method != http.MethodHead || r.URL.Path != "/evidence" && r.URL.Path != "/evidence/" {
				t.Errorf("%s %s", r.Method, r.URL)
			}
			w.WriteHeader(c.status)
		}))
		cfg := sdk(server.URL)
		cfg.RetryMode, cfg.Retryer = aws.RetryModeAdaptive, nil // as the service has it
		l, err := New(cfg, Config{Bucket: "evidence"}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		err = l.Reachable(t.Context())
		server.Close()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "cannot reach bucket evidence")) {
			t.Errorf("%s: %v, want %q", c.about, err, c.want)
		}
		if calls.Load() != 1 {
			t.Errorf("%s: S3 was asked %d times", c.about, calls.Load())
		}
	}
}

func TestWhyS3IsNotReached(t *testing.T) {
	reach := func(about, want string, l *Locker, limit time.Duration) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		if err := l.Reachable(ctx); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", about, err, want)
		}
	}

	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	reach("nobody listens", "there is no connection to S3", newLocker(t, gone.URL, Config{Bucket: "evidence"}), time.Minute)

	stranger := httptest.NewUnstartedServer(http.NotFoundHandler())
	stranger.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug) // it tells of the handshake
	stranger.StartTLS()
	defer stranger.Close()
	reach("a stranger's certificate", "certificate is not trusted", newLocker(t, stranger.URL, Config{Bucket: "evidence"}), time.Minute)

	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer silent.Close()
	reach("it hangs", "S3 gives no answer", newLocker(t, silent.URL, Config{Bucket: "evidence"}), 50*time.Millisecond)

	cfg := sdk(silent.URL)
	cfg.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{}, errors.New("no EC2 IMDS role found")
	})
	bare, err := New(cfg, Config{Bucket: "evidence"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	reach("no credentials", "nothing to sign a request with", bare, time.Minute)
}
