// Package casefile is one case: what is known of one instance, what was done
// to it, and what comes next.
//
// It is pure. A case changes only by applying events, one after the other,
// so that the journal of events is the case, and a restart or another node
// sees exactly what the first one saw.
package casefile

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/quicklime-ir/quicklime/collector/finding"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// Bounds of a case. Findings past theirs are counted; of the ids of events,
// the oldest are forgotten.
const (
	maxFindings = 100
	maxSeen     = 1000
	maxControls = 1000 // what operators may ask of one case's captures

	// MaxProcessMemory bounds the processes whose memory one capture takes.
	MaxProcessMemory = 64
)

// State says where a case stands.
type State string

// The states of a case.
const (
	Running State = "running" // its steps are being taken
	Ended   State = "ended"   // every step has ended; new findings still join
	Closed  State = "closed"  // by an operator; a new finding opens a new case
)

// Outcome says how a step ended.
type Outcome string

// The outcomes of a step.
const (
	Done    Outcome = "done"
	Partly  Outcome = "partial"
	Failed  Outcome = "failed"
	Skipped Outcome = "skipped"
)

// Case is what is known of one case. Only Apply changes it.
type Case struct {
	ID        string            `json:"id"`
	Opened    time.Time         `json:"opened"`
	State     State             `json:"state"`
	Act       bool              `json:"act"` // false: a record, nothing is done but to notify
	Reason    string            `json:"reason"`
	Instance  evidence.Instance `json:"instance"` // empty when nothing is acted on
	Findings  []Finding         `json:"findings"`
	Uncounted int               `json:"findingsNotKept,omitempty"`
	Untold    []News            `json:"untold,omitempty"` // oldest first
	Seen      []string          `json:"eventsSeen"`       // ids of the events that it took, replaced ones too
	Before    string            `json:"before,omitempty"` // the case of the same subject that was closed before it
	Steps     []Step            `json:"steps"`
	Controls  []Control         `json:"controls,omitempty"` // oldest first

	Agent      *evidence.Agent      `json:"agent,omitempty"`
	Protection *Protection          `json:"protectionBefore,omitempty"`
	Interfaces []evidence.Interface `json:"interfaces,omitempty"`
	Image      *evidence.Image      `json:"image,omitempty"`
	Items      []evidence.Item      `json:"items,omitempty"` // without their parts, which the ledger and the manifest hold
	Missing    []evidence.Missing   `json:"missing,omitempty"`
	Manifest   *Manifest            `json:"manifest,omitempty"`

	Journal evidence.JournalHead `json:"journal"`
}

// Place is a case that runs, or waits to, as the queue of cases holds it.
type Place struct {
	ID       string    `json:"-"`
	Owner    string    `json:"-"` // the node that runs it; "": none does
	Ours     bool      `json:"-"` // the owner is this node
	Opened   time.Time `json:"opened"`
	Severity float64   `json:"severity"` // the worst of its findings
	Account  string    `json:"account,omitempty"`
	Region   string    `json:"region,omitempty"`
}

// Finding is a finding that stands behind the case.
type Finding struct {
	EventID  string    `json:"eventId"`
	ID       string    `json:"id"`
	Type     string    `json:"type"`
	Title    string    `json:"title"`
	Severity float64   `json:"severity"`
	Count    int       `json:"count"`
	Updated  time.Time `json:"updated,omitzero"` // as GuardDuty says
	Received time.Time `json:"received"`
	Raw      []byte    `json:"raw,omitempty"` // the event as it came, to the byte
}

// Step is one step of the case's story.
type Step struct {
	Name    string    `json:"name"`
	Tries   int       `json:"tries"` // how often it was begun; more than once after a restart
	Started time.Time `json:"started,omitzero"`
	// Deadline is when it is given up. It is set when the step is first begun,
	// and holds for whoever takes it up again.
	Deadline time.Time `json:"deadline,omitzero"`
	Ended    time.Time `json:"ended,omitzero"`
	Outcome  Outcome   `json:"outcome,omitempty"`
	Detail   string    `json:"detail,omitempty"`
}

