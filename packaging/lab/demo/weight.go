package demo

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/quicklime-ir/quicklime/packaging/lab/guest"
	"github.com/quicklime-ir/quicklime/packaging/lab/guest/pact"
)

// mostResident is what the agent may have had in memory at most, in bytes: the
// guest is a host of 512 MiB.
const mostResident = 48 << 20

// weight is what the agent in a guest has in memory, in bytes.
type weight struct {
	peak   uint64 // resident, since it was started
	locked uint64 // now
}

// weigh asks the guest's kernel. Source: proc_pid_status(5), VmHWM and VmLck.
func weigh(ctx context.Context, vm *guest.VM) (weight, error) {
	answer, err := vm.Command(ctx, pact.VerbAgent)
	if err != nil {
		return weight{}, err
	}
	pid, _, _ := strings.Cut(answer, " ")
	status, err := vm.Run(ctx, 10*time.Second, "/bin/busybox", "cat", "/proc/"+pid+"/status")
	if err == nil && status.Exit != 0 {
		err = fmt.Errorf("exit code %d, %.200q", status.Exit, status.Output)
	}
	if err != nil {
		return weight{}, fmt.Errorf("cannot weigh the agent, process %s: %w", pid, err)
	}
	var w weight
	for name, into := range map[string]*uint64{"VmHWM:": &w.peak, "VmLck:": &w.locked} {
		for line := range strings.Lines(string(status.Output)) {
			rest, ok := strings.CutPrefix(line, name)
			if !ok {
				continue
			}
			kB, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				return weight{}, fmt.Errorf("cannot weigh the agent: %w", err)
			}
			*into = kB << 10
		}
	}
	return w, nil
}

func (e evidence) weight(context.Context) (string, error) {
	says := fmt.Sprintf("%d MiB resident at most, %d bytes locked when all was done", e.agent.peak>>20, e.agent.locked)
	if e.agent.peak == 0 || e.agent.peak > mostResident || e.agent.locked > 0 {
		return "", fmt.Errorf("%s; want %d MiB and none", says, mostResident>>20)
	}
	return says, nil
}
