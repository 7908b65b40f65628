package upload

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/quicklime-ir/quicklime/agent/pack"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	secret    = "c0ffee5ec2e7c0ffee5ec2e7"
	sumHeader = "X-Amz-Checksum-Sha256"
	partBytes = 5 << 20 // more than the kernel holds between the two sides
)

// s3 is a TLS server that stores a part when its hash is as the header says.
// Faults are what goes wrong with the first requests, in order.
type s3 struct {
	*httptest.Server
	faults []fault

	mu     sync.Mutex
	tries  int
	stored map[string][]byte
}

// fault answers a request in its own way; nil is none.
type fault func(s *s3, w http.ResponseWriter, r *http.Request)

func newS3(t *testing.T, faults ...fault) *s3 {
	s := &s3{faults: faults, stored: map[string][]byte{}}
	s.Server = httptest.NewUnstartedServer(s)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	s.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if tcp, ok := c.(*tls.Conn).NetConn().(*net.TCPConn); ok {
			_ = tcp.SetReadBuffer(64 << 10) // as little as a slow network holds
		}
		return ctx
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *s3) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	n := s.tries
	s.tries++
	s.mu.Unlock()
	if n < len(s.faults) && s.faults[n] != nil {
		s.faults[n](s, w, r)
		return
	}
	s.store(w, r)
}

func (s *s3) store(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	if evidence.Digest(sha256.Sum256(body)).Base64() != r.Header.Get(sumHeader) {
		refuse(w, http.StatusBadRequest, "BadDigest")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stored[r.URL.Path] = body
}

func (s *s3) got() (tries int, body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tries, s.stored["/key"]
}

func refuse(w http.ResponseWriter, code int, name string) {
	w.WriteHeader(code)
	fmt.Fprintf(w, "<?xml version=\"1.0\"?><Error><Code>%s</Code><Message>no, as %s</Message></Error>", name, secret)
}

// answers is a server that says no before it reads a byte.
func answers(code int, name string) fault {
	return func(_ *s3, w http.ResponseWriter, _ *http.Request) { refuse(w, code, name) }
}

// readThen answers after it has read everything.
func readThen(code int, name string) fault {
	return func(_ *s3, w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		refuse(w, code, name)
	}
}

func hangUp(w http.ResponseWriter) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err == nil {
		_ = conn.Close()
	}
}

// reset ends a connection as a middlebox does, with RST.
func reset(w http.ResponseWriter) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err == nil {
		_ = conn.(*tls.Conn).NetConn().(*net.TCPConn).SetLinger(0)
		_ = conn.(*tls.Conn).NetConn().Close()
	}
}

// tooLate is what S3 says to a grant that has expired.
func tooLate(_ *s3, w http.ResponseWriter, _ *http.Request) {
	w.WriteHeader(http.StatusForbidden)
	fmt.Fprint(w, "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code><Message>Request has expired</Message><X-Amz-Expires>900</X-Amz-Expires></Error>")
}

// grants counts what it gives, and gives it as a collector does.
type grants struct {
	url    string
	stored func() bool
	given  atomic.Int32
}

func (g *grants) Grant(_ context.Context, p pack.Part) (Grant, error) {
	n := g.given.Add(1)
	if g.stored != nil && g.stored() {
		return Grant{Stored: true}, nil
	}
	return Grant{URL: fmt.Sprintf("%s/key?partNumber=%d&grant=%d&X-Amz-Signature=%s", g.url, p.Number, n, secret),
		Headers: map[string]string{sumHeader: p.SHA256.Base64()}}, nil
}

func testClient(t *testing.T, s *s3) *Client {
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	c := newClient(1, &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool})
	t.Cleanup(c.transport.CloseIdleConnections)
	return c
}

func testPart(n int) pack.Part {
	b := bytes.Repeat([]byte("evidence"), n/8)
	return pack.Part{Number: 7, Bytes: b, SHA256: sha256.Sum256(b)}
}

