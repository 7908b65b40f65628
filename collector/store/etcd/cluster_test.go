package etcd

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"

	"github.com/quicklime-ir/quicklime/collector/store"
	"github.com/quicklime-ir/quicklime/proto/identity/identitytest"
)

// node makes the configuration of a node of several, on loopback.
func node(t *testing.T, authority *identitytest.Authority, name string) Config {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	files := authority.Node(t, name)
	return Config{Dir: t.TempDir(), Name: name, Log: slog.New(slog.DiscardHandler),
		Peer: &Peer{Listen: address, URL: "https://" + address, Cert: files.Cert, Key: files.Key, CA: files.CA}}
}

func run(t *testing.T, cfg Config) *Store {
	t.Helper()
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lose(s) }) // a farewell from the last ones would find no majority
	return s
}

// joins lets a node into the cluster and starts it, which lasts until it votes.
func joins(t *testing.T, s *Store, cfg Config) *Store {
	t.Helper()
	j, err := s.Join(t.Context(), cfg.Name, cfg.Peer.URL)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(j) // as it reaches the new node
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Join, err = ParseJoin(raw); err != nil {
		t.Fatal(err)
	}
	return run(t, cfg)
}

// lose ends a node as its death would: nobody is told, and nothing given back.
func lose(s *Store) {
	s.mu.Lock()
	s.session = nil
	s.mu.Unlock()
	s.fault.end(store.ErrClosed)
	s.member.Server.HardStop()
	s.Close()
}

// counter counts up in one key, by whichever node works, until it is told to
// stop. What it was told is kept must be there.
type counter struct {
	mu    sync.Mutex
	s     *Store
	acked int
	stop  context.CancelFunc
	done  sync.WaitGroup
}

func count1(t *testing.T, s *Store) *counter {
	ctx, stop := context.WithCancel(t.Context())
	c := &counter{s: s, stop: stop}
	c.done.Go(func() {
		for ctx.Err() == nil {
			if err := c.next(ctx); err != nil && ctx.Err() == nil {
				time.Sleep(10 * time.Millisecond)
			}
		}
	})
	t.Cleanup(func() { stop(); c.done.Wait() })
	return c
}

// next counts on from what is kept, which after a failure may be one more than
// was said.
func (c *counter) next(ctx context.Context) error {
	c.mu.Lock()
	s, acked := c.s, c.acked
	c.mu.Unlock()
	value, at, err := s.Get(ctx, "count")
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	n := count(value)
	if n < acked {
		panic(fmt.Sprintf("%d was acknowledged, %d is kept", acked, n))
	}
	if _, err = s.Put(ctx, "count", numbered(n+1), at); err == nil {
		c.mu.Lock()
		c.acked = n + 1
		c.mu.Unlock()
	}
	return err
}

// more waits until it has counted on by n.
func (c *counter) more(t *testing.T, n int) {
	t.Helper()
	c.mu.Lock()
	from := c.acked
	c.mu.Unlock()
	for limit := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		c.mu.Lock()
		now := c.acked
		c.mu.Unlock()
		if now >= from+n {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("it counts no further than %d", now)
		}
	}
}

func (c *counter) use(s *Store) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.s = s
}

