package desk

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// PrintCases writes one line for each case.
func PrintCases(w io.Writer, cases []casefile.Case) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "CASE\tOPENED\tSTATE\tINSTANCE\tFINDINGS\tSUMMARY")
	for _, c := range cases {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\n", c.ID, c.Opened.Format(time.DateTime), c.State,
			or(c.Instance.ID, "-"), len(c.Findings)+c.Uncounted, Plain(c.Summary()))
	}
	return t.Flush()
}

// PrintCase writes a case for a person.
func PrintCase(w io.Writer, c casefile.Case, progress []*wire.Progress) error {
	fmt.Fprintf(w, "case       %s, %s\nopened     %s\n", c.ID, c.State, c.Opened.Format(time.RFC3339))
	if c.Act {
		fmt.Fprintf(w, "instance   %s, account %s, %s\n", c.Instance.ID, c.Instance.Account, c.Instance.Region)
	}
	fmt.Fprintf(w, "because    %s\n", Plain(c.Reason))
	for _, f := range c.Findings {
		fmt.Fprintf(w, "finding    %v  %s  %s\n", f.Severity, Plain(f.Type), Plain(f.Title))
	}
	for _, n := range c.Untold {
		fmt.Fprintf(w, "not told   %s\n", Plain(or(n.Message, n.Type)))
	}
	if c.Agent != nil {
		fmt.Fprintf(w, "agent      %s on %s, kernel %s\n", Plain(c.Agent.Version), Plain(c.Agent.Hostname), Plain(c.Agent.KernelRelease))
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nSTEP\tOUTCOME\tTOOK\tDETAIL")
	for _, s := range c.Steps {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", s.Name, outcome(s), took(s), Plain(s.Detail))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, p := range progress {
		fmt.Fprintf(w, "now        %s\n", PrintProgress(p))
	}
	for _, asked := range c.Controls {
		fmt.Fprintf(w, "operator   %s  %s\n", asked.Time.Format(time.RFC3339), Plain(asked.String()))
	}
	if len(c.Items) > 0 {
		fmt.Fprintln(t, "\nOBJECT\tSTATUS\tSIZE\tSHA-256 (COMPOSITE)")
		for _, i := range c.Items {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", i.Key, i.Status, Bytes(i.Size), i.SHA256)
		}
	}
	if c.Image != nil {
		fmt.Fprintf(t, "\nAMI %s\t%s\tsnapshots %s\n", c.Image.ID, c.Image.State, strings.Join(c.Image.Snapshots, " "))
	}
	if len(c.Interfaces) > 0 {
		fmt.Fprintln(t, "\nINTERFACE\tGROUPS BEFORE\tAFTER")
		for _, i := range c.Interfaces {
			fmt.Fprintf(t, "%s\t%s\t%s\n", i.ID, strings.Join(i.Before, " "), strings.Join(i.After, " "))
		}
	}
	for _, m := range c.Missing {
		fmt.Fprintf(t, "missing\t%s\t%s\n", m.Kind, Plain(m.Reason))
	}
	if c.Manifest != nil {
		fmt.Fprintf(t, "\nmanifest %s\n", c.Manifest.Key)
	}
	return t.Flush()
}

// PrintAgents writes one line for each agent.
func PrintAgents(w io.Writer, agents []*wire.AttachedAgent) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "AGENT\tHOST\tVERSION\tKERNEL\tRAM\tMEMORY SOURCES\tNODE\tLAST SEEN")
	for _, a := range agents {
		node, seen := Plain(a.GetNode()), a.GetLastSeen().AsTime().Format(time.TimeOnly)
		if !a.GetPresent() {
			node, seen = "-", a.GetLastSeen().AsTime().Format(time.DateTime)
		}
		h := a.GetHello()
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", a.GetId(), Plain(h.GetHostname()), Plain(h.GetAgentVersion()), Plain(h.GetKernelRelease()),
			Bytes(h.GetRamBytes()), Plain(wire.Verdicts(h)), node, seen)
	}
	return t.Flush()
}

// PrintProgress gives one line about a running capture.
func PrintProgress(p *wire.Progress) string {
	if p.GetDoing() == "" {
		return "nothing is heard of it yet" + paused(p)
	}
	line := Plain(p.GetDoing()) + ": " + Bytes(p.GetBytesRead())
	if p.GetBytesTotal() > 0 {
		line += " of " + Bytes(p.GetBytesTotal())
	}
	line += " read, " + Bytes(p.GetBytesStored()) + " stored in " + strconv.Itoa(int(p.GetPartsStored())) + " parts"
	if p.GetPaused() {
		return line + paused(p)
	}
	line += fmt.Sprintf("; %s/s read, %s/s stored", Bytes(p.GetReadPerSecond()), Bytes(p.GetStoredPerSecond()))
	if p.GetLeft() != nil {
		line += ", " + p.GetLeft().AsDuration().Round(time.Second).String() + " left"
	}
	if word, ok := uplinks[p.GetUplink()]; ok {
		line += "; uplink " + word
	}
	if p.GetRetries() > 0 {
		line += fmt.Sprintf(", %d retries", p.GetRetries())
	}
	return line
}

func paused(p *wire.Progress) string {
	if p.GetPaused() {
		return "; PAUSED by an operator"
	}
	return ""
}

var uplinks = map[wire.Uplink]string{
	wire.Uplink_UPLINK_IDLE:    "idle",
	wire.Uplink_UPLINK_FLOWING: "flowing",
	wire.Uplink_UPLINK_FULL:    "full: the readers wait for it",
	wire.Uplink_UPLINK_FAILING: "failing",
	wire.Uplink_UPLINK_WAITING: "waiting: the agent gets no grants",
}

// Plain makes a peer's text safe for a terminal: what is not printable is
// shown as an escape.
func Plain(s string) string {
	quoted := strconv.Quote(s)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}

// Bytes gives a size for a person.
func Bytes(n uint64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}

func outcome(s casefile.Step) string {
	if s.Outcome != "" {
		return string(s.Outcome)
	}
	if s.Tries > 0 {
		return "now"
	}
	return "-"
}

func took(s casefile.Step) string {
	if s.Ended.IsZero() {
		return "-"
	}
	return s.Ended.Sub(s.Started).Round(10 * time.Millisecond).String()
}

func or(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}
