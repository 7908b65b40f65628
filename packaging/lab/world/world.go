// Package world puts the lab together: an emulated account, a real S3, a
// webhook receiver, a collector as a process of its own, and agents, either
// in this process or in a guest with a real kernel.
package world

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/desk"
	"github.com/quicklime-ir/quicklime/collector/finding"
	"github.com/quicklime-ir/quicklime/packaging/lab/bucket"
	"github.com/quicklime-ir/quicklime/packaging/lab/discord"
	"github.com/quicklime-ir/quicklime/packaging/lab/emulator"
	"github.com/quicklime-ir/quicklime/packaging/lab/pki"
	"github.com/quicklime-ir/quicklime/packaging/lab/process"
	"github.com/quicklime-ir/quicklime/proto/identity"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
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
	Instances int  // more of them in the account, by the names that Numbered gives
	// MissReads and ImagePending make EC2 slow to show what is new.
	MissReads    int
	ImagePending time.Duration
}

// World is a running lab.
type World struct {
	AWS     *emulator.Emulator
	S3      *bucket.Server
	Discord *discord.Receiver

	cfg       Config
	authority *pki.Authority
	port      int // of the agents' listener, the same after a restart
	collector *process.Child
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
	if w.authority, err = pki.New(); err != nil {
		return nil, err
	}
	if err := w.writeCertificates(); err != nil {
		return nil, err
	}
	instances := []emulator.Instance{instance(Victim, "1"), instance(Neighbour, "2")}
	for i := range cfg.Instances {
		instances = append(instances, numbered(i))
	}
	w.AWS, err = emulator.Start(ctx, emulator.Config{Region: Region, AccountID: Account, AccessKeyID: accessKey, SecretAccessKey: secretKey,
		Log: slog.New(slog.NewTextHandler(&w.logs, nil)), ImagePending: cfg.ImagePending, MissReads: cfg.MissReads, Rule: finding.RulePattern,
		Instances: instances})
	if err != nil {
		return nil, err
	}
	if w.Discord, err = discord.Start(); err != nil {
		return nil, err
	}
	if err := os.WriteFile(w.path("discord.url"), []byte(w.Discord.URL()+"\n"), 0o600); err != nil {
		return nil, err
	}
	w.S3, err = bucket.Start(ctx, cfg.Binaries.Lab, Bucket, bucket.Config{Root: w.path("s3"), Region: Region, AccessKey: accessKey, SecretKey: secretKey}, w.authority, &w.logs)
	if err != nil {
		return nil, err
	}
	return w, w.StartCollector(ctx)
}

// instance is one of the account's, with two interfaces in two groups.
func instance(id, n string) emulator.Instance {
	return emulator.Instance{ID: id, VPC: "vpc-0123456789abcdef0", Subnet: "subnet-0123456789abcdef0", AZ: Region + "a",
		ImageID: "ami-0123456789abcdef0", PrivateIP: "10.0.2.1" + n, Role: "lab-web", UserData: "#cloud-config\n", Volumes: []string{"vol-0123456789abcde" + n + "0", "vol-0123456789abcde" + n + "1"},
		Interfaces: []emulator.Interface{
			{ID: "eni-0123456789abcde" + n + "0", Subnet: "subnet-0123456789abcdef0", PrivateIP: "10.0.2.1" + n, Groups: []string{"sg-0123456789abcdef0"}},
			{ID: "eni-0123456789abcde" + n + "1", Subnet: "subnet-0123456789abcdef0", PrivateIP: "10.0.3.1" + n, Groups: []string{"sg-0123456789abcdef0", "sg-0123456789abcdef1"}},
		}}
}

// Numbered gives the id of one of many instances.
func Numbered(n int) string { return fmt.Sprintf("i-%017x", 0xabc0000000+n) }

// numbered is a small one.
func numbered(n int) emulator.Instance {
	ip := fmt.Sprintf("10.1.%d.%d", n/250, 1+n%250)
	return emulator.Instance{ID: Numbered(n), VPC: "vpc-0123456789abcdef0", Subnet: "subnet-0123456789abcdef0", AZ: Region + "a",
		ImageID: "ami-0123456789abcdef0", PrivateIP: ip, Role: "lab-web", UserData: "#cloud-config\n",
		Volumes:    []string{fmt.Sprintf("vol-%017x", 0xabc0000000+n)},
		Interfaces: []emulator.Interface{{ID: fmt.Sprintf("eni-%017x", 0xabc0000000+n), Subnet: "subnet-0123456789abcdef0", PrivateIP: ip, Groups: []string{"sg-0123456789abcdef0"}}},
	}
}

func (w *World) path(name string) string { return filepath.Join(w.cfg.Dir, name) }

// Data is the collector's data folder.
func (w *World) Data() string { return w.path("data") }

