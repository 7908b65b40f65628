package steps

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/notify"
	"github.com/quicklime-ir/quicklime/collector/playbook"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// isolationLimits is what a reader must know before trusting the word
// isolated. Source: Amazon EC2 User Guide, "Security group connection
// tracking"; Amazon VPC User Guide, "Security groups".
const isolationLimits = "Security groups do not stop connections that EC2 tracks already (until they time out), " +
	"the VPC's DNS resolver, the instance metadata service with the role's credentials, DHCP or Amazon Time Sync."

// report says what was got, what was not, how long it took, and what
// isolation does not stop.
func (s *Story) report(ctx context.Context, run *playbook.Run) error {
	return s.say(ctx, run, casefile.Report, reportOf)
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
