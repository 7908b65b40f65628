package main

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/custody"
	"github.com/quicklime-ir/quicklime/collector/isf/isftest"
	"github.com/quicklime-ir/quicklime/collector/store/etcd"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"quicklime-collector": func() { os.Exit(run()) }})
}

// TestCommandLine is the command line's manual, in testdata.
func TestCommandLine(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata", Cmds: map[string]func(*testscript.TestScript, bool, []string){
		// sealed-evidence makes sealed cases to work on; see writeEvidence.
		"sealed-evidence": func(ts *testscript.TestScript, _ bool, _ []string) { ts.Check(writeEvidence(ts.MkAbs("."))) },
		"sealed-symbols":  sealedSymbols,
		"take-snapshot":   takeSnapshot,
	}})
}

func seal(key *custody.Key, m evidence.Manifest) (envelope, payload []byte, err error) {
	if envelope, err = custody.Seal(context.Background(), key, m); err != nil {
		return nil, nil, err
	}
	_, payload, err = custody.Open(envelope, key.Public())
	return envelope, payload, err
}

// takeSnapshot makes a snapshot of a state with a running case and an ended
// one: take-snapshot FILE.
func takeSnapshot(ts *testscript.TestScript, _ bool, args []string) {
	ctx := context.Background()
	s, err := etcd.Open(ctx, etcd.Config{Dir: ts.MkAbs("lost"), Name: "lost", Log: slog.New(slog.DiscardHandler)})
	ts.Check(err)
	defer s.Close()
	for id, state := range map[string]casefile.State{"20261126-run": casefile.Running, "20261126-end": casefile.Ended} {
		raw, err := json.Marshal(casefile.Case{ID: id, State: state})
		ts.Check(err)
		_, err = s.Put(ctx, "case/"+id, raw, 0)
		ts.Check(err)
	}
	r, err := s.Snapshot(ctx)
	ts.Check(err)
	defer r.Close()
	all, err := io.ReadAll(r)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), all, 0o600))
}

// sealedSymbols lays a sealed case with nothing but a small bundle of symbols
// into a folder: sealed-symbols FOLDER CASE SIGNING-KEY.
func sealedSymbols(ts *testscript.TestScript, _ bool, args []string) {
	dir, caseID := ts.MkAbs(args[0]), args[1]
	signer, err := custody.LoadKey(ts.MkAbs(args[2]))
	ts.Check(err)
	encoder, err := zstd.NewWriter(nil)
	ts.Check(err)
	plain := isftest.Tar(isftest.Members())
	body := encoder.EncodeAll(plain, nil)
	part := evidence.Part{Number: 1, Size: uint64(len(body)), SHA256: custody.Hash(body), RawSize: uint64(len(plain))}
	top := "cases/" + caseID + "/i-0123456789abcdef0/"
	item := evidence.Item{Kind: evidence.Symbols, Name: "symbols", Format: evidence.Tar, Compression: evidence.Zstd, Key: top + "symbols/symbols.tar.zst",
		Status: evidence.Whole, Size: part.Size, SHA256: evidence.Composite([]evidence.Part{part}), Parts: []evidence.Part{part}}
	made := time.Date(2026, 11, 26, 4, 0, 0, 0, time.UTC)
	_, head, err := custody.Next(evidence.JournalHead{}, made, "opened")
	ts.Check(err)
	envelope, err := custody.Seal(context.Background(), signer, evidence.Manifest{Case: caseID, Made: made, Instance: evidence.Instance{ID: "i-0123456789abcdef0"},
		Items: []evidence.Item{item}, Journal: head})
	ts.Check(err)
	for key, content := range map[string][]byte{item.Key: body, top + "manifest.sig": envelope} {
		path := filepath.Join(dir, key)
		ts.Check(os.MkdirAll(filepath.Dir(path), 0o700))
		ts.Check(os.WriteFile(path, content, 0o600))
	}
}
