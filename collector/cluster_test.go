package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quicklime-ir/quicklime/proto/identity/identitytest"
)

// TestNodeFlags: what would make no node, or one that agents could pass for,
// is refused before anything is begun.
func TestNodeFlags(t *testing.T) {
	nodes, agents := identitytest.New(t), identitytest.New(t)
	files, agentCA := nodes.Node(t, "b"), agents.Server(t).CA
	peer := nodeFlags{Node: "b", PeerListen: "127.0.0.1:0", PeerURL: "https://127.0.0.1:8444", PeerCert: files.Cert, PeerKey: files.Key, PeerCA: files.CA}
	write := func(text string) string {
		path := filepath.Join(t.TempDir(), "join.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	with := func(join string) nodeFlags { f := peer; f.Join = join; return f }
	for name, tt := range map[string]struct {
		flags   nodeFlags
		agentCA string
		want    string // of the error; "": there is none
	}{
		"the host's name":            {nodeFlags{}, agentCA, ""},
		"a name with a slash":        {nodeFlags{Node: "a/b"}, agentCA, "name it with --node"},
		"one of several":             {peer, agentCA, ""},
		"one authority for all":      {peer, files.CA, "an agent could pass for a node"},
		"no authority of agents":     {peer, "nothing.crt", "cannot read certificate authority"},
		"it joins":                   {with(write(`{"name":"b","url":"https://b:1","nodes":[{"name":"a","url":"https://a:1"},{"name":"b","url":"https://b:1"}]}`)), agentCA, ""},
		"no document":                {with("nothing.json"), agentCA, "cannot read join document"},
		"no JSON":                    {with(write("{")), agentCA, "cannot read join document"},
		"it names nobody":            {with(write("{}")), agentCA, "it names 0 nodes"},
		"the new one is not in it":   {with(write(`{"name":"b","url":"https://b:1","nodes":[{"name":"a","url":"https://a:1"},{"name":"c","url":"https://b:1"}]}`)), agentCA, "the new one is not among them"},
		"two at one address":         {with(write(`{"name":"b","url":"https://b:1","nodes":[{"name":"a","url":"https://b:1"},{"name":"b","url":"https://b:1"}]}`)), agentCA, "not all different"},
		"a name that is two":         {with(write(`{"name":"b","url":"https://b:1","nodes":[{"name":"a=https://x:1,y","url":"https://a:1"},{"name":"b","url":"https://b:1"}]}`)), agentCA, "cannot call a node"},
		"an address that is two":     {with(write(`{"name":"b","url":"https://b:1","nodes":[{"name":"a","url":"https://a:1,y=https://x:1"},{"name":"b","url":"https://b:1"}]}`)), agentCA, "want https://HOST:PORT"},
		"more than it takes to read": {with(write(`{"name":"` + strings.Repeat("b", maxJoin) + `"}`)), agentCA, "cannot read join document"},
	} {
		c, err := tt.flags.config(t.TempDir(), tt.agentCA, slog.New(slog.DiscardHandler))
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
		if err == nil && (c.Name == "" || (c.Join != nil) != (tt.flags.Join != "") || (c.Peer != nil) != (tt.flags.PeerURL != "")) {
			t.Errorf("%s: %+v", name, c)
		}
	}
	data := t.TempDir()
	if err := os.MkdirAll(filepath.Join(storeDir(data), "member"), 0o700); err != nil {
		t.Fatal(err)
	}
	if c, err := with("gone.json").config(data, agentCA, slog.New(slog.DiscardHandler)); err != nil || c.Join != nil {
		t.Errorf("a node that has joined reads the document again: %v, %v", c.Join, err)
	}
}
