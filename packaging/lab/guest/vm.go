package guest

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quicklime-ir/quicklime/packaging/lab/guest/pact"
)

// emulator is the program that Boot runs, found by PATH.
const emulator = "qemu-system-x86_64"

// processor has 4-level paging, which analysis tools expect, and is what a
// current EC2 instance may have, without the features that software emulation
// lacks and would warn of.
const processor = "Skylake-Server,-pcid,-x2apic,-tsc-deadline,-hle,-rtm,-invpcid,-rdseed,-3dnowprefetch,-xsavec," +
	"-avx512f,-avx512dq,-avx512cd,-avx512bw,-avx512vl"

// Config says what to boot. Kit, Init and Agent are required.
type Config struct {
	Kit        *Kit
	Init       string          // the program of BuildInit
	Agent      string          // a static quicklime-agent for amd64
	AgentArgs  []string        // its arguments, without its name; none: it is there, and not started
	AgentEnv   []string        // its environment, KEY=value
	Files      map[string]File // more files by absolute path; not below /proc /sys /dev /run /tmp /bin /sbin /lib
	MemoryMiB  int             // 0 means 512
	CPUs       int             // 0 means 2
	Hostname   string          // "" means ip-10-0-2-15
	Disks      []Disk          // /dev/vda, /dev/vdb, …; nothing mounts them
	Root       string          // an image of Debian's, to boot into: its systemd runs the guest; not changed. Not with Disks.
	KernelArgs []string        // more kernel arguments, such as lockdown=integrity
	Console    io.Writer       // gets the console's bytes; its errors are ignored; nil keeps the tail only
}

// Disk is a virtio disk of the guest.
type Disk struct {
	Path     string // an image, byte for byte; not changed where it is ReadOnly
	ReadOnly bool
}

// VM is a running guest. Its process dies with this one, whatever ends it.
type VM struct {
	started time.Time
	facts   Facts // what the lab itself knows; Ready adds the guest's part
	tail    *tail
	beacon  *beacon
	line    net.Conn
	kill    context.CancelFunc
	done    chan struct{} // closed when the emulator and every goroutine ended
	ready   chan struct{} // closed when standing or fault is set
	pid     int           // the emulator's, set before Boot returns
	exit    error         // the emulator's, read after done

	mu       sync.Mutex // guards the rest and writes to line
	standing *pact.Standing
	fault    string
	nextID   int
	calls    map[int]*call // by id
}

// Boot packs an initramfs in memory and starts the guest, emulated in software:
// no virtualisation hardware is used, and the CPU model has no 5-level paging.
// The guest's 10.0.2.2 is this host's 127.0.0.1. Ending ctx kills the guest.
// Nothing is written to the disk.
func Boot(ctx context.Context, cfg Config) (*VM, error) {
	vm, err := boot(ctx, withDefaults(cfg))
	if err != nil {
		return nil, fmt.Errorf("cannot boot the guest: %w", err)
	}
	return vm, nil
}

func withDefaults(cfg Config) Config {
	if cfg.MemoryMiB == 0 {
		cfg.MemoryMiB = 512
	}
	if cfg.CPUs == 0 {
		cfg.CPUs = 2
	}
	if cfg.Hostname == "" {
		cfg.Hostname = "ip-10-0-2-15"
	}
	if cfg.Console == nil {
		cfg.Console = io.Discard
	}
	return cfg
}

func boot(ctx context.Context, cfg Config) (*VM, error) {
	for _, program := range []string{cfg.Init, cfg.Agent} {
		if err := isStatic(program); err != nil {
			return nil, err
		}
	}
	seed := make([]byte, pact.SeedSize)
	if _, err := rand.Read(seed); err != nil {
		return nil, err
	}
	home, err := listenBeacon()
	if err != nil {
		return nil, err
	}
	vm := &VM{
		started: time.Now(), beacon: home, tail: &tail{forward: cfg.Console},
		done: make(chan struct{}), ready: make(chan struct{}), calls: map[int]*call{},
		facts: hostFacts(seed, cfg, home),
	}
	if cfg.Root != "" && len(cfg.Disks) > 0 {
		return nil, errors.New("a guest with a Root has no other Disks")
	}
	orders := pact.Orders{Seed: seed, Hostname: cfg.Hostname, Beacon: vm.facts.Beacon, Args: cfg.AgentArgs, Env: cfg.AgentEnv}
	if err := vm.launch(ctx, cfg, orders); err != nil {
		home.close()
		return nil, err
	}
	return vm, nil
}

// launch starts the emulator and the goroutines that tend it.
func (vm *VM) launch(ctx context.Context, cfg Config, orders pact.Orders) error {
	image, err := packInMemory(cfg, orders, vm.facts.Traces)
	if err != nil {
		return err
	}
	defer image.Close()
	ours, theirs, err := socketPair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	ctx, vm.kill = context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, emulator, arguments(cfg)...)
	cmd.ExtraFiles = []*os.File{theirs, image} // descriptors 3 and 4
	cmd.Stdout, cmd.Stderr = vm.tail, vm.tail
	cmd.WaitDelay = 5 * time.Second
	// Its own group: a Ctrl-C at the terminal goes to the lab alone, which then
	// stops the guest in its turn.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	vm.line = ours
	failed := make(chan error, 1)
	go vm.tend(cmd, failed)
	if err := <-failed; err != nil {
		vm.kill()
		ours.Close()
		return err
	}
	return nil
}