func TestUploadBearsTheNetwork(t *testing.T) {
	for _, story := range []struct {
		name     string
		faults   []fault
		stall    time.Duration
		patience time.Duration // 0: none
		tries    int
		refused  bool
		says     string // the error, or what was logged
	}{
		{name: "all is well", tries: 1},
		{name: "S3 is busy for a while", faults: []fault{answers(503, "SlowDown"), readThen(500, "InternalError")}, tries: 3, says: "SlowDown"},
		{name: "a busy S3 says so with 400", faults: []fault{answers(400, "RequestTimeout")}, tries: 2, says: "RequestTimeout"},
		{name: "the answer is lost, though the part is stored", faults: []fault{func(s *s3, w http.ResponseWriter, r *http.Request) {
			s.store(httptest.NewRecorder(), r)
			hangUp(w)
		}}, tries: 2, says: "EOF"},
		{name: "the connection is cut on the way", faults: []fault{func(_ *s3, w http.ResponseWriter, r *http.Request) {
			_, _ = io.CopyN(io.Discard, r.Body, 1<<20)
			hangUp(w)
		}}, tries: 2, says: "again"},
		{name: "slow, but it moves", faults: []fault{func(s *s3, w http.ResponseWriter, r *http.Request) {
			var all bytes.Buffer
			for {
				if _, err := io.CopyN(&all, r.Body, partBytes/16); err != nil {
					break
				}
				time.Sleep(200 * time.Millisecond) // 3.2 s in all
			}
			r.Body = io.NopCloser(&all)
			s.store(w, r)
		}}, stall: 1500 * time.Millisecond, tries: 1},
		{name: "it stands still in the middle", faults: []fault{func(_ *s3, _ http.ResponseWriter, r *http.Request) {
			_, _ = io.CopyN(io.Discard, r.Body, 1<<20)
			time.Sleep(2 * time.Second) // the server notices no cancel while a body waits
			panic(http.ErrAbortHandler)
		}}, stall: time.Second, tries: 2, says: "no byte moved for 1s"},
		{name: "it stands still after the end", faults: []fault{func(_ *s3, _ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
			panic(http.ErrAbortHandler) // to return would be to say 200
		}}, stall: time.Second, tries: 2, says: "no byte moved"},
		{name: "a byte is flipped on the way", faults: []fault{func(s *s3, w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			body[len(body)/2] ^= 1
			r.Body = io.NopCloser(bytes.NewReader(body))
			s.store(w, r)
		}}, tries: 2, says: "BadDigest"},
		{name: "a grant is denied", faults: []fault{answers(403, "AccessDenied")}, tries: 2, says: "AccessDenied"},
		{name: "grants expire on the way, time and again", faults: slices.Repeat([]fault{tooLate}, maxDenied), tries: maxDenied + 1, says: "Request has expired"},
		{name: "what signed the grants has expired, time and again", faults: slices.Repeat([]fault{answers(400, "ExpiredToken")}, maxDenied), tries: maxDenied + 1, says: "ExpiredToken"},
		{name: "grants are denied time and again, and then no more", faults: slices.Repeat([]fault{answers(403, "AccessDenied")}, maxDenied+1), patience: time.Minute, tries: maxDenied + 2, says: "AccessDenied"},
		{name: "every grant is denied", faults: []fault{answers(403, "AccessDenied"), answers(403, "AccessDenied"), answers(403, "AccessDenied"), answers(403, "AccessDenied"), answers(403, "AccessDenied")},
			tries: maxDenied, refused: true, says: "5 times in a row"},
		{name: "the upload is gone", faults: []fault{answers(404, "NoSuchUpload")}, tries: 1, refused: true, says: "NoSuchUpload"},
		{name: "it is sent elsewhere", faults: []fault{func(_ *s3, w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://elsewhere.example"+r.URL.String(), http.StatusTemporaryRedirect)
		}}, tries: 1, refused: true, says: "S3 answers 307"},
		{name: "stored, it says, before it has the bytes", faults: []fault{func(_ *s3, w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusOK)
		}}, tries: 2, says: "before it was sent everything"},
		{name: "other bytes are stored, it says", faults: []fault{func(s *s3, w http.ResponseWriter, r *http.Request) {
			w.Header().Set(sumAnswer, evidence.Digest(sha256.Sum256([]byte("other bytes"))).Base64())
			s.store(w, r)
		}}, tries: 2, says: "the server says it stored bytes with SHA-256"},
		{name: "its ETag is not what it was, and nobody believes one", faults: []fault{func(s *s3, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", "\"d41d8cd98f00b204e9800998ecf8427e\"")
			s.store(w, r)
		}}, tries: 1},
		{name: "the connection is reset on the way", faults: []fault{func(_ *s3, w http.ResponseWriter, r *http.Request) {
			_, _ = io.CopyN(io.Discard, r.Body, 1<<20)
			reset(w)
		}}, tries: 2, says: "again"},
		{name: "the answer is no document", faults: []fault{func(_ *s3, w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadGateway)
			_, _ = io.WriteString(w, "<\x00\x1b[2J"+strings.Repeat("<a>", 1<<20))
		}}, tries: 2, says: "S3 answers 502"},
	} {
		t.Run(story.name, func(t *testing.T) {
			if story.stall == 0 {
				t.Parallel() // the others are about time, and have the host for themselves
			}
			server := newS3(t, story.faults...)
			granter := &grants{url: server.URL}
			var log lockedBuffer
			if story.patience == 0 {
				story.patience = time.Nanosecond
			}
			u := New(granter, Options{Client: testClient(t, server), Stall: story.stall, Patience: story.patience, Log: slog.New(slog.NewTextHandler(&log, nil))})
			part := testPart(partBytes)
			err := u.Put(t.Context(), part)
			told := log.String()
			if err != nil {
				told += err.Error()
			}
			tries, body := server.got()
			want := story.tries
			if story.stall > 0 && want > 1 {
				want = max(want, tries) // on a busy host a good try may stand still, too
			}
			if tries != want || int(granter.given.Load()) != want {
				t.Errorf("%d tries with %d grants, want %d, each with a fresh one", tries, granter.given.Load(), want)
			}
			if story.refused != errors.Is(err, ErrRefused) || !story.refused && (err != nil || !bytes.Equal(body, part.Bytes)) {
				t.Errorf("Put = %v, %d bytes are stored", err, len(body))
			}
			if !strings.Contains(told, story.says) {
				t.Errorf("nobody is told %q:\n%s", story.says, told)
			}
			if strings.Contains(told, secret) || strings.Contains(told, "partNumber") || strings.Contains(told, "\x1b") {
				t.Errorf("the grant's URL is told:\n%s", told)
			}
		})
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A server that refuses before it has asked for the bytes gets none.
func TestARefusalCostsNoUpload(t *testing.T) {
	server := newS3(t, answers(403, "AccessDenied"))
	client, sent := testClient(t, server), new(atomic.Int64)
	client.transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		return &metered{conn, sent}, err
	}
	granter := &grants{url: server.URL}
	part := testPart(partBytes)
	for _, want := range []struct {
		verdict     verdict
		least, most int64
	}{{no, 1, 16 << 10}, {stored, partBytes, partBytes + 64<<10}} {
		sent.Store(0)
		grant, _ := granter.Grant(t.Context(), part)
		verdict, err := client.put(t.Context(), grant, part, time.Minute, nil)
		if n := sent.Load(); verdict != want.verdict || n < want.least || n > want.most {
			t.Errorf("put = %v, %v after %d bytes, want %v after %d to %d", verdict, err, n, want.verdict, want.least, want.most)
		}
	}
}

