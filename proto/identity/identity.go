// Package identity says who is at the other end of a connection.
//
// An agent is named by the SPIFFE id in its certificate, never by a message,
// so a compromised host can speak for no host but itself. Connections are
// TLS 1.3 with certificates on both sides; there is no plaintext mode.
package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"regexp"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// ErrUnknown is the kind of every error about a peer that has not shown who
// it is.
var ErrUnknown = errors.New("unknown peer")

// AgentID names an agent by the instance that it runs on.
type AgentID struct {
	TrustDomain string
	Account     string
	Region      string
	Instance    string
}

var (
	trustDomain = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,253}$`)
	agentPath   = regexp.MustCompile(`^/ec2/([0-9]{12})/([a-z]{2}(?:-[a-z]+){1,3}-[0-9]{1,2})/(i-(?:[0-9a-f]{8}|[0-9a-f]{17}))$`)
)

// ParseAgentID reads an id of the form
// spiffe://TRUST-DOMAIN/ec2/ACCOUNT/REGION/INSTANCE. Source: SPIFFE ID
// standard, section 2.
func ParseAgentID(uri string) (AgentID, error) {
	if len(uri) > 2048 {
		return AgentID{}, fmt.Errorf("%w: id of %d bytes, want 2,048 at most", ErrUnknown, len(uri))
	}
	u, err := url.Parse(uri)
	if err != nil {
		return AgentID{}, fmt.Errorf("%w: cannot read id %.80q", ErrUnknown, uri)
	}
	path := agentPath.FindStringSubmatch(u.Path)
	if u.Scheme != "spiffe" || path == nil || !trustDomain.MatchString(u.Host) || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return AgentID{}, fmt.Errorf("%w: id %.80q is not spiffe://TRUST-DOMAIN/ec2/ACCOUNT/REGION/INSTANCE", ErrUnknown, uri)
	}
	return AgentID{TrustDomain: u.Host, Account: path[1], Region: path[2], Instance: path[3]}, nil
}

// String gives the id in its SPIFFE form.
func (a AgentID) String() string {
	return fmt.Sprintf("spiffe://%s/ec2/%s/%s/%s", a.TrustDomain, a.Account, a.Region, a.Instance)
}

// FromCertificate takes the id from a certificate that TLS has verified. It
// must hold exactly one URI name.
func FromCertificate(cert *x509.Certificate) (AgentID, error) {
	if len(cert.URIs) != 1 {
		return AgentID{}, fmt.Errorf("%w: certificate with %d URI names, want one SPIFFE id", ErrUnknown, len(cert.URIs))
	}
	return ParseAgentID(cert.URIs[0].String())
}

// Peer gives the agent at the other end of a gRPC call.
func Peer(ctx context.Context) (AgentID, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return AgentID{}, fmt.Errorf("%w: no connection", ErrUnknown)
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return AgentID{}, fmt.Errorf("%w: no verified certificate", ErrUnknown)
	}
	return FromCertificate(info.State.VerifiedChains[0][0])
}

// Files names the PEM files of one end of a connection.
type Files struct {
	Cert string // its certificate, the chain after it
	Key  string // its private key
	CA   string // the authorities that may have signed the other end's
}

// ServerTLS is the collector's end: it demands a certificate of every
// client. Certificate and key are read again at each handshake, so a renewed
// one needs no restart.
func ServerTLS(f Files) (*tls.Config, error) {
	pool, err := f.load()
	if err != nil {
		return nil, err
	}
	kept := &keeper{files: f}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ClientAuth: tls.RequireAndVerifyClientCert,
		ClientCAs:  pool,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return kept.pair()
		},
	}, nil
}

// ClientTLS is the agent's end: it trusts the named authorities alone, not
// the system's.
func ClientTLS(f Files) (*tls.Config, error) {
	pool, err := f.load()
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		RootCAs:    pool,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return f.pair()
		},
	}, nil
}

// load reads all three files, so that a wrong path is known at the start.
func (f Files) load() (*x509.CertPool, error) {
	if _, err := f.pair(); err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, fmt.Errorf("cannot read certificate authority: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("cannot read certificate authority %s: no certificate in PEM form in it", f.CA)
	}
	return pool, nil
}

// keepFor is how long a server uses a certificate before it reads it again: to
// read it is a tenth of a handshake, and many may come at once.
const keepFor = time.Second

// keeper keeps a certificate for a moment.
type keeper struct {
	files Files

	mu   sync.Mutex
	last *tls.Certificate // owned by mu
	read time.Time        // when last was; owned by mu
}

func (k *keeper) pair() (*tls.Certificate, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.last != nil && time.Since(k.read) < keepFor {
		return k.last, nil
	}
	pair, err := k.files.pair()
	if err != nil {
		return nil, err
	}
	k.last, k.read = pair, time.Now()
	return pair, nil
}

func (f Files) pair() (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, fmt.Errorf("cannot read certificate %s with key %s: %w", f.Cert, f.Key, err)
	}
	return &pair, nil
}
