package health

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/net/netutil"
)

// Bounds of the server, which is asked by probes and by nobody else.
const (
	readLimit  = 5 * time.Second // for a whole request
	writeLimit = 15 * time.Second
	idleLimit  = 30 * time.Second
	closeLimit = 2 * time.Second // for the requests that are under way at the end
	maxHeader  = 8 << 10         // bytes
	maxConns   = 64
)

// Listen listens on HOST:PORT. The host has to be said: what is told here is
// for loopback or the monitoring network.
func Listen(address string) (net.Listener, error) {
	host, _, err := net.SplitHostPort(address)
	if err == nil && host == "" {
		err = fmt.Errorf("it has no host: name the address of the monitoring network, or 127.0.0.1")
	}
	if err != nil {
		return nil, fmt.Errorf("cannot listen on health address %q, want HOST:PORT: %w", address, err)
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on health address: %w", err)
	}
	return netutil.LimitListener(listener, maxConns), nil
}

// Handler answers GET /healthz and /readyz with 200, or with 503 and a Report
// of what fails, and GET /metrics as metrics does; nil: there is none.
func Handler(m *Monitor, metrics http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, m.Healthy()) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { answer(w, m.Ready()) })
	if metrics != nil {
		mux.Handle("GET /metrics", metrics)
	}
	return mux
}

func answer(w http.ResponseWriter, r Report) {
	body, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if !r.OK {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_, _ = w.Write(append(body, '\n')) // who asked may have gone
}

// Serve serves a handler until ctx ends, and closes the listener.
func Serve(ctx context.Context, listener net.Listener, handler http.Handler, log *slog.Logger) error {
	server := &http.Server{
		Handler: handler, DisableGeneralOptionsHandler: true, MaxHeaderBytes: maxHeader,
		ReadHeaderTimeout: readLimit, ReadTimeout: readLimit, WriteTimeout: writeLimit, IdleTimeout: idleLimit,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug), // what a peer does wrong is no news
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }() // ends before Serve does
	select {
	case err := <-ended:
		return fmt.Errorf("cannot serve health: %w", err)
	case <-ctx.Done():
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeLimit)
	defer cancel()
	if server.Shutdown(last) != nil {
		server.Close()
	}
	<-ended
	return nil
}
