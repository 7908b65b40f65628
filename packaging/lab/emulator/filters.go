package emulator

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// filter is one condition of a describe action. It holds where one value of
// the attribute matches one of the patterns, in which * and ? are wildcards.
type filter struct {
	name     string
	patterns []*regexp.Regexp
}

// filters reads Filter.N; known are the names that the action understands,
// apart from tag:KEY and tag-key, which every one does.
func (p *params) filters(known ...string) []filter {
	var out []filter
	p.each("Filter", "", func(key string) {
		f := filter{name: p.required(key + ".Name")}
		if !slices.Contains(known, f.name) && !strings.HasPrefix(f.name, "tag:") && f.name != "tag-key" {
			p.fail("InvalidParameterValue", "the filter '%.100s' is invalid", f.name)
		}
		for _, value := range p.list(key + ".Value") {
			f.patterns = append(f.patterns, wildcard(value))
		}
		if len(f.patterns) == 0 {
			p.fail("InvalidParameterValue", "the filter '%.100s' has no value", f.name)
		}
		out = append(out, f)
	})
	return out
}

// wildcard turns an EC2 filter value into a regular expression.
func wildcard(value string) *regexp.Regexp {
	quoted := regexp.QuoteMeta(value)
	quoted = strings.ReplaceAll(quoted, `\*`, `.*`)
	return regexp.MustCompile(`(?s)\A` + strings.ReplaceAll(quoted, `\?`, `.`) + `\z`)
}

// matches says whether a resource with these attributes and tags passes.
func matches(filters []filter, attributes map[string][]string, tags map[string]string) bool {
	for _, f := range filters {
		values := attributes[f.name]
		if key, ok := strings.CutPrefix(f.name, "tag:"); ok {
			if value, has := tags[key]; has {
				values = []string{value}
			}
		} else if f.name == "tag-key" {
			for key := range tags {
				values = append(values, key)
			}
		}
		if !slices.ContainsFunc(values, f.match) {
			return false
		}
	}
	return true
}

func (f filter) match(value string) bool {
	return slices.ContainsFunc(f.patterns, func(p *regexp.Regexp) bool { return p.MatchString(value) })
}

// page is the part of a listing that is asked for.
type page struct{ from, most int }

func (p *params) page() page {
	out := page{most: maxList}
	if n := p.number("MaxResults", 5, maxList); n != nil {
		out.most = *n
	}
	if p.has("NextToken") {
		n, err := strconv.Atoi(strings.TrimPrefix(p.text("NextToken"), "page-"))
		if err != nil || n < 1 {
			p.fail("InvalidParameterValue", "the token is invalid")
		}
		out.from = n
	}
	return out
}

// cut gives the page of a listing and the token of the next.
func cut[T any](all []T, at page) (part []T, next string) {
	all = all[min(max(at.from, 0), len(all)):]
	if len(all) <= at.most {
		return all, ""
	}
	return all[:at.most], "page-" + strconv.Itoa(at.from+at.most)
}
