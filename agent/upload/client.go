package upload

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/quicklime-ir/quicklime/agent/pack"
	"github.com/quicklime-ir/quicklime/agent/throttle"
)

// Bounds of what a server may answer, in bytes.
const (
	maxAnswer = 64 << 10 // S3's error document
	maxHeader = 64 << 10
)

// sumAnswer is the header in which S3 says the SHA-256 of what it stored.
// The ETag says nothing that can be checked: with KMS it is no digest.
const sumAnswer = "X-Amz-Checksum-Sha256"

// verdict says what an answer means for the part.
type verdict int

const (
	stored verdict = iota
	again          // a fault that passes, or a grant that came too late
	no             // refused this time: a fresh grant may help
	final          // refused
)

// expired is how S3 says that a grant has come too late; its code is that of
// any refusal.
const expired = "Request has expired"

// errStalled ends a try in which nothing moves.
var errStalled = errors.New("no byte moved")

// Client is the HTTP client of uploads. It speaks HTTP/1.1, as S3 does, so
// that each part has a connection of its own, and follows no redirect.
type Client struct{ transport *http.Transport }

// NewClient returns a Client for so many uploads at a time. It trusts the
// given authorities, or, where there are none, the system's. It goes through
// the environment's proxy if there is one.
func NewClient(uploads int, authorities *x509.CertPool) *Client {
	return newClient(uploads, &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: authorities})
}

func newClient(uploads int, config *tls.Config) *Client {
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second, Control: keepUnsentLow}
	transport := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            dialer.DialContext,
		TLSClientConfig:        config,
		TLSHandshakeTimeout:    10 * time.Second,
		ExpectContinueTimeout:  time.Second,
		MaxIdleConnsPerHost:    uploads,
		IdleConnTimeout:        time.Minute,
		WriteBufferSize:        64 << 10,
		MaxResponseHeaderBytes: maxHeader,
		DisableCompression:     true,
		Protocols:              new(http.Protocols),
	}
	transport.Protocols.SetHTTP1(true)
	return &Client{transport}
}

// put tries once. On return nothing reads the part's bytes any more, whatever
// the transport is still at. Its error never holds the URL.
func (c *Client) put(ctx context.Context, g Grant, p pack.Part, stall time.Duration, t *throttle.Throttle) (verdict, error) {
	verdict, err := c.try(ctx, g, p, stall, t)
	return verdict, secretsOf(g.URL).takenOut(err)
}

func (c *Client) try(ctx context.Context, g Grant, p pack.Part, stall time.Duration, t *throttle.Throttle) (verdict, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(stall, func() { cancel(fmt.Errorf("%w for %v", errStalled, stall)) })
	defer watchdog.Stop()
	l := &loan{
		bytes: p.Bytes,
		turn:  func(n int) error { return t.Send(ctx, n) },
		held:  func() { watchdog.Stop() },
		moved: func() { watchdog.Reset(stall) },
	}
	defer l.end()
	request, err := newRequest(ctx, g, l)
	if err != nil {
		return final, err
	}
	response, err := c.transport.RoundTrip(request)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return again, err
	}
	defer response.Body.Close()
	answer, _ := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if response.StatusCode == http.StatusOK && !l.read() {
		return again, errors.New("the server says stored before it was sent everything")
	}
	if has := response.Header.Get(sumAnswer); response.StatusCode == http.StatusOK && has != "" && has != p.SHA256.Base64() {
		return again, fmt.Errorf("the server says it stored bytes with SHA-256 %.60q, want %q", has, p.SHA256.Base64())
	}
	return judge(response.StatusCode, answer, secretsOf(g.URL))
}

// newRequest makes the granted request. The transport may begin it anew, on
// another connection, where a kept one turns out to be dead.
func newRequest(ctx context.Context, g Grant, l *loan) (*http.Request, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPut, g.URL, nil)
	if err != nil {
		return nil, errors.New("the grant is no valid request")
	}
	for name, value := range g.Headers {
		request.Header.Set(name, value)
	}
	if host := request.Header.Get("Host"); host != "" {
		request.Host = host
	}
	if len(l.bytes) == 0 {
		return request, nil
	}
	request.ContentLength = int64(len(l.bytes))
	request.GetBody = func() (io.ReadCloser, error) { return l.body(), nil }
	request.Body = l.body()
	request.Header.Set("Expect", "100-continue") // a refusal then costs no upload
	return request, nil
}

// judge reads S3's answer. Source: Amazon S3 API Reference, "Error
// responses". What it quotes of the answer is cut, so the secrets are taken
// out before: half a secret would not be found.
func judge(code int, answer []byte, s secrets) (verdict, error) {
	if code == http.StatusOK {
		return stored, nil
	}
	var document struct {
		Code    string `xml:"Code"`
		Message string `xml:"Message"`
	}
	_ = xml.Unmarshal(answer, &document) // what is no XML has no code
	err := fmt.Errorf("S3 answers %d %.60q %.200q", code, s.hide(document.Code), s.hide(document.Message))
	switch document.Code {
	case "RequestTimeout", "SlowDown", "ExpiredToken":
		return again, err
	case "AccessDenied":
		if strings.Contains(document.Message, expired) {
			return again, err
		}
	case "BadDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch", "InvalidDigest", "IncompleteBody":
		return no, err
	}
	switch {
	case code >= 500, code == http.StatusRequestTimeout, code == http.StatusTooManyRequests:
		return again, err
	case code == http.StatusForbidden:
		return no, err
	}
	return final, err
}

// secrets are the texts that nobody may be told: a URL, and what signs it.
type secrets []string

func secretsOf(rawURL string) secrets {
	s := secrets{rawURL}
	if u, err := url.Parse(rawURL); err == nil && u.RawQuery != "" {
		s = append(s, u.RequestURI(), u.RawQuery)
		for _, name := range []string{"X-Amz-Signature", "X-Amz-Credential", "X-Amz-Security-Token"} {
			s = append(s, u.Query().Get(name), url.QueryEscape(u.Query().Get(name)))
		}
	}
	return s
}

// hide takes the secrets out of a text.
func (s secrets) hide(text string) string {
	for _, secret := range s {
		if len(secret) > 0 {
			text = strings.ReplaceAll(text, secret, "…")
		}
	}
	return text
}

// takenOut gives an error without the secrets: an error document or a proxy
// may say them back.
func (s secrets) takenOut(err error) error {
	if err == nil {
		return nil
	}
	if text := s.hide(err.Error()); text != err.Error() {
		return errors.New(text)
	}
	return err
}
