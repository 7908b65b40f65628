package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quicklime-ir/quicklime/packaging/lab/guest/pact"
)

// standing is how long the intruder may take until its sockets stand.
const standing = 30 * time.Second

// footing is what the intruder says on its standard output, once.
type footing struct {
	Listen, From, Error string
}

// plant starts the intruder from a copy of this program, unlinks the copy, and
// returns what stands now.
func plant(orders pact.Orders) (pact.Standing, error) {
	var facts pact.Standing
	if err := os.MkdirAll(pact.Hideout, 0o755); err != nil {
		return facts, fmt.Errorf("cannot make the intruder's hideout: %w", err)
	}
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return facts, fmt.Errorf("cannot copy the intruder's program: %w", err)
	}
	if err := os.WriteFile(pact.IntruderExe, program, 0o755); err != nil {
		return facts, fmt.Errorf("cannot copy the intruder's program: %w", err)
	}
	pid, feet, err := startIntruder(orders)
	if err != nil {
		return facts, err
	}
	if err := os.Remove(pact.IntruderExe); err != nil {
		return facts, fmt.Errorf("cannot unlink the intruder's program: %w", err)
	}
	facts = pact.Standing{IntruderPID: pid, Listen: feet.Listen, BeaconFrom: feet.From}
	return facts, readFacts(&facts)
}

// startIntruder hands over the seed on a pipe (neither a file nor the
// environment ever holds it) and waits for the word that all sockets stand.
func startIntruder(orders pact.Orders) (int, footing, error) {
	var feet footing
	seedRead, seedWrite, err := os.Pipe()
	if err != nil {
		return 0, feet, fmt.Errorf("cannot make a pipe: %w", err)
	}
	defer seedWrite.Close()
	defer seedRead.Close()
	wordRead, wordWrite, err := os.Pipe()
	if err != nil {
		return 0, feet, fmt.Errorf("cannot make a pipe: %w", err)
	}
	defer wordRead.Close()
	defer wordWrite.Close()
	process, err := os.StartProcess(pact.IntruderExe, []string{pact.IntruderName, orders.Beacon}, &os.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=/usr/bin:/bin", "HOME=/root", pact.MarkerEnv + "=" + pact.Marker(orders.Seed)},
		Files: []*os.File{seedRead, wordWrite, os.Stderr},
		Sys:   &unix.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, feet, fmt.Errorf("cannot start the intruder: %w", err)
	}
	wordWrite.Close()
	if _, err := seedWrite.Write(orders.Seed); err != nil {
		return 0, feet, fmt.Errorf("cannot hand over the seed: %w", err)
	}
	if err := json.NewDecoder(io.LimitReader(wordRead, 4096)).Decode(&feet); err != nil {
		return 0, feet, fmt.Errorf("cannot hear from the intruder: %w", err)
	}
	if feet.Error != "" {
		return 0, feet, fmt.Errorf("the intruder failed: %s", feet.Error)
	}
	return process.Pid, feet, nil
}

func readFacts(facts *pact.Standing) error {
	for path, into := range map[string]*string{
		"/proc/sys/kernel/osrelease":      &facts.Release,
		"/proc/version":                   &facts.Version,
		"/proc/sys/kernel/random/boot_id": &facts.BootID,
		"/proc/iomem":                     &facts.IOMem,
	} {
		data, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("cannot read the facts: %w", err)
		}
		*into = strings.TrimSuffix(string(data), "\n")
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", facts.IntruderPID))
	if err != nil {
		return fmt.Errorf("cannot read the intruder's program: %w", err)
	}
	facts.IntruderExe = exe
	return nil
}

// intrude is the intruder's whole life: pages of derived bytes locked in RAM, a
// listening socket, a connection home, and waiting.
func intrude() {
	feet, hold, err := takeFoot()
	if err != nil {
		feet = footing{Error: err.Error()}
	}
	if encodeErr := json.NewEncoder(os.Stdout).Encode(feet); encodeErr != nil || err != nil {
		os.Exit(1)
	}
	os.Stdin.Close()
	os.Stdout.Close()
	hold()
}

func takeFoot() (footing, func(), error) {
	seed := make([]byte, pact.SeedSize)
	if _, err := io.ReadFull(os.Stdin, seed); err != nil {
		return footing{}, nil, fmt.Errorf("cannot read the seed: %w", err)
	}
	pages, err := unix.Mmap(-1, 0, pact.MarkerPages*pact.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return footing{}, nil, fmt.Errorf("cannot map the marker pages: %w", err)
	}
	if err := unix.Mlock(pages); err != nil {
		return footing{}, nil, fmt.Errorf("cannot lock the marker pages: %w", err)
	}
	for n := range pact.MarkerPages {
		pact.FillPage(pages[n*pact.PageSize:(n+1)*pact.PageSize], seed, n)
	}
	listener, err := net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", pact.ListenPort))
	if err != nil {
		return footing{}, nil, err
	}
	home, err := callHome(os.Args[1])
	if err != nil {
		return footing{}, nil, err
	}
	hold := func() {
		go answer(listener)
		// The far end says nothing, so this waits until it goes away; the
		// intruder stays all the same.
		_, err := io.Copy(io.Discard, home)
		fmt.Fprintf(os.Stderr, "intruder: home is gone: %v\n", err)
		for {
			time.Sleep(time.Hour)
		}
	}
	return footing{Listen: listener.Addr().String(), From: home.LocalAddr().String()}, hold, nil
}

// callHome dials until the network answers: eth0 has only just come up.
func callHome(addr string) (net.Conn, error) {
	var all error
	for end := time.Now().Add(standing); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		conn, err := net.DialTimeout("tcp4", addr, 5*time.Second)
		if err == nil {
			return conn, nil
		}
		all = err
	}
	return nil, errors.Join(fmt.Errorf("cannot reach home at %s within %s", addr, standing), all)
}

// answer closes each connection to the listening socket at once.
func answer(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			fmt.Fprintf(os.Stderr, "intruder: cannot accept: %v\n", err)
			return
		}
		conn.Close()
	}
}
