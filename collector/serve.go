package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"golang.org/x/sync/errgroup"

	"github.com/quicklime-ir/quicklime/collector/backup"
	"github.com/quicklime-ir/quicklime/collector/cloud"
	"github.com/quicklime-ir/quicklime/collector/custody"
	"github.com/quicklime-ir/quicklime/collector/desk"
	"github.com/quicklime-ir/quicklime/collector/docket"
	"github.com/quicklime-ir/quicklime/collector/fleet"
	"github.com/quicklime-ir/quicklime/collector/gate"
	"github.com/quicklime-ir/quicklime/collector/intake"
	"github.com/quicklime-ir/quicklime/collector/ledger"
	"github.com/quicklime-ir/quicklime/collector/locker"
	"github.com/quicklime-ir/quicklime/collector/notify"
	"github.com/quicklime-ir/quicklime/collector/playbook"
	"github.com/quicklime-ir/quicklime/collector/steps"
	"github.com/quicklime-ir/quicklime/collector/store/etcd"
	"github.com/quicklime-ir/quicklime/proto/definition"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/identity"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// serveCmd is the service's whole configuration. Each flag can also be given
// as an environment variable, QUICKLIME_ and the flag's name. AWS credentials, regions
// and endpoints come from the AWS SDK's own variables and files.
type serveCmd struct {
	dataFlag
	nodeFlags
	Bucket    string        `help:"Evidence bucket." required:""`
	Queue     string        `help:"URL of the SQS queue that EventBridge fills; none: findings come by 'trigger' alone."`
	Letters   string        `name:"dead-letter-queue" help:"URL of the SQS queue for what cannot be read, which goes there with the reason; none: the one of the queue's redrive policy."`
	Retention time.Duration `help:"Object Lock (compliance) on every object for this long; 0: the bucket's default."`
	KMSKey    string        `help:"KMS key for the objects; none: the bucket's default."`
	Grants    string        `name:"grant-endpoint" help:"S3 endpoint put into the part URLs, where agents reach S3 by another name than the collector does (a VPC interface endpoint)."`
	Severity  float64       `help:"Findings below this severity are only notified." default:"7.0"`

	Listen      string `help:"Address of the agents' listener." default:":8443"`
	Cert        string `help:"The collector's certificate (PEM)." type:"path" required:""`
	Key         string `help:"Its private key (PEM)." type:"path" required:""`
	AgentCA     string `help:"Certificate authority of the agents (PEM)." type:"path" required:""`
	TrustDomain string `help:"SPIFFE trust domain of the agents." required:""`

	MaxAgents           int `help:"Agents that may be attached to this node; fewer where too few files may be open." default:"16000"`
	MaxAgentsPerAddress int `help:"Of one IPv4 address or IPv6 /64; more where agents come through NAT or a load balancer, which hides theirs." default:"256"`
	MaxConnects         int `help:"New connections of agents that are let in each second; 0: 250 for each processor. The others come back by themselves." default:"0"`

	Webhook webhookFlags `embed:"" prefix:"webhook-"`

	SigningKey  string `help:"Ed25519 key that signs manifests; made in the data folder when there is none." type:"path"`
	DiscordFile string `help:"File with the Discord webhook's URL, which is a secret; none: notifications are only logged." type:"path"`

	MemorySource string `help:"Memory source: ${enum}." enum:"auto,kcore,lime" default:"auto"`
	Compression  string `help:"Compression of evidence: ${enum}." enum:"auto,zstd,none" default:"auto"`
	Artifacts    string `help:"Folder of definitions (*.yaml, in the format of ForensicArtifacts) of files that every case takes beside the agents' own; 64 files, 2 MiB in all." type:"path"`

	// Without limits by default: a slow image is a smeared one, and while it is
	// taken the intruder works on. Whose host it is can give it limits here, and
	// whoever watches it suffer can at any time, by 'case limit'.
	MemoryCPU       uint32    `name:"memory-cpu" help:"Percent of all of a host's processors that a memory image may take; 0: no limit. 'case limit' changes it while it is taken." default:"0"`
	MemoryBandwidth bandwidth `name:"memory-bandwidth" help:"Bytes to S3 each second that a memory image may take, such as 100MiB; 0: no limit." default:"0"`

	MaxCases          int `help:"Cases that this node runs at a time; the most severe come first." default:"64"`
	MaxCasesPerRegion int `help:"Cases that all nodes run at a time in one account and region, whose API they share." default:"32"`

	AgentWait     time.Duration `help:"How long to wait for an agent that is not attached, from the case's opening, or from when it was lost in the midst of a capture." default:"2m"`
	Stall         time.Duration `help:"A capture without progress for this long is given up." default:"2m"`
	VolatileLimit time.Duration `help:"Deadline of the volatile data." default:"10m"`
	SymbolsLimit  time.Duration `help:"Deadline of the symbols that the memory image is read by." default:"5m"`
	MemoryLimit   time.Duration `help:"Deadline of the memory image." default:"2h"`
	LiveLimit     time.Duration `help:"Deadline of logs and files." default:"1h"`
	ImageLimit    time.Duration `help:"How long the AMI may take to become available; containment does not wait for it." default:"2h"`

	HealthListen string        `help:"HOST:PORT that answers /healthz, /readyz and /metrics to whoever asks, so of loopback or the monitoring network; none: nothing does. It tells no finding and no evidence."`
	HealthEvery  time.Duration `help:"How often is looked whether what the collector needs is there." default:"10s"`

	LogLevel slog.Level `help:"Lowest level that is logged: ${enum}." enum:"DEBUG,INFO,WARN,ERROR" default:"INFO"`
}

