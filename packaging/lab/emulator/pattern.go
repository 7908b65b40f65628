package emulator

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// pattern is a rule's event pattern. Every operator is known or refused.
// Source: Amazon EventBridge User Guide, "Comparison operators".
type pattern map[string]any

// maxDepth bounds how deep a pattern or an event may nest.
const maxDepth = 32

func parsePattern(raw []byte) (pattern, error) {
	var p map[string]any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&p); err != nil {
		return nil, fmt.Errorf("cannot read event pattern: %w", err)
	}
	if err := checkPattern(p, 0); err != nil {
		return nil, fmt.Errorf("cannot use event pattern: %w", err)
	}
	return p, nil
}

func checkPattern(p map[string]any, depth int) error {
	if depth > maxDepth || len(p) == 0 {
		return errors.New("it is empty, or nests too deep")
	}
	for name, value := range p {
		switch v := value.(type) {
		case map[string]any:
			if err := checkPattern(v, depth+1); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		case []any:
			if len(v) == 0 {
				return fmt.Errorf("%s: an empty list matches nothing", name)
			}
			for _, one := range v {
				if err := checkCondition(name, one, depth); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
			}
		default:
			return fmt.Errorf("%s: want a list or an object", name)
		}
	}
	return nil
}

func checkCondition(name string, one any, depth int) error {
	if name == "$or" {
		alternative, ok := one.(map[string]any)
		if !ok {
			return errors.New("alternatives are objects")
		}
		return checkPattern(alternative, depth+1)
	}
	operator, ok := one.(map[string]any)
	if !ok {
		if _, list := one.([]any); list {
			return errors.New("a list in a list")
		}
		return nil // a literal
	}
	if len(operator) != 1 {
		return errors.New("a condition has one operator")
	}
	for op, argument := range operator {
		if !validOperator(op, argument) {
			return fmt.Errorf("operator %q with %v is not known", op, argument)
		}
	}
	return nil
}

func validOperator(op string, argument any) bool {
	_, text := argument.(string)
	switch op {
	case "prefix", "suffix", "equals-ignore-case", "wildcard":
		return text
	case "exists":
		_, ok := argument.(bool)
		return ok
	case "numeric":
		_, err := comparisons(argument)
		return err == nil
	case "anything-but":
		switch a := argument.(type) {
		case map[string]any:
			for inner, x := range a {
				if _, ok := x.(string); !ok || inner != "prefix" && inner != "suffix" {
					return false
				}
			}
			return len(a) == 1
		case []any:
			return len(a) > 0
		}
		return text
	}
	return false
}

// comparisons reads ["<", 5, ">=", 1]; a test holds where all do.
func comparisons(argument any) ([]func(float64) bool, error) {
	list, ok := argument.([]any)
	if !ok || len(list) == 0 || len(list)%2 != 0 || len(list) > 4 {
		return nil, errors.New("want one or two pairs of operator and number")
	}
	var out []func(float64) bool
	for i := 0; i < len(list); i += 2 {
		n, ok := list[i+1].(json.Number)
		limit, err := n.Float64()
		if !ok || err != nil {
			return nil, errors.New("want a number")
		}
		test, ok := map[any]func(float64) bool{
			"<": func(x float64) bool { return x < limit }, "<=": func(x float64) bool { return x <= limit },
			">": func(x float64) bool { return x > limit }, ">=": func(x float64) bool { return x >= limit },
			"=": func(x float64) bool { return x == limit },
		}[list[i]]
		if !ok {
			return nil, errors.New("want < <= = >= >")
		}
		out = append(out, test)
	}
	return out, nil
}

// matches reports whether an event matches.
func (p pattern) matches(event []byte) (bool, error) {
	var e map[string]any
	d := json.NewDecoder(bytes.NewReader(event))
	d.UseNumber()
	if err := d.Decode(&e); err != nil {
		return false, fmt.Errorf("cannot read event: %w", err)
	}
	return matchObject(p, e), nil
}

func matchObject(p map[string]any, e map[string]any) bool {
	for name, want := range p {
		value, exists := e[name]
		switch w := want.(type) {
		case map[string]any:
			inner, _ := value.(map[string]any)
			if !matchObject(w, inner) {
				return false
			}
		case []any:
			if name == "$or" {
				if !matchAny(w, func(one any) bool { return matchObject(one.(map[string]any), e) }) {
					return false
				}
				continue
			}
			if !matchAny(w, func(one any) bool { return matchField(one, value, exists) }) {
				return false
			}
		}
	}
	return true
}

func matchAny(list []any, is func(any) bool) bool {
	for _, one := range list {
		if is(one) {
			return true
		}
	}
	return false
}

// matchField holds a field against a condition; a field that is a list
// matches where one of its elements does.
func matchField(condition, value any, exists bool) bool {
	if op, ok := condition.(map[string]any); ok {
		if want, ok := op["exists"]; ok {
			return exists == want.(bool)
		}
	}
	if !exists {
		return false
	}
	if list, ok := value.([]any); ok {
		return matchAny(list, func(one any) bool { return matchValue(condition, one) })
	}
	return matchValue(condition, value)
}

func matchValue(condition, value any) bool {
	op, ok := condition.(map[string]any)
	if !ok {
		return equal(condition, value)
	}
	text, isText := value.(string)
	for name, argument := range op {
		switch name {
		case "prefix":
			return isText && strings.HasPrefix(text, argument.(string))
		case "suffix":
			return isText && strings.HasSuffix(text, argument.(string))
		case "equals-ignore-case":
			return isText && strings.EqualFold(text, argument.(string))
		case "wildcard":
			parts := strings.Split(argument.(string), "*")
			for i := range parts {
				parts[i] = regexp.QuoteMeta(parts[i])
			}
			return isText && regexp.MustCompile(`^(?s:`+strings.Join(parts, ".*")+`)$`).MatchString(text)
		case "anything-but":
			switch a := argument.(type) {
			case map[string]any:
				return !matchValue(a, value)
			case []any:
				return !matchAny(a, func(one any) bool { return equal(one, value) })
			}
			return !equal(argument, value)
		case "numeric":
			n, ok := value.(json.Number)
			x, err := n.Float64()
			tests, _ := comparisons(argument)
			for _, test := range tests {
				ok = ok && test(x)
			}
			return ok && err == nil
		}
	}
	return false
}

// equal compares a literal; numbers by value, so that 8 is 8.0.
func equal(a, b any) bool {
	x, ok1 := a.(json.Number)
	y, ok2 := b.(json.Number)
	if ok1 && ok2 {
		f, err1 := x.Float64()
		g, err2 := y.Float64()
		return err1 == nil && err2 == nil && f == g
	}
	switch a.(type) {
	case string, bool, nil:
		return a == b
	}
	return false
}
