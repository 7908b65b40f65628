// Package crontab reads the tables of cron and anacron and the jobs of at, as
// bytes alone.
package crontab

import (
	"strconv"
	"strings"
)

// MaxText bounds a schedule, a command and an environment line, in bytes.
const MaxText = 8 << 10

// Line is a line of a table: a job, or an environment setting that holds for
// the jobs after it.
type Line struct {
	Environment string // NAME=value; "" is a job
	Schedule    string // the five fields, or @reboot and its like
	User        string // where the table names one
	Command     string // with the % that cron makes line ends of, as it stands
	Name        string // of an anacron job
}

// Parse reads a line of a crontab; withUser is the system's kind, which names
// a user before the command. ok is false for blank lines and remarks; odd is a
// line that has no form.
// Source: crontab(5).
func Parse(line string, withUser bool) (l Line, ok, odd bool) {
	line = strings.TrimSpace(line)
	if line == "" || line[0] == '#' {
		return l, false, false
	}
	if isEnvironment(line) {
		return Line{Environment: clip(line)}, true, false
	}
	fields := 5
	line = strings.TrimPrefix(line, "-") // of SUSE and Fedora: do not log
	if strings.HasPrefix(line, "@") {
		fields = 1
	}
	var when []string
	for range fields {
		var word string
		if word, line = cutWord(line); line == "" {
			return l, false, true
		}
		when = append(when, word)
	}
	l.Schedule = clip(strings.Join(when, " "))
	if withUser {
		if l.User, line = cutWord(line); line == "" {
			return l, false, true
		}
		l.User = clip(l.User)
	}
	l.Command = clip(line)
	return l, true, false
}

// ParseAnacron reads a line of anacrontab(5): period, delay, name, command.
func ParseAnacron(line string) (l Line, ok, odd bool) {
	line = strings.TrimSpace(line)
	if line == "" || line[0] == '#' {
		return l, false, false
	}
	if isEnvironment(line) {
		return Line{Environment: clip(line)}, true, false
	}
	period, rest := cutWord(line)
	delay, rest := cutWord(rest)
	name, command := cutWord(rest)
	if command == "" {
		return l, false, true
	}
	return Line{Schedule: clip(period + " " + delay), Name: clip(name), Command: clip(command)}, true, false
}

// isEnvironment tells NAME = value from a job: no schedule has an equals sign
// before its first space, nor a first character that a name may have.
func isEnvironment(line string) bool {
	name, _, ok := strings.Cut(line, "=")
	name = strings.Trim(strings.TrimSpace(name), `"'`)
	if !ok || name == "" || name[0] >= '0' && name[0] <= '9' {
		return false
	}
	return strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == ""
}

func cutWord(s string) (word, rest string) {
	at := strings.IndexAny(s, " \t")
	if at < 0 {
		return s, ""
	}
	return s[:at], strings.TrimLeft(s[at:], " \t")
}

func clip(s string) string { return s[:min(len(s), MaxText)] }

// AtName reads the name of a spooled job of at: its queue, then the job's
// number in five hex digits, then minutes since 1970 in eight. A leading = is a
// job that runs.
// Source: at's sources, at.c, nextjob and writefile.
func AtName(name string) (queue string, job, minutes int64, ok bool) {
	if len(name) != 14 || !(name[0] >= 'a' && name[0] <= 'z' || name[0] >= 'A' && name[0] <= 'Z' || name[0] == '=') {
		return "", 0, 0, false
	}
	job, err1 := strconv.ParseInt(name[1:6], 16, 64)
	minutes, err2 := strconv.ParseInt(name[6:], 16, 64)
	if err1 != nil || err2 != nil || job < 0 || minutes < 0 {
		return "", 0, 0, false
	}
	return name[:1], job, minutes, true
}

// AtScript parts the script of a job of at: whom it mails and runs as by its
// remarks, the environment that at wrote down, and what the user typed.
func AtScript(data string) (uid, gid *uint32, environment []string, command string) {
	rest := data
	for {
		line, after, more := strings.Cut(rest, "\n")
		switch {
		case strings.HasPrefix(line, "# atrun "):
			for word := range strings.FieldsSeq(line) {
				uid = number(word, "uid=", uid)
				gid = number(word, "gid=", gid)
			}
		case strings.HasPrefix(line, "#"), strings.HasPrefix(line, "umask "), strings.HasPrefix(line, "cd "), line == "",
			line == "\t echo 'Execution directory inaccessible' >&2", line == "\t exit 1", line == "}":
		case isEnvironment(strings.TrimPrefix(line, "export ")) && strings.Contains(line, "; export "):
			if len(environment) < 256 {
				environment = append(environment, clip(line[:strings.LastIndex(line, "; export ")]))
			}
		default:
			return uid, gid, environment, clip(strings.TrimSpace(rest))
		}
		if !more {
			return uid, gid, environment, ""
		}
		rest = after
	}
}

func number(word, prefix string, old *uint32) *uint32 {
	text, ok := strings.CutPrefix(word, prefix)
	if !ok {
		return old
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return old
	}
	id := uint32(n)
	return &id
}
