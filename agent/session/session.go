// Package session holds the one connection of an agent to its collector.
//
// It takes orders, runs each exactly once however often the connection is
// lost, and reports progress and results until they are taken, so that a
// capture outlives the network and the collector's restart.
package session

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quicklime-ir/quicklime/agent/throttle"
	"github.com/quicklime-ir/quicklime/agent/upload"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// Bounds of a session.
const (
	maxRunning    = 4  // orders at a time
	maxRemembered = 64 // orders whose results are kept for repeats
	maxMessage    = 256 << 10
	// maxReply is more, as an item that goes on names each part that is
	// stored: 10,000 of some 50 bytes.
	maxReply = 4 << 20

	progressEvery  = time.Second
	heartbeatEvery = 15 * time.Second
	firstBackoff   = time.Second
	lastBackoff    = 5 * time.Minute
	steadyAfter    = time.Minute // a stream this old starts the backoff anew
)

// Order is a capture that the collector asks for.
type Order struct {
	ID           string
	Case         string
	Instance     string // as the case names this host
	Kind         evidence.Kind
	MemorySource string // auto, kcore or lime
	Compression  evidence.Compression
	TimeLimit    time.Duration
	Throttle     *throttle.Throttle // what it may take; the collector changes it while the order runs
	// Definitions are files of artifact definitions, by name; ProcessMemory
	// lists processes whose memory is taken. Both are for artifacts alone.
	Definitions   map[string]string
	ProcessMemory []int
}

// Progress says how far an order has come.
type Progress struct {
	BytesRead   uint64 // of the source
	BytesTotal  uint64 // of the source, 0 where unknown
	BytesStored uint64 // of objects
	PartsStored uint32
	Doing       string
	Uplink      upload.Uplink // "" where unknown
	Retries     uint64        // tries that did not store their part
}

// Result is how an order ended.
type Result struct {
	Outcome evidence.Status // Whole, Partial, or "" for nothing at all
	Error   string
	Source  string
	Refused []Refusal
}

// Refusal is a memory source that could not be used, and why.
type Refusal struct{ Source, Reason, Detail string }

// Handler carries out an order. It returns when the order has ended or soon
// after its context has; it may call report at any time until then.
type Handler func(ctx context.Context, o Order, report func(Progress)) Result

// Config is what a session needs.
type Config struct {
	Collector string // host:port
	TLS       *tls.Config
	Hello     func() *wire.Hello // what the host says of itself, made anew for each stream
	Log       *slog.Logger
}

// Session is the connection to one collector.
type Session struct {
	cfg  Config
	conn *grpc.ClientConn
	api  wire.AgentServiceClient

	mu     sync.Mutex
	orders map[string]*job // by order id; owned by mu
	order  []string        // ids, oldest first; owned by mu
	wake   chan struct{}   // a result is ready

	jobs sync.WaitGroup
}

// job is an order and how far it has come; its fields are owned by
// Session.mu.
type job struct {
	cancel   context.CancelCauseFunc
	throttle *throttle.Throttle
	progress Progress
	pace     pace
	started  time.Time
	result   *wire.OrderResult // nil while it runs
	taken    bool
}

// New prepares a session; it connects when Run or a call of the ledger needs
// it to.
func New(cfg Config) (*Session, error) {
	conn, err := grpc.NewClient(cfg.Collector,
		grpc.WithTransportCredentials(credentials.NewTLS(cfg.TLS)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 60 * time.Second, Timeout: 20 * time.Second}),
		// The channel redials only when a call asks for it; how often calls ask
		// is Run's and call's full jitter.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstBackoff, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 15 * time.Second},
			MinConnectTimeout: 10 * time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReply), grpc.MaxCallSendMsgSize(maxMessage)),
	)
	if err != nil {
		return nil, fmt.Errorf("cannot prepare connection to collector %s: %w", cfg.Collector, err)
	}
	return &Session{
		cfg: cfg, conn: conn, api: wire.NewAgentServiceClient(conn),
		orders: map[string]*job{}, wake: make(chan struct{}, 1),
	}, nil
}

// Run keeps the session until ctx ends. It then cancels the running orders,
// waits for them, and closes the connection.
func (s *Session) Run(ctx context.Context, handle Handler) error {
	defer s.conn.Close()
	defer s.jobs.Wait()
	wait := firstBackoff
	for {
		began := time.Now()
		err := s.attach(ctx, handle)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if time.Since(began) > steadyAfter {
			wait = firstBackoff
		}
		pause := rand.N(wait)
		s.cfg.Log.Warn("no connection to the collector", "collector", s.cfg.Collector, "error", err, "retry_in", pause.Round(time.Millisecond))
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
		wait = min(2*wait, lastBackoff)
	}
}

// attach holds one stream until it breaks. The receiving goroutine belongs
// to it: it ends with the stream's context, and is waited for.
func (s *Session) attach(parent context.Context, handle Handler) error {
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	stream, err := s.api.Attach(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&wire.AgentMessage{Body: &wire.AgentMessage_Hello{Hello: s.cfg.Hello()}}); err != nil {
		return receiveError(stream, err)
	}
	received := make(chan error, 1)
	go func() { received <- s.receive(parent, stream, handle) }()
	defer func() { cancel(); <-received }()
	s.nudge() // results that no collector has taken yet go first

	heartbeat, progress := time.NewTicker(heartbeatEvery), time.NewTicker(progressEvery)
	defer heartbeat.Stop()
	defer progress.Stop()
	for {
		var out []*wire.AgentMessage
		select {
		case err := <-received:
			received <- err
			return err
		case <-s.wake:
			out = s.results()
		case <-progress.C:
			out = s.progress()
		case <-heartbeat.C:
			out = append(s.results(), &wire.AgentMessage{Body: &wire.AgentMessage_Heartbeat{Heartbeat: &wire.Heartbeat{WallClock: timestamppb.Now()}}})
		}
		for _, m := range out {
			if err := stream.Send(m); err != nil {
				return receiveError(stream, err)
			}
		}
	}
}

// receiveError gives the reason of a failed Send, which gRPC tells only to a
// receiver.
func receiveError(stream wire.AgentService_AttachClient, err error) error {
	var m wire.CollectorMessage
	if why := stream.RecvMsg(&m); why != nil {
		return why
	}
	return err
}

// receive takes messages until the stream breaks. Orders run under the
// session's context, not the stream's.
func (s *Session) receive(ctx context.Context, stream wire.AgentService_AttachClient, handle Handler) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		switch body := m.GetBody().(type) {
		case *wire.CollectorMessage_Order:
			s.take(ctx, body.Order, handle)
		case *wire.CollectorMessage_Cancel:
			s.cancelOrder(body.Cancel.GetOrderId(), body.Cancel.GetReason())
		case *wire.CollectorMessage_Control:
			s.control(body.Control)
		case *wire.CollectorMessage_Taken:
			s.forget(body.Taken.GetOrderId())
		default:
			s.cfg.Log.Warn("message of a newer collector ignored", "message", fmt.Sprintf("%T", body))
		}
	}
}

var errFinished = errors.New("order finished")
