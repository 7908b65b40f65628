package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/pkg/v3/featuregate"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/features"
)

// Peer says how a node and the other nodes of its cluster reach each other.
// They show each other certificates of an authority that signs for nothing
// else; whoever has none, such as an agent, gets no further than the handshake.
// Certificate and key are read again at each handshake, so a renewed one needs
// no restart; a new authority needs one.
type Peer struct {
	Listen string // IP:PORT, or :PORT for every address
	URL    string // https://HOST:PORT, by which the others reach this node
	Cert   string // PEM file: for HOST, as a server and as a client
	Key    string // PEM file
	CA     string // PEM file: the authority of the nodes
}

// peerTick and peerElection, in milliseconds, are those of a member with
// others: they are patient with a network between availability zones. They
// must be alike on all.
const peerTick, peerElection = 100, 1000

// check refuses what no cluster would come of, before anything is begun.
func (p *Peer) check() error {
	if err := p.checkAddresses(); err != nil {
		return err
	}
	return p.checkCertificate()
}

func (p *Peer) checkAddresses() error {
	host, _, err := net.SplitHostPort(p.Listen)
	if err != nil || host != "" && net.ParseIP(host) == nil {
		return fmt.Errorf("cannot listen for other nodes at %.200q: want IP:PORT, or :PORT for every address", p.Listen)
	}
	_, err = parseURL(p.URL)
	return err
}

// checkCertificate wants one by which the others would know this node. What
// they think of it would otherwise be in their logs alone.
func (p *Peer) checkCertificate() error {
	pair, err := tls.LoadX509KeyPair(p.Cert, p.Key)
	if err != nil {
		return fmt.Errorf("cannot read the certificate for other nodes, %s with key %s: %w", p.Cert, p.Key, err)
	}
	pem, err := os.ReadFile(p.CA)
	if err != nil {
		return fmt.Errorf("cannot read the authority of the nodes: %w", err)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return fmt.Errorf("cannot read the authority of the nodes, %s: no certificate in PEM form in it", p.CA)
	}
	for _, der := range pair.Certificate[1:] {
		if cert, err := x509.ParseCertificate(der); err == nil {
			between.AddCert(cert)
		}
	}
	self, _ := parseURL(p.URL)
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		_, err := pair.Leaf.Verify(x509.VerifyOptions{DNSName: self.Hostname(), Roots: roots, Intermediates: between,
			KeyUsages: []x509.ExtKeyUsage{usage}})
		if err != nil {
			return fmt.Errorf("cannot use certificate %s between nodes: want one for %s, as a server and as a client, by an authority in %s: %w", p.Cert, self.Hostname(), p.CA, err)
		}
	}
	return nil
}

// parseURL reads the URL of a node: https://HOST:PORT and nothing more.
func parseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || len(text) > 300 || u.Scheme != "https" || u.Hostname() == "" || u.Port() == "" || u.Host != text[len("https://"):] {
		return nil, fmt.Errorf("cannot reach a node at %.300q: want https://HOST:PORT", text)
	}
	return u, nil
}

// into puts the peer into a member's configuration.
func (p *Peer) into(c *embed.Config) error {
	self, err := parseURL(p.URL)
	if err != nil {
		return err
	}
	listen := p.Listen
	if host, port, err := net.SplitHostPort(listen); err == nil && host == "" {
		listen = net.JoinHostPort("0.0.0.0", port) // etcd wants an address
	}
	c.AdvertisePeerUrls = []url.URL{*self}
	c.ListenPeerUrls = []url.URL{{Scheme: "https", Host: listen}}
	c.PeerTLSInfo = p.tls()
	c.TlsMinVersion = "TLS1.3"
	c.TickMs, c.ElectionMs = peerTick, peerElection
	// A member whose file differs from the others' does not start.
	return c.ServerFeatureGate.(featuregate.MutableFeatureGate).Set(string(features.InitialCorruptCheck) + "=true")
}

func (p *Peer) tls() transport.TLSInfo {
	return transport.TLSInfo{CertFile: p.Cert, KeyFile: p.Key, TrustedCAFile: p.CA, ClientCertAuth: true}
}

// probe is how long another node may take to answer when it is asked whether
// it is there.
const probe = 2 * time.Second

// explainListen says what is the matter with the address.
func (p *Peer) explainListen(err error) error {
	var op *net.OpError
	if p == nil || !errors.As(err, &op) || op.Op != "listen" {
		return nil
	}
	return fmt.Errorf("cannot listen for other nodes at %s: %w", p.Listen, err)
}

// ask gives nil if a node answers.
func (p *Peer) ask(ctx context.Context, url string) error {
	info := p.tls()
	config, err := info.ClientConfig()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, probe)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/version", nil)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
	reply, err := client.Do(q)
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	if reply.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, reply.Status)
	}
	_, err = io.Copy(io.Discard, io.LimitReader(reply.Body, 4096))
	return err
}