// Run serves until it is told to stop, or a part of it cannot go on.
func (c *serveCmd) Run(ctx context.Context) error {
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: c.LogLevel}))
	front, err := c.front(log)
	if err != nil {
		return err
	}
	defer front.close()
	service, err := c.build(ctx, front, log)
	if err != nil {
		return err
	}
	defer service.store.Close()
	log.Info("collector serves", "version", version, "agents", service.listener.Addr(), "bucket", c.Bucket, "queue", c.Queue)
	err = service.run(ctx)
	if errors.Is(err, context.Canceled) {
		log.Info("collector stopped; running cases will be taken up again")
		return nil
	}
	return err
}

// service is the parts of a running collector.
type service struct {
	store    *etcd.Store
	listener net.Listener
	gate     *gate.Gate
	fleet    *fleet.Fleet
	docket   *docket.Docket
	desk     *desk.Desk
	backup   *backup.Backup
	runner   *playbook.Runner
	herald   *playbook.Herald
	queue    *intake.Queue // nil without a queue
	webhook  *webhook      // nil without one
	watch    *watch
	socket   string
	tls      identity.Files
	log      *slog.Logger
}

// build makes every part and hands each what it needs.
func (c *serveCmd) build(ctx context.Context, front *front, log *slog.Logger) (_ *service, err error) {
	if err := os.MkdirAll(c.Data, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make data folder: %w", err)
	}
	limits := &wire.Limits{CpuPercent: c.MemoryCPU, BytesPerSecond: uint64(c.MemoryBandwidth)}
	if err := desk.CheckLimits(limits); err != nil {
		return nil, err
	}
	caps := playbook.Caps{Node: c.MaxCases, Region: c.MaxCasesPerRegion}
	if caps.Node < 1 || caps.Region < 1 {
		return nil, fmt.Errorf("cannot run %d cases on a node and %d in a region: want 1 of each at least", caps.Node, caps.Region)
	}
	definitions, err := c.definitions()
	if err != nil {
		return nil, err
	}
	s := &service{socket: desk.SocketPath(c.Data), tls: identity.Files{Cert: c.Cert, Key: c.Key, CA: c.AgentCA}, log: log}
	node, err := c.nodeFlags.config(c.Data, c.AgentCA, log)
	if err != nil {
		return nil, err
	}
	if s.store, err = etcd.Open(ctx, node); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.store.Close())
		}
	}()
	sdk, err := config.LoadDefaultConfig(ctx, config.WithRetryMode(aws.RetryModeAdaptive), config.WithHTTPClient(httpClient()))
	if err != nil {
		return nil, fmt.Errorf("cannot load AWS configuration: %w", err)
	}
	own, err := account(ctx, sts.NewFromConfig(sdk), log)
	if err != nil {
		return nil, err
	}
	signer, err := c.signer()
	if err != nil {
		return nil, err
	}
	notifier, err := c.notifier(log)
	if err != nil {
		return nil, err
	}
	bucket, err := locker.New(sdk, locker.Config{Bucket: c.Bucket, GrantEndpoint: c.Grants, Retention: c.Retention, KMSKeyID: c.KMSKey}, log)
	if err != nil {
		return nil, err
	}
	self, err := evidence.ThisProgram("quicklime-collector", version)
	if err != nil {
		return nil, err
	}
	book := &ledger.Ledger{Store: s.store, Bucket: bucket, Log: log, Now: time.Now}
	s.fleet = fleet.New(fleet.Config{Store: s.store, Node: node.Name, Several: node.Peer != nil, Ledger: book, TrustDomain: c.TrustDomain, Log: log,
		Alert: func(ctx context.Context, hosts []*wire.AttachedAgent) error {
			return notifier.Notify(ctx, steps.UnableHosts(hosts))
		}})
	story := &steps.Story{
		Account: own,
		EC2: func(region string) *cloud.EC2 {
			return cloud.New(ec2.NewFromConfig(sdk, cloud.Retry, func(o *ec2.Options) { o.Region = region }), log)
		},
		Fleet: s.fleet, Ledger: book, Locker: bucket, Signer: signer, Notifier: notifier, Self: self,
		Limits: steps.Limits{Agent: c.AgentWait, Stall: c.Stall, Volatile: c.VolatileLimit, Symbols: c.SymbolsLimit,
			Memory: c.MemoryLimit, Live: c.LiveLimit, Image: c.ImageLimit},
		MemorySource: memorySources[c.MemorySource], Compression: wire.CompressionOf(evidence.Compression(c.Compression)), MemoryLimits: limits,
		Definitions: definitions,
	}
	cases := docket.New(docket.Config{Store: s.store, Node: node.Name, Bucket: bucket, Threshold: c.Severity,
		Steps: steps.Names(story.Steps()), RecordSteps: steps.Names(story.Record()), Log: log, Now: time.Now})
	s.docket = cases
	s.runner = &playbook.Runner{Docket: cases, Steps: slices.Concat(story.Steps(), story.Record()), Caps: caps, Log: log}
	s.herald = &playbook.Herald{Docket: cases, Tell: story.Tell, Log: log}
	s.backup = backup.New(backup.Config{State: s.store, Bucket: bucket, Node: node.Name, Every: c.SnapshotEvery, Log: log, Now: time.Now})
	s.desk = &desk.Desk{Docket: cases, Fleet: s.fleet, Cluster: nodes{s.store, s.backup}, Log: log}
	if c.Queue != "" {
		if s.queue, err = intake.New(sqs.NewFromConfig(sdk), intake.Config{Queue: c.Queue, DeadLetters: c.Letters, Ready: cases.Ready}, cases, log); err != nil {
			return nil, err
		}
	}
	if s.webhook, err = c.Webhook.open(cases, log); err != nil {
		return nil, err
	}
	fitting, err := gate.Limits{Agents: c.MaxAgents, PerAddress: c.MaxAgentsPerAddress, Connects: c.MaxConnects}.Fit(log)
	if err != nil {
		return nil, err
	}
	s.gate = gate.New(fitting, log)
	if s.listener, err = net.Listen("tcp", c.Listen); err != nil {
		return nil, fmt.Errorf("cannot listen for agents: %w", err)
	}
	if s.watch, err = c.watch(s, front, bucket, book, steps.Names(s.runner.Steps)); err != nil {
		return nil, errors.Join(err, s.listener.Close())
	}
	s.runner.Observer = s.watch.metrics
	return s, nil
}

