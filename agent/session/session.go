// Package session holds the one connection of an agent to its collector.
//
// It takes orders, runs each exactly once however often the connection is
// lost, and reports progress and results until they are taken, so that a
// capture outlives the network and the collector's restart.
//
// A collector may be several nodes. The session hangs on one of them, which
// it chooses at random; when that fails or falls silent it goes to another,
// and tells that one what it was about to tell the first.
package session

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
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
	repeatEvery    = 15 * time.Second // of results that are not taken
	heartbeatEvery = 3 * time.Minute

	// A node that has said nothing for so long is asked whether it is there,
	// and left when it does not answer: it may be stopped, or cut off, with the
	// connection open. A node must allow pings this often.
	pingAfter, pingLimit = time.Minute, 10 * time.Second
	connectLimit         = 10 * time.Second

	// An agent that has nothing to do attaches anew now and then: nodes that
	// were away get their share of agents again, and a certificate that has
	// ended does not live on in a connection.
	renewAfter = 2 * time.Hour // and a tenth more at most
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
	// Collectors are the addresses of the collector's nodes, HOST:PORT. A name
	// may stand for several. A node's certificate is of the HOST by which it
	// was found.
	Collectors []string
	TLS        *tls.Config
	Hello      func() *wire.Hello // what the host says of itself, made anew for each stream
	Log        *slog.Logger

	// Dial connects to IP:PORT; nil: as the system does.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
}

// Session is the connection to one collector.
type Session struct {
	cfg    Config
	lookup func(ctx context.Context, host string) ([]string, error)

	mu     sync.Mutex
	orders map[string]*job // by order id; owned by mu
	order  []string        // ids, oldest first; owned by mu
	wake   chan struct{}   // a result is ready
	link   *link           // nil while the session hangs on no node; owned by mu
	linked chan struct{}   // closed once link is set, then made anew; owned by mu

	jobs sync.WaitGroup
}

// link is the connection to the node that the session hangs on.
type link struct {
	api   wire.AgentServiceClient
	leave context.CancelCauseFunc // ends the stream, so that another node is tried
	alone bool                    // no other node is known
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

// New prepares a session; it connects when it is run.
func New(cfg Config) (*Session, error) {
	if err := checkAddresses(cfg.Collectors); err != nil {
		return nil, err
	}
	return &Session{
		cfg: cfg, lookup: net.DefaultResolver.LookupHost,
		orders: map[string]*job{}, wake: make(chan struct{}, 1), linked: make(chan struct{}),
	}, nil
}

// Run keeps the session until ctx ends. It then cancels the running orders
// and waits for them.
func (s *Session) Run(ctx context.Context, handle Handler) error {
	defer s.jobs.Wait()
	var search search
	for {
		nodes := resolve(ctx, s.lookup, s.cfg.Collectors)
		alone := len(nodes) == 1
		search.begin(nodes)
		for over := false; !over; {
			n := search.next()
			began := time.Now()
			err := s.attach(ctx, n, alone, handle)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			var pause time.Duration
			pause, over = search.failed(n, err, time.Since(began))
			level := slog.LevelWarn
			if errors.Is(err, errRenew) {
				level = slog.LevelInfo
			}
			s.cfg.Log.Log(ctx, level, "no connection to the collector", "collector", n.String(), "error", err, "retry_in", pause.Round(time.Millisecond))
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(pause):
			}
		}
	}
}

// connect prepares the connection to a node. Each try has a new one: gRPC
// would redial a failed one by itself, without the search's jitter.
func (s *Session) connect(n node, creds credentials.TransportCredentials) (*grpc.ClientConn, error) {
	options := []grpc.DialOption{
		grpc.WithAuthority(n.name), // of which the certificate must be
		grpc.WithTransportCredentials(creds),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingAfter, Timeout: pingLimit}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: connectLimit}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReply), grpc.MaxCallSendMsgSize(maxMessage)),
	}
	if s.cfg.Dial != nil {
		options = append(options, grpc.WithContextDialer(s.cfg.Dial))
	}
	return grpc.NewClient("passthrough:///"+n.addr, options...)
}

// attach holds one stream until it breaks. The receiving goroutine belongs
// to it: it ends with the stream's context, and is waited for.
func (s *Session) attach(parent context.Context, n node, alone bool, handle Handler) error {
	creds := listening{credentials.NewTLS(s.cfg.TLS), new(atomic.Bool)}
	conn, err := s.connect(n, creds)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, leave := context.WithCancelCause(parent)
	defer leave(nil)
	api := wire.NewAgentServiceClient(conn)
	stream, err := api.Attach(ctx)
	if err != nil {
		return creds.why(err)
	}
	if err := stream.Send(&wire.AgentMessage{Body: &wire.AgentMessage_Hello{Hello: s.cfg.Hello()}}); err != nil {
		return receiveError(stream, err)
	}
	received := make(chan error, 1)
	go func() { received <- s.receive(parent, stream, handle) }()
	defer func() { leave(nil); <-received }()
	s.hang(&link{api, leave, alone})
	defer s.hang(nil)
	s.nudge() // results that no collector has taken yet go first
	return s.talk(ctx, stream, received)
}

// talk sends what there is to say until the stream breaks, or is left.
func (s *Session) talk(ctx context.Context, stream wire.AgentService_AttachClient, received chan error) error {
	heartbeat, progress, repeat := time.NewTicker(heartbeatEvery), time.NewTicker(progressEvery), time.NewTicker(repeatEvery)
	defer heartbeat.Stop()
	defer progress.Stop()
	defer repeat.Stop()
	renew := time.NewTimer(renewAfter + rand.N(renewAfter/10))
	defer renew.Stop()
	for {
		var out []*wire.AgentMessage
		select {
		case err := <-received:
			received <- err
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return err
		case <-s.wake:
			out = s.results()
		case <-repeat.C:
			out = s.results()
		case <-progress.C:
			out = s.progress()
		case <-heartbeat.C:
			out = []*wire.AgentMessage{{Body: &wire.AgentMessage_Heartbeat{Heartbeat: &wire.Heartbeat{WallClock: timestamppb.Now()}}}}
		case <-renew.C:
			if s.idle() {
				return errRenew
			}
			renew.Reset(heartbeatEvery)
		}
		for _, m := range out {
			if err := stream.Send(m); errors.Is(err, io.EOF) {
				break // the stream has ended: receive says why, and is the only one to ask
			} else if err != nil {
				return err
			}
		}
	}
}

// hang makes l the link that calls of the ledger go by; nil is none.
func (s *Session) hang(l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link = l; l != nil {
		close(s.linked)
		s.linked = make(chan struct{})
	}
}

// hanging waits until the session hangs on a node, and gives the link.
func (s *Session) hanging(ctx context.Context) (*link, error) {
	for {
		s.mu.Lock()
		l, linked := s.link, s.linked
		s.mu.Unlock()
		if l != nil {
			return l, nil
		}
		select {
		case <-linked:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// receiveError gives the reason of a failed Send, which gRPC tells only to a
// receiver; there may be no other.
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

var (
	errFinished = errors.New("order finished")
	errRenew    = errors.New("the connection is old: attaching anew")
	errUseless  = errors.New("the node serves no calls: going to another")
)
