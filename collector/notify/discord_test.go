package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const token = "aVerySecretTokenOfSixtyEightCharacters_0123456789abcdefghijklmnopqrs"

// hook is a webhook receiver that answers each request with the next answer,
// the last one for ever.
type hook struct {
	*httptest.Server
	answers []http.HandlerFunc
	calls   atomic.Int64
	mu      sync.Mutex
	body    []byte // of the last request; under mu
	query   string
}

func newHook(t *testing.T, answers ...http.HandlerFunc) *hook {
	h := &hook{answers: answers}
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := int(h.calls.Add(1))
		body, _ := io.ReadAll(r.Body)
		h.mu.Lock()
		h.body, h.query = body, r.URL.RawQuery
		h.mu.Unlock()
		h.answers[min(n, len(h.answers))-1](w, r)
	}))
	t.Cleanup(h.Close)
	return h
}

// discord returns the notifier for h, with its waits recorded, not waited for.
func (h *hook) discord(log io.Writer) (*Discord, *[]time.Duration) {
	var waits []time.Duration
	return &Discord{URL: h.URL + "/api/webhooks/123456789012345678/" + token + "?thread_id=7", Client: h.Client(),
		Log:   slog.New(slog.NewTextHandler(log, nil)),
		sleep: func(ctx context.Context, d time.Duration) error { waits = append(waits, d); return ctx.Err() }}, &waits
}

func status(code int, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
	}
}

func says(code int, text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code); io.WriteString(w, text) }
}

func hangUp(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

func TestNotifyPostsTheEmbedAndWaitsForIt(t *testing.T) {
	h := newHook(t, status(200))
	d, _ := h.discord(io.Discard)
	err := d.Notify(t.Context(), Message{Title: "Contained", Body: "@everyone", Colour: Green, URL: "https://c.example/1",
		Fields: []Field{{"Instance", "i-0c3f9a5b7d1e24680", true}}})
	if err != nil {
		t.Fatal(err)
	}
	if h.query != "thread_id=7&wait=true" {
		t.Errorf("query %q", h.query)
	}
	var got, want any
	json.Unmarshal(h.body, &got)
	json.Unmarshal([]byte(`{"embeds":[{"title":"Contained","description":"\\@everyone","url":"https://c.example/1","color":3055195,
		"fields":[{"name":"Instance","value":"i-0c3f9a5b7d1e24680","inline":true}]}],"allowed_mentions":{"parse":[]}}`), &want)
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("posted %s", h.body)
	}
}

func TestNotifyThroughFaults(t *testing.T) {
	for _, c := range []struct {
		name    string
		answers []http.HandlerFunc
		calls   int64
		waits   []time.Duration // 0: any jitter
		says    string          // of the error; empty: success
	}{
		{"no content", []http.HandlerFunc{status(204)}, 1, nil, ""},
		{"503 for a while", []http.HandlerFunc{status(503), status(502), status(200)}, 3, []time.Duration{0, 0}, ""},
		{"503 for ever", []http.HandlerFunc{status(503)}, 5, []time.Duration{0, 0, 0, 0}, "try 5 of 5: answer 503"},
		{"connection cut", []http.HandlerFunc{hangUp, status(200)}, 2, []time.Duration{0}, ""},
		{"connection cut for ever", []http.HandlerFunc{hangUp}, 5, []time.Duration{0, 0, 0, 0}, "try 5 of 5: EOF"},
		{"429 with a header", []http.HandlerFunc{status(429, "Retry-After", "3"), status(200)}, 2, []time.Duration{3 * time.Second}, ""},
		{"429 with a body", []http.HandlerFunc{says(429, `{"retry_after":0.75}`), status(200)}, 2, []time.Duration{750 * time.Millisecond}, ""},
		{"429 that says nothing", []http.HandlerFunc{status(429), status(200)}, 2, []time.Duration{0}, ""},
		{"429 in a long queue", append(slices.Repeat([]http.HandlerFunc{status(429, "Retry-After", "20")}, 6), status(200)), 7, slices.Repeat([]time.Duration{20 * time.Second}, 6), ""},
		{"429 in a longer queue", []http.HandlerFunc{status(429, "Retry-After", "50")}, 3, []time.Duration{50 * time.Second, 50 * time.Second}, "asks to wait 2m30s"},
		{"429 between faults", []http.HandlerFunc{status(503), status(429, "Retry-After", "1"), status(503)}, 6, []time.Duration{0, time.Second, 0, 0, 0}, "try 5 of 5"},
		{"429 for a day", []http.HandlerFunc{status(429, "Retry-After", "86400")}, 1, nil, "asks to wait 24h0m0s"},
		{"429 beyond numbers", []http.HandlerFunc{status(429, "Retry-After", "1e300")}, 1, nil, "asks to wait"},
		{"400", []http.HandlerFunc{says(400, "{\"embeds\":[\"0\"]}\x1b[31m")}, 1, nil, `answer 400: "{\"embeds\":[\"0\"]}[31m"`},
		{"404", []http.HandlerFunc{says(404, "unknown webhook")}, 1, nil, "make a new one"},
		{"redirect", []http.HandlerFunc{status(307, "Location", "http://127.0.0.1:1/")}, 1, nil, "answer 307"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHook(t, c.answers...)
			d, waits := h.discord(io.Discard)
			err := d.Notify(t.Context(), Message{Title: "x"})
			if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("error %v, want %q", err, c.says)
			}
			if h.calls.Load() != c.calls || len(*waits) != len(c.waits) {
				t.Fatalf("%d calls, waits %v; want %d, %v", h.calls.Load(), *waits, c.calls, c.waits)
			}
			for i, want := range c.waits {
				if got := (*waits)[i]; want != 0 && got != want || got <= 0 || want == 0 && got > waitBase<<i {
					t.Errorf("wait %d is %v, want %v", i, got, want)
				}
			}
		})
	}
}

