// Package clock moves the wall clock of one running process, and of no other,
// as a time daemon does that steps it.
//
// The kernel has no wall clock for one process: time namespaces shift the
// monotonic clocks alone (time_namespaces(7)). But a program asks for the time
// by code that the kernel maps into it (vdso(7)), and the pages of that code
// are each process's own as soon as they are written to. So the program stays
// as it was built, and what it calls is replaced: the new code asks the kernel,
// and adds what is to be added where the wall clock was asked for.
package clock

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// code is what clock_gettime(clock, spec) becomes, for x86-64 and System V's
// calling convention: the clock in EDI, where the time goes in RSI.
var code = []byte{
	0xb8, 0xe4, 0x00, 0x00, 0x00, // mov eax, 228: clock_gettime
	0x0f, 0x05, // syscall
	0x85, 0xff, // test edi, edi: CLOCK_REALTIME is 0
	0x75, 0x0a, // jne end
	0x48, 0x8b, 0x0d, 0x06, 0x00, 0x00, 0x00, // mov rcx, [rip+6]: seconds
	0x48, 0x01, 0x0e, // add [rsi], rcx
	0xc3,       // end: ret
	0x90, 0x90, // nop, up to the word
}

const symbol = "__vdso_clock_gettime"

// patience is how often a process is stopped anew that is just asking for the
// time.
const patience = 100

// Clock is the wall clock of one process.
type Clock struct {
	memory *os.File // of the process
	word   int64    // where the seconds lie that are added
}

// Of takes the wall clock of a process into hand; it goes on as it did until
// Set. The process is stopped meanwhile, for less than a millisecond as a rule;
// one that is stopped already goes on after it. It takes the right to trace
// the process, and x86-64.
func Of(pid int) (_ *Clock, err error) {
	c := &Clock{}
	if c.memory, err = os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0); err != nil {
		return nil, fmt.Errorf("cannot take the clock of process %d: %w", pid, err)
	}
	if err := c.replace(pid); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot take the clock of process %d: %w", pid, err), c.memory.Close())
	}
	return c, nil
}

// Set has the process see a wall clock that is ahead by so much, in whole
// seconds; behind where it is negative.
func (c *Clock) Set(ahead time.Duration) error {
	var word [8]byte
	binary.LittleEndian.PutUint64(word[:], uint64(int64(ahead/time.Second)))
	if _, err := c.memory.WriteAt(word[:], c.word); err != nil {
		return fmt.Errorf("cannot set the clock: %w", err)
	}
	return nil
}

// Close lets the clock be as it is set.
func (c *Clock) Close() error { return c.memory.Close() }

// span is a range of addresses.
type span struct{ begin, end int64 }

func (s span) has(at uint64) bool { return uint64(s.begin) <= at && at < uint64(s.end) }

func (c *Clock) replace(pid int) error {
	vdso, err := vdsoOf(pid)
	if err != nil {
		return err
	}
	place, err := c.find(vdso)
	if err != nil {
		return err
	}
	for range patience {
		inside, err := c.try(pid, vdso, place)
		if err != nil || !inside {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return errors.New("it asks for the time without a pause")
}

// vdsoOf finds the kernel's code in a process.
func vdsoOf(pid int) (span, error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return span{}, err
	}
	for line := range strings.Lines(string(maps)) {
		if !strings.HasSuffix(line, " [vdso]\n") {
			continue
		}
		var s span
		if _, err := fmt.Sscanf(line, "%x-%x ", &s.begin, &s.end); err != nil {
			return s, fmt.Errorf("cannot read %q: %w", line, err)
		}
		return s, nil
	}
	return span{}, errors.New("the kernel's code is not mapped into it")
}

// find gives where the function is, and makes sure that it has room.
func (c *Clock) find(vdso span) (int64, error) {
	image := make([]byte, vdso.end-vdso.begin)
	if _, err := c.memory.ReadAt(image, vdso.begin); err != nil {
		return 0, err
	}
	file, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return 0, err
	}
	if file.Machine != elf.EM_X86_64 {
		return 0, fmt.Errorf("its machine is %v, want x86-64", file.Machine)
	}
	symbols, err := file.DynamicSymbols()
	if err != nil {
		return 0, err
	}
	for _, s := range symbols {
		if s.Name == symbol {
			place := int64(s.Value) + vdso.begin
			if need := len(code) + 8; s.Size < uint64(need) || place%8 != 0 { // the word is read and written as one
				return 0, fmt.Errorf("%s has %d bytes at %#x, want %d at a multiple of 8", symbol, s.Size, place, need)
			}
			return place, nil
		}
	}
	return 0, fmt.Errorf("there is no %s", symbol)
}

// try writes the code while the process is stopped, unless one of its threads
// is inside the code of now.
func (c *Clock) try(pid int, vdso span, place int64) (inside bool, err error) {
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, syscall.Kill(pid, syscall.SIGCONT)) }()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", pid))
	if err != nil {
		return false, err
	}
	for _, task := range tasks {
		at, stopped, err := counter(task)
		if err != nil {
			return false, err
		}
		if !stopped || vdso.has(at) {
			return true, nil
		}
	}
	c.word = place + int64(len(code))
	_, err = c.memory.WriteAt(append(bytes.Clone(code), make([]byte, 8)...), place)
	return false, err
}

// counter gives where a thread is. Source: proc_pid_syscall(5): "running", or
// numbers of which the last is the program counter.
func counter(task string) (at uint64, stopped bool, err error) {
	said, err := os.ReadFile(task)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return 0, true, nil // it has ended
	}
	if err != nil {
		return 0, false, err
	}
	words := strings.Fields(string(said))
	if len(words) < 2 {
		return 0, false, nil
	}
	at, err = strconv.ParseUint(words[len(words)-1], 0, 64)
	return at, true, err
}
