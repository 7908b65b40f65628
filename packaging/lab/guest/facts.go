package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/quicklime-ir/quicklime/packaging/lab/guest/pact"
)

// ErrDown is returned for a guest that has ended.
var ErrDown = errors.New("the guest is down")

// Facts is what stands in a booted guest, and so what evidence of it must show.
type Facts struct {
	Release   string  // uname -r
	Version   string  // /proc/version, one line: the banner that symbol files are matched by
	BootID    string  // /proc/sys/kernel/random/boot_id
	SystemRAM []Range // the top-level System RAM lines of /proc/iomem, ascending

	DeletedPID  int      // the intruder's process
	DeletedExe  string   // its /proc/PID/exe: the unlinked program's path and " (deleted)"
	DeletedName string   // its argv[0]
	Marker      string   // the value of QUICKLIME_MARKER in its environment
	MarkerPages [][]byte // pages of 4096 bytes locked in its memory and nowhere else
	Listen      string   // its listening socket in the guest
	BeaconFrom  string   // the guest's end of its outbound connection
	Beacon      string   // the far end as the guest sees it, held open by the lab

	Traces   []Trace       // the lines left in files
	BootTime time.Duration // from the call of Boot until all of this stood
}

// hostFacts are the facts that the lab knows before the guest runs.
func hostFacts(seed []byte, cfg Config, home *beacon) Facts {
	f := Facts{
		DeletedName: pact.IntruderName,
		Marker:      pact.Marker(seed),
		Beacon:      net.JoinHostPort(pact.HostLoopback, strconv.Itoa(home.port())),
		Traces:      intrusion(seed, cfg.Hostname, time.Now()),
	}
	for n := range pact.MarkerPages {
		page := make([]byte, pact.PageSize)
		pact.FillPage(page, seed, n)
		f.MarkerPages = append(f.MarkerPages, page)
	}
	return f
}

// Ready waits until the intrusion stands. The agent starts right after.
func (vm *VM) Ready(ctx context.Context) (Facts, error) {
	select {
	case <-ctx.Done():
		return Facts{}, fmt.Errorf("cannot wait for the guest: %w; the console's end:\n%s", context.Cause(ctx), vm.ConsoleTail())
	case <-vm.ready:
	case <-vm.done:
	}
	vm.mu.Lock()
	standing, fault := vm.standing, vm.fault
	vm.mu.Unlock()
	if standing == nil {
		if fault == "" {
			fault = fmt.Sprintf("it ended (%v)", vm.exit)
		}
		return Facts{}, fmt.Errorf("cannot use the guest: %w: %s; the console's end:\n%s", ErrDown, fault, vm.ConsoleTail())
	}
	return complete(vm.facts, *standing)
}

// complete adds what the guest told to what the lab knows, and refuses what
// would make later checks empty.
func complete(f Facts, s pact.Standing) (Facts, error) {
	ram, err := systemRAM(s.IOMem)
	if err != nil {
		return Facts{}, fmt.Errorf("cannot use the guest's report: %w", err)
	}
	if want := pact.IntruderExe + " (deleted)"; s.IntruderExe != want {
		return Facts{}, fmt.Errorf("cannot use the guest's report: the intruder runs from %q, want %q", s.IntruderExe, want)
	}
	for name, value := range map[string]string{"release": s.Release, "version": s.Version, "boot id": s.BootID, "listening socket": s.Listen, "outbound connection": s.BeaconFrom} {
		if strings.TrimSpace(value) == "" {
			return Facts{}, fmt.Errorf("cannot use the guest's report: it has no %s", name)
		}
	}
	f.Release, f.Version, f.BootID, f.SystemRAM = s.Release, s.Version, s.BootID, ram
	f.DeletedPID, f.DeletedExe, f.Listen, f.BeaconFrom = s.IntruderPID, s.IntruderExe, s.Listen, s.BeaconFrom
	return f, nil
}

// Command sends a verb of package pact to the guest's init and returns its
// answer.
func (vm *VM) Command(ctx context.Context, verb string) (string, error) {
	r, _, err := vm.ask(ctx, pact.Command{Verb: verb})
	return r.Text, err
}

