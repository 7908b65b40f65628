// Package pki is the lab's certificate authority, so that nothing in the lab
// speaks plaintext or trusts what it should not. It lives in memory and as
// long as the lab; what it signs is valid from an hour ago for a week.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// Authority signs the lab's certificates. It may be used by many goroutines.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	PEM  []byte // its own certificate, which is all that others need of it
}

// Pair is a certificate and its key, both PEM.
type Pair struct{ Cert, Key []byte }

// New makes an authority.
func New() (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("cannot make authority: %w", err)
	}
	template := template("Quicklime lab authority")
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	template.MaxPathLenZero = true // it signs no other authority
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("cannot make authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("cannot make authority: %w", err)
	}
	return &Authority{cert: cert, key: key, PEM: block("CERTIFICATE", der)}, nil
}

// Pool trusts this authority alone.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// Write puts the authority's certificate into a folder as ca.crt, and gives
// its path.
func (a *Authority) Write(dir string) (path string, err error) {
	path = filepath.Join(dir, "ca.crt")
	if err := os.WriteFile(path, a.PEM, 0o600); err != nil {
		return "", fmt.Errorf("cannot write authority: %w", err)
	}
	return path, nil
}

// Server gives a server's certificate for the addresses by which this host
// is reached from itself and from a guest, and for more hosts, each an IP
// address or a DNS name.
func (a *Authority) Server(hosts ...string) (Pair, error) {
	return a.sign(server(hosts, x509.ExtKeyUsageServerAuth))
}

// Peer gives the certificate of a node, by which others reach it and it
// reaches them, for the same hosts as a server's.
func (a *Authority) Peer(hosts ...string) (Pair, error) {
	return a.sign(server(hosts, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth))
}

func server(hosts []string, usage ...x509.ExtKeyUsage) *x509.Certificate {
	t := template("Quicklime lab server")
	t.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv4(10, 0, 2, 2)}
	t.DNSNames = []string{"localhost"}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, host)
		}
	}
	t.ExtKeyUsage = usage
	return t
}

// Agent gives the certificate of an agent by its SPIFFE id,
// spiffe://TRUST-DOMAIN/ec2/ACCOUNT/REGION/INSTANCE. It signs any other URI
// too: that the collector refuses those is what tests want to see.
func (a *Authority) Agent(id string) (Pair, error) {
	uri, err := url.Parse(id)
	if err != nil || !uri.IsAbs() {
		return Pair{}, fmt.Errorf("cannot name agent: %.80q is not an absolute URI", id)
	}
	t := template("Quicklime lab agent")
	t.URIs = []*url.URL{uri}
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	return a.sign(t)
}

func (a *Authority) sign(t *x509.Certificate) (Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, fmt.Errorf("cannot make key: %w", err)
	}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, key.Public(), a.key)
	if err != nil {
		return Pair{}, fmt.Errorf("cannot sign certificate: %w", err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Pair{}, fmt.Errorf("cannot encode key: %w", err)
	}
	return Pair{Cert: block("CERTIFICATE", der), Key: block("PRIVATE KEY", secret)}, nil
}

// Write puts a pair into a folder as NAME.crt and NAME.key, and gives their
// paths.
func (p Pair) Write(dir, name string) (cert, key string, err error) {
	cert, key = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	if err := os.WriteFile(cert, p.Cert, 0o600); err != nil {
		return "", "", fmt.Errorf("cannot write certificate: %w", err)
	}
	if err := os.WriteFile(key, p.Key, 0o600); err != nil {
		return "", "", fmt.Errorf("cannot write key: %w", err)
	}
	return cert, key, nil
}

func template(name string) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err) // crypto/rand never fails on Linux
	}
	return &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(7 * 24 * time.Hour)}
}

func block(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
