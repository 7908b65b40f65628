package artifact

import (
	"context"
	"errors"
	"time"
)

var (
	errHung    = errors.New("given up: the read does not return")
	errTooHung = errors.New("not tried: too many reads have not returned")
)

// maxHung bounds the reads that were given up and have not returned.
const maxHung = 16

// patiently gives f up when it has not returned within limit, or when ctx
// ends. Reading a process's memory, or a file on a user's file system, can
// hang for as long as a hostile process wants it to, and no signal short of
// SIGKILL ends such a read. So its goroutine is left to end when the read does;
// at most maxHung are, and until one returns nothing of this kind is read any
// more. What f was given belongs to f when patiently fails.
func patiently[T any](ctx context.Context, h *Host, limit time.Duration, f func(context.Context) T) (T, error) {
	var none T
	if h.hung.Load() >= maxHung {
		return none, errTooHung
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errHung)
	defer cancel()
	done := make(chan T, 1)
	h.hung.Add(1)
	go func() {
		defer h.hung.Add(-1)
		done <- f(ctx)
	}()
	select {
	case got := <-done:
		return got, nil
	case <-ctx.Done():
		return none, context.Cause(ctx)
	}
}
