package pki

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"testing"

	"github.com/quicklime-ir/quicklime/proto/identity"
)

func TestCertificatesAreWhatTheProgramsWant(t *testing.T) {
	authority, err := New()
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority.PEM)
	server, err := authority.Server()
	if err != nil {
		t.Fatal(err)
	}
	const id = "spiffe://lab.example/ec2/111122223333/eu-central-1/i-0123456789abcdef0"
	agent, err := authority.Agent(id)
	if err != nil {
		t.Fatal(err)
	}
	leaf := func(p Pair) *x509.Certificate {
		pair, err := tls.X509KeyPair(p.Cert, p.Key)
		if err != nil {
			t.Fatal(err)
		}
		return pair.Leaf
	}
	for _, host := range []string{"127.0.0.1", "10.0.2.2", "localhost"} {
		if _, err := leaf(server).Verify(x509.VerifyOptions{Roots: pool, DNSName: host}); err != nil {
			t.Errorf("the server's certificate at %s: %v", host, err)
		}
	}
	if _, err := leaf(agent).Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Errorf("the agent's certificate: %v", err)
	}
	if _, err := leaf(agent).Verify(x509.VerifyOptions{Roots: pool}); err == nil {
		t.Error("an agent's certificate can be a server's")
	}
	if got, err := identity.FromCertificate(leaf(agent)); err != nil || got.String() != id {
		t.Errorf("the agent's id is %v, %v", got, err)
	}
	cert, key, err := agent.Write(t.TempDir(), "agent")
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o600 || cert == key {
		t.Errorf("the key's file: %v, %v", info, err)
	}
}
