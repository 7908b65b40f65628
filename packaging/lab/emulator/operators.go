package emulator

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
)

func parseTest(value any) (test, error) {
	switch v := value.(type) {
	case []any:
		return nil, errors.New("an array within an array is not allowed")
	case map[string]any:
		if len(v) != 1 {
			return nil, fmt.Errorf("a match object has one operator, not %d", len(v))
		}
		for name, argument := range v {
			return parseOperator(name, argument)
		}
	}
	return exactly(value), nil
}

func parseOperator(name string, argument any) (test, error) {
	switch name {
	case "exists":
		want, ok := argument.(bool)
		if !ok {
			return nil, errors.New("exists takes true or false")
		}
		return func(_ any, present bool) bool { return present == want }, nil
	case "numeric":
		return parseNumeric(argument)
	case "anything-but":
		return parseAnythingBut(argument)
	case "prefix", "suffix", "equals-ignore-case", "wildcard", "cidr":
		return parseText(name, argument)
	}
	return nil, fmt.Errorf("unrecognized match type %.100q", name)
}

// exactly compares numbers by their digits as written: 300, 300.0 and 3.0e2 are
// not equal to EventBridge.
func exactly(want any) test {
	return func(value any, present bool) bool { return present && value == want }
}

func parseText(name string, argument any) (test, error) {
	if inner, ok := argument.(map[string]any); ok && len(inner) == 1 && (name == "prefix" || name == "suffix") {
		if folded, ok := inner["equals-ignore-case"].(string); ok {
			return ends(name, folded, strings.ToLower), nil
		}
	}
	want, ok := argument.(string)
	if !ok {
		return nil, fmt.Errorf("%s takes a string", name)
	}
	switch name {
	case "equals-ignore-case":
		return onText(func(s string) bool { return strings.EqualFold(s, want) }), nil
	case "wildcard":
		parts, err := parseWildcard(want)
		if err != nil {
			return nil, err
		}
		return onText(func(s string) bool { return matchWildcard(parts, s) }), nil
	case "cidr":
		block, err := netip.ParsePrefix(want)
		if err != nil {
			return nil, fmt.Errorf("cidr takes an address range, not %.100q", want)
		}
		return onText(func(s string) bool {
			address, err := netip.ParseAddr(s)
			return err == nil && block.Contains(address)
		}), nil
	}
	return ends(name, want, func(s string) string { return s }), nil
}

func onText(is func(string) bool) test {
	return func(value any, present bool) bool {
		text, ok := value.(string)
		return present && ok && is(text)
	}
}

func ends(name, want string, fold func(string) string) test {
	want = fold(want)
	if name == "prefix" {
		return onText(func(s string) bool { return strings.HasPrefix(fold(s), want) })
	}
	return onText(func(s string) bool { return strings.HasSuffix(fold(s), want) })
}

func parseAnythingBut(argument any) (test, error) {
	var tests []test
	add := func(t test, err error) error {
		tests = append(tests, t)
		return err
	}
	var err error
	switch v := argument.(type) {
	case map[string]any:
		err = addNegated(v, add)
	case []any:
		if len(v) == 0 {
			return nil, errors.New("anything-but takes at least one value")
		}
		for _, one := range v {
			err = errors.Join(err, scalar(one), add(exactly(one), nil))
		}
	default:
		err = errors.Join(scalar(v), add(exactly(v), nil))
	}
	if err != nil {
		return nil, err
	}
	return func(value any, present bool) bool {
		return present && !slices.ContainsFunc(tests, func(t test) bool { return t(value, true) })
	}, nil
}

func scalar(value any) error {
	switch value.(type) {
	case string, json.Number:
		return nil
	}
	return errors.New("anything-but takes strings, numbers, a list of them, or one operator")
}

func addNegated(operator map[string]any, add func(test, error) error) error {
	if len(operator) != 1 {
		return errors.New("anything-but takes one operator")
	}
	for name, argument := range operator {
		if !slices.Contains([]string{"prefix", "suffix", "equals-ignore-case", "wildcard"}, name) {
			return fmt.Errorf("anything-but does not take %.100q", name)
		}
		list, ok := argument.([]any)
		if !ok {
			list = []any{argument}
		}
		if len(list) == 0 {
			return fmt.Errorf("%s takes at least one value", name)
		}
		for _, one := range list {
			if err := add(parseText(name, one)); err != nil {
				return err
			}
		}
	}
	return nil
}

// maxNumber is the largest that EventBridge compares, either way.
const maxNumber = 5e9

func parseNumeric(argument any) (test, error) {
	list, ok := argument.([]any)
	if !ok || len(list) != 2 && len(list) != 4 {
		return nil, errors.New(`numeric takes one or two comparisons, as in [">", 0, "<=", 5]`)
	}
	var compare []func(float64) bool
	for at := 0; at < len(list); at += 2 {
		one, err := comparison(list[at], list[at+1])
		if err != nil {
			return nil, err
		}
		compare = append(compare, one)
	}
	if len(list) == 4 && (!isBound(list[0], ">") || !isBound(list[2], "<")) {
		return nil, errors.New("two comparisons are a lower bound and an upper bound")
	}
	return func(value any, present bool) bool {
		n, ok := number(value)
		return present && ok && !slices.ContainsFunc(compare, func(holds func(float64) bool) bool { return !holds(n) })
	}, nil
}

func isBound(operator any, sign string) bool {
	text, _ := operator.(string)
	return strings.HasPrefix(text, sign)
}

func number(value any) (float64, bool) {
	literal, ok := value.(json.Number)
	if !ok {
		return 0, false
	}
	n, err := literal.Float64()
	return n, err == nil && math.Abs(n) <= maxNumber
}

func comparison(operator, operand any) (func(float64) bool, error) {
	want, ok := number(operand)
	if !ok {
		return nil, errors.New("numeric compares with numbers from -5e9 to 5e9")
	}
	switch operator {
	case "=":
		return func(n float64) bool { return n == want }, nil
	case "<":
		return func(n float64) bool { return n < want }, nil
	case "<=":
		return func(n float64) bool { return n <= want }, nil
	case ">":
		return func(n float64) bool { return n > want }, nil
	case ">=":
		return func(n float64) bool { return n >= want }, nil
	}
	return nil, fmt.Errorf("numeric does not know the operator %.50v", operator)
}

// parseWildcard splits a pattern at its asterisks; \* and \\ stand for
// themselves.
func parseWildcard(text string) (parts []string, err error) {
	var part strings.Builder
	star := false
	for at := 0; at < len(text); at++ {
		switch c := text[at]; {
		case c == '*' && star:
			return nil, errors.New("wildcard has two asterisks in a row")
		case c == '*':
			parts = append(parts, part.String())
			part.Reset()
			star = true
			continue
		case c == '\\':
			if at++; at == len(text) || text[at] != '*' && text[at] != '\\' {
				return nil, errors.New(`wildcard has a \ that is not before * or \`)
			}
			part.WriteByte(text[at])
		default:
			part.WriteByte(c)
		}
		star = false
	}
	return append(parts, part.String()), nil
}

func matchWildcard(parts []string, s string) bool {
	first, last := parts[0], parts[len(parts)-1]
	if len(parts) == 1 {
		return s == first
	}
	if len(s) < len(first)+len(last) || !strings.HasPrefix(s, first) || !strings.HasSuffix(s, last) {
		return false
	}
	s = s[len(first) : len(s)-len(last)]
	for _, part := range parts[1 : len(parts)-1] {
		at := strings.Index(s, part)
		if at < 0 {
			return false
		}
		s = s[at+len(part):]
	}
	return true
}
