package emulator

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxList bounds every list of a request; EC2 takes 1000 resources at once.
const maxList = 1000

// params are the parameters of a request in the query protocol. A handler
// reads all that it knows; what is left then makes the request fail. The first
// error is kept, so that a handler need not look after each read.
type params struct {
	values url.Values
	read   map[string]bool
	err    *Error
}

// parseParams reads a form. A name that comes twice is refused: AWS would take
// one of the two.
func parseParams(body string) (*params, *Error) {
	values, err := url.ParseQuery(body)
	if err != nil {
		return nil, refuse("MalformedQueryString", "the query string contains a syntax error")
	}
	for name, all := range values {
		if len(all) != 1 || !utf8.ValidString(name) || !utf8.ValidString(all[0]) {
			return nil, refuse("MalformedQueryString", "parameter %.100q comes %d times or is not UTF-8", name, len(all))
		}
	}
	return &params{values: values, read: map[string]bool{}}, nil
}

// fail keeps the first error.
func (p *params) fail(code, format string, args ...any) {
	if p.err == nil {
		p.err = refuse(code, format, args...)
	}
}

func (p *params) has(name string) bool { return p.values.Has(name) }

func (p *params) text(name string) string {
	p.read[name] = true
	return p.values.Get(name)
}

func (p *params) required(name string) string {
	value := p.text(name)
	if value == "" {
		p.fail("MissingParameter", "the request must contain the parameter %s", name)
	}
	return value
}

// flag reads a boolean; set says whether it is there.
func (p *params) flag(name string) (value, set bool) {
	if !p.has(name) {
		return false, false
	}
	switch text := p.text(name); text {
	case "true":
		return true, true
	case "false":
	default:
		p.fail("InvalidParameterValue", "value (%.100q) for parameter %s is invalid: expected true or false", text, name)
	}
	return false, true
}

// number reads an integer; nil: it is not there.
func (p *params) number(name string, least, most int) *int {
	if !p.has(name) {
		return nil
	}
	n, err := strconv.Atoi(p.text(name))
	if err != nil || n < least || n > most {
		p.fail("InvalidParameterValue", "value (%.100q) for parameter %s is invalid: expected %d to %d", p.values.Get(name), name, least, most)
		return nil
	}
	return &n
}

// list reads NAME.1, NAME.2 and so on.
func (p *params) list(name string) []string {
	var out []string
	p.each(name, "", func(key string) { out = append(out, p.text(key)) })
	return out
}

// each calls visit with NAME.1, NAME.2 and so on, as long as NAME.N and after
// is there. With after empty any parameter below NAME.N counts too.
func (p *params) each(name, after string, visit func(key string)) {
	for n := 1; n <= maxList; n++ {
		key := name + "." + strconv.Itoa(n)
		if !p.has(key+after) && (after != "" || !p.below(key)) {
			return
		}
		visit(key)
	}
	p.fail("InvalidParameterValue", "%s has more than %d members", name, maxList)
}

func (p *params) below(key string) bool {
	for name := range p.values {
		if strings.HasPrefix(name, key+".") {
			return true
		}
	}
	return false
}

// id reads an identifier that must be there and well formed.
func (p *params) id(name string, kind resource) string {
	value := p.required(name)
	p.checkID(value, kind)
	return value
}

// ids reads a list of well-formed identifiers.
func (p *params) ids(name string, kind resource) []string {
	out := p.list(name)
	for _, value := range out {
		p.checkID(value, kind)
	}
	return out
}

func (p *params) checkID(value string, kind resource) {
	if !kind.wellFormed(value) {
		p.fail(kind.malformed, "invalid id: %.100q", value)
	}
}

// tagSpecifications reads what new resources are tagged with; kinds are the
// types of resources that the action makes.
func (p *params) tagSpecifications(kinds ...string) map[string]map[string]string {
	out := map[string]map[string]string{}
	p.each("TagSpecification", "", func(key string) {
		kind := p.required(key + ".ResourceType")
		if !slices.Contains(kinds, kind) || out[kind] != nil {
			p.fail("InvalidParameterValue", "%.100q is not a taggable resource type of this action, or comes twice", kind)
		}
		out[kind] = p.tags(key + ".Tag")
	})
	return out
}

// tags reads tags and holds them against EC2's limits.
// Source: EC2 user guide, "Tag your Amazon EC2 resources".
func (p *params) tags(name string) map[string]string {
	out := map[string]string{}
	p.each(name, "", func(key string) {
		tag, value := p.text(key+".Key"), p.text(key+".Value")
		_, twice := out[tag]
		if err := checkTag(tag, value); err != nil {
			p.fail("InvalidParameterValue", "%v", err)
		} else if twice {
			p.fail("InvalidParameterValue", "duplicate tag key %q", tag)
		}
		out[tag] = value
	})
	if len(out) > maxTags {
		p.fail("TagLimitExceeded", "%d tags are more than %d", len(out), maxTags)
	}
	return out
}

func checkTag(key, value string) error {
	switch {
	case key == "" || utf8.RuneCountInString(key) > 128:
		return fmt.Errorf("tag key %.200q does not have 1 to 128 characters", key)
	case strings.HasPrefix(strings.ToLower(key), "aws:"):
		return fmt.Errorf("tag keys starting with 'aws:' are reserved for internal use: %.200q", key)
	case utf8.RuneCountInString(value) > 256:
		return fmt.Errorf("the value of tag %q exceeds 256 characters", key)
	}
	return nil
}

// finish refuses the request where a parameter was wrong or nobody read it.
func (p *params) finish() *Error {
	if p.err != nil {
		return p.err
	}
	var left []string
	for name := range p.values {
		if !p.read[name] {
			left = append(left, name)
		}
	}
	if len(left) == 0 {
		return nil
	}
	slices.Sort(left)
	return refuse("UnknownParameter", "the parameter %.100s is not recognized", left[0])
}
