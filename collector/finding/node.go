package finding

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// node is a place in a decoded document. Absent, null and mistyped values read
// as empty, which is what tolerance means here; reader is the strict side.
type node struct {
	path  string
	value any
}

// decode accepts exactly one JSON object of at most MaxSize bytes. Names are
// matched letter for letter, unlike encoding/json's struct decoding.
func decode(raw []byte) (node, error) {
	if len(raw) > MaxSize {
		return node{}, malformed("$", fmt.Sprintf("is %d bytes, more than %d", len(raw), MaxSize), "send one event per message")
	}
	if !utf8.Valid(raw) {
		return node{}, malformed("$", "is not UTF-8", "send the event as EventBridge delivers it")
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var value any
	if err := dec.Decode(&value); err != nil {
		return node{}, malformed("$", "is not JSON ("+cut(err.Error(), maxName)+")", "send the event as EventBridge delivers it")
	}
	if _, err := dec.Token(); err != io.EOF {
		return node{}, malformed("$", "goes on after the first value", "send one event per message")
	}
	if _, ok := value.(map[string]any); !ok {
		return node{}, malformed("$", "is not an object", "send the event as EventBridge delivers it")
	}
	return node{path: "$", value: value}, nil
}

func malformed(path, problem, remedy string) error {
	return fmt.Errorf("%w: %s %s; %s", ErrMalformed, path, problem, remedy)
}

func (n node) get(name string) node {
	m, _ := n.value.(map[string]any)
	return node{path: n.path + "." + name, value: m[name]}
}

func (n node) items() []node {
	list, _ := n.value.([]any)
	out := make([]node, len(list))
	for i, v := range list {
		out[i] = node{path: n.path + "[" + strconv.Itoa(i) + "]", value: v}
	}
	return out
}

func (n node) text() string {
	s, _ := n.value.(string)
	return s
}

func (n node) float() (float64, bool) {
	number, ok := n.value.(json.Number)
	if !ok {
		return 0, false
	}
	f, err := number.Float64()
	return f, err == nil
}

// isTrue holds for true and for "true", which stringified documents carry.
func (n node) isTrue() bool {
	return n.value == true || strings.EqualFold(n.text(), "true")
}

func (n node) count() int {
	f, _ := n.float()
	return int(max(1, min(f, math.MaxInt32)))
}

// instant reads an RFC 3339 string, or seconds or milliseconds since 1970.
// Anything else is the zero time.
func (n node) instant() time.Time {
	if t, err := time.Parse(time.RFC3339Nano, n.text()); err == nil {
		return t.UTC()
	}
	seconds, ok := n.float()
	if seconds > 1e11 {
		seconds /= 1000
	}
	if !ok || seconds <= 0 || seconds > 1e11 {
		return time.Time{}
	}
	whole, part := math.Modf(seconds)
	return time.Unix(int64(whole), int64(part*1e9)).UTC()
}

// reader reads what must be right and keeps the first error.
type reader struct{ err error }

func (r *reader) fail(n node, want string) {
	if r.err != nil {
		return
	}
	problem := "is missing"
	switch v := n.value.(type) {
	case nil:
	case string:
		problem = "is " + strconv.QuoteToASCII(cut(v, maxName))
	case json.Number:
		problem = "is " + cut(v.String(), maxName)
	case bool:
		problem = fmt.Sprintf("is %t", v)
	default:
		problem = "has the wrong type"
	}
	r.err = malformed(n.path, problem, "it must be "+want)
}

func (r *reader) object(n node) {
	if _, ok := n.value.(map[string]any); !ok {
		r.fail(n, "the finding, an object")
	}
}

func (r *reader) exactly(n node, want string) {
	if n.text() != want {
		r.fail(n, strconv.Quote(want))
	}
}

func (r *reader) shaped(n node, shape *regexp.Regexp, want string) string {
	if !shape.MatchString(n.text()) {
		r.fail(n, want)
	}
	return n.text()
}

func (r *reader) required(n node) string {
	if strings.TrimSpace(n.text()) == "" {
		r.fail(n, "a string that is not empty")
	}
	return n.text()
}

func (r *reader) number(n node, low, high float64) float64 {
	f, ok := n.float()
	if !ok || !(f >= low && f <= high) {
		r.fail(n, fmt.Sprintf("a number from %g to %g", low, high))
	}
	return f
}

// cut keeps the first limit characters of s.
func cut(s string, limit int) string {
	for i := range s {
		if limit == 0 {
			return s[:i]
		}
		limit--
	}
	return s
}
