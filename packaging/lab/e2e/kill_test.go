package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/klauspost/compress/zstd"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/packaging/lab/bucket"
	"github.com/quicklime-ir/quicklime/packaging/lab/process"
	"github.com/quicklime-ir/quicklime/packaging/lab/world"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

// How often the agent is killed, and how long it lives about.
const (
	kills      = 100
	shortKills = 10
	lifetime   = 700 * time.Millisecond
	caseLimit  = 2 * time.Minute // with an agent that lives
)

// TestTheAgentIsKilledAtAnyMoment a hundred times, as a power cut would, and
// started again. Each image is whole and the memory that it must be, or
// partial and says what it lacks; and what was stored before an agent began is
// not stored again.
func TestTheAgentIsKilledAtAnyMoment(t *testing.T) {
	t.Parallel()
	left := kills
	if testing.Short() {
		left = shortKills
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("the seed is %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	w := start(t, func(c *world.Config) {
		c.Collector, c.MissReads, c.ImagePending = []string{"--agent-wait", "60s", "--stall", "60s"}, 0, 0
	})
	image, root := host(t)
	spec, err := w.AgentSpec(world.Victim, image, root)
	if err != nil {
		t.Fatal(err)
	}
	m := &mortal{t: t, w: w, path: buildAgent(t), spec: spec, stored: keepStored(w)}
	whole := 0
	for cases := 1; left > 0; cases++ {
		if err := w.Find(world.Compromised(world.Victim)); err != nil {
			t.Fatal(err)
		}
		var c casefile.Case
		for done := false; !done; {
			c, done = m.live(draw(random), cases, left > 0)
			if !done {
				left--
			}
		}
		if m.check(c, image) {
			whole++
		}
		if err := w.CloseCase(t.Context(), c.ID, "it was checked"); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d deaths; %d images are whole", m.deaths, whole)
	if whole == 0 {
		t.Error("no image is whole")
	}
	m.storedOnce()
	verify(t, w)
}

// fate is when an agent is killed: after a time, and after it has stored so
// many parts of memory before.
type fate struct {
	parts int
	life  time.Duration
}

// draw gives every other agent some parts to store first, so that images come
// to an end, and its death falls among them.
func draw(r *rand.Rand) fate {
	if r.IntN(2) == 0 {
		return fate{life: time.Duration(r.Int64N(int64(lifetime)))}
	}
	return fate{parts: 1 + r.IntN(2), life: time.Duration(r.Int64N(int64(lifetime / 10)))}
}

// buildAgent builds the agent's program.
func buildAgent(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", path, "./testdata/agent").CombinedOutput(); err != nil {
		t.Fatalf("cannot build the agent: %v\n%s", err, out)
	}
	return path
}

// mortal is an agent that has many lives.
type mortal struct {
	t      *testing.T
	w      *world.World
	path   string
	spec   world.AgentSpec
	stored *storedParts
	births []time.Time
	deaths int
}

