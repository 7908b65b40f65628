package docket

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/custody"
	"github.com/quicklime-ir/quicklime/collector/finding"
	"github.com/quicklime-ir/quicklime/collector/locker"
	"github.com/quicklime-ir/quicklime/collector/store"
)

const (
	victim  = "i-0123456789abcdef0"
	another = "i-0fedcba9876543210"
)

// bucket keeps journal entries in memory.
type bucket struct {
	mu      sync.Mutex
	objects map[string][]byte // owned by mu
	down    bool              // owned by mu
}

func (b *bucket) Put(_ context.Context, key string, body []byte) (locker.Object, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.down {
		return locker.Object{}, errors.New("503 SlowDown")
	}
	if old, ok := b.objects[key]; ok && string(old) != string(body) {
		return locker.Object{}, locker.ErrExists
	}
	b.objects[key] = slices.Clone(body)
	return locker.Object{}, nil
}

// chain gives the journal of a case, in order.
func (b *bucket) chain(id, instance string) [][]byte {
	var out [][]byte
	for n := 1; ; n++ {
		entry, ok := b.objects[locker.JournalKey(id, instance, n)]
		if !ok {
			return out
		}
		out = append(out, entry)
	}
}

func newDocket(s store.Store) (*Docket, *bucket) {
	b := &bucket{objects: map[string][]byte{}}
	return New(Config{Store: s, Bucket: b, Threshold: 7, Steps: []string{"memory", "contain"}, RecordSteps: []string{"notify"},
		Log: slog.New(slog.DiscardHandler), Now: time.Now}), b
}

// event is a finding as EventBridge delivers it.
func event(n int, id, kind, instance string, severity float64) []byte {
	return fmt.Appendf(nil, `{"version":"0","id":"6f1c1e0a-5a0c-4b35-9d0e-%012d","detail-type":"GuardDuty Finding","source":"aws.guardduty",
		"account":"111122223333","time":"2026-11-20T09:41:07Z","region":"eu-central-1","resources":[],"detail":{"schemaVersion":"2.0",
		"accountId":"111122223333","region":"eu-central-1","partition":"aws","id":%q,
		"type":"Backdoor:EC2/C&CActivity.B","resource":{"resourceType":%q,"instanceDetails":{"instanceId":%q}},
		"service":{"serviceName":"guardduty","count":1,"archived":false,"additionalInfo":null},"severity":%v,
		"createdAt":"2026-11-20T09:40:00Z","updatedAt":"2026-11-20T09:40:00Z","title":"t","description":"d"}}`, n, id, kind, instance, severity)
}

func take(t *testing.T, d *Docket, raw []byte) string {
	t.Helper()
	ids, err := d.Open(t.Context(), raw)
	if err != nil || len(ids) != 1 {
		t.Fatalf("cases %v, error %v", ids, err)
	}
	d.sendAll(t.Context()) // as Run does, soon after
	d.clear(t.Context())
	return ids[0]
}

func TestWhatOpensAndWhatJoins(t *testing.T) {
	first := event(1, "1ac6f0d2b4e84a3f9c7b5d3e1f2a4c61", "Instance", victim, 8)
	tests := []struct {
		name   string
		second []byte
		cases  int
		kept   int // findings in the first case
	}{
		{"the same event twice", first, 1, 1},
		{"the same finding again", event(2, "1ac6f0d2b4e84a3f9c7b5d3e1f2a4c61", "Instance", victim, 8), 1, 1},
		{"another finding on the instance", event(3, "2ac6f0d2b4e84a3f9c7b5d3e1f2a4c62", "Instance", victim, 7.5), 1, 2},
		{"a finding on another instance", event(4, "3ac6f0d2b4e84a3f9c7b5d3e1f2a4c63", "Instance", another, 8), 2, 1},
		{"a finding that is only told", event(5, "4ac6f0d2b4e84a3f9c7b5d3e1f2a4c64", "AccessKey", victim, 8), 2, 1},
		{"a finding below the threshold", event(6, "5ac6f0d2b4e84a3f9c7b5d3e1f2a4c65", "Instance", victim, 4), 2, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, _ := newDocket(store.Memory())
			id := take(t, d, first)
			take(t, d, tt.second)
			all, err := d.List(t.Context())
			if err != nil || len(all) != tt.cases {
				t.Fatalf("%d cases, error %v; want %d", len(all), err, tt.cases)
			}
			c, err := d.Get(t.Context(), id)
			if err != nil || len(c.Findings) != tt.kept {
				t.Errorf("the first case has %d findings, error %v; want %d", len(c.Findings), err, tt.kept)
			}
		})
	}
}

