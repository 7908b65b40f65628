package bench

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/quicklime-ir/quicklime/packaging/lab/bucket"
)

// watch keeps the server's answers that store something. A run has some
// thousands at most.
type watch struct {
	mu      sync.Mutex
	answers []bucket.Answer // those that said 200; owned by mu
}

func newWatch(s *bucket.Server) *watch {
	w := &watch{}
	s.OnAnswer(func(a bucket.Answer) {
		if a.Status != 200 || !slices.Contains([]string{"UploadPart", "CompleteMultipartUpload"}, a.Operation) {
			return
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.answers = append(w.answers, a)
	})
	return w
}

// first gives when the first answer to an operation came for a path with infix
// in it, since a time.
func (w *watch) first(since time.Time, infix, operation string) (time.Time, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.answers {
		if a.Time.After(since) && strings.Contains(a.Path, infix) && a.Operation == operation {
			return a.Time, true
		}
	}
	return time.Time{}, false
}

// seconds is how long it took from a time until the first such answer.
func (w *watch) seconds(since time.Time, infix, operation string) (float64, error) {
	at, ok := w.first(since, infix, operation)
	if !ok {
		return 0, fmt.Errorf("cannot tell when %s of %s was answered: it was not", operation, infix)
	}
	return at.Sub(since).Seconds(), nil
}

// poll asks ready ten times a second until it answers true, or ctx ends.
func poll(ctx context.Context, ready func() (bool, error)) error {
	for {
		if ok, err := ready(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
