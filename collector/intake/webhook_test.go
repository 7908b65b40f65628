package intake

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quicklime-ir/quicklime/collector/finding"
)

const (
	secret = "correct-horse-battery-staple"
	next   = "the-next-secret-is-longer-still"
)

func webhook(t testing.TB, taker Taker) (*Webhook, *bytes.Buffer) {
	t.Helper()
	secrets, err := parseSecrets([]byte(secret + "\n" + next + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	return NewWebhook(secrets, taker, slog.New(slog.NewTextHandler(&log, nil))), &log
}

// post hands a request to the webhook as net/http does.
func post(w *Webhook, change func(*http.Request), body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, WebhookPath, strings.NewReader(body))
	r.Header.Set("X-Api-Key", secret)
	if change != nil {
		change(r)
	}
	out := httptest.NewRecorder()
	w.ServeHTTP(out, r)
	return out
}

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// TestWhatTheWebhookAnswers is what EventBridge goes by: 429 and 5xx come
// again, nothing else does.
func TestWhatTheWebhookAnswers(t *testing.T) {
	with := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Del("X-Api-Key"); r.Header.Set(name, value) }
	}
	fails := func(err error) func(context.Context, string, int) error {
		return func(context.Context, string, int) error { return err }
	}
	for _, c := range []struct {
		name   string
		change func(*http.Request)
		body   string
		takes  func(context.Context, string, int) error
		code   int
		taken  int // how often Take was called
	}{
		{"an API key", nil, "e", nil, 204, 1},
		{"the next secret", with("x-api-key", next), "e", nil, 204, 1},
		{"an API key named Authorization", with("Authorization", "Bearer "+secret), "e", nil, 204, 1},
		{"basic authorization", with("Authorization", basic("quicklime", secret)), "e", nil, 204, 1},
		{"a path with a query", func(r *http.Request) { r.URL.RawQuery = "a=b" }, "e", nil, 204, 1},

		{"no secret", func(r *http.Request) { r.Header.Del("X-Api-Key") }, "e", nil, 401, 0},
		{"a wrong secret", with("X-Api-Key", secret+"x"), "e", nil, 401, 0},
		{"a part of the secret", with("X-Api-Key", secret[:20]), "e", nil, 401, 0},
		{"an empty secret", with("X-Api-Key", ""), "e", nil, 401, 0},
		{"another user", with("Authorization", basic("admin", secret)), "e", nil, 401, 0},
		{"a wrong password", with("Authorization", basic("quicklime", secret[1:])), "e", nil, 401, 0},
		{"the secret alone as authorization", with("Authorization", secret), "e", nil, 401, 0},
		{"the hash of the secret", with("X-Api-Key", fmt.Sprintf("%x", [32]byte{})), "e", nil, 401, 0},
		{"two keys", func(r *http.Request) { r.Header.Add("X-Api-Key", secret) }, "e", nil, 401, 0},
		{"two ways at once", func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+secret) }, "e", nil, 401, 0},

		{"another path", func(r *http.Request) { r.URL.Path = "/" }, "e", nil, 404, 0},
		{"a path below", func(r *http.Request) { r.URL.Path = WebhookPath + "/x" }, "e", nil, 404, 0},
		{"another method", func(r *http.Request) { r.Method = http.MethodGet }, "", nil, 405, 0},

		{"the largest event", nil, strings.Repeat("e", finding.MaxSize), nil, 204, 1},
		{"one that is too large", nil, strings.Repeat("e", finding.MaxSize+1), nil, 413, 0},
		{"one that breaks off", func(r *http.Request) { r.Body = io.NopCloser(io.MultiReader(strings.NewReader("e"), broken{})) }, "", nil, 400, 0},
		{"a malformed event", nil, "e", fails(malformed("")), 400, 1},
		{"a store that fails", nil, "e", fails(errDown), 503, 1},
		{"a case that is not durable in time", nil, "e", fails(context.DeadlineExceeded), 503, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			taker := &fakeTaker{takes: c.takes}
			w, log := webhook(t, taker)
			out := post(w, c.change, c.body)
			if out.Code != c.code || len(taker.got) != c.taken {
				t.Errorf("%d %s, taken %d times; want %d, %d", out.Code, out.Body, len(taker.got), c.code, c.taken)
			}
			if again := out.Code == 429 || out.Code >= 500; again != (out.Header().Get("Retry-After") != "") {
				t.Errorf("Retry-After %q with %d", out.Header().Get("Retry-After"), out.Code)
			}
			if strings.Contains(log.String()+out.Body.String(), secret[:20]) {
				t.Errorf("the secret is told: %s %s", log, out.Body)
			}
		})
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestTheWebhookAnswersBeforeEventBridgeGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := webhook(t, &fakeTaker{takes: func(ctx context.Context, _ string, _ int) error { <-ctx.Done(); return ctx.Err() }})
		start := time.Now()
		if out := post(w, nil, "e"); out.Code != 503 || time.Since(start) >= 5*time.Second {
			t.Errorf("%d after %v", out.Code, time.Since(start))
		}
	})
}

