package artifact

import (
	"bufio"
	"encoding/binary"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// A real bash whose history goes to no file still remembers it.
func TestHistoryOfABashWithoutAFile(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip(err)
	}
	cmd := exec.Command(bash, "--norc", "--noprofile", "-i")
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
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
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	in.Write([]byte("unset HISTFILE\nset -o history\n: planted command of an intruder\necho ready\n"))
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("bash said %q, %v", line, err)
	}
	got, record := table[ShellCommand](t, new(Host), "shell_memory")
	if !slices.ContainsFunc(got, func(c ShellCommand) bool {
		return c.PID == cmd.Process.Pid && c.Command == ": planted command of an intruder" && !c.Time.IsZero()
	}) {
		for _, e := range record {
			if e.Errno == "EPERM" || e.Errno == "EACCES" {
				t.Skip("this host lets nobody read another's memory")
			}
		}
		t.Errorf("the command is not among %d, of shells on record as %+v", len(got), record)
	}
}

func FuzzFindHistory(f *testing.F) {
	list := binary.LittleEndian.AppendUint64(nil, 0x1010)
	list = binary.LittleEndian.AppendUint64(list, 0x1020)
	f.Add(append(list, "id\x00"+strings.Repeat("x", 13)+"#1700000000\x00"...))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, c := range findHistory([]span{{0x1000, data}}) {
			if c.Time.Unix() < 0 || c.Command == "" || len(c.Command) > maxPath {
				t.Errorf("found %+v", c)
			}
		}
	})
}
