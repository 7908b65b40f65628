// Package emulator plays the AWS services that the collector and the agent
// call: EC2, SQS, EventBridge, STS and the instance metadata service.
//
// Quicklime's main job cannot be tried without them, and an account costs
// money and is shared. So the lab answers the unmodified AWS SDK on loopback,
// and refuses whatever it does not know: a wrong signature, an unknown action
// and a parameter that nobody read are errors, never ignored.
package emulator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// Bounds of the listeners.
const (
	maxRequest   = 4 << 20          // bytes of a request's body
	maxHeader    = 64 << 10         // bytes of a request's headers
	headerLimit  = 10 * time.Second // for a request's headers
	requestLimit = 30 * time.Second // for a whole request
)

// Config says what the account holds at the start.
type Config struct {
	Region          string // as in eu-central-1
	AccountID       string // 12 digits
	AccessKeyID     string // the one key that may sign requests
	SecretAccessKey string
	Log             *slog.Logger // nil: nothing is logged
	Host            string       // address of this host to listen at; empty: 127.0.0.1

	ImagePending time.Duration // how long a new image is pending
	MissReads    int           // how many calls miss an id that was just made; -1 is refused
	MaxReceives  int           // of a message, before it goes to the dead-letter queue; 0: 3
	Rule         string        // event pattern of the rule that fills the queue; empty: GuardDuty's findings
	Instances    []Instance
}

// Instance is a running machine of the account. Groups, VPCs and subnets that
// it names are there as well.
type Instance struct {
	ID           string // i- and 8 or 17 hexadecimal digits
	VPC          string
	Subnet       string
	AZ           string
	ImageID      string
	PrivateIP    string
	Type         string            // empty: m5.large
	Architecture string            // empty: x86_64
	State        string            // empty: running
	LaunchTime   time.Time         // zero: one hour before the start
	Tags         map[string]string // at most 50; the metadata service shows them
	Role         string            // name of its IAM role; empty: none. The metadata service has no credentials
	UserData     string            // empty: none
	Volumes      []string          // EBS volume ids, the root volume first
	Interfaces   []Interface       // in the order of their device index; none: one is made
}

// Interface is a network interface of an instance.
type Interface struct {
	ID        string
	Subnet    string // empty: the instance's
	PrivateIP string
	Groups    []string // security group ids; none: the VPC's default group
}

// Emulator is a running account. Make it with Start.
type Emulator struct {
	cfg      Config
	log      *slog.Logger
	ctx      context.Context
	stop     context.CancelFunc
	servers  []*http.Server
	serving  sync.WaitGroup
	url      string
	imdsURL  string
	account  *account
	queues   *queues
	rule     *rule
	faults   *faults
	counters *counters
	metadata *metadata
}

// Start serves the account on two free ports until Close, or
// until ctx is done.
func Start(ctx context.Context, cfg Config) (*Emulator, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("cannot start the AWS emulator: %w", err)
	}
	e := &Emulator{cfg: cfg, log: cfg.Log, faults: new(faults), counters: newCounters()}
	var err error
	if e.account, err = newAccount(&e.cfg, e.counters); err != nil {
		return nil, fmt.Errorf("cannot start the AWS emulator: %w", err)
	}
	if e.rule, err = newRule(cfg.Rule); err != nil {
		return nil, fmt.Errorf("cannot start the AWS emulator: %w", err)
	}
	if e.metadata, err = newMetadata(&e.cfg, e.counters, e.log); err != nil {
		return nil, fmt.Errorf("cannot start the AWS emulator: %w", err)
	}
	e.ctx, e.stop = context.WithCancel(ctx)
	if e.url, err = e.listen(http.HandlerFunc(e.serveAWS)); err == nil {
		e.imdsURL, err = e.listen(e.metadata)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot start the AWS emulator: %w", err), e.Close())
	}
	e.queues = newQueues(e.url+"/"+cfg.AccountID+"/quicklime", cfg)
	context.AfterFunc(e.ctx, func() { _ = e.shut() })
	return e, nil
}

func (c *Config) check() error {
	for name, value := range map[string]string{"region": c.Region, "access key id": c.AccessKeyID, "secret access key": c.SecretAccessKey} {
		if value == "" {
			return fmt.Errorf("the configuration has no %s", name)
		}
	}
	if !accountID.MatchString(c.AccountID) {
		return fmt.Errorf("account %q is not 12 digits", c.AccountID)
	}
	if c.MissReads < 0 || c.MaxReceives < 0 || c.ImagePending < 0 {
		return errors.New("a count or duration is negative")
	}
	if c.MaxReceives == 0 {
		c.MaxReceives = 3
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

func (e *Emulator) listen(handler http.Handler) (url string, err error) {
	listener, err := net.Listen("tcp", net.JoinHostPort(cmp.Or(e.cfg.Host, "127.0.0.1"), "0"))
	if err != nil {
		return "", err
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: headerLimit, ReadTimeout: requestLimit, MaxHeaderBytes: maxHeader,
		BaseContext: func(net.Listener) context.Context { return e.ctx },
		ErrorLog:    slog.NewLogLogger(e.log.Handler(), slog.LevelDebug)}
	e.servers = append(e.servers, server)
	e.serving.Go(func() { _ = server.Serve(listener) }) // ends with Close
	return "http://" + listener.Addr().String(), nil
}

// URL is the endpoint of every service but the metadata service; give it to
// the SDK as AWS_ENDPOINT_URL.
func (e *Emulator) URL() string { return e.url }

// IMDSURL is the metadata service of the first instance; give it to the SDK as
// AWS_EC2_METADATA_SERVICE_ENDPOINT.
func (e *Emulator) IMDSURL() string { return e.imdsURL }

// QueueURL is the queue that the rule fills.
func (e *Emulator) QueueURL() string { return e.queues.main.url }

// DeadLetterURL is the queue of the messages that were received too often.
func (e *Emulator) DeadLetterURL() string { return e.queues.dead.url }

// Close ends the account and cuts every connection.
func (e *Emulator) Close() error {
	e.stop()
	err := e.shut()
	e.serving.Wait()
	return err
}

func (e *Emulator) shut() error {
	var errs []error
	for _, s := range e.servers {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}