// Control is what an operator asked of captures: while they ran, or of the live
// one before it did.
type Control struct {
	Time   time.Time `json:"time"`
	Orders []string  `json:"orders"`           // of the captures
	Paused *bool     `json:"paused,omitempty"` // nil: as it is
	Limits *Limits   `json:"limits,omitempty"` // nil: as they are
	Cancel string    `json:"cancel,omitempty"` // why they are to end now; empty: they go on
	// ProcessMemory is of which processes the memory is to be taken as well.
	ProcessMemory []int32 `json:"processMemory,omitempty"`
}

// Limits bound what a capture may take from its host; zero is none.
type Limits struct {
	CPUPercent     uint32 `json:"cpuPercent"` // of all processors together
	BytesPerSecond uint64 `json:"bytesPerSecond"`
}

// String says it as the operator did.
func (c Control) String() string {
	var words []string
	if c.Paused != nil {
		words = append(words, map[bool]string{true: "paused", false: "resumed"}[*c.Paused])
	}
	if c.Limits != nil {
		words = append(words, fmt.Sprintf("limited to %d %% of CPU and %d bytes a second (0: no limit)", c.Limits.CPUPercent, c.Limits.BytesPerSecond))
	}
	if c.Cancel != "" {
		words = append(words, "ended: "+c.Cancel)
	}
	if len(c.ProcessMemory) > 0 {
		words = append(words, fmt.Sprintf("to take the memory of %d", c.ProcessMemory))
	}
	return strings.Join(c.Orders, ", ") + " " + strings.Join(words, ", ")
}

// Protection is how the instance was guarded against its own end, before the
// case changed it.
type Protection struct {
	TerminationProtected bool   `json:"terminationProtected"`
	ShutdownBehavior     string `json:"shutdownBehavior"`
}

// Manifest tells where the signed manifest lies.
type Manifest struct {
	Key    string          `json:"key"`
	SHA256 evidence.Digest `json:"sha256"`
}

// Event is one change of a case. Exactly the fields that its Type names are
// set.
type Event struct {
	Type string    `json:"type"`
	Time time.Time `json:"time"`

	Opened     *Opening             `json:"opened,omitempty"`
	Finding    *Finding             `json:"finding,omitempty"`
	Step       string               `json:"step,omitempty"`
	Deadline   time.Time            `json:"deadline,omitzero"`
	Outcome    Outcome              `json:"outcome,omitempty"`
	Detail     string               `json:"detail,omitempty"`
	Control    *Control             `json:"control,omitempty"`
	Instance   *evidence.Instance   `json:"instance,omitempty"`
	Agent      *evidence.Agent      `json:"agent,omitempty"`
	Protection *Protection          `json:"protectionBefore,omitempty"`
	Interfaces []evidence.Interface `json:"interfaces,omitempty"`
	Image      *evidence.Image      `json:"image,omitempty"`
	Items      []evidence.Item      `json:"items,omitempty"`
	Missing    *evidence.Missing    `json:"missing,omitempty"`
	Manifest   *Manifest            `json:"manifest,omitempty"`
	Owed       string               `json:"owed,omitempty"` // a message that nobody took yet: Beginning or Report
	Told       []string             `json:"told,omitempty"` // ids of the events that brought the news
}

// Opening is what a case begins with.
type Opening struct {
	Act      bool              `json:"act"`
	Reason   string            `json:"reason"`
	Instance evidence.Instance `json:"instance"`
	Steps    []string          `json:"steps"`
	Before   string            `json:"before,omitempty"`
}

// The types of events. A fact is something learned or changed by a step; it
// sets the fields that it brings.
const (
	CaseOpened    = "case_opened"
	FindingJoined = "finding_joined"
	NewsTold      = "news_told" // people were told what joined findings brought
	StepStarted   = "step_started"
	StepEnded     = "step_ended"
	Fact          = "fact"
	Controlled    = "capture_controlled" // by an operator
	CaseClosed    = "case_closed"
)