// metered is a connection that counts what is written.
type metered struct {
	net.Conn
	n *atomic.Int64
}

func (m *metered) Write(p []byte) (int, error) {
	m.n.Add(int64(len(p)))
	return m.Conn.Write(p)
}

func TestWhatIsStoredIsNotSent(t *testing.T) {
	lostAnswer := func(s *s3, w http.ResponseWriter, r *http.Request) {
		s.store(httptest.NewRecorder(), r)
		hangUp(w)
	}
	server := newS3(t, lostAnswer)
	granter := &grants{url: server.URL, stored: func() bool { _, body := server.got(); return body != nil }}
	if err := New(granter, Options{Client: testClient(t, server)}).Put(t.Context(), testPart(partBytes)); err != nil {
		t.Fatal(err)
	}
	if tries, _ := server.got(); tries != 1 || granter.given.Load() != 2 {
		t.Errorf("%d tries, %d grants; want 1 and 2", tries, granter.given.Load())
	}
}

func TestEvidenceIsNotSentInTheClear(t *testing.T) {
	var hits atomic.Int32
	plain := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits.Add(1) }))
	defer plain.Close()
	for _, u := range []string{plain.URL, "ftp://x", "//x", "", "https://", "https://a b/\x00"} {
		err := New(&grants{url: u}, Options{}).Put(t.Context(), testPart(8))
		if !errors.Is(err, ErrRefused) || strings.Contains(err.Error(), secret) {
			t.Errorf("Put to %q = %v", u, err)
		}
	}
	if hits.Load() != 0 {
		t.Error("the server was asked")
	}
}

