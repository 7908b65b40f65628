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
	"github.com/quicklime-ir/quicklime/packaging/lab/world"
)

// Times and sizes.
const (
	settleLimit = 5 * time.Minute // for all cases to end once there is peace
	hostMemory  = 20 << 20        // bytes; three parts
	hostEvery   = 3 * time.Second // a new instance is found so often, about
)

// Options say how to torment.
type Options struct {
	Binaries world.Binaries
	Duration time.Duration // of the torments
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
	c := &chaos{o: o, life: ctx, began: time.Now()}
	hosts := max(4, int(o.Duration/hostEvery))
	c.world, err = world.Start(ctx, world.Config{Dir: dir, Binaries: o.Binaries, Log: logs, Hosts: hosts,
		ImagePending: 500 * time.Millisecond, MissReads: 1, MaxReceives: 20})
	if err != nil {
		return v, err
	}
	defer func() { err = errors.Join(err, c.world.Close()) }()
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
	evidence, err := c.evidence(ctx)
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
	c.say("seed %d: %v of torments, %d hosts", c.o.Seed, c.o.Duration, hosts)
	c.finder = &finder{random: c.random(0), deliver: c.world.AWS.SendRaw}
	for n := range hosts {
		c.finder.hosts = append(c.finder.hosts, c.world.Host(n))
	}
	limited, cancel := context.WithTimeout(ctx, c.o.Duration)
	defer cancel()
	group, limited := errgroup.WithContext(limited)
	group.Go(func() error { return c.finder.run(limited, c.o.Duration) })
	group.Go(func() error { return c.storage(limited, c.random(1)) })
	group.Go(func() error { return c.account(limited, c.random(2)) })
	group.Go(func() error { return c.node(limited, c.world.Node(0), c.random(3)) })
	err := group.Wait()
	c.world.S3.Calm()
	c.world.AWS.Calm()
	c.say("peace: %d events were sent; %d times a node ended by itself", len(c.finder.sent), c.deaths.Load())
	return err
}

// random gives each tormentor a source of its own, so that what one draws does
// not depend on how fast the others are.
func (c *chaos) random(stream uint64) *rand.Rand { return rand.New(rand.NewPCG(c.o.Seed, stream)) }

// settle waits until the queue is empty and every case has ended, or for so
// long that the judge may speak.
func (c *chaos) settle(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, settleLimit)
	defer cancel()
	for told := time.Now(); ; {
		cases, err := c.world.Node(0).Cases(limited)
		queue := c.world.AWS.State().Queue
		running := 0
		for _, one := range cases {
			if one.State == casefile.Running {
				running++
			}
		}
		if err == nil && running == 0 && queue.Visible+queue.InFlight == 0 {
			c.say("all is quiet")
			return nil
		}
		if time.Since(told) > 10*time.Second {
			told = time.Now()
			c.say("%d of %d cases run; %d events wait, %d are in hand (%v)", running, len(cases), queue.Visible, queue.InFlight, err)
		}
		if !sleep(limited, 200*time.Millisecond) {
			c.say("it is not quiet after %v", settleLimit)
			return ctx.Err()
		}
	}
}

// evidence gathers what the judge looks at.
func (c *chaos) evidence(ctx context.Context) (Evidence, error) {
	e := Evidence{Sent: c.finder.sent, Marks: c.observer.taken(), Acts: c.world.AWS.Acts(), Account: c.world.AWS.State(), Papers: map[string]Papers{}, End: time.Now()}
	var err error
	if e.Cases, err = c.world.Node(0).Cases(ctx); err != nil {
		return e, err
	}
	slices.SortFunc(e.Cases, func(a, b casefile.Case) int { return a.Opened.Compare(b.Opened) })
	key, err := custody.LoadPublic(filepath.Join(c.world.Node(0).Data(), "verify.pub"))
	if err != nil {
		return e, err
	}
	if n := len(e.Account.Queue.DeadLetters); n > 0 {
		c.say("%d events are in the dead-letter queue", n)
	}
	place := objects{c.world.S3.Client(), world.Bucket}
	for _, one := range e.Cases {
		if e.Papers[one.ID], err = place.read(ctx, key, one.ID); err != nil {
			return e, err
		}
	}
	return e, nil
}
