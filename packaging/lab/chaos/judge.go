package chaos

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/packaging/lab/emulator"
)

// Sent is a finding that was delivered, once or more often.
type Sent struct {
	Event     string   // its id
	Instances []string // that it is about
	At        time.Time
}

// Mark is something of a case that came into the bucket: a part, an object or
// a journal entry.
type Mark struct {
	Instance string
	At       time.Time
	What     string // its key below the instance's
}

// manifest is what is stored when the evidence is complete and signed.
const manifest = "manifest.json"

// Papers is what the bucket holds of a case.
type Papers struct {
	Problems []string         // why the evidence is not proven with the public key alone
	Journal  []casefile.Event // as the bucket has it
}

// Evidence is what the judge looks at. All of it is seen from outside the
// collectors, but for the cases, which are what an operator is told.
type Evidence struct {
	Sent    []Sent
	Marks   []Mark
	Cases   []casefile.Case
	Papers  map[string]Papers // by case
	Acts    []emulator.Act
	Account emulator.State
	End     time.Time // of the looking
}

// Verdict is what the judge says.
type Verdict struct {
	Cases   int // instances that findings named; each must have one case
	Lost    int // of them, those without a case that ended with all its evidence
	Doubled int // things that are there twice, or were done twice
	Pause   time.Duration
	PauseOf string // the instance whose case stood still for so long, and between what

	Faults []string // a sentence for each thing lost or doubled
}

// OK says that nothing was lost and nothing doubled.
func (v Verdict) OK() bool { return v.Lost == 0 && v.Doubled == 0 }

// WriteText prints the faults, and the verdict as the last line.
func (v Verdict) WriteText(w io.Writer) error {
	for _, f := range v.Faults {
		fmt.Fprintln(w, f)
	}
	if v.PauseOf != "" {
		fmt.Fprintf(w, "the longest pause was in the case of %s\n", v.PauseOf)
	}
	_, err := fmt.Fprintf(w, "cases %d, lost %d, doubled %d, longest pause %.1f s\n", v.Cases, v.Lost, v.Doubled, v.Pause.Seconds())
	return err
}

// Judge decides what was lost and what was done twice.
//
// Lost is an instance that a finding named where there is no case of it, or
// the case has not ended, has not taken up each of the findings, has a step
// that was not done or news that nobody was told, or lacks evidence that holds
// with the public key alone and a journal that is complete in the bucket; or
// where EC2 does not have the instance protected, imaged and isolated.
//
// Doubled is a second case of an instance, a case of an instance that no
// finding named, a second image of an instance, a step whose end is twice in a
// journal, and anything in EC2 that was changed more than once. That a call is
// repeated and changes nothing is as it should be, and so are messages to
// people, which come at least once.
//
// The longest pause is the longest time in which the case of any instance
// stood still, from its first finding to its signed manifest: in which the
// bucket took no part, object or journal entry of it, and EC2 did nothing for
// it.
func Judge(e Evidence) Verdict {
	j := &judge{Evidence: e, of: map[string][]casefile.Case{}, owner: map[string]string{}}
	for _, i := range e.Account.Interfaces {
		j.owner[i.ID] = i.Instance
	}
	for _, c := range e.Cases {
		j.of[c.Instance.ID] = append(j.of[c.Instance.ID], c)
	}
	instances := j.instances()
	j.verdict.Cases = len(instances)
	for _, instance := range instances {
		if missing := j.missing(instance); len(missing) > 0 {
			j.verdict.Lost++
			j.fault("LOST     %s: %s", instance, strings.Join(missing, "; "))
		}
		if pause, between := j.pause(instance); pause > j.verdict.Pause {
			j.verdict.Pause, j.verdict.PauseOf = pause, instance+", "+between
		}
	}
	j.twiceInCases(instances)
	j.twiceInEC2()
	return j.verdict
}

type judge struct {
	Evidence
	of      map[string][]casefile.Case // by instance
	owner   map[string]string          // of each interface, its instance
	verdict Verdict
}

func (j *judge) fault(format string, args ...any) {
	j.verdict.Faults = append(j.verdict.Faults, fmt.Sprintf(format, args...))
}

func (j *judge) doubled(format string, args ...any) {
	j.verdict.Doubled++
	j.fault("DOUBLED  "+format, args...)
}

// instances gives those that findings named.
func (j *judge) instances() []string {
	named := map[string]bool{}
	for _, s := range j.Sent {
		for _, i := range s.Instances {
			named[i] = true
		}
	}
	return slices.Sorted(maps.Keys(named))
}

