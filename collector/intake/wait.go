package intake

import (
	"context"
	"math/rand/v2"
	"time"
)

// jitter gives a random wait below base doubled once per earlier failure, and
// below ceiling: the "full jitter" that keeps many waiters from meeting again.
func jitter(base, ceiling time.Duration, failures int) time.Duration {
	top := base << min(max(failures, 0), 20)
	return time.Duration(rand.Int64N(int64(min(top, ceiling)))) + 1
}

// comeback is how long a message that could not be taken stays away. At least
// half of it is fixed, because each return uses up one of the receives that the
// redrive policy allows.
func comeback(receives int) time.Duration {
	half := min(retryBase<<min(max(receives-1, 0), 20), retryCeiling) / 2
	return half + jitter(half, half, 0)
}

// sleep returns after d or when ctx is done.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
