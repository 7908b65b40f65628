package steps

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/notify"
	"github.com/quicklime-ir/quicklime/collector/playbook"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// oweLimit bounds how long the store may take to make a message news.
const oweLimit = 10 * time.Second

// isolationLimits is what a reader must know before trusting the word
// isolated. Source: Amazon EC2 User Guide, "Security group connection
// tracking"; Amazon VPC User Guide, "Security groups".
const isolationLimits = "Security groups do not stop connections that EC2 tracks already (until they time out), " +
	"the VPC's DNS resolver, the instance metadata service with the role's credentials, DHCP or Amazon Time Sync."

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

// report says what was got, what was not, how long it took, and what
// isolation does not stop.
func (s *Story) report(ctx context.Context, run *playbook.Run) error {
	return s.say(ctx, run, casefile.Report, reportOf)
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

// reportOf is the report of a case; what is worst stands in its title.
func reportOf(c casefile.Case) notify.Message {
	m := notify.Message{Title: "Case of " + c.Instance.ID + ": evidence is whole, instance is isolated", Colour: notify.Green}
	if problems := problemsOf(c); problems != "" {
		m.Title, m.Colour = "Case of "+c.Instance.ID+": ended, but not all is well", notify.Amber
		m.Fields = append(m.Fields, notify.Field{Name: "Not got, not done", Value: problems})
	}
	if !containedIn(c) {
		m.Title, m.Colour = "Case of "+c.Instance.ID+": NOT CONTAINED", notify.Red
	}
	var findings []string
	for _, f := range c.Findings {
		findings = append(findings, fmt.Sprintf("%s (%v)", f.Type, f.Severity))
	}
	m.Fields = append(m.Fields,
		notify.Field{Name: "Evidence", Value: evidenceOf(c)},
		notify.Field{Name: "Findings", Value: strings.Join(findings, "\n")},
		notify.Field{Name: "Case", Value: c.ID, Inline: true},
		notify.Field{Name: "Took", Value: took(c).Round(time.Second).String(), Inline: true},
	)
	if c.Image != nil {
		m.Fields = append(m.Fields, notify.Field{Name: "AMI", Value: c.Image.ID + " " + c.Image.State, Inline: true})
	}
	if c.Manifest != nil {
		m.Fields = append(m.Fields, notify.Field{Name: "Manifest", Value: c.Manifest.Key})
	}
	m.Fields = append(m.Fields, notify.Field{Name: "What isolation does not stop", Value: isolationLimits})
	return m
}

// took is how long a case took until its report.
func took(c casefile.Case) time.Duration {
	step, _ := c.StepNamed(Report)
	return step.Started.Sub(c.Opened)
}

func containedIn(c casefile.Case) bool {
	step, _ := c.StepNamed(Contain)
	check, _ := c.StepNamed(Verify)
	return step.Outcome == casefile.Done && check.Outcome != casefile.Failed
}

func problemsOf(c casefile.Case) string {
	var lines []string
	for _, step := range c.Steps {
		if step.Outcome != "" && step.Outcome != casefile.Done {
			lines = append(lines, fmt.Sprintf("%s %s: %s", step.Name, step.Outcome, step.Detail))
		}
	}
	return strings.Join(lines, "\n")
}

func evidenceOf(c casefile.Case) string {
	count, bytes := map[evidence.Kind]int{}, map[evidence.Kind]uint64{}
	for _, item := range c.Items {
		if item.Size > 0 {
			count[item.Kind]++
			bytes[item.Kind] += item.Size
		}
	}
	var lines []string
	for _, kind := range []evidence.Kind{evidence.Volatile, evidence.Symbols, evidence.Memory, evidence.Live} {
		lines = append(lines, fmt.Sprintf("%s: %d objects, %.1f MiB", kind, count[kind], float64(bytes[kind])/(1<<20)))
	}
	return strings.Join(lines, "\n")
}
