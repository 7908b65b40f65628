package bucket

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"
)

// FaultKind says what goes wrong.
type FaultKind int

// The kinds of faults.
const (
	SlowDown  FaultKind = iota // answered 503 SlowDown, nothing is done
	FlipByte                   // one byte of the request's body is changed on the way
	Reset                      // the connection is cut in the middle of the body; without one, as LostReply
	LostReply                  // done, but the answer is lost
	Slow                       // the request's body passes at Rate
	Expired                    // answered 403 as a request is whose time is over, nothing is done
	WrongETag                  // done, but the answer has another part's ETag
)

// Fault is a fault that strikes so many times.
type Fault struct {
	Kind  FaultKind
	Match func(*http.Request) bool // nil strikes every request
	Times int                      // requests; at least one

	// Offset is the byte that FlipByte changes, from 0, and after how many
	// bytes Reset cuts; 0 there is half of the body.
	Offset int64
	Rate   int64 // of Slow, bytes a second
}

// PartUpload matches the upload of parts.
func PartUpload(r *http.Request) bool { return operation(r) == "UploadPart" }

// PartUploadOf matches the upload of parts of objects whose key has this in
// it.
func PartUploadOf(infix string) func(*http.Request) bool {
	return func(r *http.Request) bool { return PartUpload(r) && strings.Contains(r.URL.Path, infix) }
}

// Operation matches one operation of S3, by its name in the Amazon S3 API
// Reference.
func Operation(name string) func(*http.Request) bool {
	return func(r *http.Request) bool { return operation(r) == name }
}

// operation names what a request asks for: the operations that evidence needs
// by their name, others by method and subject.
func operation(r *http.Request) string {
	query := r.URL.Query()
	_, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	named := map[string]string{"PUT partNumber": "UploadPart", "GET uploadId": "ListParts", "DELETE uploadId": "AbortMultipartUpload",
		"POST uploadId": "CompleteMultipartUpload", "POST uploads": "CreateMultipartUpload", "GET list-type": "ListObjectsV2"}
	for _, sub := range []string{"partNumber", "uploadId", "uploads", "list-type"} {
		if name, ok := named[r.Method+" "+sub]; ok && query.Has(sub) {
			return name
		}
	}
	for _, sub := range []string{"retention", "legal-hold", "tagging", "acl", "attributes", "versioning", "object-lock", "versions", "uploads", "delete"} {
		if query.Has(sub) {
			return r.Method + " " + sub
		}
	}
	if plain, ok := map[string]string{"PUT": "PutObject", "GET": "GetObject", "HEAD": "HeadObject", "DELETE": "DeleteObject"}[r.Method]; ok && key != "" {
		return plain
	}
	return r.Method + " bucket"
}

// strike lets a fault happen to a request. Where no answer may come it
// panics with http.ErrAbortHandler, which cuts the connection.
func (f Fault) strike(w http.ResponseWriter, r *http.Request, forward http.Handler) {
	switch f.Kind {
	case SlowDown:
		refuse(w, r, http.StatusServiceUnavailable, "SlowDown", "Please reduce your request rate.")
	case Expired:
		refuse(w, r, http.StatusForbidden, "AccessDenied", "Request has expired")
	case WrongETag:
		forward.ServeHTTP(&mistaken{ResponseWriter: w}, r)
	case FlipByte:
		r.Body = &flipped{ReadCloser: r.Body, left: f.Offset}
		forward.ServeHTTP(w, r)
	case Reset:
		r.Body = &cut{ReadCloser: r.Body, left: f.cutAfter(r)}
		forward.ServeHTTP(&deaf{header: http.Header{}}, r)
		panic(http.ErrAbortHandler)
	case LostReply:
		forward.ServeHTTP(&deaf{header: http.Header{}}, r)
		panic(http.ErrAbortHandler)
	case Slow:
		r.Body = &slowed{ReadCloser: r.Body, ctx: r.Context(), rate: f.Rate}
		forward.ServeHTTP(w, r)
	}
}

// refuse answers as S3 does that did nothing.
func refuse(w http.ResponseWriter, r *http.Request, status int, code, message string) {
	if r.Header.Get("Expect") == "" { // else the client has not sent it, and waits
		_, _ = io.Copy(io.Discard, r.Body)
	}
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, document(code, message))
}

func (f Fault) cutAfter(r *http.Request) int64 {
	if f.Offset > 0 {
		return f.Offset
	}
	return max(0, r.ContentLength/2)
}

// flipped changes the byte that comes after so many others.
type flipped struct {
	io.ReadCloser
	left int64 // bytes before it; negative once it has passed
}

func (f *flipped) Read(b []byte) (int, error) {
	n, err := f.ReadCloser.Read(b)
	if f.left >= 0 && f.left < int64(n) {
		b[f.left] ^= 1
	}
	f.left -= int64(n)
	return n, err
}

var errCut = errors.New("the connection is cut, as told")

// cut ends a body in its middle.
type cut struct {
	io.ReadCloser
	left int64
}

func (c *cut) Read(b []byte) (int, error) {
	if c.left <= 0 {
		return 0, errCut
	}
	n, err := c.ReadCloser.Read(b[:min(int64(len(b)), c.left)])
	c.left -= int64(n)
	return n, err
}

// slowed passes a body on in steps, each a tenth of a second's bytes.
type slowed struct {
	io.ReadCloser
	ctx  context.Context // of the request
	rate int64
}

func (s *slowed) Read(b []byte) (int, error) {
	n, err := s.ReadCloser.Read(b[:min(int64(len(b)), max(1, s.rate/10))])
	timer := time.NewTimer(time.Duration(n) * time.Second / time.Duration(max(1, s.rate)))
	defer timer.Stop()
	select {
	case <-timer.C:
		return n, err
	case <-s.ctx.Done():
		return n, s.ctx.Err()
	}
}

// mistaken gives an answer another ETag.
type mistaken struct{ http.ResponseWriter }

func (m *mistaken) WriteHeader(status int) {
	if m.Header().Get("ETag") != "" {
		m.Header().Set("ETag", `"00000000000000000000000000000000"`)
	}
	m.ResponseWriter.WriteHeader(status)
}

// deaf loses an answer.
type deaf struct{ header http.Header }

func (d *deaf) Header() http.Header         { return d.header }
func (d *deaf) Write(b []byte) (int, error) { return len(b), nil }
func (d *deaf) WriteHeader(int)             {}
