package timeline

import (
	"bytes"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"time"
)

// rule makes one event of a row: the field that has the time, what the time
// is of, and a message in which {name} is the row's field of that name.
type rule struct{ field, desc, message string }

// tables say which events a table's rows are. Tables that are not here have
// an event for each of anyTime's fields that they have.
var tables = map[string][]rule{
	"processes":  {{"started", "Process Started", "process {pid} of {ppid} started: {name} {exe} {cmdline}"}},
	"threads":    {{"started", "Thread Started", "thread {tid} of process {pid} started: {name}"}},
	"logins":     {{"time", "Login Record", "{file}: {type} {user} on {line} from {host} {ip}"}},
	"journal":    {{"time", "Journal Entry", "{identifier}[{pid}]: {message}"}},
	"containers": {{"created", "Container Created", "container {name} {id} of {image}: {command}"}, {"started", "Container Started", "container {name} {id} of {image}: {command}"}},
	"packages": {{"installed", "Package Installed", "package {name} {version} {arch} by {manager}"},
		{"built", "Package Built", "package {name} {version} {arch} by {manager}"}},
	"last_logins": {{"login", "Last Login", "{source}: {user} {uid} on {tty} from {host} by {service}"},
		{"logout", "Last Logout", "{source}: {user} {uid} on {tty} from {host} by {service}"}},
	"systemd_units":  {{"last_trigger", "Timer Triggered", "{name}, {origin}"}},
	"scheduled_jobs": {{"due", "Job Due", "{kind} job of {user}: {command}"}},
	"shell_history":  {{"time", "Command Run", "{user} {file}: {command}"}},
	"shell_memory":   {{"time", "Command Run", "{exe} {pid}: {command}"}},
	"audit":          {{"time", "Audit Event", "{type} {serial}: {fields}"}},
	"host":           {{"booted", "Host Booted", "{hostname} booted"}},
}

// anyTime are the fields whose time is an event in any table, as are those
// that end with _at: no others, as a host may write what looks like a time
// into any text.
var anyTime = []string{"time", "started", "ended", "created", "installed", "login", "logout", "due", "booted", "atime", "mtime", "ctime", "btime", "last_trigger"}

func rulesOf(table string) []rule { return tables[table] }

// fieldName is what the name of a field must be. A name that is none is left
// out, so that no host fills an index with fields.
var fieldName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)

// row makes events of a row of a table.
func (t *timeline) row(table string, rules []rule, line []byte) error {
	fields, err := parseRow(line)
	if err != nil {
		return err
	}
	if rules == nil {
		rules = generic(table, fields)
	}
	for _, r := range rules {
		value := valueOf(fields, r.field)
		if value == "" {
			continue
		}
		at, err := time.Parse(time.RFC3339Nano, value)
		if err != nil {
			return bad("field %s is no time of RFC 3339", r.field)
		}
		if !sane(at) {
			continue // as Go's zero, for not known
		}
		if err := t.write(event{message: fill(r.message, fields), time: at, desc: r.desc, table: table, fields: fields}); err != nil {
			return err
		}
	}
	return nil
}

// generic makes rules for a table that nothing is known of.
func generic(table string, fields []field) []rule {
	var rules []rule
	for _, f := range fields {
		known := slices.Contains(anyTime, f.name) || strings.HasSuffix(f.name, "_at") && f.name != "collected_at"
		if _, err := time.Parse(time.RFC3339Nano, f.value); known && err == nil {
			rules = append(rules, rule{f.name, table + " " + f.name, table + ": " + summary(fields)})
		}
	}
	return rules
}

// summary names some fields, for a message that fill completes.
func summary(fields []field) string {
	var words []string
	for _, f := range fields {
		if f.name != "case" && f.name != "instance" && f.name != "collected_at" && len(words) < 8 {
			words = append(words, f.name+"={"+f.name+"}")
		}
	}
	return strings.Join(words, " ")
}

// parseRow gives the fields of a JSON object in their order. What is not text
// is its JSON, and null is left out. A list of texts is joined by spaces.
func parseRow(line []byte) ([]field, error) {
	d := json.NewDecoder(bytes.NewReader(line))
	if start, err := d.Token(); err != nil || start != json.Delim('{') {
		return nil, bad("it is no JSON object")
	}
	var fields []field
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, bad("it is no JSON object")
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, bad("it is no JSON object")
		}
		if name := name.(string); fieldName.MatchString(name) && len(fields) <= maxFields {
			if text := textOf(value); text != "" && !has(fields, name) {
				fields = append(fields, field{name, text})
			}
		}
	}
	if _, err := d.Token(); err != nil {
		return nil, bad("it is no JSON object")
	}
	if d.More() {
		return nil, bad("something follows the JSON object")
	}
	return fields, nil
}

// textOf gives a value as text.
func textOf(value json.RawMessage) string {
	var text string
	var texts []string
	switch {
	case string(value) == "null":
		return ""
	case value[0] == '"' && json.Unmarshal(value, &text) == nil:
		return text
	case value[0] == '[' && json.Unmarshal(value, &texts) == nil:
		return strings.Join(texts, " ")
	}
	return string(value)
}

func has(fields []field, name string) bool {
	return slices.ContainsFunc(fields, func(f field) bool { return f.name == name })
}

func valueOf(fields []field, name string) string {
	for _, f := range fields {
		if f.name == name {
			return f.value
		}
	}
	return ""
}

// fill puts a row's fields into a message. What a field holds is not looked
// into for names.
func fill(message string, fields []field) string {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(message, "{")
		b.WriteString(before)
		if !found {
			break
		}
		name, after, _ := strings.Cut(rest, "}")
		value := valueOf(fields, name)
		b.WriteString(value[:min(len(value), maxMessage)])
		message = after
	}
	return strings.TrimSpace(b.String())
}