func TestNotifyStopsWithItsContext(t *testing.T) {
	h := newHook(t, status(503))
	d, _ := h.discord(io.Discard)
	ctx, cancel := context.WithCancel(t.Context())
	d.sleep = func(context.Context, time.Duration) error { cancel(); return ctx.Err() }
	if err := d.Notify(ctx, Message{}); !errors.Is(err, context.Canceled) || h.calls.Load() != 1 {
		t.Errorf("error %v after %d calls", err, h.calls.Load())
	}
}

func TestTheAddressStaysSecret(t *testing.T) {
	echo := func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(400)
		io.WriteString(w, "no route "+r.URL.Path)
	}
	for name, spoil := range map[string]func(*Discord){
		"cut connection":      func(*Discord) {},
		"nobody there":        func(d *Discord) { d.URL = "http://127.0.0.1:1/api/webhooks/1/" + token },
		"not a URL":           func(d *Discord) { d.URL = "http://[::1/api/webhooks/1/" + token },
		"bad escape":          func(d *Discord) { d.URL = "https://x/%zz" + token },
		"unknown scheme":      func(d *Discord) { d.URL = "gopher://x/" + token },
		"proxy echoes it":     func(d *Discord) { d.Client = redirected(t, echo) },
		"control char in URL": func(d *Discord) { d.URL = "https://x/\n" + token },
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			d, _ := newHook(t, hangUp).discord(&log)
			spoil(d)
			err := d.Notify(t.Context(), Message{Title: "x"})
			if err == nil {
				t.Fatal("no error")
			}
			d.Log.Info("printed", "discord", d, "value", fmt.Sprintf("%v %+v %#v %s", d, d, d, d))
			for _, text := range []string{err.Error(), log.String()} {
				if strings.Contains(text, token) || strings.Contains(text, "webhooks/") {
					t.Errorf("shows the address: %s", text)
				}
			}
		})
	}
}

// redirected is a client whose every connection goes to handler, like a proxy.
func redirected(t *testing.T, handler http.HandlerFunc) *http.Client {
	return &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		w := httptest.NewRecorder()
		handler(w, r)
		return w.Result(), nil
	})}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestNew(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	for _, c := range []struct {
		url  string
		want string // the type, or the error's text
	}{
		{"https://discord.example/api/webhooks/1/" + token, "*notify.Discord"},
		{"http://127.0.0.1:8099/api/webhooks/1/" + token, "*notify.Discord"},
		{"http://localhost:8099/hook", "*notify.Discord"},
		{"", "notify.Log"},
		{"http://discord.example/api/webhooks/1/" + token, "not an https URL"},
		{"discord.example/" + token, "not an https URL"},
		{"https:///" + token, "not an https URL"},
		{"https://x/%zz" + token, "not an https URL"},
	} {
		n, err := New(c.url, log)
		if got := fmt.Sprintf("%T %v", n, err); !strings.Contains(got, c.want) || strings.Contains(got, token) {
			t.Errorf("New(%q): %s, want %s", c.url, got, c.want)
		}
	}
}

func TestLogSaysThatNobodyWasTold(t *testing.T) {
	var out bytes.Buffer
	err := Log{Log: slog.New(slog.NewTextHandler(&out, nil))}.Notify(t.Context(), Message{Title: "a\x1b[2J", Body: "b\nc", Fields: []Field{{Name: "Instance", Value: "i-1"}}})
	for _, want := range []string{"went nowhere but here", `title=a[2J`, `body="b c"`, "Instance=i-1"} {
		if err != nil || !strings.Contains(out.String(), want) {
			t.Errorf("%v, %q lacks %q", err, out.String(), want)
		}
	}
}
