package e2e

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/packaging/lab/bucket"
	"github.com/quicklime-ir/quicklime/packaging/lab/world"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// TestWhatS3MayDo: grants run out, parts trickle, answers are wrong. The image
// is whole all the same, and no part is stored twice.
func TestWhatS3MayDo(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		fault bucket.Fault
	}{
		{"S3 is slow", bucket.Fault{Kind: bucket.Slow, Match: bucket.PartUploadOf("/memory/"), Rate: 2 << 20, Times: imageParts}},
		{"each grant has run out, twice", bucket.Fault{Kind: bucket.Expired, Match: ofMemory(firstTries(2)), Times: 2 * imageParts}},
		{"answers have another part's ETag", bucket.Fault{Kind: bucket.WrongETag, Match: bucket.PartUploadOf("/memory/"), Times: imageParts}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := start(t, func(c *world.Config) { c.Collector = []string{"--agent-wait", "30s", "--stall", "60s"} })
			attach(t, w, world.Victim)
			w.S3.Inject(tt.fault)
			if err := w.Find(world.Compromised(world.Victim)); err != nil {
				t.Fatal(err)
			}
			c := await(t, w, "its end", ended)
			if w.S3.Struck() != tt.fault.Times {
				t.Errorf("the fault struck %d times, want %d", w.S3.Struck(), tt.fault.Times)
			}
			wholeOnce(t, w, c)
		})
	}
}

// ofMemory strikes what match does, of the parts of memory.
func ofMemory(match func(*http.Request) bool) func(*http.Request) bool {
	return func(r *http.Request) bool { return bucket.PartUploadOf("/memory/")(r) && match(r) }
}

// wholeOnce checks that everything was done, that the image is whole and
// proven, and that S3 has stored each of its parts once.
func wholeOnce(t *testing.T, w *world.World, c casefile.Case) {
	t.Helper()
	allDone(t, c)
	if item := memoryItem(t, c); item.Status != evidence.Whole {
		t.Errorf("item %s: %s", item.Status, item.Error)
	}
	if n := w.S3.PartsOf("/memory/"); n != imageParts+1 {
		t.Errorf("S3 has stored %d parts of memory, want %d and the seek table", n, imageParts)
	}
	verify(t, w)
}

// awayFor is how long the collector is away: longer than any bound on a
// single call, and than several of the agent's pauses between tries.
const awayFor = time.Minute

// TestTheCollectorIsAwayForAMinute in the middle of the dump. The agent holds
// what it has read, and goes on where it was.
func TestTheCollectorIsAwayForAMinute(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("a minute is a minute; not with -short")
	}
	tests := []struct {
		name        string
		leave, back func(*world.World) error
	}{
		{"it is killed", (*world.World).KillCollector, func(w *world.World) error { return w.StartCollector(t.Context()) }},
		{"it hangs", (*world.World).PauseCollector, (*world.World).ContinueCollector},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := start(t, func(c *world.Config) { c.Collector = []string{"--agent-wait", "5m", "--stall", "5m"} })
			w.S3.Inject(bucket.Fault{Kind: bucket.Slow, Match: bucket.PartUploadOf("/memory/"), Rate: 4 << 20, Times: imageParts})
			attach(t, w, world.Victim)
			two := partsStored(w, 2)
			if err := w.Find(world.Compromised(world.Victim)); err != nil {
				t.Fatal(err)
			}
			<-two
			if err := tt.leave(w); err != nil {
				t.Fatal(err)
			}
			if n := w.S3.PartsOf("/memory/"); n >= imageParts {
				t.Fatalf("all %d parts are stored: the collector left too late to be missed", n)
			}
			time.Sleep(awayFor)
			if err := tt.back(w); err != nil {
				t.Fatal(err)
			}
			wholeOnce(t, w, awaitEnd(t, w, 4*time.Minute))
		})
	}
}

// partsStored is closed once S3 has so many parts of memory.
func partsStored(w *world.World, parts int) <-chan struct{} {
	stored := make(chan struct{})
	var once sync.Once
	w.S3.OnPart(func(string) {
		if w.S3.PartsOf("/memory/") >= parts {
			once.Do(func() { close(stored) })
		}
	})
	return stored
}

// awaitEnd waits longer than await for the end of the only case.
func awaitEnd(t *testing.T, w *world.World, limit time.Duration) casefile.Case {
	t.Helper()
	var last []casefile.Case
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		cases, err := w.Cases(t.Context())
		if err != nil {
			continue // it may be starting
		}
		if last = cases; len(cases) == 1 && ended(cases[0]) {
			return cases[0]
		}
	}
	t.Fatalf("the case has not ended after %v; it is %+v", limit, last)
	return casefile.Case{}
}