// missing says what an instance's case lacks.
func (j *judge) missing(instance string) []string {
	cases := j.of[instance]
	if len(cases) == 0 {
		return []string{"it has no case"}
	}
	var out []string
	c := cases[0]
	if c.State != casefile.Ended {
		step, _ := c.Next()
		out = append(out, fmt.Sprintf("case %s is %s, in step %s", c.ID, c.State, cmp.Or(step, "none")))
	}
	for _, s := range j.Sent {
		if slices.Contains(s.Instances, instance) && !slices.ContainsFunc(cases, func(c casefile.Case) bool { return c.Known(s.Event) }) {
			out = append(out, fmt.Sprintf("case %s does not know finding %s", c.ID, s.Event))
		}
	}
	for _, s := range c.Steps {
		if s.Outcome != casefile.Done && s.Outcome != "" {
			out = append(out, fmt.Sprintf("step %s of case %s is %s: %s", s.Name, c.ID, s.Outcome, clip(s.Detail)))
		}
	}
	for _, n := range c.Untold {
		out = append(out, fmt.Sprintf("of case %s nobody was told of %s", c.ID, n.EventID))
	}
	papers := j.Papers[c.ID]
	for _, p := range papers.Problems {
		out = append(out, fmt.Sprintf("evidence of case %s: %s", c.ID, p))
	}
	if len(papers.Journal) < c.Journal.Entries {
		out = append(out, fmt.Sprintf("journal of case %s has %d entries in the bucket, of %d", c.ID, len(papers.Journal), c.Journal.Entries))
	}
	return append(out, j.undone(instance)...)
}

// undone says what EC2 does not show of an instance.
func (j *judge) undone(instance string) []string {
	var out []string
	for _, i := range j.Account.Instances {
		if i.ID == instance && (!i.TerminationProtected || i.ShutdownBehavior != "stop") {
			out = append(out, "EC2 does not protect it")
		}
	}
	for _, i := range j.Account.Interfaces {
		if i.Instance != instance {
			continue
		}
		at := slices.IndexFunc(j.Account.Groups, func(g emulator.GroupState) bool { return slices.Equal(i.Groups, []string{g.ID}) })
		if at < 0 || len(j.Account.Groups[at].Ingress)+len(j.Account.Groups[at].Egress) > 0 {
			out = append(out, fmt.Sprintf("interface %s is in groups %v, not isolated", i.ID, i.Groups))
		}
	}
	if !slices.ContainsFunc(j.Account.Images, func(i emulator.ImageState) bool { return i.Instance == instance && i.State == "available" }) {
		out = append(out, "EC2 has no image of it")
	}
	return out
}

func (j *judge) twiceInCases(instances []string) {
	for _, instance := range slices.Sorted(maps.Keys(j.of)) {
		for _, c := range j.of[instance][1:] {
			j.doubled("instance %s has cases %s and %s", instance, j.of[instance][0].ID, c.ID)
		}
		if !slices.Contains(instances, instance) {
			j.doubled("case %s is of %q, which no finding named", j.of[instance][0].ID, instance)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(j.Papers)) {
		ended := map[string]int{}
		for _, e := range j.Papers[id].Journal {
			if e.Type == casefile.StepEnded {
				if ended[e.Step]++; ended[e.Step] == 2 {
					j.doubled("step %s of case %s ended twice", e.Step, id)
				}
			}
		}
	}
}

func (j *judge) twiceInEC2() {
	type thing struct{ subject, what string }
	changed := map[thing]emulator.Act{}
	for _, act := range j.Acts {
		key := thing{act.Subject, act.What}
		first, twice := changed[key]
		switch {
		case !act.Changed:
		case twice:
			j.doubled("%s made %s of %s %s at %s, and %s made it %s at %s", first.Action, key.what, key.subject, first.Value, hour(first.Time),
				act.Action, act.Value, hour(act.Time))
		default:
			changed[key] = act
		}
	}
}

// move is a moment at which a case moved on.
type move struct {
	at   time.Time
	what string
}

// pause is the longest time in which the case of an instance stood still, and
// between what.
func (j *judge) pause(instance string) (longest time.Duration, between string) {
	begin := move{what: "its finding"}
	for _, s := range j.Sent {
		if slices.Contains(s.Instances, instance) && (begin.at.IsZero() || s.At.Before(begin.at)) {
			begin.at = s.At
		}
	}
	end, moves := move{j.End, "the end"}, []move{begin}
	for _, m := range j.Marks {
		if m.Instance != instance {
			continue
		}
		moves = append(moves, move{m.At, m.What})
		if m.What == manifest && m.At.Before(end.at) {
			end = move{m.At, m.What}
		}
	}
	for _, act := range j.Acts {
		if act.Subject == instance || j.owner[act.Subject] == instance {
			moves = append(moves, move{act.Time, act.Action})
		}
	}
	moves = append(slices.DeleteFunc(moves, func(m move) bool { return m.at.After(end.at) }), end)
	slices.SortStableFunc(moves, func(a, b move) int { return a.at.Compare(b.at) })
	for i := 1; i < len(moves); i++ {
		if from, to := moves[i-1], moves[i]; to.at.Sub(from.at) > longest {
			longest = to.at.Sub(from.at)
			between = fmt.Sprintf("between %s at %s and %s", from.what, hour(from.at), to.what)
		}
	}
	return longest, between
}

// clip gives as much of a detail as a line has room for.
func clip(detail string) string {
	line, _, more := strings.Cut(detail, "\n")
	if more || len(line) > 300 {
		return line[:min(len(line), 300)] + " …"
	}
	return line
}

func hour(t time.Time) string { return t.Format("15:04:05.000") }
