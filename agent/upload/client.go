package upload

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/quicklime-ir/quicklime/agent/pack"
)

// maxAnswer bounds how much of S3's error document is read, in bytes.
const maxAnswer = 64 << 10

// verdict says what an answer means for the part.
type verdict int

const (
	stored verdict = iota
	again          // a fault that passes
	no             // refused this time: a fresh grant may help
	final          // refused
)

// errStalled ends a try in which nothing moves.
var errStalled = errors.New("no byte moved")

// Client is the HTTP client of uploads. It speaks HTTP/1.1, as S3 does, so
// that each part has a connection of its own, and follows no redirect.
type Client struct{ http *http.Client }

// NewClient returns a Client for so many uploads at a time. It trusts the
// system's authorities, and goes through the environment's proxy if there is
// one.
func NewClient(uploads int) *Client {
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}
	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           dialer.DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: time.Minute,
		ExpectContinueTimeout: time.Second,
		MaxIdleConnsPerHost:   uploads,
		IdleConnTimeout:       time.Minute,
		WriteBufferSize:       64 << 10,
		TLSNextProto:          nil,
		Protocols:             new(http.Protocols),
	}
	transport.Protocols.SetHTTP1(true)
	return &Client{&http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}}
}

// put tries once. Its error never holds the URL.
func (c *Client) put(ctx context.Context, g Grant, p pack.Part, stall time.Duration) (verdict, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(stall, func() { cancel(fmt.Errorf("%w for %v", errStalled, stall)) })
	defer watchdog.Stop()
	body := &watched{Reader: bytes.NewReader(p.Bytes), moved: func() { watchdog.Reset(stall) }}
	request, err := http.NewRequestWithContext(ctx, http.MethodPut, g.URL, io.NopCloser(body))
	if err != nil {
		return final, errors.New("the grant is no valid request")
	}
	request.ContentLength = int64(len(p.Bytes))
	if len(p.Bytes) == 0 {
		request.Body = http.NoBody
	}
	for name, value := range g.Headers {
		request.Header.Set(name, value)
	}
	request.Header.Set("Expect", "100-continue") // a refusal then costs no upload
	response, err := c.http.Do(request)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return again, withoutURL(err)
	}
	defer response.Body.Close()
	answer, _ := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	return judge(response.StatusCode, answer)
}

// judge reads S3's answer. Source: Amazon S3 API Reference, "Error
// responses".
func judge(code int, answer []byte) (verdict, error) {
	if code == http.StatusOK {
		return stored, nil
	}
	var document struct {
		Code    string `xml:"Code"`
		Message string `xml:"Message"`
	}
	_ = xml.Unmarshal(answer, &document) // what is no XML has no code
	err := fmt.Errorf("S3 answers %d %.60s %.200q", code, document.Code, document.Message)
	switch {
	case code >= 500, code == http.StatusRequestTimeout, code == http.StatusTooManyRequests, document.Code == "RequestTimeout":
		return again, err
	case code == http.StatusForbidden, document.Code == "BadDigest", document.Code == "XAmzContentChecksumMismatch", document.Code == "InvalidDigest",
		document.Code == "XAmzContentSHA256Mismatch", document.Code == "IncompleteBody":
		return no, err
	}
	return final, err
}

// watched tells of each read.
type watched struct {
	*bytes.Reader
	moved func()
}

func (w *watched) Read(b []byte) (int, error) {
	w.moved()
	return w.Reader.Read(b)
}

// withoutURL takes the URL, which is a secret, out of an error.
func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}
