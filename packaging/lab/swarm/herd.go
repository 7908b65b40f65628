package swarm

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/quicklime-ir/quicklime/packaging/lab/pki"
)

// startRate is how many agents a second begin to attach: hosts do not boot
// all at once.
const startRate = 400

// Spec says which agents a herd has. Its JSON form is what a herd in a
// process of its own is made from.
type Spec struct {
	Collector string // HOST:PORT
	Authority []byte // PEM
	Agents    []Member
}

// Member is one agent of a herd.
type Member struct {
	Instance string
	pki.Pair // its certificate
}

// herd are the agents of the swarm that are in one process.
type herd struct {
	collector string
	counts    *counts
	agents    []*agent
	cutting   sync.RWMutex // held while connections are cut, and for reading by who dials
}

// newHerd makes agents, their keys side by side.
func newHerd(spec Spec) (*herd, error) {
	h := &herd{collector: spec.Collector, counts: &counts{}, agents: make([]*agent, len(spec.Agents))}
	authorities := x509.NewCertPool()
	authorities.AppendCertsFromPEM(spec.Authority)
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i, m := range spec.Agents {
		group.Go(func() error {
			cert, err := tls.X509KeyPair(m.Cert, m.Key)
			if err != nil {
				return fmt.Errorf("cannot use certificate of %s: %w", m.Instance, err)
			}
			h.agents[i], err = newAgent(h, i, m.Instance, &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: authorities, Certificates: []tls.Certificate{cert}})
			return err
		})
	}
	return h, group.Wait()
}

// start runs all agents, which begin one after the other, until stop.
func (h *herd) start(ctx context.Context) (stop func() error) {
	ctx, cancel := context.WithCancel(ctx)
	var group errgroup.Group
	for i, a := range h.agents {
		group.Go(func() error {
			if err := sleep(ctx, time.Duration(i)*time.Second/startRate); err != nil {
				return err
			}
			return a.run(ctx)
		})
	}
	return func() error {
		cancel()
		if err := group.Wait(); !errors.Is(err, context.Canceled) {
			return err
		}
		return nil
	}
}

// Status is how a herd is.
type Status struct {
	Missing int      // agents that are not attached
	Shed    int      // tries that were sent away, so far
	Errors  int      // connections that ended otherwise, so far
	Said    []string // the first of these
}

func (h *herd) status() (s Status) {
	for _, a := range h.agents {
		if !a.isAttached() {
			s.Missing++
		}
	}
	s.Shed, s.Errors, s.Said = h.counts.seen()
	return s
}

// cut breaks all connections at once, and gives how long that took. Those
// that are cut first do not dial before the last is cut.
func (h *herd) cut() time.Duration {
	h.cutting.Lock()
	defer h.cutting.Unlock()
	began := time.Now()
	for _, a := range h.agents {
		a.cut()
	}
	return time.Since(began)
}

// holds waits for a cut to be over, and reports whether there was one.
func (h *herd) holds() bool {
	free := h.cutting.TryRLock()
	if !free {
		h.cutting.RLock()
	}
	defer h.cutting.RUnlock()
	return !free
}