func TestARecordOnlyNotifies(t *testing.T) {
	d, b := newDocket(store.Memory())
	id := take(t, d, event(1, "1ac6f0d2b4e84a3f9c7b5d3e1f2a4c61", "S3Bucket", "i-99999999", 8))
	c, err := d.Get(t.Context(), id)
	if err != nil || c.Act || len(c.Steps) != 1 || c.Instance.ID != "" {
		t.Errorf("case %+v, error %v; want one that only notifies", c, err)
	}
	if len(b.objects) != 0 {
		t.Errorf("%d objects in the evidence bucket", len(b.objects))
	}
}

func TestAMalformedEventOpensNothing(t *testing.T) {
	d, _ := newDocket(store.Memory())
	if err := d.Take(t.Context(), []byte(`{"detail-type":"GuardDuty Finding"`)); !errors.Is(err, finding.ErrMalformed) {
		t.Errorf("error %v", err)
	}
	if all, _ := d.List(t.Context()); len(all) != 0 {
		t.Errorf("cases %v", all)
	}
}

func TestAClosedCaseMakesRoomForANewOne(t *testing.T) {
	d, _ := newDocket(store.Memory())
	first := event(1, "1ac6f0d2b4e84a3f9c7b5d3e1f2a4c61", "Instance", victim, 8)
	id := take(t, d, first)
	if err := d.Close(t.Context(), id, "too early"); err == nil {
		t.Error("a running case was closed")
	}
	end(t, d, id)
	if err := d.Close(t.Context(), id, "instance rebuilt"); err != nil {
		t.Fatal(err)
	}
	if again := take(t, d, first); again != id {
		t.Errorf("an event delivered late opened case %s", again)
	}
	if next := take(t, d, event(2, "1ac6f0d2b4e84a3f9c7b5d3e1f2a4c61", "Instance", victim, 8)); next == id {
		t.Error("a new event joined the closed case")
	}
}