// Ended is how a program in the guest ended.
type Ended struct {
	Output []byte // standard output and error, as they came; at most pact.MaxOutput
	Exit   int    // its exit code; 128 and the signal's number where one ended it
}

// Run runs a program in the guest as root and waits for it: path and
// arguments, no shell. After limit it is killed, with all that it started. A
// program that failed is no error; one that could not be run, wrote too much
// or was killed for its time is.
func (vm *VM) Run(ctx context.Context, limit time.Duration, argv ...string) (Ended, error) {
	r, output, err := vm.ask(ctx, pact.Command{Verb: pact.VerbRun, Argv: argv, Limit: limit})
	return Ended{Output: output, Exit: r.Exit}, err
}

// call is a command that was sent and is not answered yet.
type call struct {
	output []byte           // so far; owned by the VM's mu until the answer came
	answer chan pact.Report // gets one
}

// ask sends a command and waits for its answer, and what came before it.
func (vm *VM) ask(ctx context.Context, c pact.Command) (pact.Report, []byte, error) {
	waiting := &call{answer: make(chan pact.Report, 1)}
	vm.mu.Lock()
	vm.nextID++
	c.ID = vm.nextID
	vm.calls[c.ID] = waiting
	err := vm.line.SetWriteDeadline(time.Now().Add(5 * time.Second))
	if err == nil {
		err = pact.Write(vm.line, c)
	}
	vm.mu.Unlock()
	defer vm.forget(c.ID)
	if err != nil {
		return pact.Report{}, nil, fmt.Errorf("cannot tell the guest to %s: %w", c.Verb, err)
	}
	select {
	case r := <-waiting.answer:
		if r.Error != "" {
			err = fmt.Errorf("the guest refused to %s: %s", c.Verb, r.Error)
		}
		return r, waiting.output, err
	case <-vm.done:
		return pact.Report{}, nil, fmt.Errorf("cannot tell the guest to %s: %w", c.Verb, ErrDown)
	case <-ctx.Done():
		return pact.Report{}, nil, fmt.Errorf("cannot tell the guest to %s: %w", c.Verb, context.Cause(ctx))
	}
}

func (vm *VM) forget(id int) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	delete(vm.calls, id)
}

// listen reads the guest's reports until the line closes.
func (vm *VM) listen() {
	lines := pact.Lines(vm.line)
	for lines.Scan() {
		var r pact.Report
		if err := pact.Decode(lines.Bytes(), &r); err != nil {
			fmt.Fprintf(vm.tail, "lab: %v\n", err)
			continue
		}
		vm.take(r)
	}
	if err := lines.Err(); err != nil && !errors.Is(err, net.ErrClosed) {
		fmt.Fprintf(vm.tail, "lab: the serial line broke: %v\n", err)
	}
}

// take acts on one report. Only the first facts or fault counts.
func (vm *VM) take(r pact.Report) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	switch {
	case r.Kind == pact.KindOutput:
		if c, ok := vm.calls[r.ID]; ok && len(c.output)+len(r.Data) <= pact.MaxOutput {
			c.output = append(c.output, r.Data...)
		}
	case r.Kind == pact.KindReply:
		if c, ok := vm.calls[r.ID]; ok {
			delete(vm.calls, r.ID)
			c.answer <- r
		}
	case r.Kind == pact.KindAgent:
		fmt.Fprintf(vm.tail, "lab: %s\n", strconv.QuoteToASCII(r.Text))
	case r.Kind == pact.KindFacts && r.Facts != nil && vm.standing == nil && vm.fault == "":
		vm.standing = r.Facts
		vm.facts.BootTime = time.Since(vm.started)
		close(vm.ready)
	case r.Kind == pact.KindFault && vm.standing == nil && vm.fault == "":
		vm.fault = r.Text
		close(vm.ready)
	default:
		fmt.Fprintf(vm.tail, "lab: unexpected report of kind %q: %q\n", r.Kind, r.Text)
	}
}