// tend starts the emulator, waits for it, and closes done last. Its thread is
// locked from start to end because the kernel ties Pdeathsig to the thread that
// forked, prctl(2).
func (vm *VM) tend(cmd *exec.Cmd, failed chan<- error) {
	runtime.LockOSThread()
	if err := cmd.Start(); err != nil {
		failed <- fmt.Errorf("cannot start the emulator: %w; install qemu-system-x86", err)
		return
	}
	vm.pid = cmd.Process.Pid
	failed <- nil
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		vm.listen()
	}()
	vm.exit = cmd.Wait()
	vm.kill()
	vm.line.Close()
	<-heard
	vm.beacon.close()
	close(vm.done)
}

// arguments are the emulator's. Descriptor 3 is the serial line's socket, 4 the
// initramfs.
func arguments(cfg Config) []string {
	kernel := []string{"console=ttyS0", "quiet", "panic=-1", "net.ifnames=0"}
	if cfg.Root != "" {
		// The root has no udev, so a getty would wait for the serial line's device
		// until its time is over; e2scrub finds no LVM, at length.
		kernel = append(kernel, "systemd.mask=serial-getty@ttyS0.service", "systemd.mask=e2scrub_reap.service")
	}
	kernel = append(kernel, cfg.KernelArgs...)
	args := []string{
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-machine", "pc", "-accel", "tcg,thread=multi", "-cpu", processor,
		"-smp", strconv.Itoa(cfg.CPUs), "-m", strconv.Itoa(cfg.MemoryMiB), "-rtc", "base=utc",
		"-kernel", cfg.Kit.Kernel, "-initrd", "/proc/self/fd/4", "-append", strings.Join(kernel, " "),
		"-serial", "stdio",
		"-chardev", "socket,id=line,fd=3", "-serial", "chardev:line",
		"-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=",
	}
	if cfg.Root != "" {
		// What is written goes to a temporary file without a name.
		args = append(args,
			"-drive", "if=none,id=root,format=raw,snapshot=on,file="+strings.ReplaceAll(cfg.Root, ",", ",,"),
			"-device", "virtio-blk-pci,drive=root")
	}
	for i, disk := range cfg.Disks {
		mode := "off"
		if disk.ReadOnly {
			mode = "on"
		}
		name := fmt.Sprintf("disk%d", i)
		args = append(args,
			"-blockdev", fmt.Sprintf("driver=raw,node-name=%s,read-only=%s,file.driver=file,file.filename=%s", name, mode, strings.ReplaceAll(disk.Path, ",", ",,")),
			"-device", "virtio-blk-pci,drive="+name)
	}
	return args
}

// packInMemory packs into a file that has no name and goes with its last
// descriptor, so that a killed lab leaves nothing behind.
func packInMemory(cfg Config, orders pact.Orders, traces []Trace) (*os.File, error) {
	fd, err := unix.MemfdCreate("initramfs", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot make a file in memory: %w", err)
	}
	image := os.NewFile(uintptr(fd), "initramfs")
	buffered := bufio.NewWriterSize(image, 1<<20)
	if err := errors.Join(pack(buffered, cfg, orders, traces, time.Now()), buffered.Flush()); err != nil {
		image.Close()
		return nil, err
	}
	return image, nil
}

// socketPair returns the lab's end of the serial line and the emulator's.
func socketPair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot make the serial line: %w", err)
	}
	mine, theirs := os.NewFile(uintptr(fds[0]), "serial line"), os.NewFile(uintptr(fds[1]), "serial line")
	defer mine.Close()
	ours, err := net.FileConn(mine)
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("cannot make the serial line: %w", err)
	}
	return ours, theirs, nil
}

// Done is closed when the guest has ended and nothing of it is left.
func (vm *VM) Done() <-chan struct{} { return vm.done }

// ConsoleTail is the last 16 KiB of the console: kernel, init, agent, emulator.
func (vm *VM) ConsoleTail() string { return vm.tail.String() }

// Stop asks the guest to power off, kills it after three seconds, and waits
// until nothing of it is left. The error is the emulator's, where it had failed
// before.
func (vm *VM) Stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	_, err := vm.Command(ctx, pact.VerbPowerOff)
	if err == nil {
		select {
		case <-vm.done:
		case <-ctx.Done():
		}
	}
	select {
	case <-vm.done:
		return vm.failure()
	default:
	}
	vm.kill()
	<-vm.done
	return nil
}

// failure is the emulator's own failure: not an ordinary end, not a kill.
func (vm *VM) failure() error {
	var exit *exec.ExitError
	if vm.exit == nil || errors.Is(vm.exit, context.Canceled) {
		return nil
	}
	if errors.As(vm.exit, &exit) && exit.Sys().(syscall.WaitStatus).Signaled() {
		return nil
	}
	return fmt.Errorf("the emulator failed: %w; the console's end:\n%s", vm.exit, vm.ConsoleTail())
}
