package artifact

import (
	"bytes"
	"debug/elf"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// coreOf takes the memory of a process, and gives its core and gaps.
func coreOf(t *testing.T, h *Host, pid int) (core, gaps []byte, e Entry) {
	t.Helper()
	var out bytes.Buffer
	var rec Record
	if err := h.WriteProcessMemory(t.Context(), &out, &rec, []int{pid}); err != nil {
		t.Fatal(err)
	}
	e = find(t, entries(t, &rec), fmt.Sprintf("/proc/%d/mem", pid))
	if e.Errno == "EPERM" || e.Errno == "EACCES" {
		t.Skip("this host lets nobody read another's memory")
	}
	all := unpack(t, &out)
	if len(all) != 2 || all[0].Name != fmt.Sprintf("%s/%d/core", memoryRoot, pid) {
		t.Fatalf("a tar of %d members: %+v", len(all), e)
	}
	return all[0].data, all[1].data, e
}

// startSmall runs testdata/small, and gives its PID.
func startSmall(t *testing.T, environ ...string) int {
	t.Helper()
	program := filepath.Join(t.TempDir(), "small")
	buildSmall(t, program)
	return plant(t, exec.Command(program), environ...)
}

// buildSmall builds testdata/small, which needs no library.
func buildSmall(t *testing.T, program string) {
	t.Helper()
	build := exec.Command("go", "build", "-o", program, "./testdata/small")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
}

// A secret in another process's memory, its environment, lies in the core at
// the address where that process has it.
func TestACoreHoldsAChildsSecretAtItsAddress(t *testing.T) {
	secret := "PLANTED=quicklime " + t.TempDir()
	pid := startSmall(t, secret)
	core, _, e := coreOf(t, new(Host), pid)
	f, err := elf.NewFile(bytes.NewReader(core))
	if err != nil {
		t.Fatal(err)
	}
	if f.Type != elf.ET_CORE || f.Progs[0].Type != elf.PT_NOTE || e.Bytes != int64(len(core)) {
		t.Errorf("the core is %v, of %d bytes; on record is %+v", f.Type, len(core), e)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	found := 0
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD {
			continue
		}
		data := make([]byte, p.Filesz)
		if _, err := p.ReadAt(data, 0); err != nil {
			t.Fatal(err)
		}
		at := bytes.Index(data, []byte(secret))
		if at < 0 {
			continue
		}
		found++
		real := make([]byte, len(secret))
		if _, err := mem.ReadAt(real, int64(p.Vaddr)+int64(at)); err != nil || string(real) != secret {
			t.Errorf("at %x the process has %q, %v", p.Vaddr+uint64(at), real, err)
		}
	}
	if found == 0 {
		t.Error("the secret is not in the core")
	}
}

// Other programs read the core, too.
func TestReadelfReadsACore(t *testing.T) {
	readelf, err := exec.LookPath("readelf")
	if err != nil {
		t.Skip(err)
	}
	pid := startSmall(t)
	core, _, _ := coreOf(t, new(Host), pid)
	path := filepath.Join(t.TempDir(), "core")
	if err := os.WriteFile(path, core, 0o600); err != nil {
		t.Fatal(err)
	}
	said, err := exec.Command(readelf, "-W", "-h", "-l", "-n", path).CombinedOutput()
	for _, want := range []string{"CORE (Core file)", "NT_PRSTATUS", "NT_AUXV", "LOAD"} {
		if err != nil || !strings.Contains(string(said), want) {
			t.Errorf("readelf does not say %q, %v:\n%.2000s", want, err, said)
		}
	}
	if strings.Contains(string(said), "Warning") || strings.Contains(string(said), "Error") {
		t.Errorf("readelf complains:\n%.2000s", said)
	}
}

// A mapping beyond its file's end cannot be read: zeros, and on record.
func TestACoreListsItsGaps(t *testing.T) {
	const pages = 4
	_, gaps, e := coreOf(t, new(Host), startSmall(t))
	var total, here uint64
	for line := range bytes.Lines(gaps) {
		var g Gap
		if err := json.Unmarshal(line, &g); err != nil {
			t.Fatal(err)
		}
		total += g.Bytes
		if g.Why == "EIO" && g.Bytes == uint64((pages-1)*os.Getpagesize()) {
			here++
		}
	}
	if here == 0 || int64(total) != e.Padded {
		t.Errorf("gaps of %d bytes, on record are %d:\n%s", total, e.Padded, gaps)
	}
}

func TestACoreIsCapped(t *testing.T) {
	pid := startSmall(t)
	core, _, e := coreOf(t, &Host{Limits: Limits{ProcessBytes: 1 << 20}}, pid)
	f, err := elf.NewFile(bytes.NewReader(core))
	if err != nil {
		t.Fatal(err)
	}
	var taken uint64
	for _, p := range f.Progs[1:] {
		taken += p.Filesz
	}
	if taken != 1<<20 || e.Note != NoteCut {
		t.Errorf("took %d bytes; on record is %+v", taken, e)
	}
}
