// Command init is the lab guest's first process: it makes a Debian-like
// machine out of an initramfs, plants the intrusion, reports what stands, and
// keeps the agent running. It exists because a real kernel with a known
// intruder is the only honest test of a forensic agent, and a whole
// distribution would take minutes to boot under emulation.
//
// The same binary is the intruder: a copy under another name, unlinked once it
// runs.
package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quicklime-ir/quicklime/packaging/lab/guest/pact"
)

func main() {
	if os.Args[0] == pact.IntruderName {
		intrude()
		return
	}
	if len(os.Args) == 2 && os.Args[1] == serviceVerb {
		fmt.Fprintf(os.Stderr, "init: cannot go on: %v\n", told(serve))
		powerOff()
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "init: this is the first process of a lab guest; it runs nowhere else")
		os.Exit(2)
	}
	runtime.LockOSThread()
	fmt.Fprintf(os.Stderr, "init: cannot go on: %v\n", live())
	powerOff()
}

// live runs the guest. It returns only the reason why it could not, which the
// lab has then been told, where a serial line could be opened.
func live() error {
	if err := mountAll(); err != nil {
		return err
	}
	return told(run)
}

// told runs do, and tells the lab why it ended.
func told(do func(*line) error) error {
	line, err := openLine()
	if err != nil {
		return err
	}
	err = do(line)
	return errors.Join(err, line.send(pact.Report{Kind: pact.KindFault, Text: err.Error()}))
}

// run does everything, then keeps the agent, or goes on in the guest's own
// Debian, which does. It returns only an error.
func run(line *line) error {
	orders, err := readOrders(pact.OrdersPath)
	if err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(orders.Hostname)); err != nil {
		return fmt.Errorf("cannot set the hostname %q: %w", orders.Hostname, err)
	}
	if err := loadModules(orders.Modules); err != nil {
		return err
	}
	if err := bringUpNetwork(); err != nil {
		return err
	}
	if orders.Root != "" {
		return moveInto(orders)
	}
	return stay(orders, line)
}

// serve is the service of the guest's own Debian. It returns only an error.
func serve(line *line) error {
	orders, err := readOrders(pact.SecondOrders)
	if err != nil {
		return err
	}
	return stay(orders, line)
}

// stay plants the intrusion, and keeps the agent.
func stay(orders pact.Orders, line *line) error {
	facts, err := plant(orders)
	if err != nil {
		return err
	}
	if err := line.send(pact.Report{Kind: pact.KindFacts, Facts: &facts}); err != nil {
		return err
	}
	keeper := newKeeper(orders, line)
	go keeper.obey(line)
	return keeper.keep()
}

// powerOff halts the machine. It does not return.
func powerOff() {
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Fprintf(os.Stderr, "init: cannot power off: %v\n", err)
	}
	time.Sleep(time.Hour)
}