// FindingOf makes the case's note of a finding.
func FindingOf(f *finding.Finding, now time.Time) Finding {
	return Finding{EventID: f.EventID, ID: f.ID, Type: f.Type, Title: f.Title, Severity: f.Severity,
		Count: f.Count, Updated: f.UpdatedAt.UTC(), Received: now.UTC(), Raw: f.Raw}
}

// Open is the case that an opening event begins.
func Open(id string, e Event) (Case, error) {
	if e.Type != CaseOpened || e.Opened == nil || e.Finding == nil {
		return Case{}, fmt.Errorf("cannot open case %s: its first event is %q", id, e.Type)
	}
	c := Case{ID: id, Opened: e.Time, State: Running, Act: e.Opened.Act, Reason: e.Opened.Reason,
		Instance: e.Opened.Instance, Findings: []Finding{*e.Finding}, Seen: []string{e.Finding.EventID}, Before: e.Opened.Before}
	for _, name := range e.Opened.Steps {
		c.Steps = append(c.Steps, Step{Name: name})
	}
	return c, nil
}

// Apply gives the case after an event. The case before it is unchanged.
func (c Case) Apply(e Event) (Case, error) {
	if c.State == Closed {
		return c, fmt.Errorf("cannot apply event %q to case %s: it is closed", e.Type, c.ID)
	}
	c.Steps, c.Findings = slices.Clone(c.Steps), slices.Clone(c.Findings)
	switch e.Type {
	case FindingJoined:
		c.join(*e.Finding)
	case NewsTold:
		c.told(e.Told)
	case StepStarted, StepEnded:
		i := slices.IndexFunc(c.Steps, func(s Step) bool { return s.Name == e.Step })
		if i < 0 {
			return c, fmt.Errorf("cannot apply event %q to case %s: it has no step %q", e.Type, c.ID, e.Step)
		}
		c.move(&c.Steps[i], e)
	case Fact:
		c.learn(e)
	case Controlled:
		return c.control(e)
	case CaseClosed:
		if c.State == Running {
			return c, fmt.Errorf("cannot close case %s: it is running; wait until its steps have ended", c.ID)
		}
		c.State, c.Reason, c.Untold = Closed, e.Detail, nil // who closes it has seen it
	default:
		return c, fmt.Errorf("cannot apply event %q to case %s: unknown", e.Type, c.ID)
	}
	return c, nil
}

// newer reports whether a version of a finding is later than another. Events
// come in any order, so GuardDuty's own count tells, then its time, and the
// event's id where both are the same, so that every order ends alike.
func (f Finding) newer(than Finding) bool {
	return cmp.Or(cmp.Compare(f.Count, than.Count), f.Updated.Compare(than.Updated), strings.Compare(f.EventID, than.EventID)) > 0
}

// join takes a finding. Of the updates of one finding the latest stays; the
// worst severity stays in any case. What it brings that is new is to be told,
// unless the case keeps no more findings and cannot say what it has.
func (c *Case) join(f Finding) {
	news, isNews := c.newsOf(f)
	kept := c.keep(f)
	if isNews && kept {
		c.Untold = append(slices.Clone(c.Untold), news)
	}
}

// keep puts a finding among those of the case, and reports whether it has
// room for it.
func (c *Case) keep(f Finding) bool {
	c.Seen = append(slices.Clone(c.Seen), f.EventID)
	c.Seen = c.Seen[max(0, len(c.Seen)-maxSeen):]
	for i, known := range c.Findings {
		if known.ID == f.ID && known.Type == f.Type {
			worst := max(f.Severity, known.Severity)
			if f.newer(known) {
				c.Findings[i] = f
			}
			c.Findings[i].Severity = worst
			return true
		}
	}
	if len(c.Findings) >= maxFindings {
		c.Uncounted++
		return false
	}
	c.Findings = append(c.Findings, f)
	return true
}

func (c *Case) move(s *Step, e Event) {
	if e.Type == StepStarted {
		s.Tries++
		if s.Started.IsZero() {
			s.Started, s.Deadline = e.Time, e.Deadline
		}
		return
	}
	s.Ended, s.Outcome, s.Detail = e.Time, e.Outcome, e.Detail
	if next, _ := c.Next(); next == "" {
		c.State = Ended
	}
}

