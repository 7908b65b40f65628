package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/quicklime-ir/quicklime/packaging/lab/guest/pact"
)

// testKit prepares the real kit, or skips the test with the reason; on a CI
// machine nothing is skipped.
func testKit(t *testing.T) *Kit {
	t.Helper()
	kit, err := func() (*Kit, error) {
		if missing := Missing(); len(missing) > 0 {
			return nil, fmt.Errorf("these packages are not installed: %s", strings.Join(missing, " "))
		}
		dir, err := CacheDir()
		if err != nil {
			return nil, err
		}
		return Prepare(t.Context(), dir, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	}()
	if err != nil && os.Getenv("CI") == "" {
		t.Skipf("no guest to test with: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return kit
}

// testConfig builds init and the stand-in agent.
func testConfig(t *testing.T, kit *Kit) Config {
	t.Helper()
	dir := t.TempDir()
	cfg := Config{Kit: kit, Init: filepath.Join(dir, "init"), Agent: filepath.Join(dir, "agent"), MemoryMiB: 256}
	if err := BuildInit(t.Context(), ".", cfg.Init); err != nil {
		t.Fatal(err)
	}
	if err := buildStatic(t.Context(), ".", "./testdata/standin", cfg.Agent); err != nil {
		t.Fatal(err)
	}
	return cfg
}

// TestBoot boots the real kernel, takes a real LiME image of it through the
// guest's network, and finds in it what the lab planted.
func TestBoot(t *testing.T) {
	kit := testKit(t)
	defer goleak.VerifyNone(t)
	cfg := testConfig(t, kit)
	sink, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	cfg.AgentArgs = []string{fmt.Sprintf("%s:%d", pact.HostLoopback, sink.Addr().(*net.TCPAddr).Port)}
	cfg.Files = map[string]File{"/etc/quicklime/ca.pem": {Mode: 0o600, Data: []byte("x")}}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	vm, err := Boot(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Stop()
	facts, err := vm.Ready(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("ready after %s; RAM %x", facts.BootTime.Round(10*time.Millisecond), facts.SystemRAM)
	if facts.Release != kit.Release || !strings.HasPrefix(facts.Version, "Linux version "+kit.Release+" ") {
		t.Errorf("the guest runs %q, %q; want %s", facts.Release, facts.Version, kit.Release)
	}
	ranges, image := receive(t, sink)
	if !slices.Equal(ranges, facts.SystemRAM) {
		t.Errorf("LiME's ranges are %x, /proc/iomem's %x", ranges, facts.SystemRAM)
	}
	for n, page := range facts.MarkerPages {
		at := bytes.Index(image, page)
		if at < 0 {
			t.Errorf("marker page %d is not in the image", n)
			continue
		}
		if bytes.Contains(image[at+1:], page) {
			t.Errorf("marker page %d is in the image twice", n)
		}
	}
	if !bytes.Contains(image, []byte(pact.MarkerEnv+"="+facts.Marker+"\x00")) {
		t.Error("the environment's marker is not in the image")
	}
	if console := vm.ConsoleTail(); !strings.Contains(console, "standin: version="+facts.Version) {
		t.Errorf("the stand-in saw another kernel than the facts: %s", console)
	}
	sink.Close()
	killAgent(ctx, t, vm)
	if err := vm.Stop(); err != nil {
		t.Error(err)
	}
	if _, err := vm.Command(ctx, pact.VerbAgent); err == nil {
		t.Error("a stopped guest answers")
	}
}

// receive takes one LiME stream and returns its ranges and all their bytes.
func receive(t *testing.T, sink net.Listener) ([]Range, []byte) {
	t.Helper()
	start := time.Now()
	conn, err := sink.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var ranges []Range
	var image bytes.Buffer
	for {
		var h struct {
			Magic, Version       uint32
			Start, End, Reserved uint64
		}
		err := binary.Read(conn, binary.LittleEndian, &h)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil || h.Magic != 0x4C694D45 || h.Version != 1 {
			t.Fatalf("bad header %+v after %d ranges: %v", h, len(ranges), err)
		}
		r := Range{h.Start, h.End}
		if _, err := io.CopyN(&image, conn, int64(r.Size())); err != nil {
			t.Fatalf("the stream ends inside the range %x: %v", r, err)
		}
		ranges = append(ranges, r)
	}
	t.Logf("%d MiB of image in %s", image.Len()>>20, time.Since(start).Round(10*time.Millisecond))
	return ranges, image.Bytes()
}

// killAgent kills the agent and waits until init has started it again.
func killAgent(ctx context.Context, t *testing.T, vm *VM) {
	t.Helper()
	before := agentStarts(ctx, t, vm)
	if _, err := vm.Command(ctx, pact.VerbKillAgent); err != nil {
		t.Fatal(err)
	}
	for agentStarts(ctx, t, vm) == before {
		time.Sleep(100 * time.Millisecond)
	}
	if _, err := vm.Command(ctx, "dance"); err == nil {
		t.Error("init obeyed an unknown verb")
	}
}

func agentStarts(ctx context.Context, t *testing.T, vm *VM) int {
	t.Helper()
	answer, err := vm.Command(ctx, pact.VerbAgent)
	if err != nil {
		t.Fatal(err)
	}
	_, starts, _ := strings.Cut(answer, " ")
	n, err := strconv.Atoi(starts)
	if err != nil {
		t.Fatalf("init answered %q: %v", answer, err)
	}
	return n
}

// TestNoOrphan starts a guest in a child process, ends the child, and looks for
// the emulator.
func TestNoOrphan(t *testing.T) {
	kit := testKit(t)
	cfg := testConfig(t, kit)
	for _, signal := range []string{"KILL", "INT"} {
		t.Run(signal, func(t *testing.T) {
			child := exec.Command(os.Args[0], "-test.run=^TestParent$", "-test.v")
			child.Env = append(os.Environ(), "GUEST_PARENT=1", "GUEST_INIT="+cfg.Init, "GUEST_AGENT="+cfg.Agent, "GUEST_CACHE="+filepath.Dir(filepath.Dir(filepath.Dir(kit.Kernel))))
			child.Stderr = os.Stderr
			out, err := child.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := child.Start(); err != nil {
				t.Fatal(err)
			}
			emulator := readPID(t, out)
			if !alive(emulator) {
				t.Fatalf("the emulator %d does not run", emulator)
			}
			sig := os.Signal(os.Kill)
			if signal == "INT" {
				sig = os.Interrupt
			}
			if err := child.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, out)
			_ = child.Wait()
			for end := time.Now().Add(10 * time.Second); alive(emulator); time.Sleep(20 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("the emulator %d outlives its parent", emulator)
				}
			}
		})
	}
}

// TestParent is not a test but the child of TestNoOrphan.
func TestParent(t *testing.T) {
	if os.Getenv("GUEST_PARENT") == "" {
		t.Skip("only as TestNoOrphan's child")
	}
	kit, err := Prepare(t.Context(), os.Getenv("GUEST_CACHE"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt)
	defer stop()
	vm, err := Boot(ctx, Config{Kit: kit, Init: os.Getenv("GUEST_INIT"), Agent: os.Getenv("GUEST_AGENT"), AgentArgs: []string{"127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := vm.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	fmt.Printf("\nemulator=%d\n", vm.pid)
	<-vm.Done()
}

func readPID(t *testing.T, from io.Reader) int {
	t.Helper()
	lines := pact.Lines(from)
	for lines.Scan() {
		if number, ok := strings.CutPrefix(lines.Text(), "emulator="); ok {
			pid, err := strconv.Atoi(number)
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
		t.Log(lines.Text())
	}
	t.Fatal("the child did not start an emulator")
	return 0
}

// alive tells whether a process runs; a zombie does not.
func alive(pid int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(status), ") ")
	return !strings.HasPrefix(after, "Z")
}
