package main

import (
	"context"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/quicklime-ir/quicklime/collector/custody"
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
	}})
}

func seal(key *custody.Key, m evidence.Manifest) (envelope, payload []byte, err error) {
	if envelope, err = custody.Seal(context.Background(), key, m); err != nil {
		return nil, nil, err
	}
	_, payload, err = custody.Open(envelope, key.Public())
	return envelope, payload, err
}
