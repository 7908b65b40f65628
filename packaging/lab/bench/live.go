package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/quicklime-ir/quicklime/packaging/lab/crowd"
)

// CrowdVerb and HoldVerb are the hidden commands of the lab that make a crowd.
const (
	CrowdVerb = "crowd"
	HoldVerb  = "hold"
)

// busy is the host that live response is measured on.
var busy = crowd.Size{Processes: 10_000, Sockets: 100_000, Files: 1_000_000}

// treeFiles is how many files the walks are measured on.
const treeFiles = 1_000_000

// way is one way to get the evidence.
type way struct {
	name     string
	commands [][]string // run one after the other; what they print is read and dropped
	rounds   int        // of which the median counts
}

// byHand are the commands that are run on a host one by one where there is no
// agent. Those that are not installed are left out, and named.
var byHand = [][]string{
	{"date"}, {"uname", "-a"}, {"ip", "a"}, {"ps", "-ef"}, {"netstat", "-anp"}, {"lsof", "-V"}, {"ip", "route"}, {"df"}, {"mount"}, {"free"}, {"w"},
	{"last", "-Faiwx"}, {"lsmod"}, {"cat", "/etc/passwd"}, {"cat", "/etc/shadow"}, {"find", crowd.Tree, "-type", "f", "-mtime", "-1"},
}

// captured stands for a folder of its own each time.
const captured = "FOLDER"

// ways are what is compared on a busy host.
func ways(agent string) []way {
	volatile, live := []string{agent, "capture", "--kind", "volatile", "--to", captured}, []string{agent, "capture", "--kind", "live", "--to", captured}
	return []way{
		{"ps", [][]string{{"ps", "auxe"}}, 3},
		{"ss", [][]string{{"ss", "-tanp"}}, 3},
		{"lsof", [][]string{{"lsof", "-n"}}, 3},
		{"volatile", [][]string{volatile}, 3},
		{"by_hand", byHand, 1},
		{"whole", [][]string{volatile, live}, 1},
	}
}

// cost is what a way took.
type cost struct {
	Name   string
	Wall   time.Duration
	RSSMiB float64        // of the largest process
	Rows   map[string]int // of the tables that were captured last
}

// live measures live response on a busy host.
func live(ctx context.Context, o Options) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := crowd.Command(ctx, self, CrowdVerb, busy, o.Binaries.Agent)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("cannot make a busy host: %w; it takes root", err)
	}
	var costs []cost
	err = json.NewDecoder(out).Decode(&costs)
	if err := errors.Join(err, cmd.Wait()); err != nil {
		return fmt.Errorf("cannot measure on a busy host: %w", err)
	}
	return o.compare(costs)
}

// walk holds the walks of a tree against find and tar: the benchmarks of the
// agent's own room.
func walk(ctx context.Context, o Options) error {
	said, err := command(ctx, o.Source, []string{fmt.Sprint("QUICKLIME_BENCH_FILES=", treeFiles)},
		"go", "test", "-run", "^$", "-bench", "Bodyfile|FilesTar", "-benchtime", "3x", "-timeout", "30m", "./agent/artifact")
	if err != nil {
		return err
	}
	figures, err := parseBenchmarks(said)
	if err != nil {
		return err
	}
	for _, f := range figures {
		if err := o.figure(f.name, f.value, f.unit); err != nil {
			return err
		}
	}
	return nil
}

// compare prints each way's figures, and the ratios.
func (o Options) compare(costs []cost) error {
	by := map[string]cost{}
	for _, c := range costs {
		by[c.Name] = c
		if err := errors.Join(o.figure("live_"+c.Name, c.Wall.Seconds(), "s"), o.figure("live_"+c.Name+"_rss", c.RSSMiB, "MiB")); err != nil {
			return err
		}
		for _, table := range slices.Sorted(maps.Keys(c.Rows)) {
			if err := o.figure("live_"+c.Name+"_"+table, float64(c.Rows[table]), "rows"); err != nil {
				return err
			}
		}
	}
	seconds := func(names ...string) (sum float64) {
		for _, name := range names {
			sum += by[name].Wall.Seconds()
		}
		return sum
	}
	return errors.Join(
		o.figure("live_volatile_vs_lsof", seconds("lsof")/seconds("volatile"), "x"),
		o.figure("live_volatile_vs_ps_ss_lsof", seconds("ps", "ss", "lsof")/seconds("volatile"), "x"),
		o.figure("live_whole_vs_by_hand", seconds("by_hand")/seconds("whole"), "x"))
}

// AmongCrowd runs each way and writes what it cost to out, as JSON. It is
// called within the crowd.
func AmongCrowd(ctx context.Context, agent string, out io.Writer) error {
	dir, err := os.MkdirTemp("/dev/shm", "crowd-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var costs []cost
	folders := 0
	for _, w := range ways(agent) {
		var walls []float64
		c := cost{Name: w.name}
		for range w.rounds {
			var sum time.Duration
			for _, argv := range w.commands {
				argv = slices.Clone(argv)
				folder := filepath.Join(dir, fmt.Sprint(folders))
				if at := slices.Index(argv, captured); at >= 0 {
					argv[at] = folder
					folders++
				} else if _, err := exec.LookPath(argv[0]); err != nil {
					fmt.Fprintln(os.Stderr, "left out, not installed:", argv[0])
					continue
				}
				wall, rss, err := timed(ctx, argv)
				if err != nil {
					return err
				}
				if rows, err := countRows(folder); err != nil {
					return err
				} else if len(rows) > 0 {
					c.Rows = rows
				}
				sum, c.RSSMiB = sum+wall, max(c.RSSMiB, rss)
			}
			walls = append(walls, sum.Seconds())
		}
		c.Wall = time.Duration(median(walls) * float64(time.Second))
		costs = append(costs, c)
	}
	return json.NewEncoder(out).Encode(costs)
}

// counted are the tables whose rows say that nothing of the crowd was left
// out.
var counted = []string{"processes", "threads", "sockets", "open_files"}

// countRows counts the rows of those in a folder, if it has any.
func countRows(folder string) (map[string]int, error) {
	rows := map[string]int{}
	for _, table := range counted {
		f, err := os.Open(filepath.Join(folder, "volatile", table+".jsonl.zst"))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		n, err := lines(f)
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("cannot count the rows of %s: %w", table, err)
		}
		rows[table] = n
	}
	return rows, nil
}

func lines(stored io.Reader) (n int, err error) {
	d, err := zstd.NewReader(stored, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return 0, err
	}
	defer d.Close()
	for scan := bufio.NewReader(d); ; {
		piece, err := scan.ReadSlice('\n')
		if len(piece) > 0 && piece[len(piece)-1] == '\n' {
			n++
		}
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return n, err
		}
	}
}

// timed runs a program whose output goes nowhere.
func timed(ctx context.Context, argv []string) (wall time.Duration, rssMiB float64, err error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	began := time.Now()
	err = cmd.Run()
	wall = time.Since(began)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 {
		err = nil // lsof's, where some process could not be read
	}
	if err != nil {
		return 0, 0, fmt.Errorf("cannot run %v: %w", argv, err)
	}
	return wall, float64(cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss) / 1024, nil
}
