// Package metrics counts what the collector does, as Prometheus reads it.
//
// Most numbers are kept by the part that they are of, and read when they are
// asked for. A label has one of a few values, all of them this program's own
// words: what a finding, an agent or AWS says is in no label.
package metrics

import (
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/quicklime-ir/quicklime/collector/casefile"
)

// Bounds of a scrape.
const (
	scrapeLimit = 5 * time.Second // for all sources together
	scrapes     = 2               // at a time; another one is told to come back
)

// other stands for a word that is none of a label's own.
const other = "other"

// interrupted is the outcome of a step that was left as the collector
// stopped, or lost the case to another node. It will be taken up again.
const interrupted = "interrupted"

// outcomes are those of a step.
var outcomes = []string{string(casefile.Done), string(casefile.Partly), string(casefile.Failed), string(casefile.Skipped), interrupted, other}

// Metrics is all numbers of a collector.
type Metrics struct {
	registry *prometheus.Registry
	steps    []string // that have a name of their own in a label
	running  *prometheus.GaugeVec
	took     *prometheus.HistogramVec
	ended    *prometheus.CounterVec
}

// New makes the numbers of a collector of a version, whose cases have these
// steps.
func New(version string, steps []string, from Sources) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		steps:    steps,
		running: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "quicklime_steps_in_progress",
			Help: "Steps of cases that are being taken now."}, []string{"step"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "quicklime_step_duration_seconds",
			Help:    "How long a step took that ended in this process, its tries and waits included.",
			Buckets: []float64{0.1, 0.5, 1, 5, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200}}, []string{"step"}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "quicklime_steps_ended_total",
			Help: "Steps that ended, by outcome; interrupted ones are taken up again."}, []string{"step", "outcome"}),
	}
	for _, step := range append(slices.Clone(steps), other) { // a rate needs the zero before the first
		m.running.WithLabelValues(step)
		m.took.WithLabelValues(step)
		for _, outcome := range outcomes {
			m.ended.WithLabelValues(step, outcome)
		}
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{Name: "quicklime_build_info",
		Help: "Always 1; the label has the version.", ConstLabels: prometheus.Labels{"version": version}})
	build.Set(1)
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		build, m.running, m.took, m.ended, from)
	return m
}

// StepBegan counts a step that is being taken.
func (m *Metrics) StepBegan(step string) { m.running.WithLabelValues(m.step(step)).Inc() }

// StepEnded counts a step that is taken no more. It has no outcome where it is
// to be taken up again.
func (m *Metrics) StepEnded(step string, outcome casefile.Outcome, took time.Duration) {
	step = m.step(step)
	m.running.WithLabelValues(step).Dec()
	if outcome == "" {
		m.ended.WithLabelValues(step, interrupted).Inc()
		return
	}
	m.took.WithLabelValues(step).Observe(took.Seconds())
	m.ended.WithLabelValues(step, oneOf(outcomes, string(outcome))).Inc()
}

func (m *Metrics) step(name string) string { return oneOf(m.steps, name) }

// oneOf gives the word, if it is one of them.
func oneOf(words []string, word string) string {
	if slices.Contains(words, word) {
		return word
	}
	return other
}

// Handler gives the numbers to Prometheus. What cannot be read is left out,
// and quicklime_source_up says so.
func (m *Metrics) Handler(log *slog.Logger) http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn), ErrorHandling: promhttp.ContinueOnError,
		MaxRequestsInFlight: scrapes, Timeout: 2 * scrapeLimit,
	})
}