// An authority that the system does not know is no place for evidence.
func TestAStrangersCertificateIsNotTrusted(t *testing.T) {
	server := newS3(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	log := slog.New(slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
		cancel() // the first try is over, and told of
		return len(p), nil
	}), nil))
	err := New(&grants{url: server.URL}, Options{Log: log}).Put(ctx, testPart(8))
	if err == nil || !strings.Contains(err.Error(), "certificate") || strings.Contains(err.Error(), secret) {
		t.Errorf("Put = %v", err)
	}
	if tries, _ := server.got(); tries != 0 {
		t.Error("the server was asked")
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestPutEndsWithItsContext(t *testing.T) {
	reason := errors.New("the order's time is over")
	for name, f := range map[string]fault{
		"while S3 is busy": answers(503, "SlowDown"),
		"while S3 thinks": func(_ *s3, _ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := newS3(t, f, f, f, f, f, f)
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(150*time.Millisecond, func() { cancel(reason) })
			began := time.Now()
			err := New(&grants{url: server.URL}, Options{Client: testClient(t, server)}).Put(ctx, testPart(partBytes))
			if !errors.Is(err, reason) || errors.Is(err, ErrRefused) || time.Since(began) > 5*time.Second {
				t.Errorf("Put = %v after %v", err, time.Since(began))
			}
		})
	}
}

type refusing struct{}

func (refusing) Grant(context.Context, pack.Part) (Grant, error) {
	return Grant{}, fmt.Errorf("%w: the case is closed", ErrRefused)
}

func TestARefusedGrantIsTheEnd(t *testing.T) {
	err := New(refusing{}, Options{}).Put(t.Context(), testPart(8))
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "part 7") {
		t.Errorf("Put = %v", err)
	}
}

// The transport may read a body on after RoundTrip has returned (not after an
// error, for which it waits, but after an answer): here a server answers in
// the middle of a body, and the connection is still at a write, which
// succeeds only when put is over. The caller fills its buffer anew; the race
// detector watches that nothing reads it.
func TestTheBufferIsFreeWhenPutReturns(t *testing.T) {
	release, held, wrote := make(chan struct{}), make(chan struct{}), make(chan struct{})
	server := newS3(t, func(_ *s3, w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		_, _ = io.CopyN(io.Discard, r.Body, 64<<10)
		<-held
		w.Header().Set("Content-Length", "0")
		w.WriteHeader(http.StatusServiceUnavailable)
		_ = http.NewResponseController(w).Flush()
		_, _ = io.Copy(io.Discard, r.Body)
	})
	client, granter := testClient(t, server), &grants{url: server.URL}
	client.transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		return &holding{Conn: conn, release: release, held: held, wrote: wrote}, err
	}
	part := testPart(partBytes)
	grant, _ := granter.Grant(t.Context(), part)
	verdict, err := client.put(t.Context(), grant, part, time.Minute, nil)
	close(release)
	for range 10 {
		for i := range part.Bytes {
			part.Bytes[i] = 0xff
		}
	}
	<-wrote
	if verdict != again || err == nil {
		t.Errorf("put = %v, %v", verdict, err)
	}
}

// holding is a connection whose write waits, once 256 KiB are written, and
// then succeeds, though the connection may be closed by then.
type holding struct {
	net.Conn
	release <-chan struct{}
	held    chan<- struct{} // closed when the write begins to wait
	wrote   chan<- struct{} // and when it succeeds
	n       int
}

