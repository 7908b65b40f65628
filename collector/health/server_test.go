package health

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestHandler(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	m := New(log, Check{Name: "store"}, Check{Name: "bucket"})
	store, bucket := m.checks[0], m.checks[1]
	m.note(store, nil)
	m.note(bucket, nil)
	metrics := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "quicklime 1\n") })
	h := Handler(m, metrics)

	for _, c := range []struct {
		about          string
		store, bucket  error
		method, target string
		want           int
		failing        []string
	}{
		{"all is well", nil, nil, "GET", "/healthz", 200, nil},
		{"all is well", nil, nil, "GET", "/readyz", 200, nil},
		{"a probe that wants no body", nil, nil, "HEAD", "/readyz", 200, nil},
		{"the bucket is away", nil, errors.New("403"), "GET", "/healthz", 200, nil},
		{"the bucket is away", nil, errors.New("403"), "GET", "/readyz", 503, []string{"bucket"}},
		{"the store is lost", Final{errors.New("damaged")}, nil, "GET", "/healthz", 503, []string{"store"}},
		{"both", Final{errors.New("damaged")}, errors.New("403"), "GET", "/readyz", 503, []string{"store", "bucket"}},
		{"only GET", nil, nil, "POST", "/healthz", 405, nil},
		{"only GET", nil, nil, "DELETE", "/metrics", 405, nil},
		{"nothing else", nil, nil, "GET", "/debug/pprof/", 404, nil},
		{"metrics", nil, nil, "GET", "/metrics", 200, nil},
	} {
		m.note(store, c.store)
		m.note(bucket, c.bucket)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(c.method, c.target, nil))
		if w.Code != c.want {
			t.Errorf("%s: %s %s gives %d, want %d", c.about, c.method, c.target, w.Code, c.want)
		}
		if w.Code != 503 {
			continue
		}
		var r Report
		if err := json.Unmarshal(w.Body.Bytes(), &r); err != nil || r.OK || len(r.Failing) != len(c.failing) {
			t.Errorf("%s: %v: %s", c.about, err, w.Body)
			continue
		}
		for i, f := range r.Failing {
			if f.Check != c.failing[i] || f.Error == "" || f.Since.IsZero() {
				t.Errorf("%s: %+v, want %s, its error and since when", c.about, f, c.failing[i])
			}
		}
	}
}

// begun serves a monitor that holds, on loopback.
func begun(t *testing.T) (address string, stop func()) {
	t.Helper()
	listener, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		log := slog.New(slog.DiscardHandler)
		ended <- Serve(ctx, listener, Handler(New(log), nil), log)
	}()
	stop = func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		ended <- nil
	}
	t.Cleanup(stop)
	return listener.Addr().String(), stop
}

func TestServe(t *testing.T) {
	address, stop := begun(t)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get("http://" + address + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	response.Body.Close()
	if err != nil || response.StatusCode != 200 || strings.TrimSpace(string(body)) != "{\n  \"ok\": true\n}" {
		t.Errorf("%v %v %s", err, response.Status, body)
	}
	stop()
	if _, err := client.Get("http://" + address + "/readyz"); err == nil {
		t.Error("it still answers")
	}
}

// TestBounds: what no probe sends is refused, and what it asks for besides.
func TestBounds(t *testing.T) {
	address, _ := begun(t)
	for request, want := range map[string]string{
		"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n":                                             "400",
		"GET /readyz HTTP/1.1\r\nHost: h\r\nX: " + strings.Repeat("x", 16<<10) + "\r\n\r\n": "431",
	} {
		conn, err := net.DialTimeout("tcp", address, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		go io.WriteString(conn, request) // it may be cut off in the middle
		line, err := bufio.NewReader(conn).ReadString('\n')
		if !strings.Contains(line, want) {
			t.Errorf("%.20q: %q (%v), want %s", request, line, err, want)
		}
		conn.Close()
	}
}

func TestListenWantsAHost(t *testing.T) {
	for address, want := range map[string]string{
		":9090":           "name the address of the monitoring network",
		"127.0.0.1":       "want HOST:PORT",
		"127.0.0.1:70000": "invalid port",
	} {
		if _, err := Listen(address); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", address, err, want)
		}
	}
}
