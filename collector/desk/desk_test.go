package desk

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/docket"
	"github.com/quicklime-ir/quicklime/collector/locker"
	"github.com/quicklime-ir/quicklime/collector/store"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

const victim = "i-0123456789abcdef0"

type nowhere struct{}

func (nowhere) Put(context.Context, string, []byte) (locker.Object, error) {
	return locker.Object{}, nil
}

// idle is a fleet in which one order runs, until it is told what to do with
// it.
type idle struct {
	asked *[]*wire.ControlCaptureRequest
}

func (f idle) Running(string) []string {
	if f.asked == nil {
		return nil
	}
	return []string{"c/memory"}
}

func (f idle) Control(_ context.Context, q *wire.ControlCaptureRequest) ([]string, error) {
	*f.asked = append(*f.asked, q)
	return []string{"c/memory"}, nil
}

func (idle) Agents(context.Context) ([]*wire.AttachedAgent, error) {
	return []*wire.AttachedAgent{{Id: "spiffe://q/ec2/1", Hello: &wire.Hello{Hostname: "evil\x1b[2Jhost", MemorySources: []*wire.SourceVerdict{{Source: "kcore", Usable: true}, {Source: "lime", Reason: "no_module"}}}}}, nil
}

func (idle) Progress(string) []*wire.Progress {
	return []*wire.Progress{{Doing: "memory", BytesRead: 1 << 20, BytesTotal: 2 << 30, BytesStored: 512, PartsStored: 1}}
}

// open serves a desk and gives a client of it.
func open(t *testing.T) *Client { return openWith(t, idle{}) }

func openWith(t *testing.T, fleet Fleet) *Client {
	t.Helper()
	return serve(t, &Desk{Fleet: fleet, Log: slog.New(slog.DiscardHandler), Docket: docket.New(docket.Config{Store: store.Memory(), Bucket: nowhere{},
		Threshold: 7, Steps: []string{"contain"}, RecordSteps: []string{"notify"}, Log: slog.New(slog.DiscardHandler), Now: time.Now})})
}

func serve(t *testing.T, d *Desk) *Client {
	t.Helper()
	data := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- d.Serve(ctx, SocketPath(data)) }()
	t.Cleanup(func() { cancel(); <-served })
	for range 1000 {
		if info, err := os.Stat(SocketPath(data)); err == nil && info.Mode().Perm() == 0o600 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	c, err := Dial(data)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func event() []byte {
	raw, err := os.ReadFile("../finding/testdata/instance.json")
	if err != nil {
		panic(err)
	}
	return raw
}

func TestOperators(t *testing.T) {
	c, ctx := open(t), t.Context()
	if _, err := c.Trigger(ctx, []byte("{")); err == nil {
		t.Error("a malformed finding was taken")
	}
	if _, err := c.Trigger(ctx, make([]byte, maxEvent+1)); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("a finding that is too large: %v", err)
	}
	ids, err := c.Trigger(ctx, event())
	if err != nil || len(ids) != 1 {
		t.Fatalf("cases %v, %v", ids, err)
	}
	all, err := c.Cases(ctx)
	if err != nil || len(all) != 1 || all[0].ID != ids[0] || all[0].Findings[0].Raw != nil {
		t.Errorf("cases %+v, %v", all, err)
	}
	one, progress, err := c.Case(ctx, ids[0])
	if err != nil || !bytes.Equal(one.Findings[0].Raw, event()) || len(progress) != 1 {
		t.Errorf("case %+v, %v, %v; want the finding to the byte", one, progress, err)
	}
	if _, _, err := c.Case(ctx, "nope"); err == nil || !strings.Contains(err.Error(), "no such case") {
		t.Errorf("a case that is not there: %v", err)
	}
	if err := c.CloseCase(ctx, ids[0], ""); err == nil || !strings.Contains(err.Error(), "reason") {
		t.Errorf("closing without a reason: %v", err)
	}
	if err := c.CloseCase(ctx, ids[0], "x"); err == nil || !strings.Contains(err.Error(), "running") {
		t.Errorf("closing a running case: %v", err)
	}
	agents, err := c.Agents(ctx)
	var out bytes.Buffer
	if err != nil || PrintAgents(&out, agents) != nil || !strings.Contains(out.String(), "kcore:ok lime:no_module") {
		t.Errorf("%s, %v", out.String(), err)
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Error("an agent's escape sequence reaches the terminal")
	}
}