func (h *holding) Write(p []byte) (int, error) {
	before := h.n
	if h.n += len(p); before < 256<<10 && h.n >= 256<<10 {
		close(h.held)
		<-h.release
		defer close(h.wrote)
		return len(p), nil
	}
	return h.Conn.Write(p)
}

// What a body gives after its loan's end is an error, and the end waits for the copy that is being made.
func TestALoanEnds(t *testing.T) {
	inRead, goOn := make(chan struct{}), make(chan struct{})
	l := &loan{bytes: []byte("evidence"), turn: func(int) error { return nil }, held: func() {}, moved: func() {
		select {
		case <-inRead:
		default:
			close(inRead)
			<-goOn
		}
	}}
	b := l.body()
	got := make([]byte, 4)
	read := make(chan int)
	go func() { n, _ := b.Read(got); read <- n }()
	<-inRead
	ended := make(chan struct{})
	go func() { l.end(); close(ended) }()
	runtime.Gosched()
	select {
	case <-ended:
		t.Fatal("the loan ended while a copy was being made")
	case <-time.After(20 * time.Millisecond):
	}
	close(goOn)
	if n := <-read; n != 4 || string(got) != "evid" {
		t.Errorf("Read = %d %q", n, got)
	}
	<-ended
	for _, b := range []*body{b, l.body()} {
		if n, err := b.Read(got); n != 0 || !errors.Is(err, errReturned) {
			t.Errorf("Read after the end = %d, %v", n, err)
		}
	}
	if _, ok := any(b).(io.WriterTo); ok {
		t.Error("a body can hand out the bytes themselves")
	}
}

// A kept connection that the server has closed costs no try.
func TestADeadConnectionIsReplaced(t *testing.T) {
	server := newS3(t)
	granter := &grants{url: server.URL}
	u := New(granter, Options{Client: testClient(t, server)})
	for range 3 {
		if err := u.Put(t.Context(), testPart(1<<20)); err != nil {
			t.Fatal(err)
		}
		server.CloseClientConnections()
	}
	if tries, _ := server.got(); tries != 3 {
		t.Errorf("%d requests for 3 parts", tries)
	}
}

// A server that knows nothing of Expect waits for the body; it comes.
func TestAServerWithoutContinue(t *testing.T) {
	server := newS3(t)
	plain, err := tls.Listen("tcp", "127.0.0.1:0", server.TLS)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	done := make(chan error, 1)
	go func() { done <- serveOnce(plain) }()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	u := New(&grants{url: "https://" + plain.Addr().String()}, Options{Client: testClient(t, server)})
	if err := u.Put(ctx, testPart(1<<20)); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// serveOnce reads one request to its end, says nothing before, and then 200.
func serveOnce(l net.Listener) error {
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	var head []byte
	for b := make([]byte, 1); !bytes.HasSuffix(head, []byte("\r\n\r\n")); {
		if _, err := io.ReadFull(conn, b); err != nil {
			return err
		}
		head = append(head, b...)
	}
	if !bytes.Contains(head, []byte("Expect: 100-continue")) {
		return fmt.Errorf("no Expect in %s", head)
	}
	if _, err := io.CopyN(io.Discard, conn, 1<<20); err != nil {
		return err
	}
	_, err = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	return err
}

// FuzzJudge: whatever a server answers, only 200 is stored, and an error has
// one printable line.
func FuzzJudge(f *testing.F) {
	f.Add(200, []byte(""))
	f.Add(403, []byte("<Error><Code>AccessDenied</Code><Message>x</Message></Error>"))
	f.Add(500, []byte("<Error><Code>\x1b\n</Code>"))
	f.Fuzz(func(t *testing.T, code int, answer []byte) {
		v, err := judge(code, answer, nil)
		if (v == stored) != (code == 200) || (v == stored) != (err == nil) {
			t.Errorf("judge(%d) = %v, %v", code, v, err)
		}
		if err != nil && (len(err.Error()) > 4000 || strings.ContainsAny(err.Error(), "\n\r\x1b\x00")) {
			t.Errorf("error = %q", err)
		}
	})
}
