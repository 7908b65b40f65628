package artifact

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestRecordIsBoundedAndKeepsRoomForFailures(t *testing.T) {
	rec := Record{bound: recordBytes / 10}
	sum := make([]byte, 32)
	for i := range 15_000 {
		rand.Read(sum)
		rec.Add(Entry{Source: "Logs", Path: Text(fmt.Sprint("/var/log/", i)), SHA256: hex.EncodeToString(sum)})
	}
	if rec.spool.Len() > rec.bound {
		t.Errorf("the record holds %d bytes", rec.spool.Len())
	}
	rec.Add(Entry{Source: "Logs", Path: "/last"}.failed(unix.EACCES))
	if got := rec.Summary(); got.Tried != 15_001 || got.Failed != 1 || got.Dropped == 0 {
		t.Errorf("summary %+v", got)
	}
	all := entries(t, &rec)
	if last := all[len(all)-1]; last.Path != "/last" || last.Errno != "EACCES" {
		t.Errorf("the last entry is %+v", last)
	}
	if int64(len(all)) != 15_001-rec.Summary().Dropped {
		t.Errorf("%d entries, want all but %d", len(all), rec.Summary().Dropped)
	}
}

func TestRowsNameTheirCase(t *testing.T) {
	rec := Record{Case: "c-1", Instance: "i-1"}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("", 3600))
	for row, want := range map[string]string{
		`{}`:          `{"case":"c-1","instance":"i-1","collected_at":"2026-01-02T02:04:05Z"}`,
		"{\"a\":1}\n": `{"case":"c-1","instance":"i-1","collected_at":"2026-01-02T02:04:05Z","a":1}` + "\n",
	} {
		if got := string(rec.stamp(at, []byte(row))); got != want {
			t.Errorf("%s: got %s, want %s", row, got, want)
		}
	}
}

func TestRecordEndsWithItsSummary(t *testing.T) {
	var rec Record
	rec.Add(Entry{Source: "a", Path: "new\nline\xff"})
	var first, again bytes.Buffer
	rec.WriteTo(&first)
	rec.WriteTo(&again)
	if first.String() != again.String() || !strings.HasSuffix(first.String(), "}\n") {
		t.Errorf("got %q, then %q", first.String(), again.String())
	}
	lines := strings.Split(strings.TrimSpace(first.String()), "\n")
	var sum Summary
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &sum); err != nil || len(lines) != 2 || sum != (Summary{"summary", SchemaVersion, 1, 0, 0}) {
		t.Errorf("%d lines, summary %+v, %v", len(lines), sum, err)
	}
	rec.Add(Entry{Source: "late"})
	if got := rec.Summary(); got.Dropped != 1 {
		t.Errorf("summary %+v", got)
	}
	var empty Record
	if n, err := empty.WriteTo(&first); err != nil || n == 0 {
		t.Errorf("an empty record wrote %d bytes, %v", n, err)
	}
	if _, err := rec.WriteTo(brokenWriter{}); err == nil {
		t.Error("a record that went nowhere was called written")
	}
}

func TestRecordIsSharedByGoroutines(t *testing.T) {
	var rec Record
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 100 {
				rec.Add(Entry{Source: "x"})
			}
		})
	}
	group.Wait()
	if got := len(entries(t, &rec)); got != 800 {
		t.Errorf("%d entries, want 800", got)
	}
}

func TestEntryFailed(t *testing.T) {
	for err, want := range map[error]Entry{
		nil:                                   {},
		fmt.Errorf("x: %w", unix.ESRCH):       {Note: NoteVanished},
		fmt.Errorf("x: %w", os.ErrNotExist):   {Note: NoteVanished},
		fmt.Errorf("x: %w", unix.EIO):         {Error: "x: input/output error", Errno: "EIO"},
		fmt.Errorf("x: %w", io.ErrNoProgress): {Error: "x: multiple Read calls return no data or error"},
	} {
		if got := (Entry{}).failed(err); got != want {
			t.Errorf("%v gives %+v, want %+v", err, got, want)
		}
	}
}
