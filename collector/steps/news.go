package steps

import (
	"context"
	"fmt"
	"slices"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/notify"
)

// newsShown bounds the findings of one message; the case has all.
const newsShown = 10

// Tell sends one message of a case's news: of all the findings that joined, or
// one that nobody took when it was due. It gives the news' EventIDs.
func (s *Story) Tell(ctx context.Context, c casefile.Case) (told []string, err error) {
	m, told := messageOf(c)
	return told, s.Notifier.Notify(ctx, m)
}

// messageOf gives the message that is due first, and of which news it tells.
func messageOf(c casefile.Case) (m notify.Message, told []string) {
	first := c.Untold[0]
	switch first.Message {
	case casefile.Beginning:
		return beginningOf(c), []string{first.EventID}
	case casefile.Report:
		return reportOf(c), []string{first.EventID}
	}
	c.Untold = slices.DeleteFunc(slices.Clone(c.Untold), func(n casefile.News) bool { return n.Message != "" })
	for _, n := range c.Untold {
		told = append(told, n.EventID)
	}
	return updateOf(c), told
}

// updateOf is the message of findings that joined; a rise of the severity stands
// in its title.
func updateOf(c casefile.Case) notify.Message {
	about := "Case " + c.ID
	if c.Instance.ID != "" {
		about = "Case of " + c.Instance.ID
	}
	m := notify.Message{Title: about + ": another type of finding", Colour: notify.Amber, Body: "The case goes on as it is; nothing else is started."}
	if c.State != casefile.Running {
		m.Body = "The steps of the case have ended; nothing else is started. Close it, and the next finding opens a new one."
	}
	worst := 0.0
	for _, n := range c.Untold {
		if n.Worse() {
			worst = max(worst, n.Severity)
		}
	}
	if worst > 0 {
		m.Title, m.Colour = fmt.Sprintf("%s: severity rises to %g", about, worst), notify.Red
	}
	for i, n := range c.Untold {
		if i == newsShown {
			m.Fields = append(m.Fields, notify.Field{Name: "And", Value: fmt.Sprintf("%d more, see the case", len(c.Untold)-i)})
			break
		}
		m.Fields = append(m.Fields, notify.Field{Name: n.Type, Value: newsLine(n)})
	}
	return withCase(m, c)
}

// newsLine says what is new in one finding, and what GuardDuty says of it.
func newsLine(n casefile.News) string {
	what := "a new type in this case, severity %g"
	if n.Worse() {
		what = "severity %g, until now %g"
		if n.NewType {
			what = "a new type in this case, " + what
		}
		return fmt.Sprintf(what, n.Severity, n.Worst) + "\n" + n.Title
	}
	return fmt.Sprintf(what, n.Severity) + "\n" + n.Title
}

func withCase(m notify.Message, c casefile.Case) notify.Message {
	m.Fields = append(m.Fields, notify.Field{Name: "Case", Value: c.ID, Inline: true})
	if c.Instance.ID != "" {
		m.Fields = append(m.Fields, notify.Field{Name: "Where", Value: c.Instance.Account + " " + c.Instance.Region, Inline: true})
	}
	return m
}
