package metrics

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quicklime-ir/quicklime/collector/casefile"
)

// Sources are the parts that keep numbers themselves. Each is asked at a
// scrape, from one goroutine at a time or two, and answers soon: those that
// have a context, before it is done. One that is nil is left out.
type Sources struct {
	Intake func() Intake
	// Cases counts the cases by state: waiting, running, ended, closed. A state
	// that it does not name is not told.
	Cases func(ctx context.Context) (map[string]int, error)
	// Unsent counts the journal entries that are not in the bucket yet.
	Unsent func(ctx context.Context) (int, error)
	Fleet  func() Fleet
	Ledger func() Ledger
	Store  func(ctx context.Context) (Store, error)
	// Checks says of each check of the collector's health whether it holds.
	Checks func() map[string]bool
}

// Intake is what was done with the messages of the queue.
type Intake struct {
	Polled    time.Time     // when the queue last answered; zero: not yet
	Age       time.Duration // of the oldest message in hand; 0: there is none
	Received  int64
	Taken     int64 // their case is durable
	Malformed int64 // cannot be read
	Buried    int64 // of these, sent to the dead-letter queue with the reason
	Failed    int64 // come back later
}

// Fleet is the agents of this node.
type Fleet struct {
	Attached int
	Shed     int64 // connections that were refused because there were too many
}

// Ledger is what was allowed to be stored, and what was.
type Ledger struct {
	GrantedParts, GrantedBytes int64 // each URL that was given
	StoredBytes                int64 // of items that were closed
}

// Store is the state of the store's member on this node.
type Store struct {
	Revision  int64
	Bytes     int64 // its file on the disk
	Used      int64 // of it
	Quota     int64
	HasLeader bool
	Leads     bool
	Full      bool      // it refuses writes
	Differs   bool      // its members have not the same
	Snapshot  time.Time // when the last one was stored; zero: none is known
}

// Descriptions of what is read at a scrape.
var (
	sourceUp = desc("source_up", "1 if this part's numbers could be read at this scrape.", "source")

	queueAge    = desc("queue_age_seconds", "Age of the oldest message in hand, 0 if there is none.")
	queuePolled = desc("queue_polled_timestamp_seconds", "When the queue last answered.")
	received    = desc("intake_received_total", "Messages that the queue gave.")
	taken       = desc("intake_taken_total", "Messages whose case is durable.")
	malformed   = desc("intake_malformed_total", "Messages that cannot be read.")
	buried      = desc("intake_buried_total", "Messages that were sent to the dead-letter queue, with the reason.")
	failed      = desc("intake_failed_total", "Messages that could not be taken and come back.")

	cases  = desc("cases", "Cases, by state.", "state")
	unsent = desc("journal_unsent_entries", "Journal entries that are durable in the store, and not in the bucket yet.")

	attached = desc("agents_attached", "Agents that are attached to this node.")
	shed     = desc("connections_shed_total", "Connections of agents, and agents, that were sent away because there were too many.")

	grantedParts = desc("granted_parts_total", "Parts of evidence that an agent was given a URL for.")
	grantedBytes = desc("granted_bytes_total", "Bytes of these parts.")
	storedBytes  = desc("stored_bytes_total", "Bytes of the items of evidence that were closed.")

	storeRevision  = desc("store_revision", "Revision of the store.")
	storeBytes     = desc("store_size_bytes", "Size of the store's file.")
	storeUsed      = desc("store_used_bytes", "Bytes of the store's file that are in use.")
	storeQuota     = desc("store_quota_bytes", "Size of its file from which on the store refuses writes.")
	storeHasLeader = desc("store_has_leader", "1 if the store's member knows who leads it.")
	storeLeads     = desc("store_is_leader", "1 if the store's member leads.")
	storeAlarm     = desc("store_alarm", "1 if the store has this alarm: full, or its members differ.", "alarm")
	storeSnapshot  = desc("store_snapshot_timestamp_seconds", "When the store's last snapshot was stored in the bucket.")

	checkHolds = desc("check_ok", "1 if this check of the collector's health holds.", "check")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("quicklime_"+name, help, labels, nil)
}

