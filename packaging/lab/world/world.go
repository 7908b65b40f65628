// Package world puts the lab together: an emulated account, a real S3, a
// webhook receiver, a collector as a process of its own, and agents, either
// in this process or in a guest with a real kernel.
package world

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/quicklime-ir/quicklime/collector/custody"
	"github.com/quicklime-ir/quicklime/collector/finding"
	"github.com/quicklime-ir/quicklime/packaging/lab/bucket"
	"github.com/quicklime-ir/quicklime/packaging/lab/discord"
	"github.com/quicklime-ir/quicklime/packaging/lab/emulator"
	"github.com/quicklime-ir/quicklime/packaging/lab/pki"
	"github.com/quicklime-ir/quicklime/proto/identity"
)

// What there is in the lab's account.
const (
	Account     = "111122223333"
	Region      = "eu-central-1"
	TrustDomain = "lab.quicklime.example"
	Victim      = "i-0123456789abcdef0"
	Neighbour   = "i-0fedcba9876543210"
	Bucket      = "quicklime-evidence"

	accessKey = "AKIAQUICKLIMELAB0000"
	secretKey = "lab-secret-not-a-secret"
)

// Config says how the world is.
type Config struct {
	Dir       string // work folder; everything is below it
	Binaries  Binaries
	Collector []string // more flags of serve
	Log       io.Writer
	Guest     bool // agents are in a guest, which reaches S3 by another name
	// MissReads and ImagePending make EC2 slow to show what is new.
	MissReads    int
	ImagePending time.Duration
	MaxReceives  int // of a finding, before it goes to the dead-letter queue; 0: 3

	Hosts int // more instances than the two that have names
	Nodes int // collectors that may be started; 0 is one, which then listens for no other
	// Hub is the address of this host at which the account, S3 and Discord are
	// reached; "" is 127.0.0.1. Place says where a node lives, by its number from
	// 0; nil is at the same address.
	Hub   string
	Place func(node int) Place
}

// World is a running lab.
type World struct {
	AWS     *emulator.Emulator
	S3      *bucket.Server
	Discord *discord.Receiver

	cfg       Config
	authority *pki.Authority
	peers     *pki.Authority // of the nodes, where there are several
	nodes     []*Node        // at least one, from Start on
	logs      lockedWriter
}

// lockedWriter lets several children write one log.
type lockedWriter struct {
	mu   sync.Mutex
	to   io.Writer
	copy bytes.Buffer // all of it, for Logs
}

func (w *lockedWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.copy.Write(b)
	return w.to.Write(b)
}

// Start starts everything but agents.
func Start(ctx context.Context, cfg Config) (_ *World, err error) {
	if cfg.Log == nil {
		cfg.Log = io.Discard
	}
	w := &World{cfg: cfg, logs: lockedWriter{to: cfg.Log}}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Close())
		}
	}()
	if cfg.Hub == "" {
		w.cfg.Hub = "127.0.0.1"
	}
	for n := range max(1, cfg.Nodes) {
		w.nodes = append(w.nodes, w.newNode(n))
	}
	if w.authority, err = pki.New(); err != nil {
		return nil, err
	}
	if err := w.writeCertificates(); err != nil {
		return nil, err
	}
	w.AWS, err = emulator.Start(ctx, emulator.Config{Region: Region, AccountID: Account, AccessKeyID: accessKey, SecretAccessKey: secretKey,
		Log: slog.New(slog.NewTextHandler(&w.logs, nil)), ImagePending: cfg.ImagePending, MissReads: cfg.MissReads, MaxReceives: cfg.MaxReceives, Rule: finding.RulePattern,
		Instances: w.instances(), Host: w.cfg.Hub})
	if err != nil {
		return nil, err
	}
	if err := w.startDiscord(); err != nil {
		return nil, err
	}
	if err := os.WriteFile(w.path("discord.url"), []byte(w.Discord.URL()+"\n"), 0o600); err != nil {
		return nil, err
	}
	w.S3, err = bucket.Start(ctx, cfg.Binaries.Lab, Bucket, bucket.Config{Root: w.path("s3"), Host: w.cfg.Hub, Region: Region, AccessKey: accessKey, SecretKey: secretKey}, w.authority, &w.logs)
	if err != nil {
		return nil, err
	}
	return w, w.nodes[0].Start(ctx)
}

