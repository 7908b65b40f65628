package steps

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/notify"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// TestAMessageThatIsLate says what is so when it is told, and findings that
// joined are told together.
func TestAMessageThatIsLate(t *testing.T) {
	began := time.Date(2026, 11, 20, 9, 0, 0, 0, time.UTC)
	c := casefile.Case{ID: "c1", State: casefile.Running, Act: true, Instance: evidence.Instance{ID: "i-1"}, Opened: began,
		Findings: []casefile.Finding{{Type: "T", Severity: 8}}, Steps: []casefile.Step{{Name: Report, Started: began.Add(90 * time.Second)}},
		Untold: []casefile.News{{EventID: "e1", Type: "A", Severity: 9, Worst: 8}, {Message: casefile.Beginning, EventID: casefile.Beginning},
			{EventID: "e2", Type: "B", Severity: 7, Worst: 9, NewType: true}, {Message: casefile.Report, EventID: casefile.Report}}}
	for _, want := range []struct {
		title string
		told  []string
	}{
		{"Case of i-1: severity rises to 9", []string{"e1", "e2"}},
		{"Compromised instance i-1, its case has ended", []string{casefile.Beginning}},
		{"Case of i-1: NOT CONTAINED", []string{casefile.Report}},
	} {
		m, told := messageOf(c)
		if m.Title != want.title || !slices.Equal(told, want.told) {
			t.Errorf("%q tells of %q, want %q of %q", m.Title, told, want.title, want.told)
		}
		if took := slices.IndexFunc(m.Fields, func(f notify.Field) bool { return f.Name == "Took" && f.Value == "1m30s" }); (took >= 0) != (told[0] == casefile.Report) {
			t.Errorf("fields %+v", m.Fields)
		}
		c.Untold = slices.DeleteFunc(c.Untold, func(n casefile.News) bool { return slices.Contains(told, n.EventID) })
		c.State = casefile.Ended
	}
}

func TestWhatAnUpdateSays(t *testing.T) {
	var many []casefile.News
	for n := range 2 * newsShown {
		many = append(many, casefile.News{Type: fmt.Sprint("T", n), Title: "t", Severity: 7, Worst: 8, NewType: true})
	}
	for _, c := range []struct {
		name   string
		one    casefile.Case
		title  string
		colour int
		says   []string // in the fields and the body
		fields int
	}{
		{"a new type", casefile.Case{ID: "c1", State: casefile.Running, Instance: evidence.Instance{ID: "i-1", Account: "111122223333", Region: "eu-central-1"},
			Untold: many[:1]}, "Case of i-1: another type of finding", notify.Amber,
			[]string{"T0", "a new type in this case, severity 7\nt", "c1", "111122223333 eu-central-1", "goes on"}, 3},
		{"a rise, of a record", casefile.Case{ID: "c1", State: casefile.Ended, Untold: []casefile.News{{Type: "T", Title: "t", Severity: 6, Worst: 4}}},
			"Case c1: severity rises to 6", notify.Red, []string{"severity 6, until now 4\nt", "have ended"}, 2},
		{"both, the rise in the title", casefile.Case{ID: "c1", Instance: evidence.Instance{ID: "i-1"},
			Untold: append(many[:1:1], casefile.News{Type: "T", Title: "t", Severity: 9.5, Worst: 8, NewType: true})},
			"Case of i-1: severity rises to 9.5", notify.Red, []string{"a new type in this case, severity 9.5, until now 8\nt"}, 4},
		{"many", casefile.Case{ID: "c1", State: casefile.Running, Untold: many}, "Case c1: another type of finding", notify.Amber,
			[]string{"10 more, see the case"}, newsShown + 2},
	} {
		m := updateOf(c.one)
		text := m.Body
		for _, f := range m.Fields {
			text += "\n" + f.Name + "\n" + f.Value
		}
		if m.Title != c.title || m.Colour != c.colour || len(m.Fields) != c.fields {
			t.Errorf("%s: %q, colour %x, %d fields", c.name, m.Title, m.Colour, len(m.Fields))
		}
		for _, s := range c.says {
			if !strings.Contains(text, s) {
				t.Errorf("%s: %q is not in %s", c.name, s, text)
			}
		}
	}
}