// live starts the agent and, where it may be killed, kills it as fate will. It
// gives the newest of so many cases and whether that has ended.
func (m *mortal) live(f fate, cases int, mayDie bool) (casefile.Case, bool) {
	m.t.Helper()
	argument, err := json.Marshal(m.spec)
	if err != nil {
		m.t.Fatal(err)
	}
	m.births = append(m.births, time.Now())
	before := m.w.S3.PartsOf("/memory/")
	child, err := process.Start(process.Spec{Path: m.path, Args: []string{string(argument)}, Log: m.w.Log(), Name: "agent"})
	if err != nil {
		m.t.Fatal(err)
	}
	defer func() {
		if err := child.Kill(); err != nil {
			m.t.Error(err)
		}
	}()
	var dies time.Time // set once its parts are stored
	for end, i := time.Now().Add(caseLimit), 0; time.Now().Before(end); i++ {
		switch {
		case mayDie && dies.IsZero() && m.w.S3.PartsOf("/memory/")-before >= f.parts:
			dies = time.Now().Add(f.life)
		case !dies.IsZero() && time.Now().After(dies):
			m.deaths++
			return casefile.Case{}, false
		}
		if i%10 == 0 { // it costs a call
			if c, ok := m.newest(cases); ok && ended(c) {
				return c, true
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	m.t.Fatalf("the case has not ended after %v, %d parts before and %d with this agent", caseLimit, before, m.w.S3.PartsOf("/memory/")-before)
	return casefile.Case{}, false
}

// newest gives the last of so many cases, once it is there.
func (m *mortal) newest(cases int) (casefile.Case, bool) {
	list, err := m.w.Cases(m.t.Context())
	if err != nil || len(list) < cases {
		return casefile.Case{}, false
	}
	last := list[0]
	for _, c := range list {
		if c.Opened.After(last.Opened) {
			last = c
		}
	}
	return last, true
}

// check holds an image against the memory, and says whether it is whole.
func (m *mortal) check(c casefile.Case, image string) bool {
	m.t.Helper()
	item := memoryItem(m.t, c)
	step, _ := c.StepNamed("memory")
	switch item.Status {
	case evidence.Whole:
		if step.Outcome != casefile.Done {
			m.t.Errorf("case %s: the image is whole, the step %s: %s", c.ID, step.Outcome, step.Detail)
		}
		if err := sameMemory(m.object(item.Key), image); err != nil {
			m.t.Errorf("case %s: %v", c.ID, err)
		}
		return true
	case evidence.Partial:
		if step.Outcome != casefile.Partly || item.Error == "" || len(c.Missing) == 0 {
			m.t.Errorf("case %s: the image is partial, but does not say why: step %+v, item %+v, missing %+v", c.ID, step, item, c.Missing)
		}
		return false
	}
	m.t.Errorf("case %s: the image is %q", c.ID, item.Status)
	return false
}

// object downloads an object and decompresses it.
func (m *mortal) object(key string) []byte {
	m.t.Helper()
	name := world.Bucket
	out, err := m.w.S3.Client().GetObject(m.t.Context(), &s3.GetObjectInput{Bucket: &name, Key: &key})
	if err != nil {
		m.t.Fatal(err)
	}
	defer out.Body.Close()
	d, err := zstd.NewReader(out.Body, zstd.WithDecoderConcurrency(1))
	if err != nil {
		m.t.Fatal(err)
	}
	defer d.Close()
	b, err := io.ReadAll(d)
	if err != nil {
		m.t.Fatal(err)
	}
	return b
}

// sameMemory compares two LiME images by what they hold, however it is cut
// into records.
func sameMemory(got []byte, wantFile string) error {
	wanted, err := os.ReadFile(wantFile)
	if err != nil {
		return err
	}
	one, err := flat(got)
	if err != nil {
		return fmt.Errorf("cannot read the stored image: %w", err)
	}
	two, err := flat(wanted)
	if err != nil {
		return err
	}
	if !bytes.Equal(one, two) {
		return errors.New("the image is not the memory")
	}
	return nil
}

// flat writes an image anew, with one record for each run of addresses.
func flat(image []byte) ([]byte, error) {
	type run struct {
		lime.Range
		bytes []byte
	}
	var runs []run
	r := lime.NewReader(bytes.NewReader(image))
	for {
		at, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(r)
		if err != nil {
			return nil, err
		}
		if n := len(runs); n > 0 && runs[n-1].End+1 == at.Start {
			runs[n-1].End, runs[n-1].bytes = at.End, append(runs[n-1].bytes, b...)
			continue
		}
		runs = append(runs, run{at, b})
	}
	var out []byte
	for _, r := range runs {
		out = append(lime.AppendHeader(out, r.Range), r.bytes...)
	}
	return out, nil
}

// storedParts keeps when S3 stored each part of memory.
type storedParts struct {
	mu sync.Mutex
	at map[string][]time.Time // by path and number; owned by mu
}

func keepStored(w *world.World) *storedParts {
	s := &storedParts{at: map[string][]time.Time{}}
	w.S3.OnAnswer(func(a bucket.Answer) {
		if a.Operation != "UploadPart" || a.Status != 200 || !strings.Contains(a.Path, "/memory/") {
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		name := a.Path + " part " + a.Part
		s.at[name] = append(s.at[name], a.Time)
	})
	return s
}

// storedOnce checks that no part was stored again that was stored before the
// agent began which stored it again. One that was on its way when its agent
// was killed may be, as may the seek table, which the collector writes.
func (m *mortal) storedOnce() {
	m.t.Helper()
	m.stored.mu.Lock()
	defer m.stored.mu.Unlock()
	all, again := 0, 0
	for name, times := range m.stored.at {
		all++
		for i := 1; i < len(times); i++ {
			again++
			for _, birth := range m.births {
				if birth.After(times[0]) && birth.Before(times[i]) && !strings.HasSuffix(name, fmt.Sprint(" part ", imageParts+1)) {
					m.t.Errorf("%s was stored at %v, and again at %v by an agent that began at %v", name, times[0], times[i], birth)
					break
				}
			}
		}
	}
	m.t.Logf("%d parts were stored, %d of them again", all, again)
}