// writeCertificates puts the authority and the servers' certificates where
// the processes find them.
func (w *World) writeCertificates() error {
	if err := os.WriteFile(w.path("ca.crt"), w.authority.PEM, 0o600); err != nil {
		return err
	}
	pair, err := w.authority.Server()
	if err != nil {
		return err
	}
	_, _, err = pair.Write(w.cfg.Dir, "collector")
	return err
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

// CollectorAddr is the agents' listener, for an agent on this host.
func (w *World) CollectorAddr() string { return fmt.Sprintf("127.0.0.1:%d", w.port) }

// CollectorGuestAddr is the same for an agent in a guest.
func (w *World) CollectorGuestAddr() string { return fmt.Sprintf("10.0.2.2:%d", w.port) }

// Environ is what a collector, or its command line, needs to reach the
// account.
func (w *World) Environ() []string {
	return append(os.Environ(),
		"AWS_REGION="+Region, "AWS_ACCESS_KEY_ID="+accessKey, "AWS_SECRET_ACCESS_KEY="+secretKey, "AWS_SESSION_TOKEN=",
		"AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null", "AWS_PROFILE=", "AWS_EC2_METADATA_DISABLED=true",
		"AWS_ENDPOINT_URL="+w.AWS.URL(), "AWS_ENDPOINT_URL_S3="+w.S3.URL(), "AWS_CA_BUNDLE="+w.path("ca.crt"),
		"HTTPS_PROXY=", "https_proxy=", "HTTP_PROXY=", "http_proxy=")
}

// StartCollector starts the collector, and waits until it answers its
// operators.
func (w *World) StartCollector(ctx context.Context) error {
	if w.port == 0 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		w.port = l.Addr().(*net.TCPAddr).Port
		l.Close()
	}
	grants := w.S3.URL()
	if w.cfg.Guest {
		grants = w.S3.GuestURL()
	}
	args := append([]string{"serve", "--data", w.Data(), "--listen", w.CollectorAddr(), "--bucket", Bucket, "--queue", w.AWS.QueueURL(),
		"--grant-endpoint", grants, "--cert", w.path("collector.crt"), "--key", w.path("collector.key"), "--agent-ca", w.path("ca.crt"),
		"--trust-domain", TrustDomain, "--discord-file", w.path("discord.url"), "--retention", "1h"}, w.cfg.Collector...)
	var err error
	w.collector, err = process.Start(process.Spec{Path: w.cfg.Binaries.Collector, Args: args, Env: w.Environ(), Dir: w.cfg.Dir, Log: &w.logs})
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := w.collector.Await(limited, func() bool {
		_, err := w.Cases(limited)
		return err == nil
	}); err != nil {
		return fmt.Errorf("%w; its log ends:\n%s", err, w.LogTail())
	}
	return nil
}

// RestartCollector ends the collector in order, and starts it with other
// flags.
func (w *World) RestartCollector(ctx context.Context, flags ...string) error {
	if err := w.StopCollector(); err != nil {
		return err
	}
	w.cfg.Collector = flags
	return w.StartCollector(ctx)
}

// KillCollector ends the collector as a power cut would.
func (w *World) KillCollector() error { return w.collector.Kill() }

// StopCollector asks the collector to end.
func (w *World) StopCollector() error { return w.collector.Stop(10 * time.Second) }

// CollectorPid is the collector's process id.
func (w *World) CollectorPid() int { return w.collector.Pid() }

// PauseCollector and ContinueCollector stop its clock, so to say.
func (w *World) PauseCollector() error { return w.collector.Signal(syscall.SIGSTOP) }

// ContinueCollector lets a paused collector go on.
func (w *World) ContinueCollector() error { return w.collector.Signal(syscall.SIGCONT) }

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

// Cases asks the collector for its cases.
func (w *World) Cases(ctx context.Context) ([]casefile.Case, error) {
	client, err := desk.Dial(w.Data())
	if err != nil {
		return nil, err
	}
	defer client.Close()
	limited, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return client.Cases(limited)
}

// Case asks for one case.
func (w *World) Case(ctx context.Context, id string) (casefile.Case, []*wire.Progress, error) {
	client, err := desk.Dial(w.Data())
	if err != nil {
		return casefile.Case{}, nil, err
	}
	defer client.Close()
	limited, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return client.Case(limited, id)
}

// CloseCase closes a case, as an operator does, so that the next finding opens
// another.
func (w *World) CloseCase(ctx context.Context, id, reason string) error {
	client, err := desk.Dial(w.Data())
	if err != nil {
		return err
	}
	defer client.Close()
	return client.CloseCase(ctx, id, reason)
}

// Agents asks for the agents that are attached.
func (w *World) Agents(ctx context.Context) ([]*wire.AttachedAgent, error) {
	client, err := desk.Dial(w.Data())
	if err != nil {
		return nil, err
	}
	defer client.Close()
	return client.Agents(ctx)
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
	if w.collector != nil {
		_ = w.ContinueCollector()
		errs = append(errs, w.collector.Stop(5*time.Second))
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
