package casefile

import "slices"

// The messages of a case that are news where nobody took them in time.
const (
	Beginning = "beginning"
	Report    = "report"
)

// News is what people must be told at once: of a finding that joined a case,
// and is worse than all before it, or of a type that the case did not have; or
// a message of the case that could not be told in time. It stays with the case
// until it has been told.
type News struct {
	Message  string  `json:"message,omitempty"` // Beginning or Report; empty: a finding joined
	EventID  string  `json:"eventId"`           // of the finding, or else the message's name
	Type     string  `json:"type,omitempty"`
	Title    string  `json:"title,omitempty"`
	Severity float64 `json:"severity,omitempty"`
	Worst    float64 `json:"worst,omitempty"`   // severity of the case before it
	NewType  bool    `json:"newType,omitempty"` // the case had no finding of this type
}

// Worse reports whether the finding raised the severity of its case.
func (n News) Worse() bool { return n.Severity > n.Worst }

// newsOf gives what is new in a finding, before it joins.
func (c Case) newsOf(f Finding) (News, bool) {
	n := News{EventID: f.EventID, Type: f.Type, Title: f.Title, Severity: f.Severity, Worst: c.Severity(),
		NewType: !slices.ContainsFunc(c.Findings, func(known Finding) bool { return known.Type == f.Type })}
	return n, n.NewType || n.Worse()
}

// owe makes a message news, once.
func (c *Case) owe(message string) {
	if !slices.ContainsFunc(c.Untold, func(n News) bool { return n.Message == message }) {
		c.Untold = append(slices.Clone(c.Untold), News{Message: message, EventID: message})
	}
}

// told takes away what has been told, by its events' ids.
func (c *Case) told(ids []string) {
	c.Untold = slices.DeleteFunc(slices.Clone(c.Untold), func(n News) bool { return slices.Contains(ids, n.EventID) })
}
