// Package wires gives each node of the lab a network namespace of its own, on
// a wire to the lab, which routes between them; and cuts the wires, without
// a word to either end, as a broken network does.
//
//	the lab 10.77.0.1 ── 10.77.1.1 ─── 10.77.1.2 node 0
//	                  └─ 10.77.2.1 ─── 10.77.2.2 node 1 …
//
// Everything is in namespaces of one process, and ends with it.
package wires

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Hub is the lab's address, which each node reaches.
const Hub = "10.77.0.1"

// folder is where iproute2 keeps the names of network namespaces.
const folder = "/run/netns"

// nobody has no device in the lab.
const nobody = "02:00:00:00:00:01"

// maxNodes is what the third number of an address leaves.
const maxNodes = 250

// Command gives a command that runs a program in a network and a mount
// namespace of its own, where Lay may lay wires. It takes root. The caller runs
// it from a thread that lives as long, or the program ends early.
func Command(ctx context.Context, path string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	return cmd
}

// Wires are laid. One goroutine at a time may cut and mend them.
type Wires struct{ nodes int }

// Lay lays wires to so many nodes. It must run in namespaces that are this
// process's own, as Command makes them.
func Lay(ctx context.Context, nodes int) (*Wires, error) {
	if nodes < 1 || nodes > maxNodes {
		return nil, fmt.Errorf("cannot lay wires to %d nodes: want 1 to %d", nodes, maxNodes)
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return nil, errors.New("cannot lay wires: there is no program ip; install iproute2")
	}
	w := &Wires{nodes: nodes}
	for _, step := range []func(context.Context) error{ownFolder, hub} {
		if err := step(ctx); err != nil {
			return nil, fmt.Errorf("cannot lay wires: %w", err)
		}
	}
	for n := range nodes {
		if err := w.lay(ctx, n); err != nil {
			return nil, fmt.Errorf("cannot lay the wire to node %d: %w", n, err)
		}
	}
	return w, nil
}

// ownFolder hides the host's named namespaces from this process, and its own
// from the host.
func ownFolder(context.Context) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cannot make mounts private; it takes root and a namespace: %w", err)
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	return unix.Mount("tmpfs", folder, "tmpfs", 0, "mode=0755,size=1m")
}

// hub makes the lab a router. Its table of local addresses comes second, so
// that a rule can drop what is addressed to the lab itself.
func hub(ctx context.Context) error {
	if err := run(ctx, "link set lo up", "addr add "+Hub+"/32 dev lo", "rule add pref 10 lookup local", "rule del pref 0"); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1\n"), 0o644)
}

func (w *Wires) lay(ctx context.Context, n int) error {
	name, near, inside := name(n), wire(n), "-n "+name(n)+" "
	return run(ctx, "netns add "+name, "link add "+near+" type veth peer name eth0 netns "+name,
		"addr add "+nearAddr(n)+"/24 dev "+near, "link set "+near+" up",
		inside+"link set lo up", inside+"addr add "+Addr(n)+"/24 dev eth0", inside+"link set eth0 up",
		inside+"route add default via "+nearAddr(n))
}

func name(n int) string     { return "node" + strconv.Itoa(n) }
func wire(n int) string     { return "wire" + strconv.Itoa(n) }
func subnet(n int) string   { return fmt.Sprintf("10.77.%d.0/24", n+1) }
func nearAddr(n int) string { return fmt.Sprintf("10.77.%d.1", n+1) }

// Addr is a node's address.
func Addr(n int) string { return fmt.Sprintf("10.77.%d.2", n+1) }

// Namespace is the path of a node's namespace.
func (w *Wires) Namespace(n int) string { return folder + "/" + name(n) }

// Mute has nobody hear a node, the lab included, until mend is called.
func (w *Wires) Mute(ctx context.Context, n int) (mend func(context.Context) error, err error) {
	return swap(ctx, "-n "+name(n)+" ", nearAddr(n), "eth0")
}

// Deafen has a node hear nobody, until mend is called.
func (w *Wires) Deafen(ctx context.Context, n int) (mend func(context.Context) error, err error) {
	return swap(ctx, "", Addr(n), wire(n))
}

// swap has frames to an address go to no device.
func swap(ctx context.Context, inside, addr, device string) (func(context.Context) error, error) {
	err := run(ctx, inside+"neigh replace "+addr+" lladdr "+nobody+" dev "+device+" nud permanent")
	return func(ctx context.Context) error { return run(ctx, inside+"neigh del "+addr+" dev "+device) }, err
}

// Part drops what one node sends to another, until mend is called. The other
// way stays open.
func (w *Wires) Part(ctx context.Context, from, to int) (mend func(context.Context) error, err error) {
	rule := "pref 1 iif " + wire(from) + " to " + subnet(to) + " blackhole"
	err = run(ctx, "rule add "+rule)
	return func(ctx context.Context) error { return run(ctx, "rule del "+rule) }, err
}

// run has iproute2 do one line after the other.
func run(ctx context.Context, lines ...string) error {
	for _, line := range lines {
		if said, err := exec.CommandContext(ctx, "ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", line, err, strings.TrimSpace(string(said)))
		}
	}
	return nil
}
