package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"runtime"
	"time"

	"github.com/quicklime-ir/quicklime/packaging/lab/bucket"
	"github.com/quicklime-ir/quicklime/packaging/lab/clock"
	"github.com/quicklime-ir/quicklime/packaging/lab/emulator"
	"github.com/quicklime-ir/quicklime/packaging/lab/wires"
	"github.com/quicklime-ir/quicklime/packaging/lab/world"
)

// How long torments last, and the peace between them.
const (
	maxFreeze = 20 * time.Second
	maxAway   = 5 * time.Second
	maxJump   = 5 * time.Minute // of a wall clock, either way; at more AWS refuses what is signed
	maxOutage = 8 * time.Second
	maxApart  = 15 * time.Second
	maxPeace  = 8 * time.Second  // of S3, AWS and the wires
	maxLife   = 25 * time.Second // of a node; several that are struck more often have no majority most of the time
	patience  = 10 * time.Second // of a node that is asked to end
)

// between gives a time from least to most.
func between(r *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(r.Int64N(int64(most-least)+1))
}

// sleep waits, and says whether ctx has not ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// node torments one node until ctx ends, and then leaves it running. It keeps
// it running as an init system would: a node that ends by itself is told of,
// and started again.
func (c *chaos) node(ctx context.Context, n *world.Node, r *rand.Rand) error {
	for {
		peace := time.NewTimer(between(r, time.Second, maxLife))
		var err error
		select {
		case <-ctx.Done():
			peace.Stop()
			return nil
		case <-n.Ended():
			peace.Stop()
			err = c.revive(n)
		case <-peace.C:
			err = c.strike(ctx, n, r)
		}
		if err != nil {
			return err
		}
	}
}

// revive starts a node that has ended by itself, as an init system does.
func (c *chaos) revive(n *world.Node) error {
	c.deaths.Add(1)
	c.say("%s ended by itself", n.Name)
	sleep(c.life, time.Second)
	return n.Launch()
}

// keep keeps a node running until ctx ends.
func (c *chaos) keep(ctx context.Context, n *world.Node) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.Ended():
			if err := c.revive(n); err != nil {
				return err
			}
		}
	}
}

// strike does one thing to a node.
func (c *chaos) strike(ctx context.Context, n *world.Node, r *rand.Rand) error {
	switch kind := r.IntN(10); {
	case kind < 5:
		away := between(r, 0, maxAway)
		c.say("%s is killed, and away for %v", n.Name, away.Round(time.Millisecond))
		if err := n.Kill(); err != nil {
			return err
		}
		sleep(ctx, away)
		return n.Launch()
	case kind < 6:
		c.say("%s is asked to end", n.Name)
		if err := n.Stop(patience); err != nil {
			return err
		}
		return n.Launch()
	case kind < 7 && runtime.GOARCH == "amd64":
		ahead := between(r, -maxJump, maxJump).Round(time.Second)
		return c.jump(ctx, n, ahead, between(r, time.Second, maxFreeze))
	default:
		frozen := between(r, 500*time.Millisecond, maxFreeze)
		if kind < 9 {
			frozen /= 10
		}
		c.say("%s stands still for %v", n.Name, frozen.Round(time.Millisecond))
		if err := n.Pause(); err != nil {
			return err
		}
		sleep(ctx, frozen)
		return n.Continue()
	}
}

// jump has a node see another time of day for a while, and then the right one
// again.
func (c *chaos) jump(ctx context.Context, n *world.Node, ahead, during time.Duration) error {
	c.say("the wall clock of %s jumps by %v for %v", n.Name, ahead, during.Round(time.Millisecond))
	hand, err := clock.Of(n.Pid())
	if err == nil {
		err = hand.Set(ahead)
		sleep(ctx, during)
		err = errors.Join(err, hand.Set(0), hand.Close())
	}
	select {
	case <-n.Ended(): // by itself, which the caller sees to
		return nil
	default:
		return err
	}
}

// grow lets node after node join the first, and kills that for good, so that
// the rest of the time and the settling are the others'.
func (c *chaos) grow(ctx context.Context) error {
	nodes := c.world.Nodes()
	first := nodes[0]
	pause := c.o.Duration / time.Duration(len(nodes)+1)
	for _, n := range nodes[1:] {
		sleep(ctx, pause)
		c.say("%s joins", n.Name)
		if err := n.Join(c.life, first); err != nil {
			return err
		}
		c.say("%s has joined", n.Name)
	}
	sleep(ctx, pause)
	c.say("%s is killed for good", first.Name)
	c.gone = true
	return first.Kill()
}

