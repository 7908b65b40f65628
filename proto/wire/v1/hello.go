package wire

import (
	"slices"
	"strings"
)

// Capturable reports whether a host says that its memory could be captured.
func Capturable(h *Hello) bool {
	return slices.ContainsFunc(h.GetMemorySources(), (*SourceVerdict).GetUsable)
}

// Verdicts says in a line what a host's memory could be captured by, and why
// not: "kcore:lockdown lime:ok". The words are the host's, so escape them.
func Verdicts(h *Hello) string {
	var words []string
	for _, v := range h.GetMemorySources() {
		if v.GetUsable() {
			words = append(words, v.GetSource()+":ok")
		} else {
			words = append(words, v.GetSource()+":"+v.GetReason())
		}
	}
	return strings.Join(words, " ")
}
