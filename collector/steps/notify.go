package steps

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/notify"
	"github.com/quicklime-ir/quicklime/collector/playbook"
)

// oweLimit bounds how long the store may take to make a message news.
const oweLimit = 10 * time.Second

// notify says that a case begins.
func (s *Story) notify(ctx context.Context, run *playbook.Run) error {
	return s.say(ctx, run, casefile.Beginning, beginningOf)
}

// announce says all there is to say of a case that does not act.
func (s *Story) announce(ctx context.Context, run *playbook.Run) error {
	c, err := run.Case(ctx)
	if err == nil {
		err = s.Notifier.Notify(ctx, beginningOf(c))
	}
	if err != nil {
		return playbook.Again{Err: err}
	}
	return nil
}

// say has a message accepted, or else makes it news of the case, which are told
// as soon as somebody takes them: the case must not wait for that. A message
// that was refused for good is both, as people may mend what refuses it.
func (s *Story) say(ctx context.Context, run *playbook.Run, name string, message func(casefile.Case) notify.Message) error {
	c, err := run.Case(ctx)
	if err != nil {
		return playbook.Again{Err: err}
	}
	untold := s.Notifier.Notify(ctx, message(c))
	if untold == nil || stopping(ctx) {
		return untold
	}
	run.Log.Warn("nobody takes the message now, it is told later", "message", name, "error", untold)
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), oweLimit)
	defer cancel()
	if err := learn(last, run, casefile.Event{Owed: name}); err != nil {
		return err
	}
	if errors.Is(untold, notify.ErrRefused) {
		return untold
	}
	return nil
}

// beginningOf is the first message of a case.
func beginningOf(c casefile.Case) notify.Message {
	f := c.Findings[0]
	m := notify.Message{Colour: notify.Grey, Body: c.Reason, Fields: []notify.Field{
		{Name: "Finding", Value: f.Type, Inline: true},
		{Name: "Severity", Value: fmt.Sprint(f.Severity), Inline: true},
		{Name: "Case", Value: c.ID, Inline: true},
		{Name: "What GuardDuty says", Value: f.Title},
	}}
	m.Title = "GuardDuty finding, nothing done"
	if c.Act {
		m.Title = "Compromised instance " + c.Instance.ID + ", capture begins"
		if c.State != casefile.Running {
			m.Title = "Compromised instance " + c.Instance.ID + ", its case has ended"
		}
		m.Colour = notify.Red
		m.Fields = append(m.Fields, notify.Field{Name: "Where", Value: c.Instance.Account + " " + c.Instance.Region, Inline: true})
	}
	return m
}
