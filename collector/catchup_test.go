package main

import (
	"context"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/docket"
	"github.com/quicklime-ir/quicklime/collector/ledger"
	"github.com/quicklime-ir/quicklime/collector/locker"
	"github.com/quicklime-ir/quicklime/collector/store"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// shelf is the bucket after the loss: it has the journals, and no upload.
type shelf struct {
	ledger.Bucket
	objects map[string][]byte
}

func (s shelf) Put(_ context.Context, key string, body []byte) (locker.Object, error) {
	if old, ok := s.objects[key]; ok && string(old) != string(body) {
		return locker.Object{}, locker.ErrExists
	}
	s.objects[key] = slices.Clone(body)
	return locker.Object{Key: key}, nil
}

func (s shelf) List(_ context.Context, prefix string) (out []locker.Object, err error) {
	for _, key := range slices.Sorted(maps.Keys(s.objects)) {
		if strings.HasPrefix(key, prefix) {
			out = append(out, locker.Object{Key: key})
		}
	}
	return out, nil
}

func (s shelf) Read(_ context.Context, key string, _ int64) ([]byte, error) {
	return s.objects[key], nil
}

func (shelf) Begin(context.Context, string) (string, error) { return "upload", nil }

func (shelf) Stored(context.Context, string, string) ([]locker.StoredPart, error) {
	return nil, locker.ErrNoUpload
}

// clusterOver gives a docket and a ledger over one store.
func clusterOver(s store.Store, b shelf) (*docket.Docket, *ledger.Ledger) {
	log := slog.New(slog.DiscardHandler)
	return docket.New(docket.Config{Store: s, Node: "a", Bucket: b, Threshold: 7, Steps: []string{"volatile", "memory"}, Log: log, Now: time.Now}),
		&ledger.Ledger{Store: s, Bucket: b, Log: log, Now: time.Now}
}

func record(t *testing.T, d *docket.Docket, id string, events ...casefile.Event) {
	t.Helper()
	for _, e := range events {
		if _, err := d.Record(t.Context(), id, e); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCatchUp: a case that has gone on since the snapshot is where it was when
// all was lost, but for the evidence of which the collector's record is lost.
func TestCatchUp(t *testing.T) {
	ctx, bucket := t.Context(), shelf{objects: map[string][]byte{"cases/x/y/memory/image.lime": nil}}
	before := store.Memory()
	cases, book := clusterOver(before, bucket)
	raw, err := os.ReadFile("finding/testdata/instance.json")
	if err != nil {
		t.Fatal(err)
	}
	ids, err := cases.Open(ctx, raw)
	if err != nil || len(ids) != 1 {
		t.Fatal(ids, err)
	}
	id := ids[0]
	c, err := cases.Get(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	record(t, cases, id, casefile.Event{Type: casefile.StepStarted, Step: "volatile"})
	open := evidence.Item{Kind: evidence.Volatile, Name: "processes", Format: evidence.JSONL, Compression: evidence.Zstd}
	if _, err := book.Open(ctx, id, c.Instance.ID, open); err != nil {
		t.Fatal(err)
	}

	snapshot := store.Memory()
	all, err := before.List(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if _, err := snapshot.Put(ctx, e.Key, e.Value, 0); err != nil {
			t.Fatal(err)
		}
	}
	image := evidence.Item{Kind: evidence.Memory, Name: "memory", Format: evidence.LiME, Status: evidence.Whole, Size: 7, Key: "cases/" + id + "/" + c.Instance.ID + "/memory/memory.lime"}
	record(t, cases, id, casefile.Event{Type: casefile.StepEnded, Step: "volatile", Outcome: casefile.Done},
		casefile.Event{Type: casefile.StepStarted, Step: "memory"}, casefile.Event{Type: casefile.Fact, Items: []evidence.Item{image}})

	restored, ledgerThen := clusterOver(snapshot, bucket)
	for range 2 { // a second time there is nothing to do
		brought, err := catchUp{bucket, restored, ledgerThen}.run(ctx)
		if err != nil {
			t.Fatal(err)
		}
		got, err := restored.Get(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		if next, begun := got.Next(); next != "memory" || !begun {
			t.Errorf("its next step is %s, begun: %v", next, begun)
		}
		var missing []string
		for _, m := range got.Missing {
			missing = append(missing, string(m.Kind))
			if !strings.Contains(m.Reason, "lies at cases/"+id) {
				t.Errorf("missing: %s", m.Reason)
			}
		}
		if !slices.Equal(missing, []string{"volatile", "memory"}) {
			t.Errorf("missing are %v", missing)
		}
		if n, err := restored.Unsent(ctx); err != nil || n > 0 {
			t.Errorf("the bucket refuses %d entries, %v", n, err)
		}
		if n := len(got.Journal.SHA256); n == 0 || got.Journal.Entries != 7 {
			t.Errorf("its journal has %d entries", got.Journal.Entries)
		}
		if len(brought) == 1 && brought[0] != id || len(brought) > 1 {
			t.Errorf("brought on are %v", brought)
		}
	}

	// One broken journal is in nobody else's way.
	bucket.objects[locker.JournalKey("20261126-bad", c.Instance.ID, 1)] = []byte("{}")
	empty, book := clusterOver(store.Memory(), bucket)
	brought, err := catchUp{bucket, empty, book}.run(ctx)
	if err == nil || !strings.Contains(err.Error(), "20261126-bad") || !slices.Equal(brought, []string{id}) {
		t.Errorf("brought on are %v, %v", brought, err)
	}
}