// living gives the nodes that are to run.
func (c *chaos) living() []*world.Node {
	if c.gone {
		return c.world.Nodes()[1:]
	}
	return c.world.Nodes()
}

// network cuts wires until ctx ends, one cut at a time, and mends each.
func (c *chaos) network(ctx context.Context, w *wires.Wires, r *rand.Rand) error {
	nodes := c.world.Nodes()
	for sleep(ctx, between(r, time.Second, maxPeace)) {
		a := r.IntN(len(nodes))
		b := (a + 1 + r.IntN(len(nodes)-1)) % len(nodes)
		apart := between(r, 500*time.Millisecond, maxApart)
		cut := func(what string, cuts ...func() (func(context.Context) error, error)) error {
			c.say("%s for %v", what, apart.Round(time.Millisecond))
			var mends []func(context.Context) error
			for _, one := range cuts {
				mend, err := one()
				if err != nil {
					return err
				}
				mends = append(mends, mend)
			}
			sleep(ctx, apart)
			var errs []error
			for _, mend := range mends {
				errs = append(errs, mend(c.life))
			}
			return errors.Join(errs...)
		}
		mute := func() (func(context.Context) error, error) { return w.Mute(c.life, a) }
		deafen := func() (func(context.Context) error, error) { return w.Deafen(c.life, a) }
		part := func(from, to int) func() (func(context.Context) error, error) {
			return func() (func(context.Context) error, error) { return w.Part(c.life, from, to) }
		}
		var err error
		switch r.IntN(5) {
		case 0:
			err = cut("nobody hears "+nodes[a].Name, mute)
		case 1:
			err = cut(nodes[a].Name+" hears nobody", deafen)
		case 2:
			err = cut(nodes[a].Name+" is cut off", mute, deafen)
		case 3:
			err = cut(nodes[b].Name+" does not hear "+nodes[a].Name, part(a, b))
		default:
			err = cut(nodes[a].Name+" and "+nodes[b].Name+" do not hear each other", part(a, b), part(b, a))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// storage torments S3 until ctx ends.
func (c *chaos) storage(ctx context.Context, r *rand.Rand) error {
	for sleep(ctx, between(r, time.Second, maxPeace)) {
		f := bucket.Fault{Times: 1 + r.IntN(10)}
		var what string
		switch r.IntN(6) {
		case 0:
			f.Kind, what = bucket.SlowDown, "503"
		case 1:
			f.Kind, what = bucket.Reset, "connections are cut"
		case 2:
			f.Kind, what = bucket.LostReply, "answers are lost"
		case 3:
			f.Kind, f.Match, what = bucket.FlipByte, bucket.PartUpload, "parts arrive changed"
		case 4:
			f.Kind, f.Match, f.Rate, what = bucket.Slow, bucket.PartUpload, 4<<20, "parts arrive slowly"
		default:
			away := between(r, time.Second, maxOutage)
			end := time.Now().Add(away)
			f.Kind, f.Times, what = bucket.SlowDown, 1<<30, fmt.Sprintf("503 for %v", away.Round(time.Millisecond))
			f.Match = func(*http.Request) bool { return time.Now().Before(end) }
			c.say("S3: %s", what)
			c.world.S3.Inject(f)
			continue
		}
		c.say("S3: %s, %d times", what, f.Times)
		c.world.S3.Inject(f)
	}
	return nil
}

// account torments EC2, SQS and Discord until ctx ends.
func (c *chaos) account(ctx context.Context, r *rand.Rand) error {
	kinds := []struct {
		kind emulator.FaultKind
		what string
	}{{emulator.Throttle, "throttles"}, {emulator.Unavailable, "is unavailable"}, {emulator.LostReply, "loses answers"}, {emulator.Slow, "is slow"}}
	for sleep(ctx, between(r, time.Second, maxPeace)) {
		times := 1 + r.IntN(8)
		if r.IntN(6) == 0 {
			c.say("Discord refuses for its rate, %d times", times)
			c.world.Discord.Limit(times)
			continue
		}
		service := []string{"ec2", "ec2", "ec2", "sqs", "sts"}[r.IntN(5)]
		k := kinds[r.IntN(len(kinds))]
		c.say("%s %s, %d times", service, k.what, times)
		c.world.AWS.Inject(emulator.Fault{Service: service, Kind: k.kind, Times: times, Delay: between(r, 100*time.Millisecond, 3*time.Second)})
	}
	return nil
}
