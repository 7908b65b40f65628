package timeline

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/custody"
)

// entry makes an event of an entry of the case's journal.
func (t *timeline) entry(entry custody.Entry) error {
	var e casefile.Event
	if err := json.Unmarshal(entry.Event, &e); err != nil || !sane(entry.Time) {
		return t.unread(entry)
	}
	fields := []field{{"entry", fmt.Sprint(entry.Seq)}, {"type", e.Type}}
	for _, f := range []field{{"step", e.Step}, {"outcome", string(e.Outcome)}, {"detail", e.Detail}} {
		if f.value != "" {
			fields = append(fields, f)
		}
	}
	if f := e.Finding; f != nil {
		fields = append(fields, field{"finding_id", f.ID}, field{"finding_type", f.Type}, field{"severity", fmt.Sprint(f.Severity)})
	}
	return t.write(event{message: story(e), time: entry.Time, desc: "Case Journal", table: "case", fields: fields})
}

func (t *timeline) unread(entry custody.Entry) error {
	if n := len(t.bad); n > 0 && t.bad[n-1].Key == "journal" {
		t.bad[n-1].Rows++
		return nil
	}
	t.bad = append(t.bad, Bad{Key: "journal", Rows: 1, Line: int64(entry.Seq), Why: "it is no event of a case"})
	return nil
}

// story tells an event of a case in one line.
func story(e casefile.Event) string {
	words := []string{strings.ReplaceAll(e.Type, "_", " ")}
	add := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	if e.Opened != nil {
		add("%s", e.Opened.Reason)
	}
	if e.Finding != nil {
		add("%s: %s", e.Finding.Type, e.Finding.Title)
	}
	if e.Step != "" {
		add("step %s %s", e.Step, e.Outcome)
	}
	if e.Control != nil {
		add("%s", e.Control)
	}
	for _, i := range e.Interfaces {
		add("interface %s had security groups %s and has %s", i.ID, strings.Join(i.Before, " "), strings.Join(i.After, " "))
	}
	if e.Image != nil {
		add("image %s %s", e.Image.ID, e.Image.State)
	}
	if e.Missing != nil {
		add("missing %s: %s", e.Missing.Kind, e.Missing.Reason)
	}
	if e.Detail != "" {
		add("%s", e.Detail)
	}
	return strings.Join(words, ", ")
}
