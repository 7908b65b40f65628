package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quicklime-ir/quicklime/packaging/lab/guest/pact"
)

// lastWords is how long a program's orphans may keep its output open.
const lastWords = time.Second

// run runs the lab's program, and gives what it wrote and its exit code.
// Programs run one at a time.
func (k *keeper) run(c pact.Command) (output []byte, exit int, err error) {
	if len(c.Argv) == 0 || !path.IsAbs(c.Argv[0]) || c.Limit <= 0 {
		return nil, 0, fmt.Errorf("cannot run %q for %v: want an absolute path and a limit", c.Argv, c.Limit)
	}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, 0, fmt.Errorf("cannot run %s: %w", c.Argv[0], err)
	}
	defer read.Close()
	pid, ended, err := k.spawn(c.Argv, write)
	write.Close()
	if err != nil {
		return nil, 0, fmt.Errorf("cannot run %s: %w", c.Argv[0], err)
	}
	type written struct {
		bytes []byte
		err   error
	}
	said := make(chan written, 1)
	go func() { // ends with the pipe
		b, err := listen(read)
		said <- written{b, err}
	}()
	timer := time.NewTimer(c.Limit)
	defer timer.Stop()
	for all := (*written)(nil); ; {
		select {
		case w := <-said: // all of it, or too much
			all, said = &w, nil
			if w.err != nil {
				err := errors.Join(w.err, unix.Kill(-pid, unix.SIGKILL))
				<-ended
				return nil, 0, fmt.Errorf("%s was killed: %w", c.Argv[0], err)
			}
		case status := <-ended:
			if all == nil {
				err = read.SetReadDeadline(time.Now().Add(lastWords))
				w := <-said
				all, err = &w, errors.Join(err, w.err)
			}
			return all.bytes, exitCode(status), err
		case <-timer.C:
			err := errors.Join(errSlow, unix.Kill(-pid, unix.SIGKILL))
			<-ended
			return nil, 0, fmt.Errorf("%s was killed: %w", c.Argv[0], err)
		}
	}
}

var (
	errSlow = errors.New("its time was over")
	errLoud = fmt.Errorf("it wrote more than %d bytes", pact.MaxOutput)
)

// spawn starts a program in a session of its own. Its end comes from the
// keeper's own wait, which is told of the program before it can end.
func (k *keeper) spawn(argv []string, out *os.File) (int, <-chan unix.WaitStatus, error) {
	nothing, err := os.Open(os.DevNull)
	if err != nil {
		return 0, nil, err
	}
	defer nothing.Close()
	k.mu.Lock()
	defer k.mu.Unlock()
	process, err := os.StartProcess(argv[0], argv, &os.ProcAttr{
		Dir: "/", Env: environment, Files: []*os.File{nothing, out, out}, Sys: &unix.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, nil, err
	}
	defer process.Release() // the keeper waits for it
	ended := make(chan unix.WaitStatus, 1)
	k.programs[process.Pid] = ended
	return process.Pid, ended, nil
}

// listen reads what a program writes until the pipe ends, or until nobody is
// left who matters.
func listen(pipe *os.File) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(pipe, pact.MaxOutput+1))
	if len(b) > pact.MaxOutput {
		return nil, errLoud
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil
	}
	return b, err
}

// tell sends what a program wrote, in pieces.
func (l *line) tell(id int, output []byte) error {
	for piece := range slices.Chunk(output, pact.MaxPiece) {
		if err := l.send(pact.Report{Kind: pact.KindOutput, ID: id, Data: piece}); err != nil {
			return err
		}
	}
	return nil
}

// exitCode is as a shell tells it.
func exitCode(status unix.WaitStatus) int {
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}