// TestTheWebhooksLimits: an address that sends too much is told to wait, and
// does not keep another out.
func TestTheWebhooksLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := webhook(t, &fakeTaker{})
		from := func(address string) func(*http.Request) { return func(r *http.Request) { r.RemoteAddr = address } }
		wrong := func(r *http.Request) { r.RemoteAddr = "203.0.113.9:1"; r.Header.Set("X-Api-Key", "guess") }
		codes := map[int]int{}
		for range 3 * sourceRate {
			codes[post(w, wrong, "").Code]++
		}
		if codes[401] != sourceRate || codes[429] != 2*sourceRate {
			t.Errorf("guesses: %v", codes)
		}
		if out := post(w, from("203.0.113.9:2"), "e"); out.Code != 429 {
			t.Errorf("another port of the same host: %d", out.Code)
		}
		if out := post(w, from("203.0.113.10:1"), "e"); out.Code != 204 {
			t.Errorf("another host: %d", out.Code)
		}
		time.Sleep(time.Second)
		if out := post(w, from("203.0.113.9:2"), "e"); out.Code != 204 {
			t.Errorf("a second later: %d", out.Code)
		}
		codes = map[int]int{}
		for n := range 2 * webhookRate {
			codes[post(w, from(fmt.Sprintf("198.51.100.%d:1", n%200)), "e").Code]++
		}
		if codes[204] > webhookRate || codes[429] < webhookRate {
			t.Errorf("all together: %v", codes)
		}
		if s := w.Stats(); s.Refused != sourceRate || s.Taken != int64(codes[204])+2 || s.Limited != int64(codes[429])+2*sourceRate+1 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestTheWebhookHoldsFewEventsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		taker := &fakeTaker{takes: func(ctx context.Context, _ string, _ int) error { sleep(ctx, time.Second); return nil }}
		w, _ := webhook(t, taker)
		var mu sync.Mutex
		var all sync.WaitGroup
		codes := map[int]int{}
		for range webhookHands + 10 {
			all.Go(func() {
				code := post(w, nil, "e").Code
				mu.Lock()
				defer mu.Unlock()
				codes[code]++
			})
		}
		all.Wait()
		if codes[204] != webhookHands || codes[429] != 10 || taker.peak != webhookHands {
			t.Errorf("%v, %d at once", codes, taker.peak)
		}
	})
}

func TestSourcesAreBounded(t *testing.T) {
	var s sources
	first := s.of("192.0.2.1:1")
	if s.of("192.0.2.1:2") != first || s.of("[::ffff:192.0.2.1]:2") != first || s.of("192.0.2.2:1") == first {
		t.Error("an address is not its own source")
	}
	if s.of("[2001:db8::1]:1") != s.of("[2001:db8::ffff%eth0]:1") || s.of("[2001:db8:0:1::1]:1") == s.of("[2001:db8::1]:1") {
		t.Error("an IPv6 host is not its /64")
	}
	if s.of("nonsense") != s.of("") {
		t.Error("what is no address has more than one limiter")
	}
	for n := range 5 * maxSources {
		s.of(fmt.Sprintf("10.%d.%d.%d:1", n>>16, n>>8&255, n&255))
		if s.of("192.0.2.1:1") != first {
			t.Fatal("an address that goes on sending was forgotten")
		}
	}
	if len(s.now) > maxSources || len(s.old) > maxSources {
		t.Errorf("%d and %d sources are kept", len(s.now), len(s.old))
	}
}

func TestSecretsFile(t *testing.T) {
	for _, c := range []struct {
		name, text string
		mode       os.FileMode
		says       string // empty: it is taken
	}{
		{"one secret", secret, 0o600, ""},
		{"one secret, and a line's end", secret + "\n", 0o400, ""},
		{"two secrets", secret + "\n" + next + "\n", 0o600, ""},
		{"others may read it", secret, 0o644, "'chmod 600' it"},
		{"the group may read it", secret, 0o640, "'chmod 600' it"},
		{"nothing", "", 0o600, "line 1 has 0 characters"},
		{"an empty line", secret + "\n\n", 0o600, "line 2 has 0 characters"},
		{"a short one", "secret", 0o600, "want 20 to 512"},
		{"a long one", strings.Repeat("x", 513), 0o600, "want 20 to 512"},
		{"three", secret + "\n" + next + "\n" + secret + "x\n", 0o600, "it has 3 lines"},
		{"the same twice", secret + "\n" + secret, 0o600, "the same"},
		{"a space", "correct horse battery staple", 0o600, "which EventBridge does not send"},
		{"Windows' line ends", secret + "\r\n", 0o600, "which EventBridge does not send"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "secrets")
			if err := errors.Join(os.WriteFile(path, []byte(c.text), 0o600), os.Chmod(path, c.mode)); err != nil {
				t.Fatal(err)
			}
			got, err := ReadSecrets(path)
			if (err == nil) != (c.says == "") || (err == nil) != (len(got) > 0) || err != nil && (!strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "horse")) {
				t.Errorf("%d secrets, %v; want %q", len(got), err, c.says)
			}
		})
	}
	if _, err := ReadSecrets(t.TempDir()); err == nil {
		t.Error("a folder was taken")
	}
}