// startDiscord has the webhook speak TLS, as collectors want it of all that is
// not on their own host.
func (w *World) startDiscord() error {
	pair, err := w.authority.Server(w.cfg.Hub)
	if err != nil {
		return err
	}
	cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		return err
	}
	w.Discord, err = discord.Start(w.cfg.Hub, &cert)
	return err
}

func (w *World) path(name string) string { return filepath.Join(w.cfg.Dir, name) }

// writeCertificates puts the authority and the servers' certificates where
// the processes find them.
func (w *World) writeCertificates() error {
	if err := os.WriteFile(w.path("ca.crt"), w.authority.PEM, 0o600); err != nil {
		return err
	}
	if len(w.nodes) > 1 {
		if err := w.writeShared(); err != nil {
			return err
		}
	}
	for _, n := range w.nodes {
		if err := errors.Join(n.choosePorts(), n.writeCertificates()); err != nil {
			return err
		}
	}
	return nil
}

// writeShared writes what several nodes have in common: the key that signs
// manifests, and the authority by which they know each other.
func (w *World) writeShared() error {
	if _, err := custody.NewKey(w.path("signing.key")); err != nil {
		return err
	}
	var err error
	if w.peers, err = pki.New(); err != nil {
		return err
	}
	return os.WriteFile(w.path("peer-ca.crt"), w.peers.PEM, 0o600)
}

// AgentPair gives an instance's certificate and key, and the authority.
func (w *World) AgentPair(instance string) (pki.Pair, []byte, error) {
	id := identity.AgentID{TrustDomain: TrustDomain, Account: Account, Region: Region, Instance: instance}
	pair, err := w.authority.Agent(id.String())
	return pair, w.authority.PEM, err
}

// AgentFiles writes them where an agent in this process finds them.
func (w *World) AgentFiles(instance string) (identity.Files, error) {
	pair, _, err := w.AgentPair(instance)
	if err != nil {
		return identity.Files{}, err
	}
	cert, key, err := pair.Write(w.cfg.Dir, instance)
	return identity.Files{Cert: cert, Key: key, CA: w.path("ca.crt")}, err
}

// Keys are those of the account's root, which may do all in the bucket.
func (w *World) Keys() (access, secret string) { return accessKey, secretKey }

// Environ is what a collector, or its command line, needs to reach the
// account.
func (w *World) Environ() []string {
	return append(os.Environ(),
		"AWS_REGION="+Region, "AWS_ACCESS_KEY_ID="+accessKey, "AWS_SECRET_ACCESS_KEY="+secretKey, "AWS_SESSION_TOKEN=",
		"AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null", "AWS_PROFILE=", "AWS_EC2_METADATA_DISABLED=true",
		"AWS_ENDPOINT_URL="+w.AWS.URL(), "AWS_ENDPOINT_URL_S3="+w.S3.URL(), "AWS_CA_BUNDLE="+w.path("ca.crt"), "SSL_CERT_FILE="+w.path("ca.crt"), "SSL_CERT_DIR=/dev/null",
		"HTTPS_PROXY=", "https_proxy=", "HTTP_PROXY=", "http_proxy=")
}

// Log is where children of this world may log to.
func (w *World) Log() io.Writer { return &w.logs }

// LogTail is the end of what the children have logged.
func (w *World) LogTail() string {
	w.logs.mu.Lock()
	defer w.logs.mu.Unlock()
	b := w.logs.copy.Bytes()
	return string(b[max(0, len(b)-8<<10):])
}

// Logs is all of it.
func (w *World) Logs() []byte {
	w.logs.mu.Lock()
	defer w.logs.mu.Unlock()
	return slices.Clone(w.logs.copy.Bytes())
}

// Find delivers a finding by GuardDuty's way.
func (w *World) Find(f Finding) error {
	_, matched, err := w.AWS.DeliverGuardDuty(f.Detail(Region, Account))
	if err == nil && !matched {
		err = fmt.Errorf("the rule does not match a finding of severity %v", f.Severity)
	}
	return err
}

// Close ends everything that runs, the collector first.
func (w *World) Close() error {
	var errs []error
	for _, n := range w.nodes {
		errs = append(errs, n.close())
	}
	if w.S3 != nil {
		errs = append(errs, w.S3.Close())
	}
	if w.Discord != nil {
		errs = append(errs, w.Discord.Close())
	}
	if w.AWS != nil {
		errs = append(errs, w.AWS.Close())
	}
	return errors.Join(errs...)
}
