package gate

import (
	"time"

	"golang.org/x/time/rate"
)

// book remembers who has come, and how often. It is owned by Gate.mu.
type book[K comparable] struct {
	entries map[K]*entry
	limit   rate.Limit
	burst   int
	most    int
	swept   time.Time
}

// entry is one who has come.
type entry struct {
	open, handshaking int // connections, or streams
	often             *rate.Limiter
}

func newBook[K comparable](limit rate.Limit, burst int) *book[K] {
	return &book[K]{entries: map[K]*entry{}, limit: limit, burst: burst, most: maxRemembered}
}

// of gives the entry of k, which is made if need be; nil when the book is
// full of others.
func (b *book[K]) of(k K, now time.Time) *entry {
	if e := b.entries[k]; e != nil {
		return e
	}
	if len(b.entries) >= b.most && now.Sub(b.swept) >= time.Second {
		b.swept = now
		b.sweep(now)
	}
	if len(b.entries) >= b.most {
		return nil
	}
	e := &entry{often: rate.NewLimiter(b.limit, b.burst)}
	b.entries[k] = e
	return e
}

// sweep forgets those whose entry says no more than a new one would.
func (b *book[K]) sweep(now time.Time) {
	for k, e := range b.entries {
		if e.open == 0 && e.often.TokensAt(now) >= float64(b.burst) {
			delete(b.entries, k)
		}
	}
}
