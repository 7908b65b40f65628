package e2e

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/quicklime-ir/quicklime/packaging/lab/guest/pact"
	"github.com/quicklime-ir/quicklime/packaging/lab/world"
)

// What Volatility is made of, pinned: a new release is looked at first.
const volatilityVersion = "2.28.2"

var volatilityPackages = []string{"volatility3==" + volatilityVersion, "pefile==2024.8.26"}

// volatility is an installed Volatility 3.
type volatility struct {
	python, program string // of its virtual environment
}

func installVolatility(t *testing.T) volatility {
	t.Helper()
	dir := venv(t, "volatility3-"+volatilityVersion, volatilityPackages...)
	return volatility{filepath.Join(dir, "bin/python3"), filepath.Join(dir, "bin/vol")}
}

// row is what a plugin says of one thing.
type row map[string]any

// run runs a plugin on an image, with the symbols in a folder and no network.
func (v volatility) run(t *testing.T, image, symbols string, plugin ...string) []row {
	t.Helper()
	// The program is handed to python, as its first line has the path of
	// before the rename.
	args := append([]string{v.program, "-q", "--offline", "--cache-path", filepath.Dir(symbols), "-s", symbols, "-f", image, "-r", "json"}, plugin...)
	cmd := exec.CommandContext(t.Context(), v.python, args...)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	var rows []row
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %v\n%s", plugin, err, complaint.String())
	}
	if err := json.Unmarshal(out.Bytes(), &rows); err != nil {
		t.Fatalf("%v: %v\n%s\n%s", plugin, err, out.String(), complaint.String())
	}
	return rows
}

// readable holds what Volatility reads in an exported image, with the symbol
// file that our command made, against what was true in the guest: the
// intruder's process and the mapping of its deleted program, and every module
// that was loaded. It gives the symbols.
func readable(t *testing.T, keep, said string) map[string]json.RawMessage {
	t.Helper()
	v := installVolatility(t)
	pid := intruder(t, said)
	work := t.TempDir()
	symbols := filepath.Join(work, "symbols")
	if err := os.Mkdir(symbols, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(symbols, "guest.json")
	caseID, bundle := bundleOf(t, keep)
	report, err := exec.CommandContext(t.Context(), binaries.Collector, "symbols", caseID, "--dir", filepath.Join(keep, "bucket"),
		"--key", filepath.Join(keep, "verify.pub"), "--out", file).CombinedOutput()
	t.Logf("symbols %s:\n%s", caseID, report)
	if err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(keep, "memory.lime")

	name := filepath.Base(pact.IntruderExe)
	processes := v.run(t, image, symbols, "linux.pslist")
	if !slices.ContainsFunc(processes, func(r row) bool { return r["PID"] == float64(pid) && r["COMM"] == name }) {
		t.Errorf("the intruder, pid %d, %s, is not among %d processes: %v", pid, name, len(processes), processes)
	}
	maps := v.run(t, image, symbols, "linux.proc.Maps", "--pid", strconv.Itoa(pid))
	if !slices.ContainsFunc(maps, func(r row) bool {
		path, _ := r["File Path"].(string)
		return strings.TrimSpace(path) == pact.IntruderExe+" (deleted)" && r["Flags"] == "r-x"
	}) {
		t.Errorf("no code of %s is mapped in pid %d: %v", pact.IntruderExe, pid, maps)
	}
	modules := v.run(t, image, symbols, "linux.lsmod")
	loaded := loadedModules(t, bundle)
	for _, module := range loaded {
		if !slices.ContainsFunc(modules, func(r row) bool { return r["Module Name"] == module }) {
			t.Errorf("module %s, which was loaded, is not among %v", module, modules)
		}
	}
	t.Logf("Volatility lists %d processes, %d mappings of pid %d, and %d modules, of which /proc/modules had %d",
		len(processes), len(maps), pid, len(modules), len(loaded))
	return symbolsOf(t, file)
}

var intruderLine = regexp.MustCompile(`an intruder runs as pid ([0-9]+) from a deleted binary`)

// intruder is the pid that the guest told before the agent started.
func intruder(t *testing.T, said string) int {
	t.Helper()
	found := intruderLine.FindStringSubmatch(said)
	if found == nil {
		t.Fatal("the demo did not say which pid the intruder has")
	}
	pid, err := strconv.Atoi(found[1])
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// bundleOf finds the only case, and its bundle of symbols.
func bundleOf(t *testing.T, keep string) (caseID, path string) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(keep, "bucket/cases/*", world.Victim, "symbols/symbols.tar.zst"))
	if err != nil || len(found) != 1 {
		t.Fatalf("bundles %v, %v", found, err)
	}
	return filepath.Base(filepath.Dir(filepath.Dir(filepath.Dir(found[0])))), found[0]
}

// loadedModules reads /proc/modules as the agent took it.
func loadedModules(t *testing.T, bundle string) []string {
	t.Helper()
	f, err := os.Open(bundle)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	plain, err := zstd.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	archive := tar.NewReader(plain)
	for {
		header, err := archive.Next()
		if err != nil {
			t.Fatalf("no list of modules in the bundle: %v", err)
		}
		if header.Name != "modules" {
			continue
		}
		body, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for line := range strings.Lines(string(body)) {
			name, _, _ := strings.Cut(line, " ")
			names = append(names, name)
		}
		if len(names) == 0 {
			t.Fatal("no module was loaded")
		}
		return names
	}
}

func symbolsOf(t *testing.T, file string) map[string]json.RawMessage {
	t.Helper()
	body, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var parsed struct{ Symbols map[string]json.RawMessage }
	if err := json.Unmarshal(body, &parsed); err != nil {
		t.Fatal(err)
	}
	return parsed.Symbols
}

// sameKernel wants the symbols of two boots, each of which moved the kernel
// elsewhere, to be the same once they are moved back.
func sameKernel(t *testing.T, a, b map[string]json.RawMessage) {
	t.Helper()
	differ := 0
	for name, one := range a {
		if two := b[name]; !bytes.Equal(one, two) {
			if differ++; differ < 10 {
				t.Errorf("symbol %s is %s in one boot and %s in the other", name, one, two)
			}
		}
	}
	if differ > 0 || len(a) != len(b) {
		t.Errorf("%d of %d symbols differ between two boots of one kernel; the other has %d", differ, len(a), len(b))
	}
}
