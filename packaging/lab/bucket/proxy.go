package bucket

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quicklime-ir/quicklime/packaging/lab/pki"
)

// Proxy stands in front of the server and makes faults. It leaves the Host
// header as it came, as that is what clients sign, and passes bodies on as
// they come.
type Proxy struct {
	listener net.Listener
	server   *http.Server
	served   chan struct{}
	forward  *httputil.ReverseProxy
	backend  *http.Transport
	sent     atomic.Int64 // bytes of bodies that clients sent

	mu       sync.Mutex
	faults   []*Fault       // owned by mu
	struck   int            // owned by mu
	requests map[string]int // by operation; owned by mu
	parts    map[string]int // uploads of parts that were answered 200, by path; owned by mu
	onPart   func(string)   // called after each with its path, without mu; owned by mu
	onAnswer func(Answer)   // called with each of the server's, without mu; owned by mu
}

// Counts is what passed a proxy.
type Counts struct {
	Requests map[string]int // by operation, as Operation names them, faults included
	Bytes    int64          // of bodies that clients sent
}

// Answer is one of the server's, as it passes on its way to a client.
type Answer struct {
	Operation string // as Operation names them
	Path      string // of the request: bucket and key
	Part      string // its part's number, where it has one
	Status    int
	Time      time.Time
}

func newProxy(host, backend string, authority *pki.Authority) (*Proxy, error) {
	pair, err := authority.Server(host)
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		return nil, fmt.Errorf("cannot use own certificate: %w", err)
	}
	listener, err := tls.Listen("tcp", net.JoinHostPort(host, "0"), &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
	if err != nil {
		return nil, fmt.Errorf("cannot listen for S3 clients: %w", err)
	}
	quiet := log.New(io.Discard, "", 0)
	p := &Proxy{listener: listener, served: make(chan struct{}), backend: transport(authority), requests: map[string]int{}, parts: map[string]int{}}
	p.forward = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "https", Host: backend})
			r.Out.Host = r.In.Host
		},
		Transport:      p.backend,
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

// Port is where the proxy listens.
func (p *Proxy) Port() int { return p.listener.Addr().(*net.TCPAddr).Port }

// URL is the endpoint for clients on this host.
func (p *Proxy) URL() string { return "https://" + p.listener.Addr().String() }

// GuestURL is the endpoint for a guest.
func (p *Proxy) GuestURL() string { return fmt.Sprintf("https://10.0.2.2:%d", p.Port()) }

// Inject adds a fault. Of several that match, the one that was added first
// strikes.
func (p *Proxy) Inject(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = append(p.faults, &f)
}

// Calm takes back the faults that have not struck yet.
func (p *Proxy) Calm() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = nil
}

// OnPart has f called with its path after each part that was stored.
func (p *Proxy) OnPart(f func(path string)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.onPart = f
}

// OnAnswer has f called with each of the server's answers, from several
// goroutines.
func (p *Proxy) OnAnswer(f func(Answer)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.onAnswer = f
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
	for path, stored := range p.parts {
		if strings.Contains(path, infix) {
			n += stored
		}
	}
	return n
}

// Counts is what has passed so far.
func (p *Proxy) Counts() Counts {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Counts{Requests: maps.Clone(p.requests), Bytes: p.sent.Load()}
}

// take counts a request and gives the fault that strikes it.
func (p *Proxy) take(r *http.Request) (Fault, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests[operation(r)]++
	for i, f := range p.faults {
		if f.Match != nil && !f.Match(r) {
			continue
		}
		p.struck++
		if f.Times--; f.Times <= 0 {
			p.faults = slices.Delete(p.faults, i, i+1)
		}
		return *f, true
	}
	return Fault{}, false
}

// ServeHTTP implements http.Handler.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.Body = &counted{ReadCloser: r.Body, sent: &p.sent}
	if f, strikes := p.take(r); strikes {
		f.strike(w, r, p.forward)
		return
	}
	p.forward.ServeHTTP(w, r)
}

func (p *Proxy) count(answer *http.Response) error {
	p.mu.Lock()
	told := p.onAnswer
	p.mu.Unlock()
	if told != nil {
		told(Answer{Operation: operation(answer.Request), Path: answer.Request.URL.Path,
			Part: answer.Request.URL.Query().Get("partNumber"), Status: answer.StatusCode, Time: time.Now()})
	}
	if answer.StatusCode != http.StatusOK || !PartUpload(answer.Request) {
		return nil
	}
	p.mu.Lock()
	p.parts[answer.Request.URL.Path]++
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
	err := p.server.Shutdown(ctx)
	if err != nil { // somebody is slow, or told to be
		err = p.server.Close()
	}
	<-p.served
	p.backend.CloseIdleConnections()
	return err
}

// counted adds up what is read of a body.
type counted struct {
	io.ReadCloser
	sent *atomic.Int64
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.ReadCloser.Read(b)
	c.sent.Add(int64(n))
	return n, err
}
