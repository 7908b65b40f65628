package emulator

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
)

// maxPattern bounds a rule's pattern, in bytes. Source: EventBridge user guide,
// "Amazon EventBridge quotas".
const maxPattern = 4096

// pattern decides on a part of an event: a JSON value as encoding/json gives it
// with UseNumber. An absent value is nil and absent.
// Source: EventBridge user guide, "Comparison operators for use in event
// patterns".
type pattern interface {
	match(value any, present bool) bool
}

// object holds where every field's pattern holds.
type object map[string]pattern

// either holds where one of its patterns holds, as $or says.
type either []pattern

// leaf holds where one of its tests does.
type leaf []test

// test decides on one scalar; present is false where the event has none.
type test func(value any, present bool) bool

// parsePattern reads an event pattern. An operator that it does not know is an
// error, since a rule that matches nothing looks like a quiet day.
func parsePattern(raw string) (pattern, error) {
	if len(raw) > maxPattern {
		return nil, fmt.Errorf("the pattern has more than %d bytes", maxPattern)
	}
	value, err := decodeValue([]byte(raw))
	if err != nil {
		return nil, err
	}
	fields, ok := value.(map[string]any)
	if !ok {
		return nil, errors.New("the pattern is not an object")
	}
	return parseObject(fields, "")
}

func decodeValue(raw []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var value any
	if err := d.Decode(&value); err != nil {
		return nil, fmt.Errorf("not JSON: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("not JSON: there is something after it")
	}
	return value, nil
}

func parseObject(fields map[string]any, path string) (pattern, error) {
	if len(fields) == 0 {
		return nil, fmt.Errorf("empty objects are not allowed: at %q", path)
	}
	out := object{}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		at := path + "." + name
		var err error
		switch value := fields[name].(type) {
		case map[string]any:
			out[name], err = parseObject(value, at)
		case []any:
			if name == "$or" && isAlternatives(value) {
				out[name], err = parseEither(value, at)
			} else {
				out[name], err = parseLeaf(value, at)
			}
		default:
			err = fmt.Errorf("%q must be an object or an array", at)
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// isAlternatives tells $or from a field of that name, as EventBridge does: it
// has two alternatives or more, all of them objects.
func isAlternatives(list []any) bool {
	return len(list) > 1 && !slices.ContainsFunc(list, func(v any) bool { _, ok := v.(map[string]any); return !ok })
}

func parseEither(list []any, at string) (pattern, error) {
	var out either
	for _, v := range list {
		one, err := parseObject(v.(map[string]any), at)
		if err != nil {
			return nil, err
		}
		out = append(out, one)
	}
	return out, nil
}

func parseLeaf(list []any, at string) (pattern, error) {
	if len(list) == 0 {
		return nil, fmt.Errorf("empty arrays are not allowed: at %q", at)
	}
	var out leaf
	for _, v := range list {
		t, err := parseTest(v)
		if err != nil {
			return nil, fmt.Errorf("at %q: %w", at, err)
		}
		out = append(out, t)
	}
	return out, nil
}

// match holds for a list where it holds for one of its objects as a whole.
func (o object) match(value any, _ bool) bool {
	if list, ok := value.([]any); ok && len(list) > 0 {
		return slices.ContainsFunc(list, func(v any) bool { return o.match(v, true) })
	}
	fields, _ := value.(map[string]any) // else every field is absent
	for name, p := range o {
		if _, isEither := p.(either); isEither {
			if !p.match(value, true) {
				return false
			}
			continue
		}
		field, present := fields[name]
		if !p.match(field, present) {
			return false
		}
	}
	return true
}

func (e either) match(value any, present bool) bool {
	return slices.ContainsFunc(e, func(p pattern) bool { return p.match(value, present) })
}

// match holds for a list where it holds for one of its members. Objects and
// empty lists are no leaves, so they count as absent.
func (l leaf) match(value any, present bool) bool {
	var values []any
	if present {
		values = scalars(nil, value)
	}
	if len(values) == 0 {
		return l.any(nil, false)
	}
	return slices.ContainsFunc(values, func(v any) bool { return l.any(v, true) })
}

func (l leaf) any(value any, present bool) bool {
	return slices.ContainsFunc(l, func(t test) bool { return t(value, present) })
}

func scalars(out []any, value any) []any {
	switch v := value.(type) {
	case []any:
		for _, one := range v {
			out = scalars(out, one)
		}
		return out
	case map[string]any:
		return out
	}
	return append(out, value)
}
