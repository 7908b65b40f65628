package playbook

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/store"
)

// Times of a herald.
const (
	tellLimit  = time.Minute      // for one message
	tellAgain  = time.Minute      // after one that could not be sent
	heraldRest = 30 * time.Second // between looks at the news, where nothing tells of any
)

// News is where the news of cases are kept until they are told.
type News interface {
	// News gives the ids of the cases with news that no other node tells now.
	News(ctx context.Context) ([]string, error)
	// WatchNews calls see whenever there may be others, until ctx ends or it
	// cannot go on.
	WatchNews(ctx context.Context, see func()) error
	// Tell makes this node the one that tells a case's news, until Disown, or
	// gives store.ErrConflict.
	Tell(ctx context.Context, id string) (store.Claim, error)
	Disown(ctx context.Context, claim store.Claim) error
	Get(ctx context.Context, id string) (casefile.Case, error)
	Record(ctx context.Context, id string, e casefile.Event) (casefile.Case, error)
}

// Herald tells people the news of cases at once, whatever step a case is at.
// It writes down that they were told only after they were, so that a node
// that dies in between has them told again, and never has them told by nobody.
type Herald struct {
	Docket News
	// Tell sends one message of a case's news, and gives those that it told:
	// their EventIDs. It returns once the message is accepted.
	Tell func(ctx context.Context, c casefile.Case) (told []string, err error)
	Log  *slog.Logger
}

// Run tells news until ctx ends.
func (h *Herald) Run(ctx context.Context) error {
	changed, watched := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		watched <- h.Docket.WatchNews(ctx, func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	}()
	resting := map[string]time.Time{} // until when
	rescan := time.NewTicker(heraldRest)
	defer rescan.Stop()
	for {
		h.round(ctx, resting)
		select {
		case err := <-watched:
			return err
		case <-changed:
		case <-rescan.C:
		}
	}
}

// round tells what there is to tell, a case after the other.
func (h *Herald) round(ctx context.Context, resting map[string]time.Time) {
	ids, err := h.Docket.News(ctx)
	if err != nil && ctx.Err() == nil {
		h.Log.Error("cannot read the news of cases, will try again", "error", err)
	}
	wakeUp(resting)
	for _, id := range ids {
		if _, rests := resting[id]; rests || ctx.Err() != nil {
			continue
		}
		if err := h.tell(ctx, id); err != nil && ctx.Err() == nil {
			h.Log.Error("news of case not told, will try again", "case", id, "error", err, "after", tellAgain)
			resting[id] = time.Now().Add(tellAgain)
		}
	}
}

// tell tells the news of one case, unless another node does.
func (h *Herald) tell(ctx context.Context, id string) (err error) {
	claim, err := h.Docket.Tell(ctx, id)
	if errors.Is(err, store.ErrConflict) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, disown(ctx, h.Docket, claim)) }()
	c, err := h.Docket.Get(ctx, id)
	for err == nil && len(c.Untold) > 0 {
		c, err = h.tellOne(store.While(ctx, claim.Key, claim.Revision), c)
	}
	return err
}

// tellOne tells one message of a case's news, and gives the case after it.
func (h *Herald) tellOne(ctx context.Context, c casefile.Case) (casefile.Case, error) {
	limited, cancel := context.WithTimeout(ctx, tellLimit)
	defer cancel()
	told, err := h.Tell(limited, c)
	if err != nil {
		return c, err
	}
	h.Log.Info("news of case told", "case", c.ID, "instance", c.Instance.ID, "events", told)
	return h.Docket.Record(ctx, c.ID, casefile.Event{Type: casefile.NewsTold, Told: told})
}
