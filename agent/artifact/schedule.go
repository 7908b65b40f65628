package artifact

import (
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/quicklime-ir/quicklime/agent/artifact/crontab"
)

// Bounds of the table scheduled_jobs.
const (
	maxCrontab = 1 << 20 // bytes of a table or script that are read
	maxJobs    = 20_000
	maxJobEnv  = 64 // environment lines of a row
)

// ScheduledJob is a row of the table scheduled_jobs: one job of cron, anacron
// or at. Systemd's timers are in systemd_units.
type ScheduledJob struct {
	// Kind is crontab (the system's), user_crontab, anacron, at, or script:
	// a file of a folder whose files all run.
	Kind string `json:"kind"`
	FileFacts
	Line     int     `json:"line,omitempty"`    // from 1
	Schedule Text    `json:"schedule"`          // as it stands; of a script its folder's; of anacron days and minutes of delay
	User     Text    `json:"user,omitempty"`    // who it runs as: by the line, or by the file's name
	RunUID   *uint32 `json:"run_uid,omitempty"` // of at
	RunGID   *uint32 `json:"run_gid,omitempty"`
	Name     Text    `json:"name,omitempty"` // of anacron
	Command  Text    `json:"command"`        // of a script its first line
	// Environment holds the table's settings above the line, 64 at most.
	Environment          []Text `json:"environment,omitempty"`
	EnvironmentTruncated bool   `json:"environment_truncated,omitempty"`
	// Due is when at runs it; Queue and Job are at's.
	Due   *time.Time `json:"due,omitempty"`
	Queue string     `json:"queue,omitempty"`
	Job   int64      `json:"job,omitempty"`
}

// jobReader writes the table scheduled_jobs.
type jobReader struct {
	t    *tree
	left int
}

// fillScheduledJobs writes the table scheduled_jobs.
func fillScheduledJobs(h *Host, s *sheet) error {
	t, err := h.openTree(s)
	if err != nil {
		return err
	}
	defer t.close()
	r := &jobReader{t, maxJobs}
	for _, part := range []func() error{
		func() error { return r.table("/etc/crontab", "crontab", "", true) },
		func() error { return r.folder("/etc/cron.d", "crontab", true) },
		func() error { return r.table("/etc/anacrontab", "anacron", "root", false) },
		r.scripts,
		func() error { return r.folder("/var/spool/cron", "user_crontab", false) },          // RHEL, Amazon Linux
		func() error { return r.folder("/var/spool/cron/crontabs", "user_crontab", false) }, // Debian
		func() error { return r.folder("/var/spool/cron/tabs", "user_crontab", false) },     // SUSE
		func() error { return r.at("/var/spool/at") },
		func() error { return r.at("/var/spool/cron/atjobs") },
	} {
		if err := part(); err != nil {
			return err
		}
	}
	if r.left == maxJobs {
		s.note("/etc/crontab", NoteNone, "")
	}
	return nil
}

func (r *jobReader) put(row *ScheduledJob) error {
	if r.left == 0 {
		r.t.s.note(string(row.File), NoteCut, fmt.Sprintf("more than %d jobs", maxJobs))
		return nil
	}
	r.left--
	return r.t.s.put(row)
}

// folder reads the tables of a folder. A user's table bears the user's name.
// Names that cron would pass over, as with a dot, are told like any other.
func (r *jobReader) folder(dir, kind string, withUser bool) error {
	for _, name := range r.t.names(dir) {
		user := ""
		if !withUser {
			user = name
		}
		if err := r.table(path.Join(dir, name), kind, user, withUser); err != nil {
			return err
		}
	}
	return nil
}

// table reads one table.
func (r *jobReader) table(at, kind, user string, withUser bool) error {
	f := r.t.file(at, maxCrontab)
	if f == nil {
		return nil
	}
	var environment []Text
	truncated := false
	number := 0
	for text := range strings.Lines(string(f.data)) {
		number++
		l, ok, odd := crontab.Line{}, false, false
		if kind == "anacron" {
			l, ok, odd = crontab.ParseAnacron(text)
		} else {
			l, ok, odd = crontab.Parse(text, withUser)
		}
		switch {
		case odd:
			r.t.s.note(at, NoteOdd, fmt.Sprintf("line %d", number))
			continue
		case !ok:
			continue
		case l.Environment != "":
			if len(environment) < maxJobEnv {
				environment = append(environment, Text(l.Environment))
			} else {
				truncated = true
			}
			continue
		}
		row := &ScheduledJob{Kind: kind, FileFacts: f.FileFacts, Line: number, Schedule: Text(l.Schedule), User: Text(l.User), Name: Text(l.Name),
			Command: Text(l.Command), Environment: environment, EnvironmentTruncated: truncated}
		if !withUser {
			row.User = clip(user, maxWord)
		}
		if err := r.put(row); err != nil {
			return err
		}
	}
	return nil
}

// scripts tells the files that cron runs by their folder.
func (r *jobReader) scripts() error {
	for _, when := range []string{"hourly", "daily", "weekly", "monthly", "yearly"} {
		dir := "/etc/cron." + when
		for _, name := range r.t.names(dir) {
			f := r.t.file(path.Join(dir, name), maxLine)
			if f == nil {
				continue
			}
			first, _, _ := strings.Cut(string(f.data), "\n")
			if err := r.put(&ScheduledJob{Kind: "script", FileFacts: f.FileFacts, Schedule: Text(when), User: "root", Command: clip(first, maxPath)}); err != nil {
				return err
			}
		}
	}
	return nil
}

// at tells the jobs of at.
func (r *jobReader) at(dir string) error {
	for _, name := range r.t.names(dir) {
		queue, job, minutes, ok := crontab.AtName(name)
		if !ok {
			continue // .SEQ, spool and the like
		}
		f := r.t.file(path.Join(dir, name), maxCrontab)
		if f == nil {
			continue
		}
		due := time.Unix(minutes*60, 0).UTC() // 32 bits of minutes end in the year 10136
		row := &ScheduledJob{Kind: "at", FileFacts: f.FileFacts, Queue: queue, Job: job, Schedule: Text(due.Format(time.RFC3339))}
		if due.Year() < 10000 {
			row.Due = &due
		}
		var environment []string
		var command string
		row.RunUID, row.RunGID, environment, command = crontab.AtScript(string(f.data))
		row.Command = Text(command)
		for _, line := range environment {
			if len(row.Environment) == maxJobEnv {
				row.EnvironmentTruncated = true
				break
			}
			row.Environment = append(row.Environment, Text(line))
		}
		if err := r.put(row); err != nil {
			return err
		}
	}
	return nil
}
