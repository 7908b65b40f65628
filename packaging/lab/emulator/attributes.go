package emulator

import (
	"crypto/md5"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Bounds of a message's own attributes. Source: SQS developer guide, "Amazon
// SQS message metadata" and "Amazon SQS message quotas".
const (
	maxAttributes    = 10
	maxAttributeName = 256 // characters, and of a type too
)

var (
	attributeName = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)
	attributeType = regexp.MustCompile(`^(String|Number)(\..+)?$`)
	queueName     = regexp.MustCompile(`^[A-Za-z0-9_-]{1,80}$`)
)

// messageAttribute is one attribute as requests and answers have it. The lab
// has no use for the binary ones, and refuses them.
type messageAttribute struct {
	DataType    string
	StringValue string
}

// checkAttributes holds attributes against SQS's rules, and gives how many
// bytes of the message they take.
func checkAttributes(all map[string]messageAttribute) (size int, _ *Error) {
	if len(all) > maxAttributes {
		return 0, refuse("InvalidParameterValue", "number of message attributes [%d] exceeds the allowed maximum [%d]", len(all), maxAttributes)
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		a := all[name]
		if err := checkAttributeName(name); err != nil {
			return 0, err
		}
		if !attributeType.MatchString(a.DataType) || len(a.DataType) > maxAttributeName {
			return 0, refuse("InvalidParameterValue", "the type of message attribute %q is invalid: %.100q", name, a.DataType)
		}
		if a.StringValue == "" {
			return 0, refuse("InvalidParameterValue", "message attribute %q must contain a non-empty value of its type", name)
		}
		if err := checkText(a.StringValue); err != nil {
			return 0, err
		}
		if _, err := strconv.ParseFloat(a.StringValue, 64); strings.HasPrefix(a.DataType, "Number") && err != nil {
			return 0, refuse("InvalidParameterValue", "can't cast the value of message attribute %q to a number", name)
		}
		size += len(name) + len(a.DataType) + len(a.StringValue)
	}
	return size, nil
}

func checkAttributeName(name string) *Error {
	lower := strings.ToLower(name)
	switch {
	case len(name) > maxAttributeName, !attributeName.MatchString(name),
		strings.HasPrefix(name, "."), strings.HasSuffix(name, "."), strings.Contains(name, ".."),
		strings.HasPrefix(lower, "aws."), strings.HasPrefix(lower, "amazon."):
		return refuse("InvalidParameterValue", "the message attribute name %.300q is invalid", name)
	}
	return nil
}

// pickAttributes gives those that a receive asks for: by name, by "prefix.*",
// or all of them.
func pickAttributes(all map[string]messageAttribute, names []string) map[string]messageAttribute {
	out := map[string]messageAttribute{}
	for name, a := range all {
		if slices.ContainsFunc(names, func(asked string) bool {
			prefix, wild := strings.CutSuffix(asked, ".*")
			return asked == name || asked == "All" || wild && strings.HasPrefix(name, prefix)
		}) {
			out[name] = a
		}
	}
	return out
}

// digestAttributes is what an SDK may hold attributes against: the MD5 of
// each name, type and value in the order of the names, every one behind its
// length, and a 1 for text. Source: SQS developer guide, "Calculating the MD5
// message digest for message attributes".
func digestAttributes(all map[string]messageAttribute) string {
	if len(all) == 0 {
		return ""
	}
	sum := md5.New()
	put := func(text string) {
		_ = binary.Write(sum, binary.BigEndian, uint32(len(text))) // a hash takes everything
		sum.Write([]byte(text))
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		put(name)
		put(all[name].DataType)
		sum.Write([]byte{1})
		put(all[name].StringValue)
	}
	return hex.EncodeToString(sum.Sum(nil))
}
