package artifact

import (
	"context"
	"io"
	"log/slog"
	"path/filepath"
	"sync/atomic"
)

// Host is a host to read. It may be used from several goroutines.
type Host struct {
	// Root is the folder that holds the host's files, its proc and sys too;
	// "" is "/".
	Root   string
	Log    *slog.Logger // nil discards
	Limits Limits

	hung atomic.Int32 // reads that were given up and have not returned
}

// Limits bound a collection. A zero is the default.
type Limits struct {
	FileBytes   int64 // of one file; 1 GiB
	TotalBytes  int64 // of all files, of which one Definition takes half of what is left at most; 8 GiB
	SparseBytes int64 // of one file that is nearly all holes, as lastlog is; 64 MiB
	ExeBytes    int64 // of one executable that is hashed; 256 MiB
	ExesBytes   int64 // of all executables that are hashed for one table; 4 GiB
}

func (l Limits) filled() Limits {
	for _, d := range []struct {
		field *int64
		value int64
	}{
		{&l.FileBytes, 1 << 30},
		{&l.TotalBytes, 8 << 30},
		{&l.SparseBytes, 64 << 20},
		{&l.ExeBytes, 256 << 20},
		{&l.ExesBytes, 4 << 30},
	} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	return l
}

// Table is one list that can be read from a host.
type Table struct {
	Name string // lower-case letters, digits and underscores, at most 40
	Doc  string // what it holds, in a sentence
	host *Host
	fill func(*Host, *sheet) error
}

// Volatile lists the tables, the most volatile first, which is the order to
// write them in.
func (h *Host) Volatile() []Table {
	return []Table{
		{"processes", "Every process: who, what, since when, from which executable. Rows: Process.", h, fillProcesses},
		{"sockets", "Every socket of every network namespace, with all processes that hold it. Rows: Socket.", h, fillSockets},
		{"open_files", "Every open file descriptor of every process. Rows: OpenFile.", h, fillOpenFiles},
		{"neighbours", "The ARP tables. Rows: Neighbour.", h, fillNeighbours},
		{"routes", "The routing tables. Rows: Route.", h, fillRoutes},
		{"interfaces", "Network interfaces, their addresses and counters. Rows: Interface.", h, fillInterfaces},
		{"logins", "The records of utmp, wtmp and btmp. Rows: Login.", h, fillLogins},
		{"modules", "Kernel modules, as /proc and /sys each tell it. Rows: Module.", h, fillModules},
		{"mounts", "The mounts of every mount namespace. Rows: Mount.", h, fillMounts},
		{"host", "The host itself: kernel, clock, load, settings that matter. One row: Machine.", h, fillMachine},
	}
}

// Live lists the tables that change slowly: how the host is set up.
func (h *Host) Live() []Table {
	return []Table{
		{"users", "The accounts, without their password hashes. Rows: User.", h, fillUsers},
		{"groups", "The groups. Rows: Group.", h, fillGroups},
		{"journal", "The entries of systemd's journals, the files written last first. Rows: JournalEntry.", h, fillJournal},
		{"audit", "The records of auditd's logs, the file written last first. Rows: AuditRecord.", h, fillAudit},
	}
}

// Write reads the table and writes it to w as JSON Lines. What could not be
// read is recorded and does not end it; an error means that w failed or ctx
// ended, and that the table is not whole.
func (t Table) Write(ctx context.Context, w io.Writer, rec *Record) error {
	s := newSheet(ctx, t.Name, w, rec)
	err := t.fill(t.host, s)
	return s.close(err)
}

// path gives the place of a file of the host.
func (h *Host) path(elem ...string) string {
	root := h.Root
	if root == "" {
		root = "/"
	}
	return filepath.Join(append([]string{root}, elem...)...)
}

func (h *Host) log() *slog.Logger {
	if h.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return h.Log
}
