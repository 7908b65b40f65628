package docket

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/store"
)

// Every case with news that people have not been told of has a key at
// news/CASE/untold, which changes together with the case. The node that tells
// them has a key beside it, at news/CASE/teller, which goes with the node.
const news = "news/"

func untoldKey(id string) string { return news + id + "/untold" }
func tellerKey(id string) string { return news + id + "/teller" }

// News gives the ids of the cases with news that no other node tells now.
func (d *Docket) News(ctx context.Context) ([]string, error) {
	entries, err := d.cfg.Store.List(ctx, news)
	if err != nil {
		return nil, err
	}
	var out []string
	told := ""
	for _, e := range entries { // a teller stands before what is untold
		id, what, _ := strings.Cut(strings.TrimPrefix(e.Key, news), "/")
		switch {
		case what == "teller":
			if string(e.Value) != d.cfg.Node {
				told = id
			}
		case id != told:
			out = append(out, id)
		}
	}
	return out, nil
}

// WatchNews calls see at first, and whenever there may be other News, until
// ctx ends or the store cannot go on.
func (d *Docket) WatchNews(ctx context.Context, see func()) error {
	return d.cfg.Store.Watch(ctx, news, func(bool, []store.Entry) { see() })
}

// Tell makes this node the one that tells the news of a case;
// store.ErrConflict says that another does. Disown ends that.
func (d *Docket) Tell(ctx context.Context, id string) (store.Claim, error) {
	return d.cfg.Store.Claim(ctx, tellerKey(id), []byte(d.cfg.Node))
}

// announce gives the changes of the news that go with a change of a case.
func (d *Docket) announce(ctx context.Context, before, after casefile.Case) ([]store.Change, error) {
	had, has := len(before.Untold) > 0, len(after.Untold) > 0
	switch {
	case had == has:
		return nil, nil
	case has:
		return []store.Change{store.Set(untoldKey(after.ID), []byte("untold"), 0)}, nil
	}
	_, revision, err := d.cfg.Store.Get(ctx, untoldKey(after.ID))
	if errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("the news of case %s were told since it was read: %w", after.ID, store.ErrConflict)
	}
	if err != nil {
		return nil, err
	}
	return []store.Change{store.Remove(untoldKey(after.ID), revision)}, nil
}