func (c *Case) learn(e Event) {
	if e.Owed != "" {
		c.owe(e.Owed)
	}
	if e.Instance != nil {
		c.Instance = *e.Instance
	}
	if e.Agent != nil {
		c.Agent = e.Agent
	}
	if e.Protection != nil && c.Protection == nil { // the first reading is the one before the change
		c.Protection = e.Protection
	}
	if e.Interfaces != nil {
		c.Interfaces = e.Interfaces
	}
	if e.Image != nil {
		c.Image = e.Image
	}
	if e.Items != nil {
		c.Items = e.Items
	}
	if e.Missing != nil {
		c.Missing = append(slices.Clone(c.Missing), *e.Missing)
	}
	if e.Manifest != nil {
		c.Manifest = e.Manifest
	}
}

func (c Case) control(e Event) (Case, error) {
	if e.Control == nil || len(c.Controls) >= maxControls {
		return c, fmt.Errorf("cannot control captures of case %s: %d controls are recorded, want %d at most", c.ID, len(c.Controls), maxControls)
	}
	asked := *e.Control
	asked.Time = e.Time
	if len(asked.ProcessMemory) > 0 {
		if err := c.mayTake(asked); err != nil {
			return c, err
		}
	}
	c.Controls = append(slices.Clone(c.Controls), asked)
	return c, nil
}

// mayTake refuses what comes too late, or is too much.
func (c Case) mayTake(asked Control) error {
	for _, order := range asked.Orders {
		step, ok := c.StepNamed(strings.TrimPrefix(order, c.ID+"/"))
		if !ok || step.Tries > 0 {
			return fmt.Errorf("cannot have the capture %s take more: it has begun, or the case has none", order)
		}
		before, _ := c.Asked(order)
		if n := len(before.ProcessMemory) + len(asked.ProcessMemory); n > MaxProcessMemory {
			return fmt.Errorf("cannot have the capture %s take the memory of %d processes: want %d at most", order, n, MaxProcessMemory)
		}
	}
	return nil
}

// Asked is all that operators have asked of a capture: of each sort the last
// holds, and of processes all. It is false where they have asked nothing.
func (c Case) Asked(order string) (sum Control, ok bool) {
	for _, asked := range c.Controls {
		if !slices.Contains(asked.Orders, order) {
			continue
		}
		ok = true
		if asked.Paused != nil {
			sum.Paused = asked.Paused
		}
		if asked.Limits != nil {
			sum.Limits = asked.Limits
		}
		if asked.Cancel != "" {
			sum.Cancel = asked.Cancel
		}
		sum.ProcessMemory = append(sum.ProcessMemory, asked.ProcessMemory...)
	}
	return sum, ok
}

// Next is the step to take now, and whether it was begun before; "" when all
// have ended.
func (c Case) Next() (name string, begun bool) {
	for _, s := range c.Steps {
		if s.Outcome == "" {
			return s.Name, s.Tries > 0
		}
	}
	return "", false
}

// StepNamed gives a step of the case.
func (c Case) StepNamed(name string) (Step, bool) {
	for _, s := range c.Steps {
		if s.Name == name {
			return s, true
		}
	}
	return Step{}, false
}

// Severity is the worst of the findings'.
func (c Case) Severity() float64 {
	worst := 0.0
	for _, f := range c.Findings {
		worst = max(worst, f.Severity)
	}
	return worst
}

// Known reports whether the case has seen this very event.
func (c Case) Known(eventID string) bool { return slices.Contains(c.Seen, eventID) }

// Summary says in one line what the case got and what it did not.
func (c Case) Summary() string {
	if !c.Act {
		return "notified only: " + c.Reason
	}
	var parts []string
	for _, s := range c.Steps {
		if s.Outcome != "" && s.Outcome != Done {
			parts = append(parts, fmt.Sprintf("%s %s: %s", s.Name, s.Outcome, s.Detail))
		}
	}
	if len(parts) == 0 {
		return string(c.State) + ", everything was done"
	}
	return string(c.State) + "; " + strings.Join(parts, "; ")
}
