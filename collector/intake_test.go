package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quicklime-ir/quicklime/collector/desk"
	"github.com/quicklime-ir/quicklime/collector/docket"
	"github.com/quicklime-ir/quicklime/collector/locker"
	"github.com/quicklime-ir/quicklime/collector/store"
)

// noBucket takes every journal entry.
type noBucket struct{}

func (noBucket) Put(context.Context, string, []byte) (locker.Object, error) {
	return locker.Object{}, nil
}

// serveDesk runs the operators' service over an empty docket in a data folder
// of its own, until the test ends.
func serveDesk(t *testing.T) (data string, cases *docket.Docket) {
	t.Helper()
	data = t.TempDir()
	cases = docket.New(docket.Config{Store: store.Memory(), Node: "n", Bucket: noBucket{}, Threshold: 7, Steps: []string{"contain"},
		RecordSteps: []string{"notify"}, Log: slog.New(slog.DiscardHandler), Now: time.Now})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = (&desk.Desk{Docket: cases, Log: slog.New(slog.DiscardHandler)}).Serve(ctx, desk.SocketPath(data)) // ends with ctx
	}()
	t.Cleanup(func() { cancel(); <-ended })
	for range 500 {
		if _, err := os.Stat(desk.SocketPath(data)); err == nil {
			return data, cases
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the desk does not open")
	return "", nil
}

func findingEvent(n int, instance string) string {
	return fmt.Sprintf(`{"version":"0","id":"6f1c1e0a-5a0c-4b35-9d0e-%012d","detail-type":"GuardDuty Finding","source":"aws.guardduty","account":"111122223333",`+
		`"time":"2026-11-20T09:41:07Z","region":"eu-central-1","resources":[],"detail":{"accountId":"111122223333","region":"eu-central-1",`+
		`"id":"1ac6f0d2b4e84a3f9c7b5d3e%08d","type":"Backdoor:EC2/C&CActivity.B","severity":8,"title":"t",`+
		`"resource":{"resourceType":"Instance","instanceDetails":{"instanceId":%q}},"service":{"count":1}}}`, n, n, instance)
}

func instanceNumber(n int) string { return fmt.Sprintf("i-%017x", n) }

// TestIntakeReplaysAFile into the running collector: what is taken is a case,
// and is joined where it is replayed once more.
func TestIntakeReplaysAFile(t *testing.T) {
	data, cases := serveDesk(t)
	path := filepath.Join(t.TempDir(), "events.jsonl")
	const one, two = "i-0123456789abcdef0", "i-0fedcba9876543210"
	lines := []string{findingEvent(1, one), `{"detail-type":"GuardDuty Finding"}`, findingEvent(2, two), findingEvent(3, one)}
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		var out bytes.Buffer
		err := (&intakeReplayCmd{dataFlag: dataFlag{data}, File: path, Max: 1}).Run(t.Context(), &out)
		if !errors.Is(err, errLeft) || !strings.Contains(err.Error(), "1 of 4 events were left") {
			t.Errorf("%v", err)
		}
		got := strings.Split(strings.TrimSpace(out.String()), "\n")
		if len(got) != 4 || !strings.HasPrefix(got[0], "line 1 taken: 20") || !strings.HasPrefix(got[1], "line 2 left: finding is malformed: $.version is missing") ||
			strings.TrimPrefix(got[0], "line 1") != strings.TrimPrefix(got[3], "line 4") {
			t.Errorf("%q", got)
		}
		all, err := cases.List(t.Context())
		if err != nil || len(all) != 2 || len(all[0].Findings)+len(all[1].Findings) != 3 {
			t.Errorf("%d cases, %v", len(all), err)
		}
	}
}
