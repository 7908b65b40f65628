package gate

import (
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

// retryAfter is the least time that an agent which is sent away is asked to
// wait.
const retryAfter = 30 * time.Second

// Attach lets an agent's stream in, and is to be told when it ends. One that
// is over a bound is RESOURCE_EXHAUSTED with RetryInfo, as google.rpc defines
// it. An instance may attach sixty times at once, and then each second: two
// that have the same certificate would else take turns as fast as they can.
func (g *Gate) Attach(instance string) (leave func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if g.stats.Streams >= g.limits.Agents {
		return nil, g.refuse(now, "this node has as many agents as it may have")
	}
	if e := g.instances.of(instance, now); e == nil || !e.often.AllowN(now, 1) {
		return nil, g.refuse(now, "this instance attaches too often")
	}
	g.stats.Streams++
	g.stats.Attached++
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.stats.Streams--
	}, nil
}

// refuse makes the error; the caller holds mu.
func (g *Gate) refuse(now time.Time, why string) error {
	g.stats.ShedAttaches++
	g.tell(now)
	s, err := status.New(codes.ResourceExhausted, why).WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(retryAfter)})
	if err != nil {
		return status.Error(codes.ResourceExhausted, why)
	}
	return s.Err()
}
