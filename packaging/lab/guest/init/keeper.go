package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quicklime-ir/quicklime/packaging/lab/guest/pact"
)

// restartDelay is the pause before the agent is started again, as a service
// manager with Restart=always and RestartSec=1 would.
const restartDelay = time.Second

// keeper runs the agent for ever, and reaps every orphan as the first process
// must.
type keeper struct {
	args, env []string
	line      *line

	mu       sync.Mutex // guards the rest
	pid      int        // the agent's, 0 while it is down
	starts   int
	programs map[int]chan unix.WaitStatus // the lab's, by pid; each gets its end
}

// environment is what every program starts with.
var environment = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"}

func newKeeper(orders pact.Orders, line *line) *keeper {
	return &keeper{
		args: append([]string{pact.AgentPath}, orders.Args...),
		env:  append(slices.Clone(environment), orders.Env...),
		line: line, programs: map[int]chan unix.WaitStatus{},
	}
}

// keep starts the agent and waits for children; without arguments for it, the
// agent is somebody else's to start. It returns only an error that the guest
// cannot live with.
func (k *keeper) keep() error {
	if len(k.args) == 1 {
		_, err := k.reapUntil(0)
		return err
	}
	for {
		pid, err := k.start()
		if err != nil {
			return err
		}
		status, err := k.reapUntil(pid)
		if err != nil {
			return err
		}
		k.mu.Lock()
		k.pid = 0
		k.mu.Unlock()
		if err := k.tell("agent %d ended: %s", pid, ending(status)); err != nil {
			return err
		}
		time.Sleep(restartDelay)
	}
}

func (k *keeper) start() (int, error) {
	nothing, err := os.Open(os.DevNull)
	if err != nil {
		return 0, fmt.Errorf("cannot start the agent: %w", err)
	}
	defer nothing.Close()
	process, err := os.StartProcess(pact.AgentPath, k.args, &os.ProcAttr{
		Dir:   "/",
		Env:   k.env,
		Files: []*os.File{nothing, os.Stdout, os.Stderr},
		Sys:   &unix.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, fmt.Errorf("cannot start the agent: %w", err)
	}
	k.mu.Lock()
	k.pid = process.Pid
	k.starts++
	k.mu.Unlock()
	return process.Pid, k.tell("agent %d started", process.Pid)
}

func (k *keeper) tell(format string, args ...any) error {
	return k.line.send(pact.Report{Kind: pact.KindAgent, Text: fmt.Sprintf(format, args...)})
}

// reapUntil waits for any child, orphans too, until the agent itself ends.
func (k *keeper) reapUntil(agent int) (unix.WaitStatus, error) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return status, fmt.Errorf("cannot wait for children: %w", err)
		case !status.Exited() && !status.Signaled():
		case pid == agent:
			return status, nil
		default:
			k.bury(pid, status)
		}
	}
}

// bury tells who waits for a child that it has ended; nobody does for an
// orphan.
func (k *keeper) bury(pid int, status unix.WaitStatus) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if ended, ok := k.programs[pid]; ok {
		ended <- status
		delete(k.programs, pid)
	}
}

func ending(status unix.WaitStatus) string {
	if status.Signaled() {
		return "signal " + status.Signal().String()
	}
	return fmt.Sprintf("exit code %d", status.ExitStatus())
}

// obey answers the lab's commands until the line ends. The line lives as long
// as the guest, so nobody waits for this goroutine.
func (k *keeper) obey(line *line) {
	lines := pact.Lines(line.tty)
	for lines.Scan() {
		var c pact.Command
		if err := pact.Decode(lines.Bytes(), &c); err != nil {
			fmt.Fprintf(os.Stderr, "init: %v\n", err)
			continue
		}
		reply := pact.Report{Kind: pact.KindReply, ID: c.ID}
		var err error
		if c.Verb == pact.VerbRun {
			var output []byte
			output, reply.Exit, err = k.run(c)
			err = errors.Join(err, line.tell(c.ID, output))
		} else {
			reply.Text, err = k.do(c.Verb)
		}
		if err != nil {
			reply.Error = err.Error()
		}
		if err := line.send(reply); err != nil {
			fmt.Fprintf(os.Stderr, "init: %v\n", err)
		}
		if c.Verb == pact.VerbPowerOff {
			powerOff()
		}
	}
	fmt.Fprintf(os.Stderr, "init: the serial line ended: %v\n", lines.Err())
}

func (k *keeper) do(verb string) (string, error) {
	k.mu.Lock()
	pid, starts := k.pid, k.starts
	k.mu.Unlock()
	switch verb {
	case pact.VerbAgent:
		return fmt.Sprintf("%d %d", pid, starts), nil
	case pact.VerbKillAgent:
		if pid == 0 {
			return "", errors.New("cannot kill the agent: it is down, and starts again within a second")
		}
		return fmt.Sprint(pid), unix.Kill(pid, unix.SIGKILL)
	case pact.VerbPowerOff:
		return "going down", nil
	default:
		return "", fmt.Errorf("cannot obey %q: want %s, %s, %s or %s", verb, pact.VerbAgent, pact.VerbKillAgent, pact.VerbRun, pact.VerbPowerOff)
	}
}