// FuzzWebhook: whatever is sent, nothing is taken without a secret, and
// nothing is acknowledged that was not taken.
func FuzzWebhook(f *testing.F) {
	f.Add("x-api-key", secret, "POST", "/findings", "body")
	f.Add("Authorization", "Basic cXVpY2tsaW1lOng=", "POST", "/findings", "")
	f.Add("Authorization", "Bearer  "+secret, "PUT", "//findings", "{}")
	f.Fuzz(func(t *testing.T, name, value, method, path, body string) {
		taker := &fakeTaker{takes: func(context.Context, string, int) error {
			if len(body)%2 == 1 {
				return errDown
			}
			return nil
		}}
		w, _ := webhook(t, taker)
		r := httptest.NewRequest(http.MethodPost, WebhookPath, strings.NewReader(body))
		r.Method, r.URL.Path, r.Header = method, path, http.Header{http.CanonicalHeaderKey(name): {value}}
		out := httptest.NewRecorder()
		w.ServeHTTP(out, r)
		said, _ := secretOf(r)
		if knows := said == secret || said == next; len(taker.got) > 0 && !knows {
			t.Errorf("taken from one who said %q", value)
		}
		if done := out.Code/100 == 2; done != (len(taker.got) == 1 && len(body)%2 == 0) {
			t.Errorf("%d, taken %d times", out.Code, len(taker.got))
		}
	})
}

// TestTheWebhookOverTLS is the whole of it on loopback: as EventBridge calls
// it, and as others try to.
func TestTheWebhookOverTLS(t *testing.T) {
	lender := httptest.NewTLSServer(http.NotFoundHandler()) // lends its certificate
	defer lender.Close()
	roots := x509.NewCertPool()
	roots.AddCert(lender.Certificate())
	stuck := make(chan struct{})
	taker := &fakeTaker{takes: func(_ context.Context, body string, _ int) error {
		if body == "slow" {
			stuck <- struct{}{}
			time.Sleep(100 * time.Millisecond)
		}
		return nil
	}}
	w, _ := webhook(t, taker)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	ended := make(chan error, 1)
	go func() {
		ended <- w.Serve(ctx, listener, &tls.Config{MinVersion: tls.VersionTLS12, Certificates: lender.TLS.Certificates})
	}()
	url := "https://" + listener.Addr().String() + WebhookPath
	send := func(config *tls.Config, key, body string) (int, error) {
		transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
		defer transport.CloseIdleConnections()
		r, err := http.NewRequestWithContext(context.WithoutCancel(ctx), http.MethodPost, url, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("x-api-key", key)
		r.Close = true // as EventBridge asks
		out, err := (&http.Client{Transport: transport}).Do(r)
		if err != nil {
			return 0, err
		}
		defer out.Body.Close()
		if out.ProtoMajor != 1 {
			t.Errorf("it speaks %s", out.Proto)
		}
		return out.StatusCode, nil
	}
	if code, err := send(&tls.Config{RootCAs: roots}, secret, "event"); code != 204 || err != nil {
		t.Errorf("%d, %v", code, err)
	}
	if code, err := send(&tls.Config{RootCAs: roots}, "guess", "event"); code != 401 || err != nil {
		t.Errorf("without the secret: %d, %v", code, err)
	}
	if _, err := send(&tls.Config{RootCAs: roots, MaxVersion: tls.VersionTLS11}, secret, "event"); err == nil {
		t.Error("TLS 1.1 is spoken")
	}
	plain, err := http.Post("http://"+listener.Addr().String()+WebhookPath, "application/json", strings.NewReader("event"))
	if err == nil {
		if _ = plain.Body.Close(); plain.StatusCode != 400 {
			t.Errorf("without TLS: %d", plain.StatusCode)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	slow := make(chan int, 1)
	go func() { code, _ := send(&tls.Config{RootCAs: roots}, secret, "slow"); slow <- code }()
	<-stuck
	cancel(errDown)
	if code := <-slow; code != 204 {
		t.Errorf("what was in hand at the stop: %d", code)
	}
	if err := <-ended; !errors.Is(err, errDown) {
		t.Errorf("Serve: %v", err)
	}
	if _, err := send(&tls.Config{RootCAs: roots}, secret, "event"); err == nil {
		t.Error("it serves after its end")
	}
}
