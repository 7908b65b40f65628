package artifact

import (
	"context"
	"io"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// Host is a host to read. It may be used from several goroutines.
type Host struct {
	// Root is the folder that holds the host's files, its proc and sys too;
	// "" is "/".
	Root   string
	Log    *slog.Logger // nil discards
	Limits Limits
	// MetadataURL is the instance metadata service; "" is EC2's own, which is
	// asked where Root is "" alone.
	MetadataURL string
	Version     string // of the agent, as the files' log tells it

	hung atomic.Int32 // reads that were given up and have not returned

	recent struct {
		sync.Mutex
		holders  *holders // what the last walk over all descriptors found, without the sockets
		spaces   []namespace
		spacesAt time.Time
	}
}

// Limits bound a collection. A zero is the default.
type Limits struct {
	FileBytes    int64 // of one file; 1 GiB
	TotalBytes   int64 // of all files, of which one Definition takes half of what is left at most; 8 GiB
	SparseBytes  int64 // of one file that is nearly all holes, as lastlog is; 64 MiB
	ProcessBytes int64 // of one process's memory; 4 GiB
	ExeBytes     int64 // of one executable that is hashed; 256 MiB
	ExesBytes    int64 // of all executables that are hashed for one table; 4 GiB
	// A bodyfile ends after so many names, does not go deeper than so many
	// folders, and takes no longer than this.
	BodyEntries int64         // 20 million
	BodyDepth   int64         // 200
	BodyTime    time.Duration // 30 minutes
}

func (l Limits) filled() Limits {
	for _, d := range []struct {
		field *int64
		value int64
	}{
		{&l.FileBytes, 1 << 30},
		{&l.TotalBytes, 8 << 30},
		{&l.SparseBytes, 64 << 20},
		{&l.ProcessBytes, 4 << 30},
		{&l.ExeBytes, 256 << 20},
		{&l.ExesBytes, 4 << 30},
		{&l.BodyEntries, 20_000_000},
		{&l.BodyDepth, 200},
		{(*int64)(&l.BodyTime), int64(30 * time.Minute)},
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
		{"threads", "Every thread of a process but its first. Rows: Thread.", h, fillThreads},
		{"conntrack", "The connections that the packet filter tracks. Rows: Connection.", h, fillConntrack},
		{"neighbours", "The tables of ARP and NDP. Rows: Neighbour.", h, fillNeighbours},
		{"routes", "The routing tables. Rows: Route.", h, fillRoutes},
		{"routing_rules", "Which routing table is asked for which packets. Rows: RoutingRule.", h, fillRoutingRules},
		{"nftables", "The packet filter's tables, chains, rules and sets, of nf_tables. Rows: PacketRule.", h, fillNFTables},
		{"interfaces", "Network interfaces, their addresses and counters. Rows: Interface.", h, fillInterfaces},
		{"logins", "The records of utmp, wtmp and btmp. Rows: Login.", h, fillLogins},
		{"modules", "Kernel modules, as /proc and /sys each tell it. Rows: Module.", h, fillModules},
		{"ebpf_programs", "Loaded eBPF programs, with the processes that hold them. Rows: EBPFProgram.", h, fillEBPFPrograms},
		{"ebpf_maps", "eBPF maps. Rows: EBPFMap.", h, fillEBPFMaps},
		{"ebpf_links", "Where eBPF programs are attached by links. Rows: EBPFLink.", h, fillEBPFLinks},
		{"tracing", "Kernel probes and tracing, where tracefs or debugfs is mounted. Rows: KernelHook.", h, fillTracing},
		{"keys", "Keys and keyrings of the kernel that the agent may view. Rows: Key.", h, fillKeys},
		{"mounts", "The mounts of every mount namespace. Rows: Mount.", h, fillMounts},
		{"anomalies", "Where the kernel's views of the host differ, and hooks that show. Rows: Anomaly.", h, fillAnomalies},
		{"maps", "Every range of every process's memory. Rows: Map.", h, fillMaps},
		{"clock", "The clocks, and how they are kept. One row: Clock.", h, fillClock},
		{"host", "The host itself: kernel, clock, load, settings that matter. One row: Machine.", h, fillMachine},
	}
}

// Live lists the tables that change slowly: how the host is set up.
func (h *Host) Live() []Table {
	return []Table{
		{"shell_memory", "Commands that running shells remember, also where no file keeps them. Rows: ShellCommand.", h, fillShellMemory},
		{"shell_history", "Commands that history files of homes remember. Rows: HistoryCommand.", h, fillShellHistory},
		{"users", "The accounts, without their password hashes. Rows: User.", h, fillUsers},
		{"groups", "The groups. Rows: Group.", h, fillGroups},
		{"systemd_units", "Unit files of systemd, timers among them, and the units that run. Rows: Unit.", h, fillUnits},
		{"packages", "Packages, as the databases of dpkg and rpm tell them. Rows: Package.", h, fillPackages},
		{"containers", "Containers, by the files of their runtimes and the control groups of processes. Rows: Container.", h, fillContainers},
		{"last_logins", "Who logged in last, as lastlog, lastlog2 and wtmpdb tell it. Rows: LastLogin.", h, fillLastLogins},
		{"instance_metadata", "What the metadata service says of the instance, without credentials. One row: InstanceMetadata.", h, fillMetadata},
		{"scheduled_jobs", "The jobs of cron, anacron and at. Rows: ScheduledJob.", h, fillScheduledJobs},
		{"ssh_keys", "The keys that let somebody in by SSH, by their fingerprints. Rows: SSHKey.", h, fillSSHKeys},
		{"sudoers", "Who may become whom by sudo, as the files say. Rows: SudoRule.", h, fillSudoers},
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

// running tells whether the files are those of the running host, so that its
// kernel can be asked about it.
func (h *Host) running() bool { return h.path() == "/" }

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
