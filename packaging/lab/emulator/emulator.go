// Package emulator answers the AWS calls that the collector makes, on
// loopback, as strictly as AWS or stricter.
//
// A request whose signature is wrong, an action that is not known, and a
// parameter that nobody read are errors, so nothing is ever ignored in
// silence. Faults can be made. The unmodified SDK reaches it by its ordinary
// endpoint settings.
package emulator

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// Config says what there is in the emulated account.
type Config struct {
	Region          string
	AccountID       string
	AccessKeyID     string
	SecretAccessKey string
	Log             *slog.Logger

	ImagePending time.Duration // from pending to available
	MissReads    int           // how often a describe misses a new id
	MaxReceives  int           // of a message, before it goes to the dead-letter queue
	Rule         string        // the EventBridge rule's pattern
	Instances    []Instance
}

// Instance is an instance as it is launched.
type Instance struct {
	ID, VPC, Subnet, AZ, ImageID, PrivateIP string
	Volumes                                 []string
	Interfaces                              []Interface // the first is the primary one
}

// Interface is a network interface as it is attached.
type Interface struct {
	ID, Subnet, PrivateIP string
	Groups                []string // security group ids
}

// Emulator is a running account.
type Emulator struct {
	cfg     Config
	pattern pattern
	servers []*http.Server
	served  sync.WaitGroup
	aws     net.Listener
	imds    net.Listener
	signer  *documentSigner

	mu     sync.Mutex // guards all below
	cloud  *account
	queue  *queue
	faults []*Fault
	calls  map[string]int
	made   map[string]int
}

// Start starts an account.
func Start(cfg Config) (*Emulator, error) {
	if cfg.MaxReceives == 0 {
		cfg.MaxReceives = 3
	}
	e := &Emulator{cfg: cfg, queue: newQueue(cfg), calls: map[string]int{}, made: map[string]int{}}
	var err error
	if e.pattern, err = parsePattern([]byte(cfg.Rule)); err != nil {
		return nil, err
	}
	if e.signer, err = newDocumentSigner(); err != nil {
		return nil, err
	}
	e.cloud = newAccount(cfg)
	if e.aws, err = e.listen(http.HandlerFunc(e.serveAWS)); err != nil {
		return nil, err
	}
	if e.imds, err = e.listen(newMetadata(e)); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

func (e *Emulator) listen(h http.Handler) (net.Listener, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("cannot listen: %w", err)
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	e.servers = append(e.servers, server)
	e.served.Go(func() { _ = server.Serve(l) }) // ends with Close
	return l, nil
}

// URL is the endpoint of all services.
func (e *Emulator) URL() string { return "http://" + e.aws.Addr().String() }

// IMDSURL is the endpoint of the instance metadata service.
func (e *Emulator) IMDSURL() string { return "http://" + e.imds.Addr().String() }

// QueueURL is the queue that the rule fills.
func (e *Emulator) QueueURL() string {
	return e.URL() + "/" + e.cfg.AccountID + "/quicklime"
}

// Close ends the account.
func (e *Emulator) Close() error {
	var errs []error
	for _, s := range e.servers {
		errs = append(errs, s.Close())
	}
	e.served.Wait()
	return errors.Join(errs...)
}

// maxRequest bounds a request's body, in bytes.
const maxRequest = 2 << 20

// serveAWS verifies a request, makes the fault that waits for it, and hands
// it to its service.
func (e *Emulator) serveAWS(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxRequest+1))
	if err != nil || len(body) > maxRequest {
		http.Error(w, "request too large", http.StatusRequestEntityTooLarge)
		return
	}
	service, err := verifySignature(r, body, e.cfg)
	call := newCall(e, w, r, service, body)
	if err != nil {
		call.fail(http.StatusForbidden, call.signatureCode(), err.Error())
		return
	}
	e.mu.Lock()
	e.calls[service+"."+call.action]++
	fault := e.strike(service, call.action)
	e.mu.Unlock()
	if fault != nil {
		switch fault.Kind {
		case Throttle:
			call.fail(http.StatusServiceUnavailable, call.throttleCode(), "Request limit exceeded.")
			return
		case Unavailable:
			call.fail(http.StatusServiceUnavailable, "Unavailable", "The service is unavailable. Please try again shortly.")
			return
		case LostReply:
			call.writer = &deaf{header: http.Header{}}
			call.serve()
			panic(http.ErrAbortHandler)
		case Slow:
			select {
			case <-time.After(fault.Delay):
			case <-r.Context().Done():
				return
			}
		}
	}
	call.serve()
}

// deaf loses an answer.
type deaf struct{ header http.Header }

func (d *deaf) Header() http.Header         { return d.header }
func (d *deaf) Write(b []byte) (int, error) { return len(b), nil }
func (d *deaf) WriteHeader(int)             {}

// FaultKind says what goes wrong.
type FaultKind int

// The kinds of faults.
const (
	Throttle    FaultKind = iota // refused, nothing is done
	Unavailable                  // 503, nothing is done
	LostReply                    // done, but the connection is cut before the answer
	Slow                         // done after Delay
)

// Fault is a fault that strikes so many calls of an action.
type Fault struct {
	Service string // ec2, sqs, sts, events
	Action  string // "" is any
	Kind    FaultKind
	Times   int
	Delay   time.Duration
}

// Inject adds a fault.
func (e *Emulator) Inject(f Fault) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.faults = append(e.faults, &f)
}

// strike takes the fault that waits for a call; the caller holds mu.
func (e *Emulator) strike(service, action string) *Fault {
	for _, f := range e.faults {
		if f.Times > 0 && f.Service == service && (f.Action == "" || f.Action == action) {
			f.Times--
			return f
		}
	}
	return nil
}

// newID makes an id as EC2 does, 17 hexadecimal digits after the prefix.
func newID(prefix string) string {
	b := make([]byte, 9)
	rand.Read(b)
	return prefix + hex.EncodeToString(b)[:17]
}

// uuid makes a version 4 UUID.
func uuid() string {
	b := make([]byte, 16)
	rand.Read(b)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
