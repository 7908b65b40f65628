package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"github.com/quicklime-ir/quicklime/proto/identity"
)

const agent = "spiffe://lab.quicklime.example/ec2/111122223333/eu-central-1/i-0123456789abcdef0"

func authority(t *testing.T) *Authority {
	t.Helper()
	a, err := New()
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// certificate reads a pair as a TLS stack does, so that the key fits too.
func certificate(t *testing.T, p Pair, err error) (tls.Certificate, *x509.Certificate) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(p.Cert, p.Key)
	if err != nil {
		t.Fatal(err)
	}
	return pair, pair.Leaf
}

func TestServer(t *testing.T) {
	a := authority(t)
	p, err := a.Server("collector.example", "192.0.2.7", "::1")
	_, cert := certificate(t, p, err)
	for host, want := range map[string]bool{
		"127.0.0.1": true, "10.0.2.2": true, "localhost": true, "collector.example": true, "192.0.2.7": true, "::1": true,
		"10.0.2.3": false, "other.example": false,
	} {
		_, err := cert.Verify(x509.VerifyOptions{Roots: a.Pool(), DNSName: host})
		if (err == nil) != want {
			t.Errorf("%s: %v, want trust %v", host, err, want)
		}
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: a.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err == nil {
		t.Error("a server's certificate is good for a client")
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: authority(t).Pool()}); err == nil {
		t.Error("another authority vouches for it")
	}
}

func TestPeer(t *testing.T) {
	a := authority(t)
	p, err := a.Peer("192.0.2.7")
	_, cert := certificate(t, p, err)
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if _, err := cert.Verify(x509.VerifyOptions{Roots: a.Pool(), DNSName: "192.0.2.7", KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
			t.Errorf("usage %v: %v", usage, err)
		}
	}
}

func TestAgent(t *testing.T) {
	a := authority(t)
	p, err := a.Agent(agent)
	_, cert := certificate(t, p, err)
	id, err := identity.FromCertificate(cert)
	if err != nil || id.String() != agent {
		t.Errorf("id %v, %v", id, err)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: a.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: a.Pool()}); err == nil {
		t.Error("an agent's certificate is good for a server")
	}
	for _, bad := range []string{"", "i-0123456789abcdef0", "spiffe://a\x00b/"} {
		if _, err := a.Agent(bad); err == nil {
			t.Errorf("%q was signed", bad)
		}
	}
}

func TestWhatIsSigned(t *testing.T) {
	a := authority(t)
	server, err := a.Server()
	_, one := certificate(t, server, err)
	client, err := a.Agent(agent)
	_, two := certificate(t, client, err)
	if one.SerialNumber.Cmp(two.SerialNumber) == 0 {
		t.Error("two certificates have one serial number")
	}
	for _, cert := range []*x509.Certificate{a.cert, one, two} {
		name := cert.Subject.CommonName
		if key, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
			t.Errorf("%s: key is %T, want ECDSA P-256", name, cert.PublicKey)
		}
		if from := time.Since(cert.NotBefore); from < time.Hour || from > time.Hour+time.Minute {
			t.Errorf("%s: valid since %v, want an hour", name, from)
		}
		if left := time.Until(cert.NotAfter); left < 7*24*time.Hour-time.Minute || left > 7*24*time.Hour {
			t.Errorf("%s: valid for %v, want 7 days", name, left)
		}
		if cert.IsCA != (cert == a.cert) {
			t.Errorf("%s: authority %v", name, cert.IsCA)
		}
	}
}

// TestMutualTLS shakes hands both ways, with what was written to disk.
func TestMutualTLS(t *testing.T) {
	a, dir := authority(t), t.TempDir()
	ca, err := a.Write(dir)
	if err != nil {
		t.Fatal(err)
	}
	if raw, err := os.ReadFile(ca); err != nil || string(raw) != string(a.PEM) {
		t.Errorf("ca.crt holds %q, %v", raw, err)
	}
	if block, rest := pem.Decode(a.PEM); block == nil || block.Type != "CERTIFICATE" || len(rest) > 0 {
		t.Error("the authority's PEM holds more than its certificate")
	}
	server, err := a.Server()
	serverPair, _ := certificate(t, server, err)
	client, err := a.Agent(agent)
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := client.Write(dir, "agent")
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key's file: %v, %v", info, err)
	}
	clientPair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	serverSide, clientSide := net.Pipe()
	taken := make(chan error, 1)
	go func() {
		taken <- tls.Server(serverSide, &tls.Config{Certificates: []tls.Certificate{serverPair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: a.Pool()}).Handshake()
	}()
	conn := tls.Client(clientSide, &tls.Config{Certificates: []tls.Certificate{clientPair}, RootCAs: a.Pool(), ServerName: "10.0.2.2"})
	if err := errors.Join(conn.Handshake(), <-taken); err != nil {
		t.Error(err)
	}
}
