package health

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestRecent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var last time.Time
		check := Recent("the queue was not polled", "see the log", func() time.Time { return last }, 3*time.Minute)
		ok := func(about string) {
			t.Helper()
			if err := check(t.Context()); err != nil {
				t.Errorf("%s: %v", about, err)
			}
		}
		ok("it has just begun")
		time.Sleep(3 * time.Minute)
		ok("it may still come")
		time.Sleep(time.Second)
		if err := check(t.Context()); err == nil || err.Error() != "the queue was not polled for 3m1s, since 2000-01-01T00:00:00Z: see the log" {
			t.Errorf("it never came: %v", err)
		}
		last = time.Now()
		ok("it came")
		time.Sleep(3*time.Minute + time.Second)
		if err := check(t.Context()); err == nil || !strings.Contains(err.Error(), "since 2000-01-01T00:03:01Z") {
			t.Errorf("it came no more: %v", err)
		}
	})
}

// listen serves TLS with a certificate, or an error instead, which is in
// force so much earlier and later than now.
func listen(t *testing.T, before, after time.Duration, broken error) (address string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "collector"},
		NotBefore: time.Now().Add(-before), NotAfter: time.Now().Add(after)}
	raw, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAnyClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key}, broken
		}})
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conn.(*tls.Conn).Handshake() // fails, as no client's certificate comes
			conn.Close()
		}
	})
	t.Cleanup(func() {
		listener.Close()
		served.Wait()
	})
	return listener.Addr().String()
}

func TestAccepting(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0") // the kernel takes connections, the process does not
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	for _, c := range []struct {
		about, address, want string
	}{
		{"all is well", listen(t, time.Hour, time.Hour, nil), ""},
		{"the certificate has ended", listen(t, 2*time.Hour, -time.Hour, nil), "renew it"},
		{"it has not begun", listen(t, -time.Hour, 2*time.Hour, nil), "see the host's clock"},
		{"it cannot be read", listen(t, time.Hour, time.Hour, errors.New("no such file")), "the collector's certificate and key"},
		{"nobody accepts", silent.Addr().String(), "its limit of open files"},
		{"nobody listens", gone.Addr().String(), "agents cannot attach to 127.0.0.1:"},
	} {
		limit := time.Minute
		if c.about == "nobody accepts" {
			limit = 50 * time.Millisecond
		}
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		err := Accepting(c.address)(ctx)
		cancel()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.about, err, c.want)
		}
	}
}
