package emulator

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Error is an answer that refuses, in AWS's words.
type Error struct {
	Code    string
	Message string
	status  int // of HTTP; 0: 400
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

func refuse(code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

func refuseWith(status int, code, message string) *Error {
	return &Error{Code: code, Message: message, status: status}
}

// service is one AWS service behind the common listener.
type service interface {
	// action says what the request wants; empty: it does not say.
	action(r *http.Request, body []byte) string
	// do answers with a document; the context ends with the request.
	do(r *http.Request, action string, body []byte) (any, *Error)
	// throttled and unavailable are how the service says so.
	throttled() *Error
	unavailable() *Error
	// write sends an answer, or err where it is not nil.
	write(w http.ResponseWriter, action string, answer any, err *Error)
}

func (e *Emulator) service(name string) service {
	switch name {
	case "ec2":
		return ec2Service{e}
	case "sqs":
		return sqsService{e}
	case "events":
		return eventsService{e}
	case "sts":
		return stsService{e}
	}
	return nil
}

// serveAWS verifies a request, makes the fault that waits for it happen, and
// hands it to the service of its credential scope.
func (e *Emulator) serveAWS(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err != nil {
		http.Error(w, "cannot read the request: it is longer than 4 MiB or cut off", http.StatusBadRequest)
		return
	}
	name, refusal := e.cfg.verify(r, body, time.Now())
	s := e.service(name)
	if s == nil {
		http.Error(w, fmt.Sprintf("no such service in the credential scope: %.100q", name), http.StatusForbidden)
		return
	}
	if refusal == nil && (r.Method != http.MethodPost || r.URL.Path != "/" || r.URL.RawQuery != "") {
		refusal = refuse("InvalidRequest", "requests are POST to /, not %.10s to %.100q", r.Method, r.URL.RequestURI())
	}
	action := s.action(r, body)
	if refusal != nil {
		refusal.status = http.StatusForbidden
		e.log.Warn("request refused", "service", name, "action", action, "error", refusal)
		s.write(w, action, nil, refusal)
		return
	}
	e.counters.call(name + "." + action)
	e.answer(w, r, s, name, action, body)
}

func (e *Emulator) answer(w http.ResponseWriter, r *http.Request, s service, name, action string, body []byte) {
	fault := e.faults.take(name, action)
	if fault.Kind == Slow && !sleep(r, fault.Delay) {
		return
	}
	var answer any
	var refusal *Error
	switch fault.Kind {
	case Throttle:
		refusal = s.throttled()
	case Unavailable:
		refusal = s.unavailable()
	default:
		answer, refusal = s.do(r, action, body)
	}
	if fault.Kind == LostReply {
		e.log.Debug("reply lost", "service", name, "action", action)
		panic(http.ErrAbortHandler) // cuts the connection, as documented by net/http
	}
	e.log.Debug("call", "service", name, "action", action, "error", refusal)
	s.write(w, action, answer, refusal)
}

// sleep says whether the request is still there after d.
func sleep(r *http.Request, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.Context().Done():
		return false
	}
}

// queryAction reads the action of a request in the query protocol.
func queryAction(body []byte) string {
	p, err := parseParams(string(body))
	if err != nil {
		return ""
	}
	return p.values.Get("Action")
}

// targetAction reads the action of a request in AWS's JSON protocol.
func targetAction(r *http.Request, prefix string) string {
	action, ok := strings.CutPrefix(r.Header.Get("X-Amz-Target"), prefix+".")
	if !ok {
		return ""
	}
	return action
}

func writeXML(w http.ResponseWriter, status int, root, space string, body any) {
	w.Header().Set("Content-Type", "text/xml;charset=UTF-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, xml.Header)
	_ = xml.NewEncoder(w).EncodeElement(body, xml.StartElement{Name: xml.Name{Space: space, Local: root}}) // the client may be gone
}

// writeJSON also says errors as the JSON protocol has them: by __type.
func writeJSON(w http.ResponseWriter, version, shapes string, answer any, err *Error) {
	w.Header().Set("Content-Type", "application/x-amz-json-"+version)
	w.Header().Set("X-Amzn-Requestid", newUUID())
	if err != nil {
		w.WriteHeader(err.httpStatus())
		answer = map[string]string{"__type": shapes + "#" + err.Code, "message": err.Message}
	}
	_ = json.NewEncoder(w).Encode(answer) // the client may be gone
}

func (e *Error) httpStatus() int {
	if e.status == 0 {
		return http.StatusBadRequest
	}
	return e.status
}

// decode reads a JSON request; a member that the action does not know is
// refused.
func decode(body []byte, into any) *Error {
	d := json.NewDecoder(strings.NewReader(string(body)))
	d.DisallowUnknownFields()
	err := d.Decode(into)
	if err == nil {
		if _, more := d.Token(); more != io.EOF {
			return refuse("SerializationException", "there is something after the request's document")
		}
		return nil
	}
	if field, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		return refuse("UnknownParameter", "the parameter %.100s is not recognized", field)
	}
	return refuse("SerializationException", "cannot read the request: %.300s", err)
}

// counters count calls and what they made.
type counters struct {
	mu      sync.Mutex
	calls   map[string]int // under mu
	created map[string]int // under mu
}

func newCounters() *counters { return &counters{calls: map[string]int{}, created: map[string]int{}} }

func (c *counters) call(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls[name]++
}

func (c *counters) made(kind string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.created[kind]++
}

func (c *counters) snapshot() (calls, created map[string]int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.calls), maps.Clone(c.created)
}