var all = []*prometheus.Desc{sourceUp, queueAge, queuePolled, received, taken, malformed, buried, failed, cases, unsent, attached, shed,
	grantedParts, grantedBytes, storedBytes, storeRevision, storeBytes, storeUsed, storeQuota, storeHasLeader, storeLeads,
	storeAlarm, storeSnapshot, checkHolds}

// Describe implements prometheus.Collector.
func (s Sources) Describe(out chan<- *prometheus.Desc) {
	for _, d := range all {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (s Sources) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeLimit)
	defer cancel()
	to := sink(out)
	if s.Intake != nil {
		to.intake(s.Intake())
	}
	if s.Fleet != nil {
		now := s.Fleet()
		to.gauge(attached, float64(now.Attached))
		to.count(shed, now.Shed)
	}
	if s.Ledger != nil {
		now := s.Ledger()
		to.count(grantedParts, now.GrantedParts)
		to.count(grantedBytes, now.GrantedBytes)
		to.count(storedBytes, now.StoredBytes)
	}
	if s.Checks != nil {
		for name, holds := range s.Checks() {
			to.flag(checkHolds, holds, name)
		}
	}
	read(ctx, to, "store", s.Store, to.store)
	read(ctx, to, "cases", s.Cases, to.cases)
	read(ctx, to, "journal", s.Unsent, func(n int) { to.gauge(unsent, float64(n)) })
}

// read asks a source that may fail.
func read[T any](ctx context.Context, to sink, name string, source func(context.Context) (T, error), tell func(T)) {
	if source == nil {
		return
	}
	now, err := source(ctx)
	to.flag(sourceUp, err == nil, name)
	if err == nil {
		tell(now)
	}
}

// sink takes the numbers of one scrape.
type sink chan<- prometheus.Metric

func (to sink) gauge(d *prometheus.Desc, value float64, labels ...string) {
	to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
}

func (to sink) flag(d *prometheus.Desc, is bool, labels ...string) {
	value := 0.0
	if is {
		value = 1
	}
	to.gauge(d, value, labels...)
}

func (to sink) count(d *prometheus.Desc, n int64) {
	to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n))
}

// moment gives a time in seconds since 1970; none, where there is none.
func (to sink) moment(d *prometheus.Desc, at time.Time) {
	if !at.IsZero() {
		to.gauge(d, float64(at.UnixMilli())/1000)
	}
}

func (to sink) intake(now Intake) {
	to.moment(queuePolled, now.Polled)
	if !now.Polled.IsZero() {
		to.gauge(queueAge, now.Age.Seconds())
	}
	to.count(received, now.Received)
	to.count(taken, now.Taken)
	to.count(malformed, now.Malformed)
	to.count(buried, now.Buried)
	to.count(failed, now.Failed)
}

// states are those of a case, and what it is before a node runs it.
var states = []string{"waiting", string(casefile.Running), string(casefile.Ended), string(casefile.Closed)}

func (to sink) cases(now map[string]int) {
	sum := map[string]int{}
	for state, n := range now {
		sum[oneOf(states, state)] += n
	}
	for state, n := range sum {
		to.gauge(cases, float64(n), state)
	}
}

func (to sink) store(now Store) {
	to.gauge(storeRevision, float64(now.Revision))
	to.gauge(storeBytes, float64(now.Bytes))
	to.gauge(storeUsed, float64(now.Used))
	to.gauge(storeQuota, float64(now.Quota))
	to.flag(storeHasLeader, now.HasLeader)
	to.flag(storeLeads, now.Leads)
	to.flag(storeAlarm, now.Full, "full")
	to.flag(storeAlarm, now.Differs, "differs")
	to.moment(storeSnapshot, now.Snapshot)
}