var memorySources = map[string]wire.MemorySource{
	"auto":  wire.MemorySource_MEMORY_SOURCE_UNSPECIFIED,
	"kcore": wire.MemorySource_MEMORY_SOURCE_KCORE,
	"lime":  wire.MemorySource_MEMORY_SOURCE_LIME,
}

// run runs all parts until ctx ends or one of them fails, and waits for all.
func (s *service) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	defer s.watch.begin(ctx)()
	tls, err := identity.ServerTLS(s.tls)
	if err != nil {
		return errors.Join(err, s.listener.Close())
	}
	server := fleet.NewServer(s.fleet, tls, s.gate, s.log)
	group.Go(func() error { return server.Serve(s.gate.Listener(s.listener)) })
	group.Go(func() error {
		<-ctx.Done()
		server.Stop()
		return context.Cause(ctx)
	})
	group.Go(func() error { return s.desk.Serve(ctx, s.socket) })
	group.Go(func() error { return s.fleet.Run(ctx) })
	group.Go(func() error { return s.docket.Run(ctx) })
	group.Go(func() error { return s.backup.Run(ctx) })
	group.Go(func() error { return s.runner.Run(ctx) })
	group.Go(func() error { return s.herald.Run(ctx) })
	group.Go(func() error {
		select {
		case <-s.store.Failed():
			return s.store.Health(ctx)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	if s.queue != nil {
		group.Go(func() error { return s.queue.Run(ctx) })
	}
	if s.webhook != nil {
		group.Go(func() error { return s.webhook.run(ctx) })
	}
	return group.Wait()
}

// definitions reads what every case takes beside the agents' own. One that is
// broken keeps the collector from starting, as nobody would miss what it names
// before it is needed.
func (c *serveCmd) definitions() ([]*wire.DefinitionFile, error) {
	if c.Artifacts == "" {
		return nil, nil
	}
	files, err := definition.ReadDir(c.Artifacts)
	if err != nil {
		return nil, err
	}
	if refused := definition.Load(definition.Embedded(), files).Refused; len(refused) > 0 {
		var all []error
		for _, one := range refused {
			all = append(all, one)
		}
		return nil, fmt.Errorf("cannot have agents collect what %s says: %w", c.Artifacts, errors.Join(all...))
	}
	if len(files) > wire.MaxDefinitionFiles {
		return nil, fmt.Errorf("cannot send the definitions of %s: %d files, want %d at most", c.Artifacts, len(files), wire.MaxDefinitionFiles)
	}
	var out []*wire.DefinitionFile
	all := 0
	for _, f := range files {
		if len(f.YAML) > wire.MaxDefinitionBytes {
			return nil, fmt.Errorf("cannot send %s: %d bytes, want %d at most", filepath.Join(c.Artifacts, f.Name), len(f.YAML), wire.MaxDefinitionBytes)
		}
		all += len(f.YAML)
		out = append(out, &wire.DefinitionFile{Name: f.Name, Yaml: string(f.YAML)})
	}
	if all > wire.MaxDefinitionsBytes {
		return nil, fmt.Errorf("cannot send the definitions of %s: %d bytes, want %d at most", c.Artifacts, all, wire.MaxDefinitionsBytes)
	}
	return out, nil
}

// signer loads the key, and makes one at the first start. The public key
// lies beside the state as verify.pub.
func (c *serveCmd) signer() (custody.Signer, error) {
	path := c.SigningKey
	if path == "" {
		path = filepath.Join(c.Data, "signing.key")
	}
	key, err := custody.LoadKey(path)
	if errors.Is(err, os.ErrNotExist) && c.SigningKey == "" {
		key, err = custody.NewKey(path)
	}
	if err != nil {
		return nil, err
	}
	return key, key.WritePublic(filepath.Join(c.Data, "verify.pub"))
}

func (c *serveCmd) notifier(log *slog.Logger) (notify.Notifier, error) {
	if c.DiscordFile == "" {
		return notify.New("", log)
	}
	url, err := os.ReadFile(c.DiscordFile)
	if err != nil {
		return nil, fmt.Errorf("cannot read Discord webhook: %w", err)
	}
	return notify.New(strings.TrimSpace(string(url)), log)
}

// idleConns is how many connections to one AWS service are kept. The SDK keeps
// 10, and each case that goes on beside so many others would shake hands anew
// for its journal.
const idleConns = 128

// httpClient is the SDK's own with that.
func httpClient() *awshttp.BuildableClient {
	return awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
		t.MaxIdleConns, t.MaxIdleConnsPerHost = 0, idleConns // 0: no bound over all hosts, of which there are few
	})
}
