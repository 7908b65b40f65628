package acquire

import (
	"archive/tar"
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// The memory of a process is in the folder as a core: a secret of its
// environment lies there where the process has it, and gdb opens the core.
func TestProcessMemoryIntoAFolder(t *testing.T) {
	a, _ := host(t)
	secret := "PLANTED=quicklime " + t.TempDir()
	program, pid := startSmall(t, secret)
	proc := filepath.Join(a.Host.Root, "proc")
	if err := errors.Join(os.Mkdir(proc, 0o755), os.Symlink(fmt.Sprintf("/proc/%d", pid), filepath.Join(proc, strconv.Itoa(pid)))); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	folder := &Folder{Dir: dir}
	r := a.Run(t.Context(), Order{Kind: evidence.Live, Compression: evidence.None, ProcessMemory: []int{pid}}, folder, silent)
	if err := errors.Join(r.Err, folder.Close()); err != nil || r.Status != evidence.Whole {
		t.Fatalf("%s, %v", r.Status, err)
	}
	path := coreIn(t, filepath.Join(dir, "live", "process_memory.tar"), fmt.Sprintf("live_response/process_memory/%d/core", pid))
	core, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer core.Close()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Skip(err)
	}
	defer mem.Close()
	found := false
	for _, p := range core.Progs {
		data := make([]byte, p.Filesz)
		if _, err := p.ReadAt(data, 0); err != nil {
			t.Fatal(err)
		}
		if at := bytes.Index(data, []byte(secret)); p.Type == elf.PT_LOAD && at >= 0 {
			real := make([]byte, len(secret))
			_, err := mem.ReadAt(real, int64(p.Vaddr)+int64(at))
			found = err == nil && string(real) == secret
		}
	}
	if !found {
		t.Error("the secret is not in the core, at its address")
	}
	if gdb, err := exec.LookPath("gdb"); err == nil {
		said, err := exec.CommandContext(t.Context(), gdb, "-nx", "-batch", "-ex", "info target", program, path).CombinedOutput()
		if err != nil || !strings.Contains(string(said), "Local core dump file") {
			t.Errorf("gdb: %v\n%.2000s", err, said)
		}
	}
}

// startSmall runs a small process, without the race detector in it, that ends
// with the test.
func startSmall(t *testing.T, environ string) (program string, pid int) {
	t.Helper()
	program = filepath.Join(t.TempDir(), "small")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "../artifact/testdata/small")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	cmd := exec.Command(program)
	cmd.Env = []string{environ}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the process said %q, %v", line, err)
	}
	return program, cmd.Process.Pid
}

// coreIn unpacks one member of a tar, and gives its path.
func coreIn(t *testing.T, path, name string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for archive := tar.NewReader(f); ; {
		header, err := archive.Next()
		if err != nil {
			t.Fatalf("%s in %s: %v", name, path, err)
		}
		if header.Name != name {
			continue
		}
		core := filepath.Join(t.TempDir(), "core")
		out, err := os.Create(core)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(out, archive)
		if err := errors.Join(err, out.Close()); err != nil {
			t.Fatal(err)
		}
		return core
	}
}
