package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/custody"
	"github.com/quicklime-ir/quicklime/packaging/lab/bucket"
	"github.com/quicklime-ir/quicklime/packaging/lab/chaos"
	"github.com/quicklime-ir/quicklime/packaging/lab/world"
)

// shares is how many collectors share the boundaries of a case; each is killed
// at every so manieth.
const shares = 4

// reaper kills the collector when the bucket has taken a journal entry and the
// collector does not know it yet: the entry is durable, and nothing that
// follows has begun. It kills once for each kind of entry, as a step that is
// begun again is written down again.
type reaper struct {
	w      *world.World
	share  int
	killed chan string // what it was killed at

	mu     sync.Mutex
	seen   []string // boundaries, owned by mu
	errors []error  // owned by mu
}

func (r *reaper) see(a bucket.Answer) {
	if a.Operation != "PutObject" || a.Status != 200 || !strings.Contains(a.Path, "/journal/") {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	name, err := r.boundary(strings.TrimPrefix(a.Path, "/"+world.Bucket+"/"))
	if err != nil {
		r.errors = append(r.errors, err)
		return
	}
	if slices.Contains(r.seen, name) {
		return
	}
	r.seen = append(r.seen, name)
	if len(r.seen)%shares != r.share {
		return
	}
	if err := r.w.KillCollector(); err != nil {
		r.errors = append(r.errors, err)
	}
	r.killed <- name
}

// boundary names what an entry tells: its type, its step, and of facts what
// they bring.
func (r *reaper) boundary(key string) (string, error) {
	out, err := r.w.S3.Client().GetObject(context.Background(), &s3.GetObjectInput{Bucket: aws.String(world.Bucket), Key: &key})
	if err != nil {
		return "", err
	}
	defer out.Body.Close()
	raw, err := io.ReadAll(out.Body)
	if err != nil {
		return "", err
	}
	var entry custody.Entry
	var event casefile.Event
	fields := map[string]json.RawMessage{}
	for _, err := range []error{json.Unmarshal(raw, &entry), json.Unmarshal(entry.Event, &event), json.Unmarshal(entry.Event, &fields)} {
		if err != nil {
			return "", fmt.Errorf("cannot read %s: %w", key, err)
		}
	}
	if event.Type != casefile.Fact {
		return strings.TrimSpace(event.Type + " " + event.Step), nil
	}
	var brings []string
	for name := range fields {
		if name != "type" && name != "time" {
			brings = append(brings, name)
		}
	}
	slices.Sort(brings)
	return "fact " + strings.Join(brings, " "), nil
}

// TestTheCollectorDiesAtEachEntryOfItsJournal as a power cut would have it,
// and is started again, until the case has ended: nothing is lost, and nothing
// is done twice.
func TestTheCollectorDiesAtEachEntryOfItsJournal(t *testing.T) {
	t.Parallel()
	for share := range shares {
		t.Run(fmt.Sprint(share), func(t *testing.T) {
			t.Parallel()
			w := start(t, func(c *world.Config) { c.Collector = nil }) // agents that lose it often are slow to come back
			attach(t, w, world.Victim)
			r := &reaper{w: w, share: share, killed: make(chan string, 1)}
			w.S3.OnAnswer(r.see)
			sent := chaos.Sent{Event: "6f1c1e0a-5a0c-4b35-9d0e-0f6f7c1d2a01", Instances: []string{world.Victim}, At: time.Now()}
			if err := w.AWS.SendRaw(world.Compromised(world.Victim).Event(sent.Event)); err != nil {
				t.Fatal(err)
			}
			deaths := r.outlive(t)
			e, err := chaos.Look(t.Context(), w, []chaos.Sent{sent}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if v := chaos.Judge(e); !v.OK() || v.Cases != 1 {
				t.Errorf("after deaths at %q: %+v", deaths, v)
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			for _, err := range r.errors {
				t.Error(err)
			}
			if want := len(r.seen) / shares; len(deaths) < want || len(r.seen) < 2*len(e.Cases[0].Steps) {
				t.Errorf("it was killed at %q, of %q", deaths, r.seen)
			}
		})
	}
}

// outlive starts the collector after each death, until the case has ended, and
// tells what it died at.
func (r *reaper) outlive(t *testing.T) (deaths []string) {
	t.Helper()
	limit := time.After(3 * time.Minute)
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	for {
		select {
		case at := <-r.killed:
			for deaths = append(deaths, at); ; deaths = append(deaths, at) {
				err := r.w.StartCollector(t.Context())
				if err == nil {
					break
				}
				select { // it may have died again meanwhile
				case at = <-r.killed:
				case <-time.After(5 * time.Second):
					t.Fatal(err)
				}
			}
		case <-look.C:
			if what, err := chaos.Unended(t.Context(), r.w); err == nil && what == "" && len(r.killed) == 0 {
				return deaths
			}
		case <-limit:
			t.Fatalf("the case has not ended; the collector died at %q", deaths)
		}
	}
}
