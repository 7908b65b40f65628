package gate

import (
	"fmt"
	"log/slog"

	"golang.org/x/sys/unix"
)

// spareFiles are kept for the rest of the collector: its store, the bucket,
// the queue.
const spareFiles = 1024

// Fit gives limits for which the process may open enough files. A process
// that runs out of them can neither store a case nor ask AWS, so there are
// fewer agents then, and a warning says what to change.
func (l Limits) Fit(log *slog.Logger) (Limits, error) {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return l, fmt.Errorf("cannot learn how many files may be open: %w", err)
	}
	return l.within(files.Cur, log)
}

func (l Limits) within(files uint64, log *slog.Logger) (Limits, error) {
	l = l.orDefault()
	if files >= uint64(l.Agents)+spareFiles {
		return l, nil
	}
	if files < 2*spareFiles {
		return l, fmt.Errorf("cannot serve agents: %d files may be open, want %d for %d agents and %d at least; set LimitNOFILE= of the unit, or ulimit -n",
			files, l.Agents+spareFiles, l.Agents, 2*spareFiles)
	}
	log.Warn("fewer agents than configured may attach: too few files may be open; set LimitNOFILE= of the unit, or ulimit -n",
		"files", files, "want_files", l.Agents+spareFiles, "agents_configured", l.Agents, "agents", files-spareFiles)
	l.Agents = int(files - spareFiles)
	return l, nil
}
