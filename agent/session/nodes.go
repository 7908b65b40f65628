package session

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"
)

// Bounds of the search for a node.
const (
	maxNodes     = 64               // that one round tries
	lookupLimit  = 10 * time.Second // of one name
	firstBackoff = time.Second
	// lastBackoff is as long as a responder can be let wait for an agent whose
	// collector was away; 10,000 agents that ask as seldom are 333 connects a
	// second, which costs a node that sends them away next to nothing.
	lastBackoff = time.Minute
	longestAsk  = 5 * time.Minute // that a node may ask for
	nextNode    = 2 * time.Second // the longest pause before another node is tried
	steadyAfter = time.Minute     // a stream this old starts the backoff anew
)

// node is one process of the collector.
type node struct {
	addr string // where it is dialled, IP:PORT
	name string // HOST:PORT as configured; its certificate is of this host
}

func (n node) String() string {
	if n.addr == n.name {
		return n.addr
	}
	return n.name + " (" + n.addr + ")"
}

// checkAddresses wants at least one HOST:PORT.
func checkAddresses(addresses []string) error {
	if len(addresses) == 0 {
		return errors.New("cannot find a collector: no address is given, want HOST:PORT")
	}
	for _, a := range addresses {
		host, port, err := net.SplitHostPort(a)
		if err == nil && (host == "" || port == "") {
			err = errors.New("host or port is missing")
		}
		if err != nil {
			return fmt.Errorf("cannot find a collector at %q, want HOST:PORT: %w", a, err)
		}
	}
	return nil
}

// resolve gives the nodes behind addresses, each once, in random order. A
// name may have several; one that cannot be looked up now is a node by its
// name, so that who dials it says why.
func resolve(ctx context.Context, lookup func(context.Context, string) ([]string, error), addresses []string) []node {
	var out []node
	for _, a := range addresses {
		host, port, _ := net.SplitHostPort(a) // New has checked it
		limited, cancel := context.WithTimeout(ctx, lookupLimit)
		found, err := lookup(limited, host)
		cancel()
		if err != nil || len(found) == 0 {
			found = []string{host}
		}
		for _, ip := range found {
			n := node{addr: net.JoinHostPort(ip, port), name: a}
			if !slices.ContainsFunc(out, func(o node) bool { return o.addr == n.addr }) {
				out = append(out, n)
			}
		}
	}
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out[:min(len(out), maxNodes)]
}

// search says which node is tried next, and after what pause: every known
// node once a round, one soon after the other, and a longer pause with full
// jitter after each round that found none.
type search struct {
	left []node        // of this round, to be tried still
	wait time.Duration // the longest pause after this round
	ask  time.Duration // the least one, as a node has asked for
	lost node          // that the session hung on last; it is tried last
}

// begin begins a round with the nodes that are known now.
func (s *search) begin(nodes []node) {
	if s.wait == 0 {
		s.wait = firstBackoff
	}
	s.left = nodes
	if i := slices.Index(nodes, s.lost); i >= 0 {
		s.left = append(slices.Delete(nodes, i, i+1), s.lost)
	}
}

// next gives the node to try. There always is one: a round has at least one,
// and is over after its last.
func (s *search) next() node {
	n := s.left[0]
	s.left = s.left[1:]
	return n
}

// failed takes how the try of a node ended, and how long it had lasted. It
// gives the pause before the next, and whether the round is over.
func (s *search) failed(n node, err error, lasted time.Duration) (pause time.Duration, over bool) {
	s.ask = max(s.ask, asked(err))
	if lasted >= steadyAfter || errors.Is(err, errUseless) {
		*s = search{wait: firstBackoff, ask: asked(err), lost: n}
	}
	if len(s.left) > 0 {
		return rand.N(nextNode), false
	}
	pause = s.ask + rand.N(s.wait)
	s.wait, s.ask = min(2*s.wait, lastBackoff), 0
	return pause, true
}

// asked gives the pause that a collector which is too busy asks for, within
// bounds.
func asked(err error) time.Duration {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			return min(max(info.GetRetryDelay().AsDuration(), 0), longestAsk)
		}
	}
	return 0
}
