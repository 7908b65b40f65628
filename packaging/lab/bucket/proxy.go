package bucket

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/quicklime-ir/quicklime/packaging/lab/pki"
)

// FaultKind says what goes wrong.
type FaultKind int

// The kinds of faults.
const (
	SlowDown  FaultKind = iota // answered 503 SlowDown, nothing is done
	FlipByte                   // one byte of the request's body is changed on the way
	Reset                      // the connection is cut in the middle of the body
	LostReply                  // done, but the answer is lost
)

// Fault is a fault that strikes so many times.
type Fault struct {
	Kind  FaultKind
	Match func(*http.Request) bool // nil strikes every request
	Times int
}

// PartUpload matches the upload of parts.
func PartUpload(r *http.Request) bool {
	return r.Method == http.MethodPut && r.URL.Query().Has("partNumber")
}

// PartUploadOf matches the upload of parts of objects whose key has this in
// it.
func PartUploadOf(infix string) func(*http.Request) bool {
	return func(r *http.Request) bool { return PartUpload(r) && strings.Contains(r.URL.Path, infix) }
}

// Proxy is the TLS front of the server. It leaves the Host header as it came,
// as that is what clients sign.
type Proxy struct {
	listener net.Listener
	server   *http.Server
	served   chan struct{}
	forward  *httputil.ReverseProxy

	mu     sync.Mutex
	faults []*Fault     // owned by mu
	struck int          // owned by mu
	parts  []string     // paths of the parts' uploads that were answered 200; owned by mu
	onPart func(string) // called after each with its path, without mu; owned by mu
}

func newProxy(backend string, authority *pki.Authority) (*Proxy, error) {
	pair, err := authority.Server()
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		return nil, fmt.Errorf("cannot use own certificate: %w", err)
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
	if err != nil {
		return nil, fmt.Errorf("cannot listen for S3 clients: %w", err)
	}
	quiet := log.New(io.Discard, "", 0)
	p := &Proxy{listener: listener, served: make(chan struct{})}
	p.forward = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: backend})
			r.Out.Host = r.In.Host
		},
		ModifyResponse: p.count,
		ErrorLog:       quiet,
	}
	p.server = &http.Server{Handler: p, ErrorLog: quiet}
	go func() { // ends with close
		defer close(p.served)
		_ = p.server.Serve(listener) // always ErrServerClosed
	}()
	return p, nil
}

// Port is where the proxy listens on loopback.
func (p *Proxy) Port() int { return p.listener.Addr().(*net.TCPAddr).Port }

// URL is the endpoint for clients on this host.
func (p *Proxy) URL() string { return fmt.Sprintf("https://127.0.0.1:%d", p.Port()) }

// GuestURL is the endpoint for a guest.
func (p *Proxy) GuestURL() string { return fmt.Sprintf("https://10.0.2.2:%d", p.Port()) }

// Inject adds a fault.
func (p *Proxy) Inject(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = append(p.faults, &f)
}

// OnPart has f called with its path after each part that was stored.
func (p *Proxy) OnPart(f func(path string)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.onPart = f
}

// Struck is how often a fault has struck.
func (p *Proxy) Struck() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.struck
}

// PartsOf is how many parts were stored of objects whose key has this in it.
func (p *Proxy) PartsOf(infix string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, path := range p.parts {
		if strings.Contains(path, infix) {
			n++
		}
	}
	return n
}

// next takes the first fault that strikes a request.
func (p *Proxy) next(r *http.Request) (FaultKind, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, f := range p.faults {
		if f.Match != nil && !f.Match(r) {
			continue
		}
		p.struck++
		if f.Times--; f.Times <= 0 {
			p.faults = slices.Delete(p.faults, i, i+1)
		}
		return f.Kind, true
	}
	return 0, false
}

// ServeHTTP implements http.Handler.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind, strikes := p.next(r)
	switch {
	case r.Header.Get("X-Amz-Server-Side-Encryption") != "": // versitygw would ignore it and say 200
		refuse(w, http.StatusNotImplemented, "NotImplemented", "The lab has no encryption at rest.")
	case !strikes:
		p.forward.ServeHTTP(w, r)
	case kind == SlowDown:
		refuse(w, http.StatusServiceUnavailable, "SlowDown", "Please reduce your request rate.")
	case kind == FlipByte:
		r.Body = &flipped{ReadCloser: r.Body}
		p.forward.ServeHTTP(w, r)
	case kind == Reset:
		_, _ = io.CopyN(io.Discard, r.Body, 64<<10)
		panic(http.ErrAbortHandler)
	case kind == LostReply:
		p.forward.ServeHTTP(&deaf{header: http.Header{}}, r)
		panic(http.ErrAbortHandler)
	}
}

// refuse answers as S3 does.
func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<Error><Code>%s</Code><Message>%s</Message></Error>", code, message)
}

func (p *Proxy) count(answer *http.Response) error {
	if answer.StatusCode != http.StatusOK || !PartUpload(answer.Request) {
		return nil
	}
	p.mu.Lock()
	p.parts = append(p.parts, answer.Request.URL.Path)
	call := p.onPart
	p.mu.Unlock()
	if call != nil {
		call(answer.Request.URL.Path)
	}
	return nil
}

func (p *Proxy) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := p.server.Shutdown(ctx); err != nil {
		err = p.server.Close()
		<-p.served
		return err
	}
	<-p.served
	return nil
}

// flipped changes the first byte that is read.
type flipped struct {
	io.ReadCloser
	done bool
}

func (f *flipped) Read(b []byte) (int, error) {
	n, err := f.ReadCloser.Read(b)
	if n > 0 && !f.done {
		b[0] ^= 1
		f.done = true
	}
	return n, err
}

// deaf loses an answer.
type deaf struct{ header http.Header }

func (d *deaf) Header() http.Header         { return d.header }
func (d *deaf) Write(b []byte) (int, error) { return len(b), nil }
func (d *deaf) WriteHeader(int)             {}
