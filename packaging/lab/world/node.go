package world

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/desk"
	"github.com/quicklime-ir/quicklime/packaging/lab/process"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// startLimit is how long a node may take to answer: the only one is there at
// once, one of several may have to learn from the others first.
const startLimit = 30 * time.Second

// Place is where a node lives.
type Place struct {
	Host  string // the address by which agents and other nodes reach it
	Netns string // path of its network namespace; "": the lab's own
}

// Node is a collector in a process of its own. It keeps its data folder and
// its addresses when it is started again. One goroutine at a time may start
// and end it; anyone may ask it.
type Node struct {
	Name string // also of its files in the work folder

	w     *World
	place Place
	port  int // of the agents' listener
	peer  int // of the other nodes' listener

	mu    sync.Mutex
	child *process.Child // owned by mu; nil before the first start
}

// process gives the node's process as it was started last.
func (n *Node) process() *process.Child {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.child
}

func (w *World) newNode(n int) *Node {
	out := &Node{Name: "collector", w: w, place: Place{Host: w.cfg.Hub}}
	if n > 0 {
		out.Name = "collector-" + strconv.Itoa(n+1)
	}
	if w.cfg.Place != nil {
		out.place = w.cfg.Place(n)
	}
	return out
}

// Node gives a node by its number, from 0.
func (w *World) Node(n int) *Node { return w.nodes[n] }

// Nodes gives all nodes, started or not.
func (w *World) Nodes() []*Node { return slices.Clone(w.nodes) }

// Data is the node's data folder.
func (n *Node) Data() string {
	if n.Name == "collector" {
		return n.w.path("data")
	}
	return n.w.path("data-" + n.Name)
}

// Addr is the agents' listener.
func (n *Node) Addr() string { return net.JoinHostPort(n.place.Host, strconv.Itoa(n.port)) }

func (n *Node) writeCertificates() error {
	pair, err := n.w.authority.Server(n.place.Host)
	if err != nil {
		return err
	}
	if _, _, err = pair.Write(n.w.cfg.Dir, n.Name); err != nil || n.w.peers == nil {
		return err
	}
	if pair, err = n.w.peers.Peer(n.place.Host); err != nil {
		return err
	}
	_, _, err = pair.Write(n.w.cfg.Dir, "peer-"+n.Name)
	return err
}

// Join has another node let this one in, and starts it for the first time.
func (n *Node) Join(ctx context.Context, other *Node) error {
	var document []byte
	if err := other.ask(ctx, func(ctx context.Context, c *desk.Client) (err error) {
		document, err = c.JoinNode(ctx, n.Name, n.peerURL())
		return err
	}); err != nil {
		return err
	}
	if err := os.WriteFile(n.joinFile(), document, 0o600); err != nil {
		return err
	}
	return n.Start(ctx)
}

func (n *Node) joinFile() string { return n.w.path("join-" + n.Name + ".json") }
func (n *Node) peerAddr() string { return net.JoinHostPort(n.place.Host, strconv.Itoa(n.peer)) }
func (n *Node) peerURL() string  { return "https://" + n.peerAddr() }

// peerFlags make the node one of several.
func (n *Node) peerFlags() []string {
	if n.w.peers == nil {
		return nil
	}
	path := n.w.path
	flags := []string{"--node", n.Name, "--signing-key", path("signing.key"), "--peer-listen", n.peerAddr(), "--peer-url", n.peerURL(),
		"--peer-cert", path("peer-" + n.Name + ".crt"), "--peer-key", path("peer-" + n.Name + ".key"), "--peer-ca", path("peer-ca.crt")}
	if _, err := os.Stat(n.joinFile()); err == nil {
		flags = append(flags, "--join", n.joinFile())
	}
	return flags
}

// Start starts the node, and waits until it answers its operators.
func (n *Node) Start(ctx context.Context) error {
	if err := n.Launch(); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if err := n.process().Await(limited, func() bool {
		_, err := n.Cases(limited)
		return err == nil
	}); err != nil {
		return fmt.Errorf("%w; its log ends:\n%s", err, n.w.LogTail())
	}
	return nil
}

// Launch starts the node, and does not wait for it.
func (n *Node) Launch() error {
	w := n.w
	grants := w.S3.URL()
	if w.cfg.Guest {
		grants = w.S3.GuestURL()
	}
	args := append([]string{"serve", "--data", n.Data(), "--listen", n.Addr(), "--bucket", Bucket, "--queue", w.AWS.QueueURL(),
		"--grant-endpoint", grants, "--cert", w.path(n.Name + ".crt"), "--key", w.path(n.Name + ".key"), "--agent-ca", w.path("ca.crt"),
		"--trust-domain", TrustDomain, "--discord-file", w.path("discord.url"), "--retention", "1h"}, append(n.peerFlags(), w.cfg.Collector...)...)
	child, err := process.Start(process.Spec{Path: w.cfg.Binaries.Collector, Args: args, Env: w.Environ(), Dir: w.cfg.Dir, Log: &w.logs,
		Name: n.Name, Netns: n.place.Netns})
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.child = child
	return nil
}

