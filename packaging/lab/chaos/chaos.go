// Package chaos torments collectors while they work, and then judges whether
// they lost a case or did a step twice.
//
// The collectors are real processes: they are killed, frozen and cut off, S3
// and AWS fail under them, and findings keep coming, again and out of order.
// All is drawn from one seed; what the processes make of it is their own, so
// the same seed is the same weather and not the same run.
package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/custody"
	"github.com/quicklime-ir/quicklime/packaging/lab/wires"
	"github.com/quicklime-ir/quicklime/packaging/lab/world"
)

// Times and sizes.
const (
	settleLimit = 15 * time.Minute // for all cases to end once there is peace
	stillLimit  = 6 * time.Minute  // for a write into the bucket
	maxOpen     = 16               // cases at a time, so that the machine's speed is not what is tested
	hostMemory  = 20 << 20         // bytes; three parts
	hostEvery   = 3 * time.Second  // a new instance is found so often, about
)

// patient has cases wait for agents as long as it takes: what a collector gives
// up by its own limits, under nodes that die each few seconds and clocks that
// jump by minutes, is not lost by a fault.
var patient = []string{"--agent-wait", "10m", "--stall", "5m"}

// Options say how to torment.
type Options struct {
	Binaries world.Binaries
	Duration time.Duration // of the torments
	Nodes    int           // of the collector; several need namespaces, as wires.Command gives them
	Grow     bool          // begin with one node, let the others join one by one, then kill the first for good; no other torment of nodes
	Seed     uint64
	Keep     string    // folder for the lab's files, kept; "" is a temporary one, kept where the verdict is bad
	Out      io.Writer // a line for each torment, then the faults and the verdict
}

// chaos is one run.
type chaos struct {
	o     Options
	life  context.Context // of the whole run
	began time.Time
	world *world.World
	gone  bool         // the first node is, for good
	wires *wires.Wires // nil where there is one node

	observer observer
	finder   *finder
	deaths   atomic.Int64 // of nodes that ended by themselves

	mu sync.Mutex // of Out
}

// say writes a line of what happens now.
func (c *chaos) say(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Fprintf(c.o.Out, "%7.1f s  %s\n", time.Since(c.began).Seconds(), fmt.Sprintf(format, args...))
}

// Run torments, waits for peace, and judges. The error is about the lab; what
// the collectors did wrong is in the verdict.
func Run(ctx context.Context, o Options) (v Verdict, err error) {
	dir, err := folder(o.Keep)
	if err != nil {
		return v, err
	}
	defer func() {
		if o.Keep == "" && err == nil && v.OK() {
			err = os.RemoveAll(dir)
		} else {
			fmt.Fprintln(o.Out, "the logs and the bucket are in", dir)
		}
	}()
	logs, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return v, err
	}
	defer logs.Close()
	c := &chaos{o: o, life: ctx, began: time.Now(), observer: observer{sealed: map[string]bool{}}}
	hosts := max(4, int(o.Duration/hostEvery))
	cfg := world.Config{Dir: dir, Binaries: o.Binaries, Log: logs, Hosts: hosts, Nodes: o.Nodes,
		ImagePending: 500 * time.Millisecond, MissReads: 1, MaxReceives: 20, Collector: patient}
	if o.Nodes > 1 {
		if c.wires, err = wires.Lay(ctx, o.Nodes); err != nil {
			return v, err
		}
		cfg.Hub, cfg.Place = wires.Hub, func(n int) world.Place { return world.Place{Host: wires.Addr(n), Netns: c.wires.Namespace(n)} }
	}
	if c.world, err = world.Start(ctx, cfg); err != nil {
		return v, err
	}
	defer func() { err = errors.Join(err, c.world.Close()) }()
	if !o.Grow {
		for _, n := range c.world.Nodes()[1:] {
			if err := n.Join(ctx, c.world.Node(0)); err != nil {
				return v, err
			}
		}
	}
	c.world.S3.OnAnswer(c.observer.see)
	stop, err := c.agents(dir, hosts)
	defer func() { err = errors.Join(err, stop()) }()
	if err != nil {
		return v, err
	}
	if err := c.torment(ctx, hosts); err != nil {
		return v, err
	}
	if err := c.settle(ctx); err != nil {
		return v, err
	}
	if n := len(c.world.AWS.State().Queue.DeadLetters); n > 0 {
		c.say("%d events are in the dead-letter queue", n)
	}
	evidence, err := Look(ctx, c.world, c.finder.sent, c.observer.taken())
	if err != nil {
		return v, err
	}
	return Judge(evidence), nil
}

func folder(keep string) (string, error) {
	if keep == "" {
		return os.MkdirTemp("", "quicklime-chaos-")
	}
	dir, err := filepath.Abs(keep)
	if err != nil {
		return "", err
	}
	return dir, os.MkdirAll(dir, 0o700)
}

// agents attaches an agent for each host; stop ends them all.
func (c *chaos) agents(dir string, hosts int) (stop func() error, err error) {
	var agents []*world.Agent
	stop = func() error {
		var errs []error
		for _, a := range agents {
			errs = append(errs, a.Stop())
		}
		return errors.Join(errs...)
	}
	image, root, err := world.MakeHost(dir, hostMemory)
	if err != nil {
		return stop, err
	}
	for n := range hosts {
		a, err := c.world.StartAgent(c.world.Host(n), image, root)
		if err != nil {
			return stop, err
		}
		agents = append(agents, a)
	}
	return stop, nil
}

