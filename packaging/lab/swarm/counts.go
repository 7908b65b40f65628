package swarm

import (
	"context"
	"log/slog"
	"strings"
	"sync"
)

// counts is what the swarm has seen. It is the log of all sessions, as they
// tell there why a connection ended.
type counts struct {
	mu     sync.Mutex
	orders []order  // owned by mu
	cut    int      // connections that the swarm itself cut; owned by mu
	shed   int      // tries that were sent away; owned by mu
	errors int      // all other ends; owned by mu
	said   []string // the first of these errors; owned by mu
}

func (c *counts) got(o order) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.orders = append(c.orders, o)
}

// seen gives how often agents were sent away, and what else went wrong.
func (c *counts) seen() (shed, errors int, said []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.shed, c.errors, append([]string(nil), c.said...)
}

// Enabled and its like make counts a slog.Handler.
func (c *counts) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }

// WithAttrs needs nothing, as sessions log no attributes of their own.
func (c *counts) WithAttrs([]slog.Attr) slog.Handler { return c }

// WithGroup needs nothing either.
func (c *counts) WithGroup(string) slog.Handler { return c }

// Handle counts why a connection ended.
func (c *counts) Handle(_ context.Context, r slog.Record) error {
	why := r.Message
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "error" {
			why = a.Value.String()
		}
		return true
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case strings.Contains(why, "use of closed network connection"), strings.Contains(why, errHeld.Error()): // as cut makes it
		c.cut++
	case strings.Contains(why, "the collector is busy"), strings.Contains(why, "ResourceExhausted"):
		c.shed++
	default:
		if c.errors++; len(c.said) < 5 {
			c.said = append(c.said, why)
		}
	}
	return nil
}