// choosePorts takes ports that nobody listens on now, so that agents can be
// told of a node that is not there yet. A namespace of its own has nobody else.
func (n *Node) choosePorts() (err error) {
	if n.place.Netns != "" {
		n.port, n.peer = 8443, 8444
		return nil
	}
	if n.port, err = freePort(n.place.Host); err == nil {
		n.peer, err = freePort(n.place.Host)
	}
	return err
}

func freePort(host string) (int, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

// Pid is the process id of the node as it was started last.
func (n *Node) Pid() int { return n.process().Pid() }

// Ended is closed when the node's process has ended, however that came.
func (n *Node) Ended() <-chan struct{} { return n.process().Done() }

// Kill ends the node as a power cut would.
func (n *Node) Kill() error { return n.process().Kill() }

// Stop asks the node to end, and kills it when it has not after grace.
func (n *Node) Stop(grace time.Duration) error { return n.process().Stop(grace) }

// Pause stops the node's process where it is.
func (n *Node) Pause() error { return n.process().Signal(syscall.SIGSTOP) }

// Continue lets a paused node go on.
func (n *Node) Continue() error { return n.process().Signal(syscall.SIGCONT) }

func (n *Node) close() error {
	if n.process() == nil {
		return nil
	}
	_ = n.Continue()
	return n.process().Stop(5 * time.Second)
}

// ask does one thing at the node's operators' socket.
func (n *Node) ask(ctx context.Context, do func(context.Context, *desk.Client) error) error {
	client, err := desk.Dial(n.Data())
	if err != nil {
		return err
	}
	defer client.Close()
	limited, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return do(limited, client)
}

// Cases asks the node for its cases.
func (n *Node) Cases(ctx context.Context) (out []casefile.Case, err error) {
	err = n.ask(ctx, func(ctx context.Context, c *desk.Client) error {
		out, err = c.Cases(ctx)
		return err
	})
	return out, err
}

// Agents asks for the agents that are attached.
func (n *Node) Agents(ctx context.Context) (out []*wire.AttachedAgent, err error) {
	err = n.ask(ctx, func(ctx context.Context, c *desk.Client) error {
		out, err = c.Agents(ctx)
		return err
	})
	return out, err
}

// What follows is about the first node, which most labs have alone.

// Data is the collector's data folder.
func (w *World) Data() string { return w.nodes[0].Data() }

// CollectorAddr is the agents' listener, for an agent on this host; of several
// nodes all, with commas.
func (w *World) CollectorAddr() string {
	var all []string
	for _, n := range w.nodes {
		all = append(all, n.Addr())
	}
	return strings.Join(all, ",")
}

// CollectorGuestAddr is the same for an agent in a guest.
func (w *World) CollectorGuestAddr() string { return fmt.Sprintf("10.0.2.2:%d", w.nodes[0].port) }

// StartCollector starts the collector, and waits until it answers its
// operators.
func (w *World) StartCollector(ctx context.Context) error { return w.nodes[0].Start(ctx) }

// RestartCollector ends the collector in order, and starts it with other
// flags.
func (w *World) RestartCollector(ctx context.Context, flags ...string) error {
	if err := w.StopCollector(); err != nil {
		return err
	}
	w.Flags(flags...)
	return w.StartCollector(ctx)
}

// Flags gives the nodes that are started from now on these flags.
func (w *World) Flags(flags ...string) { w.cfg.Collector = flags }

// KillCollector ends the collector as a power cut would.
func (w *World) KillCollector() error { return w.nodes[0].Kill() }

// StopCollector asks the collector to end.
func (w *World) StopCollector() error { return w.nodes[0].Stop(10 * time.Second) }

// PauseCollector and ContinueCollector stop its clock, so to say.
func (w *World) PauseCollector() error { return w.nodes[0].Pause() }

// ContinueCollector lets a paused collector go on.
func (w *World) ContinueCollector() error { return w.nodes[0].Continue() }

// Cases asks the collector for its cases; of several nodes the first that
// answers.
func (w *World) Cases(ctx context.Context) (out []casefile.Case, err error) {
	for _, n := range w.nodes {
		if out, err = n.Cases(ctx); err == nil {
			break
		}
	}
	return out, err
}

// Agents asks for the agents that are attached.
func (w *World) Agents(ctx context.Context) ([]*wire.AttachedAgent, error) {
	return w.nodes[0].Agents(ctx)
}

// Case asks for one case, and how far its captures have come.
func (w *World) Case(ctx context.Context, id string) (one casefile.Case, progress []*wire.Progress, err error) {
	err = w.nodes[0].ask(ctx, func(ctx context.Context, c *desk.Client) error {
		one, progress, err = c.Case(ctx, id)
		return err
	})
	return one, progress, err
}

// CloseCase closes a case, as an operator does, so that the next finding opens
// another.
func (w *World) CloseCase(ctx context.Context, id, reason string) error {
	return w.nodes[0].ask(ctx, func(ctx context.Context, c *desk.Client) error { return c.CloseCase(ctx, id, reason) })
}