// end takes a case's steps.
func end(t *testing.T, d *Docket, id string) {
	t.Helper()
	for _, step := range []string{"memory", "contain"} {
		for _, e := range []casefile.Event{{Type: casefile.StepStarted, Step: step}, {Type: casefile.StepEnded, Step: step, Outcome: casefile.Done}} {
			if _, err := d.Record(t.Context(), id, e); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestTheJournalIsTheCase: the bucket has an unbroken chain of every event,
// also where it was away for a while.
func TestTheJournalIsTheCase(t *testing.T) {
	d, b := newDocket(store.Memory())
	id := take(t, d, event(1, "1ac6f0d2b4e84a3f9c7b5d3e1f2a4c61", "Instance", victim, 8))
	b.down = true
	if _, err := d.Record(t.Context(), id, casefile.Event{Type: casefile.StepStarted, Step: "memory"}); err != nil {
		t.Fatalf("a bucket that is away stopped the case: %v", err)
	}
	take(t, d, event(2, "2ac6f0d2b4e84a3f9c7b5d3e1f2a4c62", "Instance", victim, 8))
	b.down = false
	end(t, d, id)
	c, err := d.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	head, err := custody.VerifyChain(b.chain(id, victim))
	if err != nil || head != c.Journal || head.Entries != 7 {
		t.Errorf("the bucket's journal ends at %+v (%v), the case's at %+v", head, err, c.Journal)
	}
}

// errPower is what a store says from the moment at which the collector dies.
var errPower = errors.New("power is gone")

// dying is a store that fails from its nth write on.
type dying struct {
	store.Store
	left int
}

func (s *dying) Commit(ctx context.Context, changes ...store.Change) (int64, error) {
	if s.left--; s.left < 0 {
		return 0, errPower
	}
	return s.Store.Commit(ctx, changes...)
}

func (s *dying) Delete(ctx context.Context, key string, revision int64) error {
	_, err := s.Commit(ctx, store.Remove(key, revision))
	return err
}

// TestADeathAtAnyWriteLosesNoFinding: the event is not acknowledged, comes
// again to the next collector, and then the case is there, once.
func TestADeathAtAnyWriteLosesNoFinding(t *testing.T) {
	raw := event(1, "1ac6f0d2b4e84a3f9c7b5d3e1f2a4c61", "Instance", victim, 8)
	for writes := range 4 {
		t.Run(fmt.Sprint(writes, " writes"), func(t *testing.T) {
			disk := store.Memory()
			first, b := newDocket(&dying{disk, writes})
			err := first.Take(t.Context(), raw)
			if err != nil && !errors.Is(err, errPower) {
				t.Fatal(err)
			}
			second, _ := newDocket(disk)
			second.cfg.Bucket = b
			id := take(t, second, raw)
			if all, err := second.List(t.Context()); err != nil || len(all) != 1 || all[0].ID != id || len(all[0].Findings) != 1 {
				t.Errorf("cases %+v, %v", all, err)
			}
			end(t, second, id)
			c, _ := second.Get(t.Context(), id)
			if head, err := custody.VerifyChain(b.chain(id, victim)); err != nil || head != c.Journal {
				t.Errorf("journal %+v, %v; the case's %+v", head, err, c.Journal)
			}
		})
	}
}

// TestOrderDoesNotMatter: findings delivered at least once, in any order and
// at the same time, give one case for each instance, with the same findings.
func TestOrderDoesNotMatter(t *testing.T) {
	var events [][]byte
	for n := range 6 {
		instance := victim
		if n%2 == 1 {
			instance = another
		}
		events = append(events, event(n, fmt.Sprintf("%dac6f0d2b4e84a3f9c7b5d3e1f2a4c6%d", n, n), "Instance", instance, 8))
	}
	rapid.Check(t, func(t *rapid.T) {
		deliveries := rapid.SliceOfN(rapid.IntRange(0, len(events)-1), 0, 12).Draw(t, "deliveries")
		d, _ := newDocket(store.Memory())
		var wg sync.WaitGroup
		want := map[string]map[int]bool{victim: {}, another: {}}
		for _, n := range deliveries {
			want[[]string{victim, another}[n%2]][n] = true
			wg.Go(func() {
				if err := d.Take(context.Background(), events[n]); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		all, err := d.List(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]int{}
		for _, c := range all {
			if _, twice := got[c.Instance.ID]; twice {
				t.Errorf("two cases for %s", c.Instance.ID)
			}
			got[c.Instance.ID] = len(c.Findings)
		}
		for instance, findings := range want {
			if got[instance] != len(findings) {
				t.Errorf("%s has %d findings, want %d", instance, got[instance], len(findings))
			}
		}
	})
}

// TestTheQueueHoldsWhatRuns: each running case has one place, with the worst
// severity of its findings, and one owner at a time.
func TestTheQueueHoldsWhatRuns(t *testing.T) {
	state := store.Memory()
	d, _ := newDocket(state)
	d.cfg.Node = "first"
	other, _ := newDocket(state.Another())
	id := take(t, d, event(1, "1ac6f0d2b4e84a3f9c7b5d3e1f2a4c61", "Instance", victim, 7.5))
	take(t, d, event(2, "2ac6f0d2b4e84a3f9c7b5d3e1f2a4c62", "Instance", victim, 8.5))
	places := func() []casefile.Place {
		got, err := other.Queue(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if got := places(); len(got) != 1 || got[0].ID != id || got[0].Severity != 8.5 || got[0].Account != "111122223333" || got[0].Owner != "" {
		t.Errorf("queue %+v", got)
	}
	claim, err := d.Own(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Own(t.Context(), id); !errors.Is(err, store.ErrConflict) {
		t.Errorf("a case that is another's: %v", err)
	}
	if got := places(); len(got) != 1 || got[0].Owner != "first" {
		t.Errorf("queue %+v", got)
	}
	end(t, d, id)
	if err := d.Disown(t.Context(), claim); err != nil {
		t.Error(err)
	}
	if got := places(); len(got) != 0 {
		t.Errorf("a case that has ended is in the queue: %+v", got)
	}
}

// TestTheStoreWasAwayWhenACaseWasGivenBack, or when it was taken: it is this
// node's still, so that no other takes it up, and this one does.
func TestTheStoreWasAwayWhenACaseWasGivenBack(t *testing.T) {
	state := store.Memory()
	d, _ := newDocket(state)
	other, _ := newDocket(state.Another())
	d.cfg.Node, other.cfg.Node = "first", "second"
	id := take(t, d, event(1, "1ac6f0d2b4e84a3f9c7b5d3e1f2a4c61", "Instance", victim, 7.5))
	claim, err := d.Own(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range []*Docket{d, other} {
		if got, err := node.Queue(t.Context()); err != nil || len(got) != 1 || got[0].Owner != "first" || got[0].Ours != (node == d) {
			t.Errorf("%s sees %+v, %v", node.cfg.Node, got, err)
		}
	}
	if _, err := other.Own(t.Context(), id); !errors.Is(err, store.ErrConflict) {
		t.Errorf("another node: %v", err)
	}
	again, err := d.Own(t.Context(), id)
	if err != nil || again.Revision != claim.Revision {
		t.Errorf("this node has %+v, %v; want %+v", again, err, claim)
	}
	if err := d.Disown(t.Context(), again); err != nil {
		t.Error(err)
	}
	if _, err := other.Own(t.Context(), id); err != nil {
		t.Errorf("another node, later: %v", err)
	}
}

// TestWhoLostACaseWritesNothing: a node that wakes after another has taken its
// case over adds nothing to it, and the other does.
func TestWhoLostACaseWritesNothing(t *testing.T) {
	state := store.Memory()
	d, b := newDocket(state)
	next := state.Another()
	other, _ := newDocket(next)
	other.cfg.Bucket = b
	id := take(t, d, event(1, "1ac6f0d2b4e84a3f9c7b5d3e1f2a4c61", "Instance", victim, 8))
	claim, err := d.Own(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	mine := store.While(t.Context(), claim.Key, claim.Revision)
	state.Expire()
	if _, err := other.Own(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Record(mine, id, casefile.Event{Type: casefile.StepStarted, Step: "memory"}); !errors.Is(err, store.ErrLost) {
		t.Errorf("the first node's change: %v", err)
	}
	end(t, other, id)
	c, err := d.Get(t.Context(), id)
	if err != nil || c.State != casefile.Ended {
		t.Errorf("case %+v, %v", c, err)
	}
	if head, err := custody.VerifyChain(b.chain(id, victim)); err != nil || head != c.Journal {
		t.Errorf("journal %+v, %v; the case's %+v", head, err, c.Journal)
	}
}

// TestWhatTheBucketMissedFollows without a further event of its case.
func TestWhatTheBucketMissedFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, b := newDocket(store.Memory())
		id := take(t, d, event(1, "1ac6f0d2b4e84a3f9c7b5d3e1f2a4c61", "Instance", victim, 8))
		b.down = true
		end(t, d, id)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- d.Run(ctx) }()
		time.Sleep(time.Second)
		b.mu.Lock()
		b.down = false
		b.mu.Unlock()
		time.Sleep(resendEvery)
		synctest.Wait()
		cancel()
		<-done
		c, _ := d.Get(t.Context(), id)
		if head, err := custody.VerifyChain(b.chain(id, victim)); err != nil || head != c.Journal {
			t.Errorf("journal %+v, %v; the case's %+v", head, err, c.Journal)
		}
	})
}

func TestWhatDoesNotExist(t *testing.T) {
	d, _ := newDocket(store.Memory())
	if _, err := d.Get(t.Context(), "20261123-abc"); !errors.Is(err, ErrNoCase) || !strings.Contains(err.Error(), "20261123-abc") {
		t.Errorf("error %v", err)
	}
}
