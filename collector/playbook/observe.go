package playbook

import (
	"time"

	"github.com/quicklime-ir/quicklime/collector/casefile"
)

// Observer is told of the steps that a Runner takes, by many goroutines. Each
// StepBegan is followed by one StepEnded.
type Observer interface {
	StepBegan(step string)
	// StepEnded has no outcome where the step is left as it is, to be taken up
	// again: the Runner stops, or cannot write down what it did.
	StepEnded(step string, outcome casefile.Outcome, took time.Duration)
}

// begin tells the observer that a step begins, and gives the function that
// tells it how it ended.
func (r *Runner) begin(step string) (ended func(casefile.Outcome)) {
	if r.Observer == nil {
		return func(casefile.Outcome) {}
	}
	began := time.Now()
	r.Observer.StepBegan(step)
	return func(outcome casefile.Outcome) { r.Observer.StepEnded(step, outcome, time.Since(began)) }
}
