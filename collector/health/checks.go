package health

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"
)

// Recent is a check of something that has to happen again and again: it fails
// where that was not for a time. what says what does not happen, and remedy
// what helps. Until it has happened once, its time runs from now on.
func Recent(what, remedy string, last func() time.Time, within time.Duration) func(context.Context) error {
	begun := time.Now()
	return func(context.Context) error {
		at := last()
		if at.IsZero() {
			at = begun
		}
		if ago := time.Since(at); ago > within {
			return fmt.Errorf("%s for %v, since %s: %s", what, ago.Round(time.Second), at.UTC().Format(time.RFC3339), remedy)
		}
		return nil
	}
}

// Accepting is a check of this process's own TLS listener: it fails where no
// handshake comes about, as when the process has no file descriptor left or
// its certificate cannot be read, and where the certificate is not in force.
func Accepting(address string) func(context.Context) error {
	// The chain is not verified, as a client would: this is our own listener,
	// to which nothing is said, and who may have signed is the client's to know.
	dialer := tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, VerifyConnection: inForce}}
	return func(ctx context.Context) error {
		conn, err := dialer.DialContext(ctx, "tcp", address)
		if err == nil {
			_ = conn.Close() // the other end may have been quicker, as no certificate came
			return nil
		}
		if errors.As(err, new(certificateError)) {
			return fmt.Errorf("agents cannot trust the listener on %s: %w", address, err)
		}
		return fmt.Errorf("agents cannot attach to %s: see the log, the collector's certificate and key, and its limit of open files: %w", address, err)
	}
}

// certificateError says that a certificate is not in force.
type certificateError string

func (e certificateError) Error() string { return string(e) }

func inForce(state tls.ConnectionState) error {
	cert, now := state.PeerCertificates[0], time.Now()
	switch {
	case now.Before(cert.NotBefore):
		return certificateError(fmt.Sprintf("its certificate is not valid before %s: see the host's clock", cert.NotBefore.UTC().Format(time.RFC3339)))
	case now.After(cert.NotAfter):
		return certificateError(fmt.Sprintf("its certificate was valid until %s: renew it, which needs no restart", cert.NotAfter.UTC().Format(time.RFC3339)))
	}
	return nil
}
