package emulator

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// call is one request, and what was read of it.
type call struct {
	*Emulator
	writer  http.ResponseWriter
	request *http.Request
	service string
	action  string
	body    []byte
	params  url.Values      // of the query protocol
	read    map[string]bool // parameters that were asked for
}

func newCall(e *Emulator, w http.ResponseWriter, r *http.Request, service string, body []byte) *call {
	c := &call{Emulator: e, writer: w, request: r, service: service, body: body, read: map[string]bool{"Action": true, "Version": true}}
	if target := r.Header.Get("X-Amz-Target"); target != "" {
		_, c.action, _ = strings.Cut(target, ".")
		return c
	}
	c.params, _ = url.ParseQuery(string(body)) // what cannot be parsed has no action
	c.action = c.params.Get("Action")
	return c
}

// serve hands the call to its service.
func (c *call) serve() {
	switch c.service {
	case "ec2":
		c.serveEC2()
	case "sqs":
		c.serveSQS()
	case "events":
		c.serveEvents()
	case "sts":
		c.serveSTS()
	default:
		c.fail(http.StatusBadRequest, "UnknownService", "The lab has no service "+c.service)
	}
}

func (c *call) query() bool { return c.service == "ec2" || c.service == "sts" }

func (c *call) signatureCode() string {
	if c.service == "ec2" {
		return "AuthFailure"
	}
	return "SignatureDoesNotMatch"
}

func (c *call) throttleCode() string {
	switch c.service {
	case "ec2":
		return "RequestLimitExceeded"
	case "sqs":
		return "RequestThrottled"
	}
	return "ThrottlingException"
}

// fault is an answer that says no, in the service's words.
type fault struct{ code, message string }

func refusal(code, format string, args ...any) *fault {
	return &fault{code, fmt.Sprintf(format, args...)}
}

// fail answers with an error in the service's form.
func (c *call) fail(status int, code, message string) {
	c.cfg.Log.Debug("call refused", "service", c.service, "action", c.action, "code", code, "message", message)
	if !c.query() {
		c.writer.Header().Set("Content-Type", "application/x-amz-json-1.0")
		c.writer.Header().Set("X-Amzn-ErrorType", code)
		c.writer.WriteHeader(status)
		_ = json.NewEncoder(c.writer).Encode(map[string]string{"__type": code, "message": message})
		return
	}
	type one struct {
		Code    string
		Message string
	}
	c.writer.Header().Set("Content-Type", "text/xml")
	c.writer.WriteHeader(status)
	if c.service == "ec2" {
		_ = xml.NewEncoder(c.writer).Encode(struct {
			XMLName   xml.Name `xml:"Response"`
			Errors    []one    `xml:"Errors>Error"`
			RequestID string
		}{Errors: []one{{code, message}}, RequestID: uuid()})
		return
	}
	_ = xml.NewEncoder(c.writer).Encode(struct {
		XMLName xml.Name `xml:"ErrorResponse"`
		Error   one
	}{Error: one{code, message}})
}

// answer writes an XML document; name is its root.
func (c *call) answer(name string, body any) {
	c.writer.Header().Set("Content-Type", "text/xml")
	io.WriteString(c.writer, xml.Header)
	start := xml.StartElement{Name: xml.Name{Local: name}}
	_ = xml.NewEncoder(c.writer).EncodeElement(body, start)
}

// answerJSON writes a JSON document.
func (c *call) answerJSON(body any) {
	c.writer.Header().Set("Content-Type", "application/x-amz-json-1.0")
	_ = json.NewEncoder(c.writer).Encode(body)
}

// text reads a parameter.
func (c *call) text(name string) string {
	c.read[name] = true
	return c.params.Get(name)
}

// boolean reads a parameter that is true or false.
func (c *call) boolean(name string) bool { return c.text(name) == "true" }

// list reads NAME.1, NAME.2 …
func (c *call) list(name string) []string {
	var out []string
	for n := 1; ; n++ {
		key := name + "." + strconv.Itoa(n)
		if !c.params.Has(key) {
			return out
		}
		out = append(out, c.text(key))
	}
}

// filter is a condition on what is described.
type filter struct {
	name   string
	values []string
}

// filters reads Filter.N, and refuses those that the action does not know.
func (c *call) filters(known ...string) ([]filter, *fault) {
	var out []filter
	for n := 1; ; n++ {
		prefix := "Filter." + strconv.Itoa(n)
		if !c.params.Has(prefix + ".Name") {
			return out, nil
		}
		f := filter{c.text(prefix + ".Name"), c.list(prefix + ".Value")}
		name := f.name
		if strings.HasPrefix(name, "tag:") {
			name = "tag:"
		}
		if !slices.Contains(known, name) {
			return nil, refusal("InvalidParameterValue", "The filter '%s' is invalid", f.name)
		}
		out = append(out, f)
	}
}

// tags reads tags below a prefix, and holds them against EC2's limits.
func (c *call) tags(prefix string) (map[string]string, *fault) {
	out := map[string]string{}
	for n := 1; ; n++ {
		key := prefix + "." + strconv.Itoa(n)
		if !c.params.Has(key + ".Key") {
			return out, nil
		}
		k, v := c.text(key+".Key"), c.text(key+".Value")
		if k == "" || len([]rune(k)) > 127 || strings.HasPrefix(k, "aws:") {
			return nil, refusal("InvalidParameterValue", "Tag key %q is not valid", k)
		}
		if len([]rune(v)) > 255+1 {
			return nil, refusal("InvalidParameterValue", "Tag value exceeds the maximum length of 256 characters")
		}
		if out[k] = v; len(out) > 50 {
			return nil, refusal("TagLimitExceeded", "More than 50 tags")
		}
	}
}

// tagsFor reads the TagSpecifications of a type of resource.
func (c *call) tagsFor(kind string) (map[string]string, *fault) {
	for n := 1; ; n++ {
		prefix := "TagSpecification." + strconv.Itoa(n)
		if !c.params.Has(prefix + ".ResourceType") {
			return map[string]string{}, nil
		}
		if c.text(prefix+".ResourceType") == kind {
			return c.tags(prefix + ".Tag")
		}
	}
}

// unread gives the parameters that nobody asked for.
func (c *call) unread() []string {
	var out []string
	for name := range c.params {
		if !c.read[name] {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}
