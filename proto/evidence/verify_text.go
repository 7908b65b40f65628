package evidence

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Bounds of what a report for a person prints of one item.
const (
	maxText    = 1024 // bytes of one word or reason
	maxMissing = 16   // ranges, or reasons
)

// WriteText prints a report for a person: a line for each item, and under it
// a line for each check, for what is missing and for its gaps. Nothing that
// came from outside can break a line or steer a terminal.
func (r Report) WriteText(w io.Writer) error {
	out := bufio.NewWriter(w) // keeps its first error for Flush
	for _, i := range r.Items {
		i.writeText(out)
	}
	return out.Flush()
}

func (r ItemReport) writeText(w io.Writer) {
	verdict := "ok"
	if !r.OK() {
		verdict = "BAD"
	}
	fmt.Fprintf(w, "%-9s %s  %s %s, %d bytes\n", verdict, word(r.Key), word(string(r.Kind)), word(string(r.Status)), r.Size)
	if r.SHA256 != "" {
		fmt.Fprintf(w, "          sha256 %s\n", r.SHA256)
	}
	if r.Composite != "" {
		fmt.Fprintf(w, "          composite %s\n", r.Composite)
	} else {
		fmt.Fprintf(w, "          nothing of it was read\n")
	}
	if r.Error != "" {
		fmt.Fprintf(w, "          reason: %s\n", Plain(r.Error))
	}
	for _, c := range r.Checks {
		verdict := "ok"
		if !c.OK {
			verdict = "BAD"
		}
		fmt.Fprintln(w, strings.TrimRight(fmt.Sprintf("  %-7s %s: %s", verdict, word(c.Name), Plain(c.Detail)), ": "))
	}
	for _, note := range r.Notes {
		fmt.Fprintf(w, "  note    %s\n", Plain(note))
	}
	for i, m := range r.Missing {
		if i == maxMissing {
			fmt.Fprintf(w, "          and %d more ranges\n", len(r.Missing)-i)
			break
		}
		fmt.Fprintf(w, "          missing memory %v\n", m)
	}
	if r.Gaps > 0 {
		fmt.Fprintf(w, "          %d gaps, %d bytes that are not what the host's memory held\n", r.Gaps, r.GapBytes)
		for i, reason := range r.Reasons {
			if i == maxMissing {
				fmt.Fprintf(w, "          and %d more reasons\n", len(r.Reasons)-i)
				break
			}
			fmt.Fprintf(w, "            %s: %d gaps, %d bytes\n", word(string(reason.Reason)), reason.Gaps, reason.Bytes)
		}
	}
	if r.PageFlags != "" {
		fmt.Fprintf(w, "          page flags: %s\n", Plain(r.PageFlags))
	}
}

// word is Plain, and quoted also where it would not look like one word.
func word(s string) string {
	if s == "" || strings.ContainsAny(s, " \"") {
		return strconv.QuoteToASCII(s[:min(len(s), maxText)])
	}
	return Plain(s)
}

// Plain makes text that came from outside safe for a line of a terminal: it
// is given as it stands where it is short and all printable ASCII, else
// quoted and cut.
func Plain(s string) string {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return strconv.QuoteToASCII(s[:min(len(s), maxText)])
		}
	}
	return s[:min(len(s), maxText)]
}
