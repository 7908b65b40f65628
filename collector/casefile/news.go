package casefile

import "slices"

// News is a finding that joined a case and must be told at once: it is worse
// than all before it, or of a type that the case did not have. It stays with
// the case until it has been told.
type News struct {
	EventID  string  `json:"eventId"`
	Type     string  `json:"type"`
	Title    string  `json:"title"`
	Severity float64 `json:"severity"`
	Worst    float64 `json:"worst"`   // severity of the case before it
	NewType  bool    `json:"newType"` // the case had no finding of this type
}

// Worse reports whether the finding raised the severity of its case.
func (n News) Worse() bool { return n.Severity > n.Worst }

// newsOf gives what is new in a finding, before it joins.
func (c Case) newsOf(f Finding) (News, bool) {
	n := News{EventID: f.EventID, Type: f.Type, Title: f.Title, Severity: f.Severity, Worst: c.Severity(),
		NewType: !slices.ContainsFunc(c.Findings, func(known Finding) bool { return known.Type == f.Type })}
	return n, n.NewType || n.Worse()
}

// told takes away what has been told, by its events' ids.
func (c *Case) told(ids []string) {
	c.Untold = slices.DeleteFunc(slices.Clone(c.Untold), func(n News) bool { return slices.Contains(ids, n.EventID) })
}