// TestGrow: one node becomes three while it works. Its loss, its return, and
// its place taken by a new one once its folder is damaged cost nothing that was
// written.
func TestGrow(t *testing.T) {
	t.Parallel()
	authority := identitytest.New(t)
	a := node(t, authority, "a")
	first := run(t, a)
	counting := count1(t, first)
	counting.more(t, 5)
	b, c := node(t, authority, "b"), node(t, authority, "c")
	second := joins(t, first, b)
	counting.more(t, 5)
	third := joins(t, first, c)
	counting.more(t, 5)
	for _, m := range third.Members(t.Context()) {
		if !m.Voter || !m.Answers || !m.Started || m.Self != (m.Name == "c") {
			t.Errorf("of three: %+v", m)
		}
	}

	lose(first)
	_, err := Open(t.Context(), Config{Dir: a.Dir, Name: "a", Log: a.Log})
	refuse(t, err, "this node is one of 3")
	counting.use(second)
	counting.more(t, 5)
	refuse(t, second.Remove(t.Context(), "c"), "without a majority")
	first = run(t, a)
	counting.use(first)
	counting.more(t, 5)

	lose(first)
	counting.use(third)
	damaged := a
	damaged.Dir, damaged.Peer = damage(t, a.Dir), node(t, authority, "a").Peer // what is stuck keeps its address
	_, err = Open(t.Context(), damaged)
	refuse(t, err, "is damaged: move the folder away; on another node, use 'cluster remove' and 'cluster join'")
	if err := second.Remove(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	counting.more(t, 5)
	_, err = Open(t.Context(), a)
	refuse(t, err, "removed from its cluster")
	a.Dir = t.TempDir()
	first = joins(t, second, a)
	counting.use(first)
	counting.more(t, 5)
	counting.stop()
	counting.done.Wait()
	for _, s := range []*Store{first, second, third} {
		value, _, err := s.Get(t.Context(), "count")
		if kept := count(value); err != nil || kept < counting.acked || kept > counting.acked+1 {
			t.Errorf("%s has %d, %d was acknowledged (%v)", s.cfg.Name, kept, counting.acked, err)
		}
	}
}

// damage gives a copy of a member's folder whose log cannot be read.
func damage(t *testing.T, dir string) string {
	t.Helper()
	bad, err := os.MkdirTemp("", "etcd") // not t.TempDir: what etcd left running may still write
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(bad) })
	if err := os.CopyFS(bad, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	logs, err := filepath.Glob(filepath.Join(bad, "member", "wal", "*.wal"))
	if err != nil || len(logs) == 0 {
		t.Fatal(logs, err)
	}
	raw, err := os.ReadFile(logs[0])
	if err != nil {
		t.Fatal(err)
	}
	for i := range 64 {
		raw[20+i] ^= 0xff
	}
	if err := os.WriteFile(logs[0], raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return bad
}

// TestWithoutAMajority: every call ends, and says why; nothing is written.
// Once there is a majority again, all goes on by itself.
func TestWithoutAMajority(t *testing.T) {
	t.Parallel()
	ctx, authority := t.Context(), identitytest.New(t)
	cfg := node(t, authority, "a")
	cfg.patience = 3 * time.Second
	a := run(t, cfg)
	b := joins(t, a, node(t, authority, "b"))
	at, err := a.Put(ctx, "case/1", []byte("before"), 0)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan string, 10)
	watching, stop := context.WithCancel(ctx)
	defer stop()
	go a.Watch(watching, "case/", func(_ bool, entries []store.Entry) {
		for _, e := range entries {
			seen <- string(e.Value)
		}
	})
	if got := <-seen; got != "before" {
		t.Errorf("watched %q", got)
	}
	lose(b)
	const why = "the majority of its members is not there"
	var all sync.WaitGroup
	for name, call := range map[string]func() error{
		"put":    func() error { _, err := a.Put(ctx, "case/1", []byte("lost"), at); return err },
		"get":    func() error { _, _, err := a.Get(ctx, "case/1"); return err },
		"list":   func() error { _, err := a.List(ctx, "case/"); return err },
		"claim":  func() error { _, err := a.Claim(ctx, "own/1", nil); return err },
		"join":   func() error { _, err := a.Join(ctx, "c", "https://127.0.0.1:1"); return err },
		"remove": func() error { return a.Remove(ctx, "b") },
		"health": func() error { return a.Health(ctx) },
	} {
		all.Go(func() {
			err := call() // which ends
			if err == nil || !strings.Contains(err.Error(), why) || name == "health" && !strings.Contains(err.Error(), "b at "+b.cfg.Peer.URL+" do not answer") {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	all.Wait()
	for a.Leads() { // it notices within a second or two that it leads nobody
		time.Sleep(10 * time.Millisecond)
	}
	for _, m := range a.Members(ctx) {
		if m.Leader || m.Answers != m.Self {
			t.Errorf("without a majority: %+v", m)
		}
	}
	run(t, b.cfg)
	value, now, err := a.Get(ctx, "case/1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Put(ctx, "case/1", []byte("after"), now); err != nil {
		t.Fatal(err)
	}
	if string(value) != "before" { // whether it was made could not be known
		if got := <-seen; got != "lost" {
			t.Errorf("watched %q", got)
		}
	}
	if got := <-seen; got != "after" {
		t.Errorf("watched %q", got)
	}
	if err := a.Health(ctx); err != nil {
		t.Error(err)
	}
}

// TestAMemberThatDiffersIsRefused: a bit that flips on a disk is in no
// checksum of the file; the others tell.
func TestAMemberThatDiffersIsRefused(t *testing.T) {
	t.Parallel()
	authority := identitytest.New(t)
	a := run(t, node(t, authority, "a"))
	b := joins(t, a, node(t, authority, "b"))
	if _, err := a.Put(t.Context(), "case/1", []byte("the evidence of the case"), 0); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Get(t.Context(), "case/1"); err != nil { // it has it
		t.Fatal(err)
	}
	lose(b)
	path := filepath.Join(b.cfg.Dir, "member", "snap", "db")
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	changed := bytes.ReplaceAll(raw, []byte("the evidence of"), []byte("the Evidence of"))
	if bytes.Equal(raw, changed) {
		t.Fatal("the value is not in the file")
	}
	if err := os.WriteFile(path, changed, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), b.cfg)
	refuse(t, err, "is damaged")
	refuse(t, err, "data inconsistency")
}

func refuse(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error is %v, want %q", err, want)
	}
}

// TestFromOneToTwoAndBack: a node that listened nowhere, and had another name,
// takes its place among others. One that is removed says so, ends by itself and
// can be closed; the one that is left goes on alone.
func TestFromOneToTwoAndBack(t *testing.T) {
	t.Parallel()
	authority := identitytest.New(t)
	cfg := node(t, authority, "a")
	run(t, Config{Dir: cfg.Dir, Name: "alone", Log: cfg.Log}).Close()
	a := run(t, cfg)
	if all := a.Members(t.Context()); len(all) != 1 || all[0].Name != "a" || all[0].URL != cfg.Peer.URL {
		t.Errorf("members are %+v", all)
	}
	b := joins(t, a, node(t, authority, "b"))
	if err := a.Remove(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	<-b.Failed()
	refuse(t, b.Health(t.Context()), "removed from its cluster")
	b.Close()
	if _, err := a.Put(t.Context(), "case/1", nil, 0); err != nil {
		t.Error(err)
	}
	_, err := Open(t.Context(), b.cfg)
	refuse(t, err, "removed from its cluster")
}

// TestMembershipIsGuarded: what would cost the cluster its majority, or mean
// nothing, is refused and says what to do.
func TestMembershipIsGuarded(t *testing.T) {
	t.Parallel()
	ctx, authority := t.Context(), identitytest.New(t)
	lone := begin(t, t.TempDir())
	_, err := lone.Join(ctx, "b", "https://127.0.0.1:1")
	refuse(t, err, "--peer-listen")
	if all := lone.Members(ctx); len(all) != 1 || !all[0].Self || !all[0].Leader || !all[0].Voter || !all[0].Answers || all[0].Name != "alone" {
		t.Errorf("a node alone has %+v", all)
	}

	cfg := node(t, authority, "a")
	s := run(t, cfg)
	for _, tt := range []struct{ name, url, want string }{
		{"a", "https://127.0.0.1:1", "of this name"},
		{"b", cfg.Peer.URL, "node a is at"},
		{"b c", "https://127.0.0.1:1", "cannot call a node"},
		{"b", "http://127.0.0.1:1", "want https://HOST:PORT"},
		{"b", "https://127.0.0.1", "want https://HOST:PORT"},
	} {
		_, err := s.Join(ctx, tt.name, tt.url)
		refuse(t, err, tt.want)
	}
	refuse(t, s.Remove(ctx, "a"), "the last one")
	refuse(t, s.Remove(ctx, "x"), "the cluster has a")

	j, err := s.Join(ctx, "b", "https://127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.Join(ctx, "b", "https://127.0.0.1:1")
	if err != nil || fmt.Sprint(again) != fmt.Sprint(j) {
		t.Errorf("asked again it gives %v, %v; want %v", again, err, j)
	}
	_, err = s.Join(ctx, "c", "https://127.0.0.1:2")
	refuse(t, err, "node b is joining")
	all := s.Members(ctx)
	if len(all) != 2 || all[1].Name != "b" || all[1].Voter || all[1].Started || all[1].Answers {
		t.Errorf("with one that joins: %+v", all)
	}
	other := node(t, authority, "c")
	other.Join = &j
	_, err = Open(ctx, other)
	refuse(t, err, "the join document is for node b")
	if err := s.Remove(ctx, "b"); err != nil {
		t.Error(err)
	}

	// The document is of no use any more, and costs the folder nothing.
	b := node(t, authority, "b")
	if j, err = s.Join(ctx, "b", b.Peer.URL); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ctx, "b"); err != nil {
		t.Fatal(err)
	}
	b.Join = &j
	_, err = Open(ctx, b)
	refuse(t, err, "'cluster join' makes a new one")
	if HasMember(b.Dir) {
		t.Error("a member was left behind that never joined")
	}
	s.Close()
	_, err = Open(ctx, Config{Dir: b.Dir, Name: "b", Log: cfg.Log, Join: &j})
	refuse(t, err, "the join document is for node b")
}

// TestPeersAreChecked: what other nodes would not take is refused at the start.
func TestPeersAreChecked(t *testing.T) {
	t.Parallel()
	authority, another := identitytest.New(t), identitytest.New(t)
	server := authority.Server(t)
	bad := filepath.Join(t.TempDir(), "empty.crt")
	if err := os.WriteFile(bad, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		change func(*Peer)
		want   string
	}{
		"no port":            {func(p *Peer) { p.Listen = "127.0.0.1" }, "want IP:PORT"},
		"a name to listen":   {func(p *Peer) { p.Listen = "node:1" }, "want IP:PORT"},
		"plain text":         {func(p *Peer) { p.URL = "http://127.0.0.1:1" }, "want https://HOST:PORT"},
		"a path":             {func(p *Peer) { p.URL += "/x" }, "want https://HOST:PORT"},
		"no key":             {func(p *Peer) { p.Key = bad }, "cannot read the certificate"},
		"no authority":       {func(p *Peer) { p.CA = bad }, "no certificate in PEM form"},
		"another name":       {func(p *Peer) { p.URL = "https://node.example:1" }, "want one for node.example"},
		"a server only":      {func(p *Peer) { p.Cert, p.Key = server.Cert, server.Key }, "as a server and as a client"},
		"another authority":  {func(p *Peer) { p.CA = another.Node(t, "x").CA }, "by an authority in"},
		"an address in use ": {func(p *Peer) { p.Listen = taken1(t) }, "cannot listen for other nodes"},
	} {
		cfg := node(t, authority, "a")
		tt.change(cfg.Peer)
		_, err := Open(t.Context(), cfg)
		if refuse(t, err, tt.want); t.Failed() {
			t.Fatal(name)
		}
		if HasMember(cfg.Dir) {
			t.Errorf("%s: a member was begun", name)
		}
	}
	cfg := node(t, authority, "a")
	s := run(t, cfg)
	stranger := node(t, another, "x").Peer
	stranger.CA = cfg.Peer.CA // it knows whom it speaks with; they do not know it
	if err := stranger.ask(t.Context(), cfg.Peer.URL); err == nil {
		t.Error("a stranger was answered")
	}
	if err := cfg.Peer.ask(t.Context(), cfg.Peer.URL); err != nil {
		t.Error(err)
	}
	if len(s.member.Clients) > 0 {
		t.Error("there is a listener for clients")
	}

	serial := func(newest uint16) (string, error) {
		info := cfg.Peer.tls()
		config, err := info.ClientConfig()
		if err != nil {
			return "", err
		}
		config.MaxVersion = newest
		conn, err := tls.Dial("tcp", cfg.Peer.Listen, config)
		if err != nil {
			return "", err
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.String(), nil
	}
	if _, err := serial(tls.VersionTLS12); err == nil {
		t.Error("TLS 1.2 is spoken")
	}
	before, err := serial(tls.VersionTLS13)
	if err != nil {
		t.Fatal(err)
	}
	authority.Node(t, "a") // in place of the one that it began with
	if after, err := serial(tls.VersionTLS13); err != nil || after == before {
		t.Errorf("after the certificate was renewed it shows %s, %s before (%v)", after, before, err)
	}
}

func taken1(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

// FuzzParseJoin: what is taken names nodes that cannot be mistaken for
// something else in etcd's own list of them.
func FuzzParseJoin(f *testing.F) {
	f.Add([]byte(`{"name":"b","url":"https://b:1","nodes":[{"name":"a","url":"https://a:1"},{"name":"b","url":"https://b:1"}]}`))
	f.Add([]byte(`{"nodes":[{"name":"a=b,c","url":"https://a:1,https://x:1"},{}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		j, err := ParseJoin(raw)
		if err != nil {
			return
		}
		all, err := types.NewURLsMap(j.initial())
		if err != nil || len(all) != len(j.Nodes) {
			t.Fatalf("%q is %d nodes, want %d (%v)", j.initial(), len(all), len(j.Nodes), err)
		}
		for _, n := range j.Nodes {
			if urls := all[n.Name]; len(urls) != 1 || urls[0].Host != strings.TrimPrefix(n.URL, "https://") || urls[0].Scheme != "https" {
				t.Fatalf("node %q is at %v, want %s", n.Name, urls, n.URL)
			}
		}
	})
}