// torment lets everything happen at once, and then calls it off.
func (c *chaos) torment(ctx context.Context, hosts int) error {
	c.say("seed %d: %v of torments, %d nodes, %d hosts", c.o.Seed, c.o.Duration, len(c.world.Nodes()), hosts)
	c.finder = &finder{random: c.random(0), deliver: c.world.AWS.SendRaw}
	c.finder.room = func() bool {
		sealed, _ := c.observer.far()
		return hosts-len(c.finder.hosts)-sealed < maxOpen
	}
	for n := range hosts {
		c.finder.hosts = append(c.finder.hosts, c.world.Host(n))
	}
	limited, cancel := context.WithTimeout(ctx, c.o.Duration)
	defer cancel()
	group, limited := errgroup.WithContext(limited)
	group.Go(func() error { return c.finder.run(limited, c.o.Duration) })
	group.Go(func() error { return c.storage(limited, c.random(1)) })
	group.Go(func() error { return c.account(limited, c.random(2)) })
	if c.o.Grow {
		group.Go(func() error { return c.grow(limited) })
	} else {
		c.tormentNodes(limited, group)
	}
	err := group.Wait()
	c.world.S3.Calm()
	c.world.AWS.Calm()
	c.world.Discord.Calm()
	c.say("peace: %d events were sent; %d times a node ended by itself", len(c.finder.sent), c.deaths.Load())
	return err
}

// tormentNodes torments the nodes, and the wires between them.
func (c *chaos) tormentNodes(ctx context.Context, group *errgroup.Group) {
	if c.wires != nil {
		group.Go(func() error { return c.network(ctx, c.wires, c.random(3)) })
	}
	for i, n := range c.world.Nodes() {
		group.Go(func() error { return c.node(ctx, n, c.random(uint64(10+i))) })
	}
}

// random gives each tormentor a source of its own, so that what one draws does
// not depend on how fast the others are.
func (c *chaos) random(stream uint64) *rand.Rand { return rand.New(rand.NewPCG(c.o.Seed, stream)) }

// settle waits until the queue is empty, every case has ended and every
// journal is in the bucket, or nothing has moved for so long that the judge may
// speak.
func (c *chaos) settle(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, settleLimit)
	group, kept := errgroup.WithContext(limited)
	for _, n := range c.living() {
		group.Go(func() error { return c.keep(kept, n) })
	}
	err := c.quiet(limited)
	cancel()
	return errors.Join(group.Wait(), err, ctx.Err())
}

// quiet returns once nothing is unsettled, or ctx ends.
func (c *chaos) quiet(ctx context.Context) error {
	peace := time.Now()
	for told := peace; ; {
		what, err := Unsettled(ctx, c.world)
		if err == nil && what == "" {
			c.say("all is quiet")
			return nil
		}
		if time.Since(told) > 10*time.Second {
			told = time.Now()
			c.say("not quiet yet: %s (%v)", what, err)
		}
		_, moved := c.observer.far()
		if !sleep(ctx, 300*time.Millisecond) || time.Since(moved) > stillLimit && time.Since(peace) > stillLimit {
			c.say("it is not quiet, and the time is over")
			return nil
		}
	}
}

// Unsettled says what still goes on: an event in the queue, a running case, or
// a journal that is not in the bucket yet; "" is nothing.
func Unsettled(ctx context.Context, w *world.World) (string, error) {
	if q := w.AWS.State().Queue; q.Visible+q.InFlight > 0 {
		return fmt.Sprintf("%d events wait, %d are in hand", q.Visible, q.InFlight), nil
	}
	return Unended(ctx, w)
}

// Unended says which cases still go on, their journals included, or that there
// is none; "" is neither.
func Unended(ctx context.Context, w *world.World) (string, error) {
	cases, err := w.Cases(ctx)
	if err != nil {
		return "", err
	}
	if len(cases) == 0 {
		return "there is no case", nil
	}
	running := slices.DeleteFunc(slices.Clone(cases), func(one casefile.Case) bool { return one.State == casefile.Ended })
	if len(running) > 0 {
		return fmt.Sprintf("%d of %d cases run", len(running), len(cases)), nil
	}
	place := objects{w.S3.Client(), world.Bucket}
	for _, one := range cases {
		if len(one.Untold) > 0 {
			return fmt.Sprintf("of case %s, %d things are still to be told", one.ID, len(one.Untold)), nil
		}
		keys, err := place.Keys(ctx, fmt.Sprintf("cases/%s/%s/journal/", one.ID, one.Instance.ID))
		if err != nil {
			return "", err
		}
		if len(keys) < one.Journal.Entries {
			return fmt.Sprintf("case %s has %d journal entries in the bucket, of %d", one.ID, len(keys), one.Journal.Entries), nil
		}
	}
	return "", nil
}

// Look gathers what the judge looks at: the findings that were sent and the
// marks are the caller's.
func Look(ctx context.Context, w *world.World, sent []Sent, marks []Mark) (Evidence, error) {
	e := Evidence{Sent: sent, Marks: marks, Acts: w.AWS.Acts(), Account: w.AWS.State(), Papers: map[string]Papers{}, End: time.Now()}
	var err error
	for range 12 { // a busy machine is slow to answer
		if e.Cases, err = w.Cases(ctx); err == nil || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		return e, err
	}
	slices.SortFunc(e.Cases, func(a, b casefile.Case) int { return a.Opened.Compare(b.Opened) })
	key, err := custody.LoadPublic(filepath.Join(w.Node(0).Data(), "verify.pub"))
	if err != nil {
		return e, err
	}
	place := objects{w.S3.Client(), world.Bucket}
	for _, one := range e.Cases {
		if e.Papers[one.ID], err = place.read(ctx, key, one.ID); err != nil {
			return e, err
		}
	}
	return e, nil
}