// TestControl: what an operator asks of a capture is written down, and then
// done; what means nothing is neither.
func TestControl(t *testing.T) {
	var done []*wire.ControlCaptureRequest
	c, ctx := openWith(t, idle{&done}), t.Context()
	ids, err := c.Trigger(ctx, event())
	if err != nil {
		t.Fatal(err)
	}
	yes := true
	for _, tt := range []struct {
		name string
		q    *wire.ControlCaptureRequest
		want string
	}{
		{"nothing", &wire.ControlCaptureRequest{CaseId: ids[0]}, "nothing is asked"},
		{"a case that is not there", &wire.ControlCaptureRequest{CaseId: "nope", Paused: &yes}, "no such case"},
		{"more than all processors", &wire.ControlCaptureRequest{CaseId: ids[0], Limits: &wire.Limits{CpuPercent: 101}}, "want 1 to 100"},
		{"next to no bandwidth", &wire.ControlCaptureRequest{CaseId: ids[0], Limits: &wire.Limits{BytesPerSecond: 1}}, "want 256.0 KiB at least"},
		{"a reason without end", &wire.ControlCaptureRequest{CaseId: ids[0], Cancel: strings.Repeat("x", maxReason+1)}, "at most"},
	} {
		if _, err := c.Control(ctx, tt.q); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
	if len(done) > 0 {
		t.Fatalf("something was done: %v", done)
	}
	orders, err := c.Control(ctx, &wire.ControlCaptureRequest{CaseId: ids[0], Paused: &yes, Limits: &wire.Limits{CpuPercent: 25}, Cancel: "why\x1b[2J"})
	if err != nil || len(orders) != 1 || orders[0] != "c/memory" || len(done) != 1 || !done[0].GetPaused() || done[0].GetLimits().GetCpuPercent() != 25 {
		t.Fatalf("orders %v, %v; done %v", orders, err, done)
	}
	one, progress, err := c.Case(ctx, ids[0])
	if err != nil {
		t.Fatal(err)
	}
	if asked, _ := one.Asked("c/memory"); asked.Paused == nil || !*asked.Paused || asked.Limits.CPUPercent != 25 || asked.Cancel == "" {
		t.Errorf("the case says %+v", one.Controls)
	}
	var out bytes.Buffer
	if err := PrintCase(&out, one, progress); err != nil || !strings.Contains(out.String(), "c/memory paused, limited to 25 %") || strings.Contains(out.String(), "\x1b") {
		t.Errorf("%v\n%s", err, out.String())
	}
	idle := open(t)
	if ids, err = idle.Trigger(ctx, event()); err != nil {
		t.Fatal(err)
	}
	if _, err := idle.Control(ctx, &wire.ControlCaptureRequest{CaseId: ids[0], Paused: &yes}); err == nil || !strings.Contains(err.Error(), "none runs now") {
		t.Errorf("where nothing runs: %v", err)
	}
}

func TestPrintProgress(t *testing.T) {
	tests := []struct {
		p    *wire.Progress
		want string
	}{
		{&wire.Progress{}, "nothing is heard of it yet"},
		{&wire.Progress{Paused: true}, "nothing is heard of it yet; PAUSED by an operator"},
		{&wire.Progress{Doing: "memory", BytesRead: 1 << 30, BytesTotal: 2 << 30, BytesStored: 300 << 20, PartsStored: 40, ReadPerSecond: 200 << 20, StoredPerSecond: 60 << 20,
			Left: durationpb.New(5240 * time.Millisecond), Uplink: wire.Uplink_UPLINK_FULL, Retries: 2},
			"memory: 1.0 GiB of 2.0 GiB read, 300.0 MiB stored in 40 parts; 200.0 MiB/s read, 60.0 MiB/s stored, 5s left; uplink full: the readers wait for it, 2 retries"},
		{&wire.Progress{Doing: "memory", BytesRead: 1 << 30, BytesTotal: 2 << 30, Paused: true, ReadPerSecond: 9},
			"memory: 1.0 GiB of 2.0 GiB read, 0 B stored in 0 parts; PAUSED by an operator"},
		{&wire.Progress{Doing: "files\x1b[2J", BytesRead: 9, Uplink: 99}, `files\x1b[2J: 9 B read, 0 B stored in 0 parts; 0 B/s read, 0 B/s stored`},
	}
	for _, tt := range tests {
		if got := PrintProgress(tt.p); got != tt.want {
			t.Errorf("%v is printed as\n%s, want\n%s", tt.p, got, tt.want)
		}
	}
}

func TestPrintCase(t *testing.T) {
	c := casefile.Case{ID: "c1", Act: true, State: casefile.Ended, Instance: evidence.Instance{ID: victim},
		Untold:     []casefile.News{{Message: casefile.Report}, {Type: "T"}},
		Findings:   []casefile.Finding{{Type: "T", Title: "bad\ntitle\x1b[31m", Severity: 8}},
		Steps:      []casefile.Step{{Name: "memory", Outcome: casefile.Partly, Detail: "agent lost"}, {Name: "contain", Outcome: casefile.Done}},
		Items:      []evidence.Item{{Key: "cases/c1/x", Status: evidence.Partial, Size: 3 << 20}},
		Image:      &evidence.Image{ID: "ami-1", State: "available", Snapshots: []string{"snap-1"}},
		Interfaces: []evidence.Interface{{ID: "eni-1", Before: []string{"sg-1", "sg-2"}, After: []string{"sg-9"}}},
		Missing:    []evidence.Missing{{Kind: evidence.Memory, Reason: "agent lost"}}, Manifest: &casefile.Manifest{Key: "cases/c1/manifest.sig"}}
	var out bytes.Buffer
	if err := PrintCase(&out, c, idle{}.Progress("")); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"partial", "agent lost", "3.0 MiB", "sg-1 sg-2", "sg-9", "ami-1", "snap-1", "1.0 MiB of 2.0 GiB read, 512 B stored in 1 parts", "manifest.sig", "\nnot told   report\nnot told   T\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "\x1b") || strings.Contains(out.String(), "bad\ntitle") {
		t.Error("a finding's control characters reach the terminal")
	}
	if err := PrintCases(io.Discard, []casefile.Case{c}); err != nil {
		t.Error(err)
	}
}

func FuzzPlain(f *testing.F) {
	f.Add("a\x1b[2Jb\nc\"d\xff")
	f.Fuzz(func(t *testing.T, s string) {
		if strings.ContainsFunc(Plain(s), func(r rune) bool { return r < 0x20 || r == 0x7f || r >= 0x80 && r < 0xa0 }) {
			t.Fatalf("%q has control characters", Plain(s))
		}
	})
}
